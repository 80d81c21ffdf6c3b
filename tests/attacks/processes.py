"""Attacks on other processes: one that is in no sandbox, and a sibling that is in one, too."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import signal
import socket
import struct
import time

from .scene import ENVIRONMENT, Attack, Scene, soft_limit
from .system import call, find_in, libc, read_memory, regions, transfer, word

__all__ = ["ATTACKS", "be_a_sibling"]

_PTRACE_PEEK, _PTRACE_POKE, _PTRACE_ATTACH, _PTRACE_DETACH = 2, 5, 16, 17
_WALL = 0x40000000
_F_SETSIG = 10
_SOFT = 123


def be_a_sibling(marker):
    """Be there, with something in memory that others should not see."""
    held = bytearray(bytes.fromhex(marker))
    time.sleep(60)
    return len(held)


def kill(pid):
    os.kill(pid, signal.SIGTERM)
    return True


def kill_group(pid):
    os.killpg(os.getpgid(pid), signal.SIGTERM)
    return True


def kill_thread(pid):
    call("tgkill", pid, pid, signal.SIGTERM)
    return True


def kill_thread_the_old_way(pid):
    call("tkill", pid, signal.SIGTERM)
    return True


def kill_by_pidfd(pid):
    call("pidfd_send_signal", call("pidfd_open", pid, 0), signal.SIGTERM, None, 0)
    return True


def queue_signal(pid):
    info = ctypes.create_string_buffer(struct.pack("iii", signal.SIGTERM, 0, -1), 128)
    call("rt_sigqueueinfo", pid, signal.SIGTERM, info)
    return True


def signal_by_owner(pid):
    """Have the kernel send a signal that nobody asked kill() for: as input for a socket's owner."""
    here, there = socket.socketpair()
    with here, there:
        fcntl.fcntl(here, fcntl.F_SETOWN, pid)
        fcntl.fcntl(here, _F_SETSIG, int(signal.SIGTERM))
        flags = fcntl.fcntl(here, fcntl.F_GETFL)
        fcntl.fcntl(here, fcntl.F_SETFL, flags | os.O_ASYNC)
        there.send(b"x")
        time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError), open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] not in "ZX":
                raise PermissionError(errno.EPERM, "the signal did not arrive")
    return True


def stop(pid):
    os.kill(pid, signal.SIGSTOP)
    return True


def kill_the_forking_process():
    """Kill whoever has forked this process, and so perhaps all its children."""
    parent = os.getppid()
    if parent <= 1:
        raise PermissionError(errno.EPERM, "the init of a namespace")
    os.kill(parent, signal.SIGKILL)
    time.sleep(3)
    raise PermissionError(errno.EPERM, "it had no effect")


def trace(pid, address):
    call("ptrace", _PTRACE_ATTACH, pid, 0, 0)
    os.waitpid(pid, _WALL)
    try:
        found = ctypes.c_long()
        call("ptrace", _PTRACE_PEEK, pid, address, ctypes.addressof(found))
        call("ptrace", _PTRACE_POKE, pid, address, word(b"attacked"))
    finally:
        call("ptrace", _PTRACE_DETACH, pid, 0, 0)
    return struct.pack("l", found.value)


def read_by_system_call(pid, address, size):
    return read_memory(pid, address, size)


def write_by_system_call(pid, address):
    transfer("process_vm_writev", pid, address, ctypes.create_string_buffer(b"attacked", 8))
    return True


def search(pid, marker):
    """Look through all of its memory."""
    return bool(find_in(pid, bytes.fromhex(marker)))


def read_by_file(pid, address, size):
    with open(f"/proc/{pid}/mem", "rb") as file:
        file.seek(address)
        return file.read(size)


def write_by_file(pid, address):
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as file:
        file.seek(address)
        return file.write(b"attacked")


def read_environment(pid):
    with open(f"/proc/{pid}/environ") as file:
        return file.read()


def read_environment_of_forking_process():
    return read_environment(os.getppid())


def read_mappings(pid):
    return len(regions(pid))


def read_command(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def reach_descriptor(pid):
    """Open a file that another process has open, by way of its own directory."""
    return _first(lambda fd: _read(os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY)))


