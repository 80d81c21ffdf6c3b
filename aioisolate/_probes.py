"""Probes of each layer of the sandbox: a layer must work, and forbid what it should."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from ._os import cgroups, landlock, memfd, namespaces, rlimit, seccomp, unpatched, users
from ._os.containment import containment, why_no_landlock
from ._os.filesystem_view import make_view
from ._os.prctl import set_no_new_privs, set_parent_death_signal

__all__ = ["findings"]

_os: Any = os  # not every platform has all its functions


def findings() -> Iterator[tuple[str, bool, str, str]]:
    """Run each probe; yield its name, whether it passed, what was seen, and what depends on it."""
    for name, promises, attempt in _ATTEMPTS:
        holds, detail = _try(attempt)
        yield name, holds, detail, promises


def _try(attempt: Callable[[], str]) -> tuple[bool, str]:
    """Run a probe in a child of its own; return whether it passed, and what was seen."""
    read, write = os.pipe()
    pid = unpatched.fork()
    if pid == 0:
        word = "-the attempt was ended"
        try:
            os.close(read)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            word = f"+{attempt()}"
        except _UnfulfilledError as exc:
            word = f"-{exc}"
        except OSError as exc:
            word = f"-{exc.strerror} ({errno.errorcode.get(exc.errno or 0, exc.errno)})"
        except BaseException as exc:  # noqa: BLE001 - reported as the result
            word = f"-{type(exc).__name__}: {exc}"
        finally:
            os.write(write, word.encode(errors="replace")[:1000])
            os._exit(0)
    os.close(write)
    with open(read) as file:
        word = file.read()
    unpatched.waitpid(pid, 0)
    return word.startswith("+"), word[1:] or "the attempt was killed"


class _UnfulfilledError(Exception):
    """A forbidden action was possible."""


def _must_fail(what: str, act: Callable[[], object], *errors: int) -> None:
    try:
        act()
    except OSError as exc:
        if exc.errno in errors:
            return
        raise
    raise _UnfulfilledError(f"{what} was still possible")


def _parent_death() -> str:
    set_parent_death_signal(signal.SIGKILL)
    if os.uname().sysname != "Linux":
        raise _UnfulfilledError("there is no such signal here")
    return "PR_SET_PDEATHSIG"


def _pidfd() -> str:
    os.close(_os.pidfd_open(os.getpid()))
    return "pidfd_open"


def _sealing() -> str:
    from ._os.fds import Descriptors  # noqa: PLC0415 - in the child only

    fd = memfd.create(Descriptors())
    os.write(fd, b"x")
    memfd.seal(fd)
    _must_fail("writing to a sealed file", lambda: os.write(fd, b"y"), errno.EPERM)
    return "memfd_create, F_ADD_SEALS"


def _memory() -> str:
    if not rlimit.address_space():
        raise _UnfulfilledError("the size of a process can't be learned here (/proc)")
    limit = rlimit.address_space() + (64 << 20)
    rlimit.apply([(rlimit.NUMBERS["address_space"], limit, limit)])
    _must_fail("mapping 128 MiB", lambda: mmap.mmap(-1, 128 << 20), errno.ENOMEM)
    return "RLIMIT_AS, above the baseline, each process by itself"


def _file_size() -> str:
    rlimit.apply([(rlimit.NUMBERS["file_size"], 4096, 4096)])
    with tempfile.TemporaryFile() as file:
        fd = file.fileno()
        _must_fail("growing a file", lambda: os.ftruncate(fd, 8192), errno.EFBIG)
    return "RLIMIT_FSIZE"


def _children(most: int) -> int:
    """Return how many children can be forked, *most* at most."""
    pids: list[int] = []
    try:
        while len(pids) < most:
            pid = unpatched.fork()
            if pid == 0:
                signal.pause()
                os._exit(0)
            pids.append(pid)
    except BlockingIOError:
        pass
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        unpatched.waitpid(pid, 0)
    return len(pids)


def _processes_by_user() -> str:
    _become_somebody()
    return _count(3, "a user id of its own")


def _processes_by_namespace() -> str:
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        raise _UnfulfilledError(
            "the kernel does not count root's processes; another user id is needed"
        )
    namespaces.unshare(namespaces.NEWUSER)
    namespaces.map_user(uid, gid)
    users.drop_capabilities()
    return _count(3, "a user namespace of its own")


def _count(limit: int, how: str) -> str:
    rlimit.apply([(rlimit.NUMBERS["processes"], limit, limit)])
    found = _children(limit + 3)
    if found != limit - 1:
        raise _UnfulfilledError(f"with a limit of {limit} there could be {found} children")
    return f"RLIMIT_NPROC, by {how}"


def _processes_by_group() -> str:
    group = cgroups.Cgroup.create(None, 3)
    pid = unpatched.fork()
    if pid == 0:
        cgroups.enter(group.entrances)
        os._exit(_children(6))
    _, status = unpatched.waitpid(pid, 0)
    group.kill()
    group.remove()
    found = os.waitstatus_to_exitcode(status)
    if found != 2:
        raise _UnfulfilledError(f"with a limit of 3 there could be {found} children")
    return "a control group"


def _memory_by_group() -> str:
    group = cgroups.Cgroup.create(32 << 20, None)
    pid = unpatched.fork()
    if pid == 0:
        cgroups.enter(group.entrances)
        block = mmap.mmap(-1, 96 << 20)
        for at in range(0, len(block), mmap.PAGESIZE):
            block[at] = 1
        os._exit(0)
    _, status = unpatched.waitpid(pid, 0)
    kills = group.events().oom_kills
    group.kill()
    group.remove()
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL or not kills:
        raise _UnfulfilledError("more memory could be used than the limit of the group")
    return "a control group, all processes of a call together"


def _become_somebody() -> int:
    uid = users.spare_id(os.getpid(), users.spare_ids() or users.SPARE)
    users.become(uid, uid)
    return uid


def _own_user() -> str:
    if (here := containment()).why_not_becomes:  # which has also tried to end such a process
        raise _UnfulfilledError(here.why_not_becomes)
    uid = _become_somebody()
    _must_fail("becoming root again", lambda: os.setuid(0), errno.EPERM)
    return f"user id {uid}"


def _namespace(flag: int) -> Callable[[], str]:
    def attempt() -> str:
        uid, gid = os.getuid(), os.getgid()
        try:
            namespaces.unshare(flag)
        except PermissionError:
            namespaces.unshare(flag | namespaces.NEWUSER)
            namespaces.map_user(uid, gid)
            return "through a user namespace"
        return "by privilege"

    return attempt


def _network_namespace() -> str:
    word = _namespace(namespaces.NEWNET)()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _must_fail(
            "reaching the network", lambda: sock.connect(("192.0.2.1", 9)), errno.ENETUNREACH
        )
    return word


def _view() -> str:
    word = _namespace(namespaces.NEWNS)()
    make_view(["/usr", "/dev/null"])
    seen = sorted(os.listdir("/"))
    if seen != ["dev", "usr"]:
        raise _UnfulfilledError(f"paths are visible that should not be: {seen}")
    return f"a root directory of its own, {word}"


def _no_new_privs() -> str:
    set_no_new_privs()
    return "PR_SET_NO_NEW_PRIVS"


def _landlock() -> str:
    version = landlock.abi()
    if not version:
        raise _UnfulfilledError(why_no_landlock())
    rules = landlock.make_ruleset(("/usr",), (), execute=False, network=False)
    set_no_new_privs()
    landlock.restrict(rules)
    os.listdir("/usr")
    _must_fail("reading /", lambda: os.listdir("/"), errno.EACCES)
    missing = [
        what
        for least, what in (
            (landlock.TRUNCATE_ABI, "emptying files"),
            (4, "TCP"),
            (5, "ioctl on devices"),
            (6, "signals and abstract sockets"),
        )
        if version < least
    ]
    return f"version {version}" + (
        f", which does not cover: {', '.join(missing)}" if missing else ""
    )


def _filter(kind: Any) -> Callable[[], str]:
    def attempt() -> str:
        if why := seccomp.why_unavailable():
            raise _UnfulfilledError(why)
        program = seccomp.compile_filter(kind, "whole", subprocesses=False, network=False)
        set_no_new_privs()
        seccomp.install(seccomp.bind_pid(program, os.getpid()))
        _must_fail("opening a socket", socket.socket, errno.EACCES, errno.EPERM)
        _must_fail("starting a process", os.fork, errno.EACCES, errno.EPERM)
        return f"{len(program) // 8} instructions"

    return attempt


_UNTRUSTED = "Sandbox.untrusted() and sandboxes with the same layers are refused"
_ATTEMPTS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("pidfd", "a thread waits for each child", _pidfd),
    ("parent-death signal", "children outlive a killed parent", _parent_death),
    (
        "sealed memory files",
        "large results are sent through the channel, which is slower",
        _sealing,
    ),
    ("limits.memory", "limits.memory is refused", _memory),
    (
        "limits.memory, all processes",
        "with subprocesses, each process is limited by itself",
        _memory_by_group,
    ),
    ("limits.file_size", "limits.file_size is refused", _file_size),
    ("limits.processes, own user", "the processes are counted in another way", _processes_by_user),
    (
        "limits.processes, own namespace",
        "the processes are counted in another way",
        _processes_by_namespace,
    ),
    (
        "limits.processes, control group",
        "without a sandbox limits.processes is refused",
        _processes_by_group,
    ),
    ("own user id", "children have the user id of this process", _own_user),
    (
        "mount namespace",
        "the names of all files are visible, and there is no scratch directory",
        _namespace(namespaces.NEWNS),
    ),
    (
        "view of files",
        "the names of all files are visible, and there is no scratch directory",
        _view,
    ),
    ("network namespace", "the system call filter alone blocks the network", _network_namespace),
    (
        "process namespace",
        "processes that subprocesses start may outlive the call",
        _namespace(namespaces.NEWPID),
    ),
    (
        "interprocess namespace",
        "the system call filter alone blocks it",
        _namespace(namespaces.NEWIPC),
    ),
    ("no_new_privs", _UNTRUSTED, _no_new_privs),
    ("landlock", _UNTRUSTED, _landlock),
    ("seccomp, default", _UNTRUSTED, _filter("default")),
    ("seccomp, strict", "syscalls='strict' is refused", _filter("strict")),
)
