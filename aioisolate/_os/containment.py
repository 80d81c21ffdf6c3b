"""What this machine offers for sandboxes, found out once by doing it in throw-away children.

What a process may do is decided by its capabilities, its user namespace, filters of system calls,
security modules and limits of a container, together. So nothing here is concluded from one of
them: each verdict is that of an attempt.
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
from .process import fork, hush_fork_warning

__all__ = ["Containment", "containment", "why_no_landlock"]

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_ENDED = "the attempt was ended, by a filter of system calls perhaps"
# What is wrong now, and may not be in a moment: no verdict on this machine, nothing to be kept.
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
_PASSING_MARK = "passing "
# A pipe holds more than a child has to say.
_ANSWER_MAX = 1 << 16
# Seconds for the attempts in a fresh interpreter.
_PATIENCE = 5
# What the view is tried with: a directory that is there, wherever Python runs.
_SAMPLE = os.path.dirname(os.path.abspath(os.__file__))


class Containment(NamedTuple):
    """What a sandbox can count on here.

    Attributes:
        platform: `sys.platform`.
        becomes: this process may become another user, and end the processes of that user.
        namespaces: how it gets namespaces: "privilege", "user" (through a user namespace), or "".
        why_no_namespaces: what the kernel says, if it gets none.
        landlock: the version of Landlock, 0: none.
        seccomp: system calls can be filtered.
        groups: the controllers of control groups that can be made: "memory", "pids".
        processes_by_namespace: a user's processes are counted for each user namespace by itself.
        why_not_becomes: what stands against another user.
        spare: the first of the ids that children can have, and how many there are.
        view: in a mount namespace the root directory can be another.
        why_no_view: what stands against that.
        why_no_landlock, why_no_seccomp: likewise.
        processes_by_user: the processes of this process's user are counted, all together.
        capable: this process has capabilities.
        host_name: in a namespace for host names it can be changed.
        dumpable: this process may look into itself, and so may its forked copies.
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
    """Return what a sandbox can count on here; the first time that takes throw-away children."""
    from . import prctl, users  # noqa: PLC0415 - most programs do without

    # What this process is may change: servers give up their privileges once they have begun.
    return _containment(os.geteuid(), users.capabilities(), prctl.is_dumpable())


