"""Find which sandbox layers work on this machine, by an attempt at each in throw-away children.

The rights of a process depend on capabilities, the user namespace, seccomp filters, security
modules and a container's limits together. None of them alone allows a conclusion, so each result
comes from an attempt.
"""

from __future__ import annotations

import errno
import functools
import marshal
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from . import signals, unpatched
from .fds import Descriptors
from .process import fork, suppress_fork_warning

__all__ = ["Containment", "containment", "why_no_landlock"]

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_ENDED = "the attempt was killed, perhaps by a seccomp filter"
# Transient errors, which are not a property of the machine: no result is cached.
_TRANSIENT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
_TRANSIENT_MARK = "transient "
# A child's answer is shorter than what a pipe holds.
_ANSWER_MAX = 1 << 16
# Timeout of the attempts in a fresh interpreter, in seconds.
_PATIENCE = 5
# A directory for the attempt at a view; it exists wherever Python runs.
_SAMPLE = os.path.dirname(os.path.abspath(os.__file__))


class Containment(NamedTuple):
    """The sandbox layers that work on this machine.

    Attributes:
        platform: `sys.platform`.
        becomes: this process may become another user, and kill the processes of that user.
        namespaces: how this process can enter new namespaces: "privilege", "user" (through a user
            namespace), or "" if it can't.
        why_no_namespaces: the kernel's error if it can't.
        landlock: the ABI version of Landlock, or 0.
        seccomp: seccomp filters can be installed.
        groups: the controllers of cgroups that can be created: "memory", "pids".
        processes_by_namespace: RLIMIT_NPROC counts a user's processes by user namespace.
        why_not_becomes: why this process can't become another user.
        spare: the first of the user ids that children can have, and their number.
        view: a mount namespace can have another root directory.
        why_no_view: why it can't.
        why_no_landlock, why_no_seccomp: why these layers do not work.
        processes_by_user: RLIMIT_NPROC counts all processes of this process's user.
        capable: this process has capabilities.
        host_name: the host name can be changed in a UTS namespace.
        dumpable: this process and its forked copies may read their own files in /proc.
    """

    platform: str
    becomes: bool
    namespaces: str
    why_no_namespaces: str
    landlock: int
    seccomp: bool
    groups: frozenset[str]
    processes_by_namespace: bool
    why_not_becomes: str = ""
    spare: tuple[int, int] = (0x70000000, 1 << 22)
    view: bool = True
    why_no_view: str = ""
    why_no_landlock: str = ""
    why_no_seccomp: str = ""
    processes_by_user: bool = False
    capable: bool = False
    dumpable: bool = True
    host_name: bool = True


def containment() -> Containment:
    """Return the layers that work on this machine; the first call forks throw-away children."""
    from . import prctl, users  # noqa: PLC0415 - most programs do not need them

    # The cache key: servers drop their privileges after they have started.
    return _containment(os.geteuid(), users.capabilities(), prctl.is_dumpable())


@functools.cache
def _containment(_: int, capabilities: int, dumpable: bool) -> Containment:
    from . import cgroup_tree, landlock, seccomp  # noqa: PLC0415 - as above

    found: dict[str, Any] = {}
    if sys.platform == "linux":
        suppress_fork_warning()
        # A forked copy of a non-dumpable process is not dumpable; a new program is.
        found = _attempt_all() if dumpable else _attempt_in_program()
    return Containment(
        platform=sys.platform,
        becomes=found.get("becomes", False),
        namespaces=found.get("namespaces", ""),
        why_no_namespaces=found.get("why_no_namespaces", ""),
        landlock=landlock.abi(),
        seccomp=seccomp.available(),
        groups=frozenset(
            name for name, home in cgroup_tree.delegated()._asdict().items() if home is not None
        ),
        processes_by_namespace=found.get("processes_by_namespace", False),
        why_not_becomes=found.get("why_not_becomes", ""),
        spare=found.get("spare", (0x70000000, 1 << 22)),
        view=found.get("view", False),
        why_no_view=found.get("why_no_view", ""),
        why_no_landlock=why_no_landlock() if sys.platform == "linux" else "",
        why_no_seccomp=seccomp.why_unavailable(),
        processes_by_user=found.get("processes_by_user", False),
        capable=bool(capabilities),
        dumpable=dumpable,
        host_name=found.get("host_name", False),
    )


