"""Engage the layers of a sandbox; the order of the steps matters; see docs/security.md.

A copy of the parent engages all layers (`confine`). A sandbox's fork server engages the shared
layers once (`enter_server`), and each of its children the others (`enter_child`). Every step either
engages its layer or raises `LayerError`; no layer is skipped here.
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

# The scratch directory and its parent directory. A mount hides a Landlock rule for its mount point,
# so the rule is for the parent directory.
SCRATCH_PARENT = "/aioisolate"
SCRATCH = "/aioisolate/scratch"
_KILL = 9
_HOST_NAME = "isolated"
# RLIMIT_SIGPENDING. It includes timers, and the kernel counts all processes of a user together.
_PENDING_SIGNALS = 128
_os: Any = os  # some platforms lack some of its functions


class LayerError(OSError):
    """A layer could not be engaged; the message has its name and the kernel's error."""

    def __init__(self, layer: str, cause: OSError) -> None:
        where = f" ({cause.filename})" if cause.filename else ""
        super().__init__(cause.errno, f"layer {layer!r}: {cause.strerror}{where}")


class PreparedLayers:
    """The resources that a fork server has prepared for its children's layers.

    Attributes:
        rules: the file descriptor of the Landlock rules, or -1.
        filter: the system call filter of each child, or None.
        proc: a file descriptor of /proc, or -1. The children's view of files has no /proc.
    """

    __slots__ = ("filter", "proc", "rules")

    def __init__(self) -> None:
        self.rules = -1
        self.filter: seccomp.Prepared | None = None
        self.proc = _open_proc()

    def fds(self) -> list[int]:
        """Return the file descriptors of the resources."""
        return [fd for fd in (self.rules, self.proc) if fd >= 0]