def take_descriptor(pid):
    pidfd = call("pidfd_open", pid, 0)
    return _first(lambda fd: _read(call("pidfd_getfd", pidfd, fd, 0)))


def _first(get):
    """Return the first thing that is there to get for a descriptor of a small number."""
    error = None
    for fd in range(3, 64):
        try:
            found = get(fd)
        except OSError as exc:
            if error is None or exc.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
                error = exc
        else:
            if found:
                return found
    raise error


def _read(fd):
    try:
        return os.pread(fd, 100, 0).decode(errors="replace")
    finally:
        os.close(fd)


def limit(pid):
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (_SOFT, hard))
    return True


def hold_back(pid):
    os.setpriority(os.PRIO_PROCESS, pid, 7)
    return True


def hold_back_the_forking_process():
    """Give whoever forks the next children a lower priority, and so them."""
    time.sleep(0.2)  # until the parent has seen whose child this is
    os.setpriority(os.PRIO_PROCESS, os.getppid(), 7)
    return os.getppid()


def limit_the_forking_process():
    """Have whoever forks the next children be able to open fewer files."""
    time.sleep(0.2)  # until the parent has seen whose child this is
    parent = os.getppid()
    hard = resource.prlimit(parent, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(parent, resource.RLIMIT_NOFILE, (_SOFT, hard))
    return parent


def tie_down(pid, cpu):
    os.sched_setaffinity(pid, {cpu})
    return True


def schedule(pid):
    os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))
    return True


def order_input(pid):
    call("ioprio_set", 1, pid, 3 << 13)
    return True


def change_oom_score(pid):
    """Have the kernel take another process first when memory runs out."""
    with open(f"/proc/{pid}/oom_score_adj", "w") as file:
        file.write("900")
    return True