def why_no_landlock() -> str:
    """Return why Landlock does not work, or "" if it does."""
    from . import landlock  # noqa: PLC0415 - as above

    code = landlock.refusal()
    if not code:
        return ""
    if code == errno.EOPNOTSUPP:
        return "Landlock is off in this kernel: boot it with lsm=landlock,..."
    if code != errno.ENOSYS or _is_filtered():
        return (
            "a seccomp filter of this process, perhaps its container's, forbids Landlock: allow "
            "landlock_create_ruleset, landlock_add_rule and landlock_restrict_self in the seccomp "
            "profile, as Docker's default profile does"
        )
    return "this kernel has no Landlock: Linux 5.13 or newer is needed"


def _is_filtered() -> bool:
    from . import prctl  # noqa: PLC0415 - as above

    return prctl.is_filtered()


# The attempts


def _attempt_in_program() -> dict[str, Any]:
    import subprocess  # noqa: PLC0415 - slow to import

    program = sys.executable
    if not program or not os.path.isabs(program) or getattr(sys, "frozen", None) is True:
        return _untried(f"{program!r} is not the path of a Python interpreter")
    # The folder comes last: it may be site-packages, and modules there may shadow standard ones.
    source = (
        "import sys; sys.path.append(sys.argv[1]); "
        "from aioisolate._os.containment import _write_attempts; _write_attempts()"
    )
    try:
        done = subprocess.run(  # noqa: S603 - this very program
            [program, "-I", "-S", "-c", source, _ROOT],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_PATIENCE,
            check=True,
        )
        found: dict[str, Any] = marshal.loads(done.stdout)  # noqa: S302 - of this program
    except (OSError, EOFError, ValueError, subprocess.SubprocessError) as exc:
        return _untried(str(exc))
    return found


def _untried(reason: str) -> dict[str, Any]:
    why = f"it could not be tested: {reason}"
    return {"why_no_namespaces": why, "why_not_becomes": why, "why_no_view": why}


def _write_attempts() -> None:
    os.write(1, marshal.dumps(_attempt_all()))


def _attempt_all() -> dict[str, Any]:
    from . import users  # noqa: PLC0415 - as above

    found: dict[str, Any] = {}
    why, ids = "this user namespace has no unused user ids", users.spare_ids()
    if ids is not None:
        found["spare"] = tuple(ids)
        why = _try_becoming(ids)
        found["becomes"] = not why
    found["why_not_becomes"] = why
    mapped = None if why else ids
    # A filter may kill the child that tries a view. It sends nothing then, so namespaces are tried
    # again without the view.
    of_namespaces = _in_child(lambda: _try_namespaces(mapped))
    if not of_namespaces:
        of_namespaces = _in_child(lambda: _try_namespaces(mapped, view=False))
    if "transient" in of_namespaces:
        _raise_transient(of_namespaces["transient"])
    found |= of_namespaces or {"why_no_namespaces": _ENDED, "why_no_view": _ENDED}
    found |= _in_child(_try_counting)
    return found