def _open_proc() -> int:
    try:
        os.stat("/proc/self")  # fails if another mount covers /proc
        return os.open("/proc", _os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1  # no /proc: user namespaces are impossible, all other layers work


@contextmanager
def _layer(name: str, engaged: list[str]) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise LayerError(name, exc) from exc
    engaged.append(name)


def enter_server(
    confinement: ConfinementSpec, prepared: PreparedLayers, *, tied: bool
) -> list[str]:
    """Engage the layers that the children of a fork server share; return their names.

    *tied*: an `alive_pipe`, not a parent-death signal, kills the server when its parent ends.

    The server runs only this library's code, so it keeps the privilege and the system calls that
    setting its children's users needs.
    """
    engaged: list[str] = []
    parent = os.getppid()
    _set_environment(confinement, engaged)
    if confinement.unshare:
        _enter_namespaces(confinement, engaged)
        if not tied:
            _end_with_parent(parent)  # a new user namespace clears the signal
    if confinement.landlock:
        # Now, since the paths are resolved in the current view of files. Each child restricts
        # itself, in a Landlock domain of its own: processes of one domain can signal each other.
        with _layer(Layer.LANDLOCK, []):
            prepared.rules = _make_rules(confinement)
    with _layer(Layer.PRIVILEGES, engaged):
        set_no_new_privs()
    if confinement.server_filter:
        prepared.filter = seccomp.Prepared(confinement.child_filter, of_a_pid=True)
        with _layer(Layer.SECCOMP, engaged):
            seccomp.Prepared(confinement.server_filter).install()
    return engaged


def enter_child(
    spec: ChildSpec, confinement: ConfinementSpec, prepared: PreparedLayers
) -> list[str]:
    """Engage the layers that a fork server's children do not share; return their names."""
    engaged: list[str] = []
    parent = os.getppid()
    uid, gid = _ids(confinement)
    # The process limit counts per user id and user namespace, so a child that keeps its user id
    # gets its own user namespace.
    own_namespace = confinement.as_user and confinement.uid < 0
    flags = namespaces.NEWUSER if own_namespace else 0
    if confinement.scratch:
        flags |= namespaces.NEWNS
    if flags:
        with _layer(Layer.SCRATCH if confinement.scratch else Layer.USER, []):
            namespaces.unshare(flags)
            if own_namespace:
                namespaces.map_user(uid, gid, prepared.proc)
    _engage_own_layers(confinement, uid, gid, (parent, ()), engaged)
    spec.statm = rlimits.open_statm(prepared.proc)
    if confinement.landlock:
        with _layer(Layer.LANDLOCK, engaged):
            landlock.restrict(prepared.rules)
    if prepared.filter is not None:
        with _layer(Layer.SECCOMP, engaged):
            prepared.filter.install(os.getpid())
    for fd in prepared.fds():
        os.close(fd)
    return engaged


def confine(spec: ChildSpec) -> str:
    """Confine a copy of the parent according to *spec*, and wait for the parent's approval."""
    confinement = spec.confinement
    if confinement is None:
        spec.statm = rlimits.open_statm()
    else:
        proc = _open_proc()
        if confinement.codec != "pickle":
            shared_mappings.unmap_io_uring_rings(proc)
        engaged = _enter_copy(spec, confinement, proc)
        if proc >= 0:
            os.close(proc)
        body = ",".join(engaged).encode()
        os.write(spec.channel, encode(spec.nonce, Kind.READY, body))
        if os.read(spec.channel, 1) != GO:
            os._exit(1)
    if spec.rlimits is not None:
        execution.prepare_memory_error(spec)
        rlimits.apply(spec.rlimits, spec.statm, spec.scratch)
    return "call"


def _enter_copy(spec: ChildSpec, confinement: ConfinementSpec, proc: int) -> list[str]:
    engaged: list[str] = []
    parent = os.getppid()
    _set_environment(confinement, engaged)
    uid, gid = _ids(confinement)
    if confinement.unshare:
        _enter_namespaces(confinement, engaged)
    rules = -1
    if confinement.landlock:
        # Before the user id changes: the new user may have no access to the paths.
        with _layer(Layer.LANDLOCK, []):
            rules = _make_rules(confinement)
    _engage_own_layers(confinement, uid, gid, (parent, spec.ends), engaged)
    spec.statm = rlimits.open_statm(proc)
    with _layer(Layer.PRIVILEGES, engaged):
        set_no_new_privs()
    if confinement.landlock:
        with _layer(Layer.LANDLOCK, engaged):
            landlock.restrict(rules)
            os.close(rules)
    if confinement.whole_filter:
        with _layer(Layer.SECCOMP, engaged):
            _whole_filter(confinement.whole_filter).install(os.getpid())
    return engaged


@functools.lru_cache(8)
def _whole_filter(program: bytes) -> seccomp.Prepared:
    return seccomp.Prepared(program, of_a_pid=True)


def get_ready(confinement: ConfinementSpec) -> None:
    """Import modules and prepare data in the parent, before the fork.

    A confined child may be unable to import the modules that encode results and exceptions.
    """
    if confinement.whole_filter:
        _whole_filter(confinement.whole_filter)
    if confinement.codec != "pickle":
        from .._wire import plain_data, safe_text  # noqa: PLC0415 - only for confined children

        # These calls import the codec's library, and the modules for exceptions.
        plain_data.dump(confinement.codec, {})
        safe_text.dump_exception(ValueError())
    else:
        from .._wire import exceptions  # noqa: F401, PLC0415 - only for confined children


def _set_environment(confinement: ConfinementSpec, engaged: list[str]) -> None:
    if confinement.env is not None:
        os.environ.clear()
        os.environ.update(confinement.env)
        engaged.append(Layer.ENVIRONMENT)


def _ids(confinement: ConfinementSpec) -> tuple[int, int]:
    if confinement.uid < 0:
        return os.getuid(), os.getgid()
    uid = confinement.uid or users.spare_id(os.getpid(), users.Ids(*confinement.spare))
    return uid, uid


def _enter_namespaces(confinement: ConfinementSpec, engaged: list[str]) -> None:
    """Enter new namespaces, and set up the view of files."""
    with _layer(Layer.NAMESPACES, engaged):
        uid, gid = os.getuid(), os.getgid()
        if not confinement.as_user:
            namespaces.unshare(confinement.unshare)
        elif confinement.ids:
            namespaces.unshare_with_ids(confinement.unshare, uid, gid, *confinement.spare)
        else:
            namespaces.unshare(confinement.unshare | namespaces.NEWUSER)
            namespaces.map_user(uid, gid)
        if confinement.host_name:
            namespaces.set_host_name(_HOST_NAME)
    if confinement.view:
        with _layer(Layer.VIEW, engaged):
            make_view((*_readable(confinement), *(confinement.write or ())), [SCRATCH])


def _engage_own_layers(
    confinement: ConfinementSpec,
    uid: int,
    gid: int,
    parent: tuple[int, Sequence[int]],
    engaged: list[str],
) -> None:
    """Engage the layers that each call has for itself and that need privileges; then drop these.

    *parent*: the parent's pid, and the ends of the `alive_pipe` that ties this process to the
    parent, if any.
    """
    parent_pid, ends = parent
    if confinement.scratch:
        with _layer(Layer.SCRATCH, engaged):
            _mount_scratch(confinement.scratch, uid, gid)
    if confinement.init:
        with _layer(Layer.PROCESSES, engaged):
            if confinement.as_user and not ends:
                # The new user namespace has cleared the parent-death signal of the follower, too.
                _end_with_parent(parent_pid)
            pid_namespace.enter_namespace()
            # The parent is now the follower, outside the PID namespace, so getppid() returns 0.
            # The follower has a single thread, so only its own end sends a parent-death signal.
            _close(ends)
            parent_pid, ends = 0, ()
    if confinement.uid >= 0:
        with _layer(Layer.USER, engaged):
            users.become(uid, gid)
    elif confinement.as_user:
        with _layer(Layer.USER, engaged):
            users.drop_capabilities()
    elif confinement.drop:
        with _layer(Layer.CAPABILITIES, engaged):
            users.drop_capabilities()
    with _layer(Layer.PRIVILEGES, []):
        _protect(confinement, parent_pid, ends)
    if confinement.scratch:
        _enter_scratch()
    elif confinement.read is not None:
        os.chdir("/")


def _protect(confinement: ConfinementSpec, parent: int, ends: Sequence[int]) -> None:
    """Make this process end with its parent, and inaccessible to other processes."""
    if ends:
        # After a change of user, this process may be unable to signal processes of the old user.
        alive_pipe.tie(ends, os.getpid())
        _close(ends)
    else:
        # A change of user clears the parent-death signal, and the parent may have died meanwhile.
        _end_with_parent(parent)
    # No process of the same user may inspect this one, and it leaves no core dump.
    set_dumpable(False)
    if confinement.codec != "pickle":
        rlimit.limit_pending_signals(_PENDING_SIGNALS)


def _end_with_parent(parent: int) -> None:
    set_parent_death_signal(_KILL)
    if os.getppid() != parent:
        os._exit(1)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _enter_scratch() -> None:
    os.chdir(SCRATCH)
    os.environ["HOME"] = os.environ["TMPDIR"] = SCRATCH
    if "tempfile" in sys.modules:  # which may have cached a directory
        tempfile: Any = sys.modules["tempfile"]
        tempfile.tempdir = None


def _mount_scratch(size: int, uid: int, gid: int) -> None:
    files = max(64, size // 4096)
    namespaces.mount_tmpfs(SCRATCH, f"size={size},nr_inodes={files},mode=700,uid={uid},gid={gid}")


def _readable(confinement: ConfinementSpec) -> list[str]:
    """Return the readable paths; optional ones only if they exist (a library may be replaced)."""
    optional = confinement.optional
    paths = confinement.read or ()
    return [path for path in paths if path not in optional or os.path.exists(path)]


def _make_rules(confinement: ConfinementSpec) -> int:
    write = confinement.write or ()
    if confinement.scratch:
        write = (*write, SCRATCH_PARENT)
    return landlock.make_ruleset(
        _readable(confinement),
        write,
        execute=confinement.execute,
        network=confinement.network,
        abi=confinement.landlock,
    )