def spare_oneself():
    """Be no longer the first that the kernel takes when memory runs out."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("0")
    with open("/proc/self/oom_score_adj") as file:
        return file.read().strip()


def leave_behind_by_clone(line):
    """Fork a process that is a child of one's own parent and in a session of its own."""
    told, tell = os.pipe()
    pid = call("clone", 0x8000 | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        _hold(line, tell)
    # Not before it has left the group that is killed with this process.
    os.close(tell)
    os.read(told, 1)
    return pid


def _hold(line, tell):
    """Keep the line until its other side is closed, but not for ever; then end."""
    try:
        os.setsid()
        signal.alarm(8)
        libc.prctl(1, 0, 0, 0, 0)
        os.write(tell, b"x")
        os.read(line, 1)
    finally:
        os._exit(0)


def _died(result, scene):
    return scene.died(_pid(scene))


def _stopped(result, scene):
    time.sleep(0.05)
    with open(f"/proc/{_pid(scene)}/stat") as file:
        stopped = file.read().rpartition(")")[2].split()[0] == "T"
    if stopped:
        os.kill(_pid(scene), signal.SIGCONT)
    return stopped


def _pid(scene: Scene) -> int:
    return scene.notes["target"]


def _niced(result, scene):
    return os.getpriority(os.PRIO_PROCESS, _pid(scene)) == 7


def _limited(result, scene):
    return soft_limit(_pid(scene), resource.RLIMIT_NOFILE) == _SOFT


def _tied(result, scene):
    return len(os.sched_getaffinity(_pid(scene))) == 1 < len(scene.affinity)


def _scheduled(result, scene):
    return os.sched_getscheduler(_pid(scene)) == os.SCHED_BATCH


def _overwritten(result, scene):
    return scene.overwritten(_pid(scene))


def _saw(result, scene):
    return bool(result) and (result is True or scene.marker.startswith(result))


def _oom(result, scene):
    with open(f"/proc/{_pid(scene)}/oom_score_adj") as file:
        return file.read().strip() == "900"


def _ordered(result, scene):
    return call("ioprio_get", 1, _pid(scene)) == 3 << 13


def _watch(scene):
    """Have it noted what has become of the fork server when the attack is over."""

    def watch(event):
        if event.name == "spawn":
            with open(f"/proc/{event.pid}/stat") as file:
                scene.notes["server"] = int(file.read().rpartition(")")[2].split()[1])
        elif event.name == "reaped" and (pid := scene.notes.get("server")):
            limited = soft_limit(pid, resource.RLIMIT_NOFILE) == _SOFT
            scene.notes["fork server"] = os.getpriority(os.PRIO_PROCESS, pid), limited

    return watch


def _secret_found(result, scene):
    return isinstance(result, str) and scene.secret in result


def _one_cpu() -> str:
    return "" if len(os.sched_getaffinity(0)) > 1 else "there is but one CPU"


def _target(sibling, *more):
    def arrange(scene):
        pid = scene.notes["target"] = scene.target(sibling)
        return pid, *(make(scene, pid) for make in more)

    return arrange


_address = lambda scene, pid: scene.address(pid)
_size = lambda scene, pid: len(scene.marker)
_marker = lambda scene, pid: scene.marker.hex()
_cpu = lambda scene, pid: min(scene.affinity)

# Name, what runs, what it is given besides the process, how success is seen.
_ON_BOTH = [
    ("kill", kill, (), _died),
    ("killpg", kill_group, (), _died),
    ("tgkill", kill_thread, (), _died),
    ("tkill", kill_thread_the_old_way, (), _died),
    ("pidfd-send-signal", kill_by_pidfd, (), _died),
    ("rt-sigqueueinfo", queue_signal, (), _died),
    ("signal-by-owner", signal_by_owner, (), _died),
    ("stop", stop, (), _stopped),
    ("ptrace", trace, (_address,), _overwritten),
    ("process-vm-readv", read_by_system_call, (_address, _size), _saw),
    ("process-vm-writev", write_by_system_call, (_address,), _overwritten),
    ("memory-search", search, (_marker,), _saw),
    ("proc-mem-read", read_by_file, (_address, _size), _saw),
    ("proc-mem-write", write_by_file, (_address,), _overwritten),
    ("proc-environ", read_environment, (), _secret_found),
    ("proc-maps", read_mappings, (), lambda result, scene: bool(result)),
    ("proc-cmdline", read_command, (), lambda result, scene: bool(result)),
    ("prlimit", limit, (), _limited),
    ("priority", hold_back, (), _niced),
    ("affinity", tie_down, (_cpu,), _tied),
    ("scheduler", schedule, (), _scheduled),
    ("ioprio", order_input, (), _ordered),
    ("oom-score", change_oom_score, (), _oom),
]


def _pair():
    for name, run, more, succeeded in _ON_BOTH:
        for sibling in (False, True):
            # All children have the same score to begin with, and it only goes up for others.
            if name == "oom-score" and sibling:
                continue
            yield Attack(
                f"{name}-{'sibling' if sibling else 'outsider'}", "processes", run,
                _target(sibling, *more), succeeded, sibling=sibling,
                needs=_one_cpu if name == "affinity" else lambda: "",
            )  # fmt: skip


ATTACKS = [
    *_pair(),
    Attack("pidfd-getfd-outsider", "processes", take_descriptor, _target(False), _secret_found),
    Attack("proc-fd-outsider", "processes", reach_descriptor, _target(False), _secret_found),
    Attack(
        "parent-memory", "processes", search, lambda scene: (os.getpid(), scene.marker.hex()), _saw
    ),
    Attack(
        "parent-environ", "processes", read_environment_of_forking_process,
        succeeded=_secret_found, expect="denied|value",
    ),
    Attack(
        "kill-fork-server", "processes", kill_the_forking_process, off="SERVER_DIED",
    ),
    Attack(
        "priority-fork-server", "processes", hold_back_the_forking_process,
        succeeded=lambda result, scene: scene.notes.get("fork server") == (7, False),
        options=lambda scene: {"on_event": _watch(scene)},
    ),
    Attack(
        "prlimit-fork-server", "processes", limit_the_forking_process,
        succeeded=lambda result, scene: scene.notes.get("fork server") == (0, True),
        options=lambda scene: {"on_event": _watch(scene)},
    ),
    Attack(
        "oom-score-own", "processes", spare_oneself,
        succeeded=lambda result, scene: result == "0",
    ),
]  # fmt: skip
