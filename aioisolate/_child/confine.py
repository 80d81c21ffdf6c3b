"""Engaging a sandbox's layers, in an order that each step depends on; see docs/security.md.

A copy of the parent engages all of them (`confine`). A fork server of a sandbox engages once what
its children share (`enter_server`), each child what must be its own (`enter_child`). Every step
either does what it says or raises `LayerError`; nothing is skipped here.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .._os import alive_pipe, landlock, namespaces, rlimit, seccomp, shared_mappings, users
from .._os.filesystem_view import make_view
from .._os.prctl import set_dumpable, set_no_new_privs, set_parent_death_signal
from .._wire.frames import Kind, encode
from .._wire.shared_constants import GO
from . import execution, pid_namespace, rlimits
from .layers import ConfinementSpec, Layer
from .spec import ChildSpec

__all__ = ["LayerError", "PreparedLayers", "confine", "enter_child", "enter_server", "get_ready"]

# The scratch directory, and the one in which it is: a rule on a directory that something is mounted
# on is hidden by that mount, so the rule is one for its parent.
SCRATCH_PARENT = "/aioisolate"
SCRATCH = "/aioisolate/scratch"
_KILL = 9
_HOST_NAME = "isolated"
# Timers count, too; what there is of them is for all processes of a user together.
_PENDING_SIGNALS = 128
_os: Any = os  # not every platform has all of it


class LayerError(OSError):
    """A layer could not be engaged; the message has its name and the kernel's error."""

    def __init__(self, layer: str, cause: OSError) -> None:
        where = f" ({cause.filename})" if cause.filename else ""
        super().__init__(cause.errno, f"layer {layer!r}: {cause.strerror}{where}")


class PreparedLayers:
    """The resources that a fork server has prepared for its children's layers.

    Attributes:
        rules: the descriptor of the Landlock rules, or -1.
        filter: the system call filter of each child, or None.
        proc: a descriptor of /proc, which the children's view lacks, or -1.
    """

    __slots__ = ("filter", "proc", "rules")

    def __init__(self) -> None:
        self.rules = -1
        self.filter: seccomp.Prepared | None = None
        self.proc = _open_proc()

    def fds(self) -> list[int]:
        """Return its descriptors."""
        return [fd for fd in (self.rules, self.proc) if fd >= 0]


