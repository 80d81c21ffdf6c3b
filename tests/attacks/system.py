"""Bare system calls, and other processes' memory."""

from __future__ import annotations

import ctypes
import errno
import os
import platform

__all__ = ["NUMBERS", "call", "find_in", "libc", "read_memory", "transfer", "word"]

libc = ctypes.CDLL(None, use_errno=True)

_X86 = {
    "add_key": 248, "bpf": 321, "clone": 56, "clone3": 435, "fsopen": 430, "getpid": 39,
    "getsockopt": 55, "io_destroy": 207, "io_setup": 206,
    "io_uring_setup": 425, "ioprio_get": 252, "ioprio_set": 251, "keyctl": 250, "mount": 165,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "open_tree": 428,
    "perf_event_open": 298, "personality": 135, "prctl": 157, "pidfd_getfd": 438, "pidfd_open": 434,
    "pidfd_send_signal": 424, "prlimit64": 302, "process_madvise": 440,
    "process_vm_readv": 310, "process_vm_writev": 311, "ptrace": 101, "rt_sigqueueinfo": 129,
    "setns": 308, "setresuid": 117, "shmctl": 31, "shmget": 29, "socket": 41, "splice": 275,
    "syslog": 103, "tee": 276, "tgkill": 234, "timer_create": 222, "tkill": 200,
    "unshare": 272, "userfaultfd": 323,
    "vmsplice": 278, "capget": 125, "futex": 202, "close_range": 436, "fsync": 74, "msync": 26,
    "sync": 162,
    "syncfs": 306,
}  # fmt: skip
_ARM = {
    "add_key": 217, "bpf": 280, "clone": 220, "clone3": 435, "fsopen": 430, "getpid": 172,
    "getsockopt": 209, "io_destroy": 1, "io_setup": 0,
    "io_uring_setup": 425, "ioprio_get": 31, "ioprio_set": 30, "keyctl": 219, "mount": 40,
    "name_to_handle_at": 264, "open_by_handle_at": 265, "open_tree": 428,
    "perf_event_open": 241, "personality": 92, "prctl": 167, "pidfd_getfd": 438, "pidfd_open": 434,
    "pidfd_send_signal": 424, "prlimit64": 261, "process_madvise": 440,
    "process_vm_readv": 270, "process_vm_writev": 271, "ptrace": 117, "rt_sigqueueinfo": 138,
    "setns": 268, "setresuid": 147, "shmctl": 195, "shmget": 194, "socket": 198, "splice": 76,
    "syslog": 116, "tee": 77, "tgkill": 131, "timer_create": 107, "tkill": 130,
    "unshare": 97, "userfaultfd": 282,
    "vmsplice": 75, "capget": 90, "futex": 98, "close_range": 436, "fsync": 82, "msync": 227,
    "sync": 81,
    "syncfs": 267,
}  # fmt: skip
NUMBERS = _ARM if platform.machine() == "aarch64" else _X86


def call(name: str | int, *args: int | bytes | ctypes.Array | None) -> int:
    """Make a system call. Raises OSError."""
    number = NUMBERS[name] if isinstance(name, str) else name
    given = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(ctypes.c_long(number), *given)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(name))
    return result


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def transfer(name: str, pid: int, address: int, buffer: ctypes.Array) -> int:
    """Call process_vm_readv or process_vm_writev."""
    here = _Vector(ctypes.addressof(buffer), len(buffer))
    there = _Vector(address, len(buffer))
    return call(name, pid, ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0)


def read_memory(pid: int, address: int, size: int) -> bytes:
    buffer = (ctypes.c_char * size)()
    done = transfer("process_vm_readv", pid, address, buffer)
    return buffer.raw[:done]


def regions(pid: int | str) -> list[tuple[int, int]]:
    """List the memory that a process may write to and shares with nobody."""
    found = []
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            place, access, *_ = line.split()
            start, end = (int(part, 16) for part in place.split("-"))
            if access.startswith("rw") and end - start < 1 << 28:
                found.append((start, end))
    return found


def find_in(pid: int, what: bytes) -> list[int]:
    """Find bytes in another process's memory. Raises OSError."""
    found = []
    for start, end in regions(pid):
        try:
            data = read_memory(pid, start, end - start)
        except OSError as exc:
            if exc.errno not in (errno.EFAULT, errno.EIO):
                raise
            continue
        at = data.find(what)
        while at >= 0:
            found.append(start + at)
            at = data.find(what, at + 1)
    return found


def word(data: bytes) -> int:
    return int.from_bytes(data[:8], "little", signed=True)
