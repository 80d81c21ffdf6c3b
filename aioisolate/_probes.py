"""Probes of the layers of a sandbox and of limits: each must work, and forbid certain actions."""

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

__all__ = ["run_probes"]

_os: Any = os  # some platforms lack some of its functions


def run_probes() -> Iterator[tuple[str, bool, str, str]]:
    """Run each probe, and yield the fields of its `features.Finding`."""
    for name, promises, probe in _PROBES:
        holds, detail = _run(probe)
        yield name, holds, detail, promises


def _run(probe: Callable[[], str]) -> tuple[bool, str]:
    """Run a probe in a child of its own; return whether it succeeded, and the details."""
    read, write = os.pipe()
    pid = unpatched.fork()
    if pid == 0:
        result = "-the probe was interrupted"
        try:
            os.close(read)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            result = f"+{probe()}"
        except _ProbeError as exc:
            result = f"-{exc}"
        except OSError as exc:
            result = f"-{exc.strerror} ({errno.errorcode.get(exc.errno or 0, exc.errno)})"
        except BaseException as exc:  # noqa: BLE001 - reported as the result
            result = f"-{type(exc).__name__}: {exc}"
        finally:
            os.write(write, result.encode(errors="replace")[:1000])
            os._exit(0)
    os.close(write)
    with open(read) as file:
        result = file.read()
    unpatched.waitpid(pid, 0)
    return result.startswith("+"), result[1:] or "the probe was killed"


class _ProbeError(Exception):
    """A probe has failed, for example since a forbidden action was possible."""


def _must_fail(action: str, act: Callable[[], object], *errors: int) -> None:
    try:
        act()
    except OSError as exc:
        if exc.errno in errors:
            return
        raise
    raise _ProbeError(f"{action} was still possible")


def _parent_death() -> str:
    set_parent_death_signal(signal.SIGKILL)
    if os.uname().sysname != "Linux":
        raise _ProbeError("this platform has no such signal")
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
        raise _ProbeError("the size of a process can't be read from /proc")
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
    _become_spare_user()
    return _count(3, "a user id of its own")


def _processes_by_namespace() -> str:
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        raise _ProbeError("the kernel does not count root's processes; another user id is needed")
    namespaces.unshare(namespaces.NEWUSER)
    namespaces.map_user(uid, gid)
    users.drop_capabilities()
    return _count(3, "a user namespace of its own")


def _count(limit: int, how: str) -> str:
    rlimit.apply([(rlimit.NUMBERS["processes"], limit, limit)])
    found = _children(limit + 3)
    if found != limit - 1:
        raise _ProbeError(f"with a limit of {limit}, {found} children could be forked")
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
        raise _ProbeError(f"with a limit of 3, {found} children could be forked")
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
        raise _ProbeError("more memory could be used than the limit of the group")
    return "a control group, all processes of a call together"


def _become_spare_user() -> int:
    uid = users.spare_id(os.getpid(), users.spare_ids() or users.SPARE)
    users.become(uid, uid)
    return uid


def _own_user() -> str:
    if (here := containment()).why_not_becomes:  # that also covers killing such a process
        raise _ProbeError(here.why_not_becomes)
    uid = _become_spare_user()
    _must_fail("becoming root again", lambda: os.setuid(0), errno.EPERM)
    return f"user id {uid}"


def _namespace(flag: int) -> Callable[[], str]:
    def probe() -> str:
        uid, gid = os.getuid(), os.getgid()
        try:
            namespaces.unshare(flag)
        except PermissionError:
            namespaces.unshare(flag | namespaces.NEWUSER)
            namespaces.map_user(uid, gid)
            return "through a user namespace"
        return "by privilege"

    return probe


def _network_namespace() -> str:
    how = _namespace(namespaces.NEWNET)()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _must_fail(
            "reaching the network", lambda: sock.connect(("192.0.2.1", 9)), errno.ENETUNREACH
        )
    return how


def _view() -> str:
    how = _namespace(namespaces.NEWNS)()
    make_view(["/usr", "/dev/null"])
    seen = sorted(os.listdir("/"))
    if seen != ["dev", "usr"]:
        raise _ProbeError(f"paths are visible that should not be: {seen}")
    return f"a root directory of its own, {how}"


def _no_new_privs() -> str:
    set_no_new_privs()
    return "PR_SET_NO_NEW_PRIVS"


def _landlock() -> str:
    version = landlock.abi()
    if not version:
        raise _ProbeError(why_no_landlock())
    rules = landlock.make_ruleset(("/usr",), (), execute=False, network=False)
    set_no_new_privs()
    landlock.restrict(rules)
    os.listdir("/usr")
    _must_fail("reading /", lambda: os.listdir("/"), errno.EACCES)
    missing = [
        action
        for least, action in (
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
    def probe() -> str:
        if why := seccomp.why_unavailable():
            raise _ProbeError(why)
        program = seccomp.compile_filter(kind, "whole", subprocesses=False, network=False)
        set_no_new_privs()
        seccomp.install(seccomp.bind_pid(program, os.getpid()))
        _must_fail("opening a socket", socket.socket, errno.EACCES, errno.EPERM)
        _must_fail("starting a process", os.fork, errno.EACCES, errno.EPERM)
        return f"{len(program) // 8} instructions"

    return probe


_UNTRUSTED = "Sandbox.untrusted() and sandboxes with the same layers are refused"
# The name of each probe, the consequence if it fails, and the probe.
_PROBES: tuple[tuple[str, str, Callable[[], str]], ...] = (
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