def _open_proc() -> int:
    try:
        os.stat("/proc/self")  # it may be covered
        return os.open("/proc", _os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1  # there is none; user namespaces can't be had without it, and all else can


@contextmanager
def _layer(name: str, engaged: list[str]) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise LayerError(name, exc) from exc
    engaged.append(name)


def enter_server(policy: ConfinementSpec, ground: PreparedLayers, *, tied: bool) -> list[str]:
    """Engage the layers that the children of a fork server share; return their names.

    *tied*: an `alive_pipe` kills it with its parent, and no parent-death signal.

    Only this library's code runs in the server, so it keeps the privilege and the system calls that
    are needed to set its children's users.
    """
    engaged: list[str] = []
    parent = os.getppid()
    _set_environment(policy, engaged)
    if policy.unshare:
        _leave(policy, engaged)
        if not tied:
            _die_with(parent)  # a new user namespace clears it
    if policy.landlock:
        # Made now, since the paths are looked up in the view of now; each child restricts itself,
        # by a domain of its own: those of one domain could signal each other.
        with _layer(Layer.LANDLOCK, []):
            ground.rules = _make_rules(policy)
    with _layer(Layer.PRIVILEGES, engaged):
        set_no_new_privs()
    if policy.server_filter:
        ground.filter = seccomp.Prepared(policy.child_filter, of_a_pid=True)
        with _layer(Layer.SECCOMP, engaged):
            seccomp.Prepared(policy.server_filter).install()
    return engaged


def enter_child(spec: ChildSpec, policy: ConfinementSpec, ground: PreparedLayers) -> list[str]:
    """Engage the layers that each child of a fork server has for itself; return their names."""
    engaged: list[str] = []
    parent = os.getppid()
    uid, gid = _ids(policy)
    # A user namespace of its own, since that is where processes are counted, unless by user id.
    counted_there = policy.as_user and policy.uid < 0
    flags = namespaces.NEWUSER if counted_there else 0
    if policy.scratch:
        flags |= namespaces.NEWNS
    if flags:
        with _layer(Layer.SCRATCH if policy.scratch else Layer.USER, []):
            namespaces.unshare(flags)
            if counted_there:
                namespaces.map_user(uid, gid, ground.proc)
    _own(policy, uid, gid, (parent, ()), engaged)
    spec.statm = rlimits.open_statm(ground.proc)
    if policy.landlock:
        with _layer(Layer.LANDLOCK, engaged):
            landlock.restrict(ground.rules)
    if ground.filter is not None:
        with _layer(Layer.SECCOMP, engaged):
            ground.filter.install(os.getpid())
    for fd in ground.fds():
        os.close(fd)
    return engaged


def confine(spec: ChildSpec) -> str:
    """Confine a copy of the parent as *spec* says, and wait for the parent's approval."""
    policy = spec.policy
    if policy is None:
        spec.statm = rlimits.open_statm()
    else:
        proc = _open_proc()
        if policy.codec != "pickle":
            shared_mappings.leave_rings(proc)
        engaged = _enter_copy(spec, policy, proc)
        if proc >= 0:
            os.close(proc)
        body = ",".join(engaged).encode()
        os.write(spec.channel, encode(spec.nonce, Kind.READY, body))
        if os.read(spec.channel, 1) != GO:
            os._exit(1)
    if spec.bounds is not None:
        execution.have_last_word(spec)
        rlimits.apply(spec.bounds, spec.statm, spec.scratch)
    return "call"


def _enter_copy(spec: ChildSpec, policy: ConfinementSpec, proc: int) -> list[str]:
    engaged: list[str] = []
    parent = os.getppid()
    _set_environment(policy, engaged)
    uid, gid = _ids(policy)
    if policy.unshare:
        _leave(policy, engaged)
    rules = -1
    if policy.landlock:
        # Now: whoever it becomes may not find the paths.
        with _layer(Layer.LANDLOCK, []):
            rules = _make_rules(policy)
    _own(policy, uid, gid, (parent, spec.ends), engaged)
    spec.statm = rlimits.open_statm(proc)
    with _layer(Layer.PRIVILEGES, engaged):
        set_no_new_privs()
    if policy.landlock:
        with _layer(Layer.LANDLOCK, engaged):
            landlock.restrict(rules)
            os.close(rules)
    if policy.whole_filter:
        with _layer(Layer.SECCOMP, engaged):
            _whole_filter(policy.whole_filter).install(os.getpid())
    return engaged


@functools.lru_cache(8)
def _whole_filter(program: bytes) -> seccomp.Prepared:
    return seccomp.Prepared(program, of_a_pid=True)


def get_ready(policy: ConfinementSpec) -> None:
    """Import modules and lay out data in the parent, before the fork.

    A confined child may be unable to import the modules that answers need.
    """
    if policy.whole_filter:
        _whole_filter(policy.whole_filter)
    if policy.codec != "pickle":
        from .._wire import plain_data, safe_text  # noqa: PLC0415 - only for those who are confined

        # The codec's own library, and whatever exceptions need.
        plain_data.dump(policy.codec, {})
        safe_text.dump_exception(ValueError())
    else:
        from .._wire import exceptions  # noqa: F401, PLC0415 - only for confined children


def _set_environment(policy: ConfinementSpec, engaged: list[str]) -> None:
    if policy.env is not None:
        os.environ.clear()
        os.environ.update(policy.env)
        engaged.append(Layer.ENVIRONMENT)


def _ids(policy: ConfinementSpec) -> tuple[int, int]:
    if policy.uid < 0:
        return os.getuid(), os.getgid()
    uid = policy.uid or users.spare_id(os.getpid(), users.Ids(*policy.spare))
    return uid, uid


def _leave(policy: ConfinementSpec, engaged: list[str]) -> None:
    """Leave the namespaces that others are in, and get a view of the files of one's own."""
    with _layer(Layer.NAMESPACES, engaged):
        uid, gid = os.getuid(), os.getgid()
        if not policy.as_user:
            namespaces.unshare(policy.unshare)
        elif policy.ids:
            namespaces.unshare_with_ids(policy.unshare, uid, gid, *policy.spare)
        else:
            namespaces.unshare(policy.unshare | namespaces.NEWUSER)
            namespaces.map_user(uid, gid)
        if policy.host_name:
            namespaces.set_host_name(_HOST_NAME)
    if policy.view:
        with _layer(Layer.VIEW, engaged):
            make_view((*_readable(policy), *(policy.write or ())), [SCRATCH])


def _own(
    policy: ConfinementSpec,
    uid: int,
    gid: int,
    parent: tuple[int, Sequence[int]],
    engaged: list[str],
) -> None:
    """Engage what needs the privilege that is given up at its end.

    *parent*: its pid, and the ends of the `alive_pipe`, if one ties this process to it.
    """
    parent_pid, ends = parent
    if policy.scratch:
        with _layer(Layer.SCRATCH, engaged):
            _mount_scratch(policy.scratch, uid, gid)
    if policy.init:
        with _layer(Layer.PROCESSES, engaged):
            if policy.as_user and not ends:
                # A new user namespace has cleared it, for those who stay outside, too.
                _die_with(parent_pid)
            pid_namespace.live_under_one()
            # The parent is outside, so it has no number here. It has no thread but one.
            _close(ends)
            parent_pid, ends = 0, ()
    if policy.uid >= 0:
        with _layer(Layer.USER, engaged):
            users.become(uid, gid)
    elif policy.as_user:
        with _layer(Layer.USER, engaged):
            users.drop_capabilities()
    elif policy.drop:
        with _layer(Layer.CAPABILITIES, engaged):
            users.drop_capabilities()
    with _layer(Layer.PRIVILEGES, []):
        _keep_apart(policy, parent_pid, ends)
    if policy.scratch:
        _go_to_scratch()
    elif policy.read is not None:
        os.chdir("/")


def _keep_apart(policy: ConfinementSpec, parent: int, ends: Sequence[int]) -> None:
    if ends:
        # After a change of user, the process may not be able to signal one of the old user.
        alive_pipe.tie(ends, os.getpid())
        _close(ends)
    else:
        # A change of user clears the parent-death signal, and the parent may have died meanwhile.
        _die_with(parent)
    # No process of the same user may inspect this one, and it leaves no core dump.
    set_dumpable(False)
    if policy.codec != "pickle":
        rlimit.limit_pending_signals(_PENDING_SIGNALS)


def _die_with(parent: int) -> None:
    set_parent_death_signal(_KILL)
    if os.getppid() != parent:
        os._exit(1)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _go_to_scratch() -> None:
    os.chdir(SCRATCH)
    os.environ["HOME"] = os.environ["TMPDIR"] = SCRATCH
    if "tempfile" in sys.modules:  # which may have made up its mind
        tempfile: Any = sys.modules["tempfile"]
        tempfile.tempdir = None


def _mount_scratch(size: int, uid: int, gid: int) -> None:
    files = max(64, size // 4096)
    namespaces.mount_tmpfs(SCRATCH, f"size={size},nr_inodes={files},mode=700,uid={uid},gid={gid}")


def _readable(policy: ConfinementSpec) -> list[str]:
    """List what may be read, as far as it is there: a library may have been replaced since."""
    optional = policy.optional
    paths = policy.read or ()
    return [path for path in paths if path not in optional or os.path.exists(path)]


def _make_rules(policy: ConfinementSpec) -> int:
    write = policy.write or ()
    if policy.scratch:
        write = (*write, SCRATCH_PARENT)
    return landlock.make_ruleset(
        _readable(policy),
        write,
        execute=policy.execute,
        network=policy.network,
        abi=policy.landlock,
    )