def _in_child(attempt: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Make an attempt in a throw-away child; return its result, or {} if the child was killed."""
    owner = Descriptors()
    try:
        read, write = map(owner.own, os.pipe())
        pid = _fork()
        if pid == 0:
            try:
                os.write(write, marshal.dumps(attempt()))
            finally:
                os._exit(0)
        _collect(pid)
        # Not until end of file: a process forked by another thread may hold the pipe open, too.
        os.set_blocking(read, False)
        try:
            data = os.read(read, _ANSWER_MAX)
        except BlockingIOError:
            return {}
    finally:
        owner.close_all()
    found: dict[str, Any] = marshal.loads(data)  # noqa: S302 - of this program
    return found


def _fork() -> int:
    """Fork a child with all signals blocked, so that no handler of this process runs there."""
    mask = signals.block_all()
    pid = -1
    try:
        pid = fork()
    finally:
        if pid != 0:
            signals.set_mask(mask)
    return pid


def _collect(pid: int) -> None:
    """Wait until a child has ended. If SIGCHLD is ignored, the kernel reaps the child."""
    try:
        unpatched.waitpid(pid, 0)
    except ChildProcessError:
        pass


def _try_becoming(ids: tuple[int, int]) -> str:
    """Become another user in a child, and kill it; return why that fails, or ""."""
    from . import killing, users  # noqa: PLC0415 - as above

    owner = Descriptors()
    try:
        read, write = map(owner.own, os.pipe())
        wait, go = map(owner.own, os.pipe())
        pid = _fork()
        if pid == 0:
            why = _ENDED
            try:
                owner.close(go)  # so that the read below returns if the parent ends
                uid = users.spare_id(os.getpid(), users.Ids(*ids))
                users.become(uid, uid)
                why = ""
            except OSError as exc:
                why = f"becoming another user is refused: {exc.strerror}"
                if exc.errno in _TRANSIENT:
                    why = f"{_TRANSIENT_MARK}{exc.errno}"
            finally:
                os.write(write, b"!" + why.encode())
                os.read(wait, 1)
                os._exit(0)
        owner.close(write)
        answer = os.read(read, _ANSWER_MAX)
        why = answer[1:].decode(errors="replace") if answer else _ENDED
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:
            why = why or "killing a process of another user is refused"
            killing.kill_through_descriptor(pid, lambda: False)
        os.write(go, b"!")  # the child exits if it was not killed
        _collect(pid)
    finally:
        owner.close_all()
    if why.startswith(_TRANSIENT_MARK):
        _raise_transient(int(why.removeprefix(_TRANSIENT_MARK)))
    return why


def _raise_transient(code: int) -> NoReturn:
    raise OSError(code, f"{os.strerror(code)}, while testing which sandbox layers work here")


def _try_namespaces(ids: tuple[int, int] | None, *, view: bool = True) -> dict[str, Any]:
    """Try new namespaces, a view of the file system and process counts; in a throw-away child."""
    # Import everything now: in the view there are no modules to import.
    from . import namespaces, process_count, users  # noqa: PLC0415 - as above
    from .filesystem_view import make_view  # noqa: PLC0415 - as above

    found: dict[str, Any] = {}
    try:
        found["namespaces"] = _leave(ids)
    except OSError as exc:
        if exc.errno in _TRANSIENT:
            return {"transient": exc.errno}
        why = f"{exc.strerror} ({exc.filename})"
        return {"why_no_namespaces": why, "why_no_view": why}
    try:
        namespaces.set_host_name("isolated")
        found["host_name"] = True
    except OSError:
        pass  # a filter, such as Docker's, forbids it
    try:
        if view:
            make_view([_SAMPLE], ["/aioisolate"])
            os.listdir(_SAMPLE)
            found["view"] = True
        else:
            found["why_no_view"] = _ENDED
    except OSError as exc:
        if exc.errno in _TRANSIENT:
            return {"transient": exc.errno}
        found["why_no_view"] = f"{exc.strerror} ({exc.filename})"
    if found["namespaces"] == "user" and ids is None:
        users.drop_capabilities()
        try:
            # The user has other processes; a count of one is that of the new namespace.
            found["processes_by_namespace"] = process_count.count_tasks() == 1
        except OSError:
            pass  # processes are not counted at all
    return found


def _leave(ids: tuple[int, int] | None) -> str:
    """Enter new namespaces; return how. Raises OSError."""
    from . import namespaces  # noqa: PLC0415 - as above

    uid, gid = os.getuid(), os.getgid()
    try:
        namespaces.unshare(namespaces.ALL)
    except OSError as exc:
        if exc.errno in _TRANSIENT:
            raise
        if ids is None:
            namespaces.unshare(namespaces.ALL | namespaces.NEWUSER)
            namespaces.map_user(uid, gid)
        else:
            namespaces.unshare_with_ids(namespaces.ALL, uid, gid, *ids)
        return "user"
    return "privilege"


def _try_counting() -> dict[str, Any]:
    from . import process_count, users  # noqa: PLC0415 - as above

    users.drop_capabilities()
    return {"processes_by_user": process_count.is_counted()}