@functools.cache
def _containment(_: int, capabilities: int, dumpable: bool) -> Containment:
    from . import cgroup_delegation, landlock, seccomp  # noqa: PLC0415 - as above

    found: dict[str, Any] = {}
    if sys.platform == "linux":
        hush_fork_warning()
        # A copy of a process that may not be looked into can't, either; a fresh program can.
        found = _attempt_all() if dumpable else _attempt_in_program()
    return Containment(
        platform=sys.platform,
        becomes=found.get("becomes", False),
        namespaces=found.get("namespaces", ""),
        why_no_namespaces=found.get("why_no_namespaces", ""),
        landlock=landlock.abi(),
        seccomp=seccomp.available(),
        groups=frozenset(
            name
            for name, home in cgroup_delegation.delegated()._asdict().items()
            if home is not None
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
    """Say what stands against Landlock; "" if nothing does."""
    from . import landlock  # noqa: PLC0415 - as above

    code = landlock.refusal()
    if not code:
        return ""
    if code == errno.EOPNOTSUPP:
        return "Landlock is off in this kernel: boot it with lsm=landlock,..."
    if code != errno.ENOSYS or _is_filtered():
        return (
            "the filter of system calls that this process is under, its container's perhaps, "
            "forbids Landlock: let the seccomp profile pass landlock_create_ruleset, "
            "landlock_add_rule and landlock_restrict_self, as Docker's own does"
        )
    return "this kernel has no Landlock: it takes Linux 5.13"


def _is_filtered() -> bool:
    from . import prctl  # noqa: PLC0415 - as above

    return prctl.is_filtered()


# The attempts


def _attempt_in_program() -> dict[str, Any]:
    import subprocess  # noqa: PLC0415 - takes long to import

    program = sys.executable
    if not program or not os.path.isabs(program) or getattr(sys, "frozen", None) is True:
        return _untried(f"{program!r} is not the path of a Python interpreter")
    # The folder comes last: it may be site-packages, with modules named as some of the library.
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
    why = f"it could not be tried out: {reason}"
    return {"why_no_namespaces": why, "why_not_becomes": why, "why_no_view": why}


def _write_attempts() -> None:
    os.write(1, marshal.dumps(_attempt_all()))


def _attempt_all() -> dict[str, Any]:
    from . import users  # noqa: PLC0415 - as above

    found: dict[str, Any] = {}
    why, ids = "no user ids are to spare in this user namespace", users.spare_ids()
    if ids is not None:
        found["spare"] = tuple(ids)
        why = _try_becoming(ids)
        found["becomes"] = not why
    found["why_not_becomes"] = why
    mapped = None if why else ids
    # A filter may end who tries it. (Then nothing is told; and the rest may work all the same.)
    of_namespaces = _in_child(lambda: _try_namespaces(mapped))
    if not of_namespaces:
        of_namespaces = _in_child(lambda: _try_namespaces(mapped, view=False))
    if "passing" in of_namespaces:
        _raise_passing(of_namespaces["passing"])
    found |= of_namespaces or {"why_no_namespaces": _ENDED, "why_no_view": _ENDED}
    found |= _in_child(_try_counting)
    return found


def _in_child(attempt: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Make an attempt in a throw-away child; return what it has found."""
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
        # Not up to its end: a process that another thread has forked may have the pipe open, too.
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
    """Fork a child that no signal but SIGKILL reaches: no handler of this process runs there."""
    mask = signals.block_all()
    pid = -1
    try:
        pid = fork()
    finally:
        if pid != 0:
            signals.set_mask(mask)
    return pid


def _collect(pid: int) -> None:
    """Wait until a child has ended; where SIGCHLD is ignored there is nothing to collect then."""
    try:
        unpatched.waitpid(pid, 0)
    except ChildProcessError:
        pass


def _try_becoming(ids: tuple[int, int]) -> str:
    """Become another user in a child, and kill it; return what stands against that, or ""."""
    from . import killing, users  # noqa: PLC0415 - as above

    owner = Descriptors()
    try:
        read, write = map(owner.own, os.pipe())
        wait, go = map(owner.own, os.pipe())
        pid = _fork()
        if pid == 0:
            why = _ENDED
            try:
                owner.close(go)  # so that it ends with its parent
                uid = users.spare_id(os.getpid(), users.Ids(*ids))
                users.become(uid, uid)
                why = ""
            except OSError as exc:
                why = f"becoming another user is refused: {exc.strerror}"
                if exc.errno in _PASSING:
                    why = f"{_PASSING_MARK}{exc.errno}"
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
        os.write(go, b"!")  # it ends now, if it was not killed
        _collect(pid)
    finally:
        owner.close_all()
    if why.startswith(_PASSING_MARK):
        _raise_passing(int(why.removeprefix(_PASSING_MARK)))
    return why


def _raise_passing(code: int) -> NoReturn:
    raise OSError(code, f"{os.strerror(code)}, while it was tried out what a sandbox can have here")


def _try_namespaces(ids: tuple[int, int] | None, *, view: bool = True) -> dict[str, Any]:
    """Leave all namespaces, get another view of files, and be counted; in a throw-away child."""
    # All that it takes: in the other view there are no modules to be imported.
    from . import namespaces, process_count, users  # noqa: PLC0415 - as above
    from .filesystem_view import make_view  # noqa: PLC0415 - as above

    found: dict[str, Any] = {}
    try:
        found["namespaces"] = _leave(ids)
    except OSError as exc:
        if exc.errno in _PASSING:
            return {"passing": exc.errno}
        why = f"{exc.strerror} ({exc.filename})"
        return {"why_no_namespaces": why, "why_no_view": why}
    try:
        namespaces.set_host_name("isolated")
        found["host_name"] = True
    except OSError:
        pass  # forbidden by a filter, as Docker's
    try:
        if view:
            make_view([_SAMPLE], ["/aioisolate"])
            os.listdir(_SAMPLE)
            found["view"] = True
        else:
            found["why_no_view"] = _ENDED
    except OSError as exc:
        if exc.errno in _PASSING:
            return {"passing": exc.errno}
        found["why_no_view"] = f"{exc.strerror} ({exc.filename})"
    if found["namespaces"] == "user" and ids is None:
        users.drop_capabilities()
        try:
            # This process is not the user's only one.
            found["processes_by_namespace"] = process_count.count_tasks() == 1
        except OSError:
            pass  # they are not counted at all
    return found


def _leave(ids: tuple[int, int] | None) -> str:
    """Leave all namespaces; return how. Raises OSError."""
    from . import namespaces  # noqa: PLC0415 - as above

    uid, gid = os.getuid(), os.getgid()
    try:
        namespaces.unshare(namespaces.ALL)
    except OSError as exc:
        if exc.errno in _PASSING:
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
