"""seccomp filters, which restrict the system calls of a process and their arguments (Linux 4.14).

A filter is a BPF program for the kernel. This module compiles it to bytes, so that a parent does
this once for all its children. `seccomp_rules` has the rules, `bpf` the assembler.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
import sys
from typing import Literal

from . import syscalls
from .bpf import INSTRUCTION, assemble
from .prctl import is_filtered
from .syscalls import ARCHITECTURE, syscall

__all__ = [
    "Prepared",
    "available",
    "bind_pid",
    "compile_filter",
    "install",
    "why_unavailable",
]

_NUMBER = {"x86_64": 317, "aarch64": 277}  # of the system call seccomp
_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
_KILL_PROCESS = struct.pack("=I", 0x80000000)

# seccomp_rules.OWN_PID as it is in an instruction, and its offset there. (Only compiling a filter
# takes that module; a child that just installs a filter need not import it.)
_OWN_PID = struct.pack("=I", 0xA105_01A7)
_OFFSET = 4


def available() -> bool:
    """Return whether filters can be installed: the kernel has them, and the machine is known."""
    return not why_unavailable()


@functools.cache
def why_unavailable() -> str:
    """Return why no filter can be installed, or "" if one can be."""
    machine = syscalls.machine()
    if machine is None:
        return f"no system call numbers are known for {os.uname().machine} on {sys.platform}"
    try:
        syscall(_NUMBER[machine], _GET_ACTION_AVAIL, 0, _KILL_PROCESS)
    except OSError as exc:
        if exc.errno == errno.ENOSYS and not is_filtered():
            return "this kernel has no seccomp filters: Linux 4.14 or newer is needed"
        return (
            "a seccomp filter of this process, perhaps its container's, forbids the call seccomp: "
            "allow it in the seccomp profile, as Docker's default profile does"
        )
    return ""


@functools.cache
def compile_filter(
    kind: Literal["default", "strict"],
    part: Literal["whole", "base", "final"],
    *,
    subprocesses: bool,
    network: bool,
    truncate: bool = True,
    threads: bool = True,
    counting: bool = False,
    writes: bool = True,
    machine: str | None = None,
) -> bytes:
    """Compile a filter: the bytes of an array of struct sock_filter.

    A forbidden call fails with EPERM (EACCES if it is about the network), a call that is newer than
    the tables with ENOSYS. A call by the interface of another architecture kills the process.

    Args:
        kind: "default" forbids calls that affect other processes or the system, or expose much of
            the kernel; "strict" allows only calls for computing in memory and in files that may be
            opened.
        part: "whole", or one of two parts that together are the same: "base" allows the calls that
            a fork server needs, also to set up its children; "final" forbids just those.
        subprocesses: allow starting processes and, since their pids are unknown, signalling any.
        network: allow creating sockets.
        truncate: allow truncating a file that is not open for writing. Landlock controls this only
            since its ABI version 3.
        threads: allow starting threads.
        counting: allow counting the processes and threads of the user, see `process_count`.
        writes: allow calls that only processes with a writable file or device need: locks, ioctl
            requests that are not listed, and waiting until a file has been written to disk.
        machine: a machine name of `uname -m`; this machine by default.

    Raises:
        OSError: the machine's system call numbers are unknown.
    """
    from .seccomp_rules import UNKNOWN, rules  # noqa: PLC0415 - see _OWN_PID
    from .syscall_numbers import NUMBERS  # noqa: PLC0415

    machine = machine or syscalls.machine()
    if machine not in ARCHITECTURE:
        raise OSError(errno.ENOSYS, "no system call numbers of this machine are known")
    numbers = NUMBERS[machine]
    found = rules(
        kind,
        part,
        numbers,
        subprocesses=subprocesses,
        network=network,
        truncate=truncate,
        threads=threads,
        counting=counting,
        writes=writes,
    )
    by_number = {numbers[name]: rule for name, rule in found.items()}
    return assemble(by_number, UNKNOWN, ARCHITECTURE[machine])


def bind_pid(program: bytes, pid: int) -> bytes:
    """Return a filter ("whole" or "final") whose calls may name only the process *pid*.

    Raises ValueError if the filter has no place for a pid; a "base" filter has none.
    """
    bound = bytearray(program)
    for at in _places(program):
        bound[at : at + 4] = struct.pack("=I", pid)
    return bytes(bound)


def _places(program: bytes) -> list[int]:
    """Return the offsets of the pid in a filter."""
    numbers = range(_OFFSET, len(program), INSTRUCTION.size)
    places = [at for at in numbers if program.startswith(_OWN_PID, at)]
    if not places:
        raise ValueError("this filter has no place for a pid, or is already bound to one")
    return places


class Prepared:
    """A filter with all data that its installation needs.

    A parent prepares it for its children: the preparation would cost a new child, which copies each
    page that it writes to, as much as the kernel's work.
    """

    __slots__ = ("_argument", "_code", "_number", "_pids")

    def __init__(self, program: bytes, *, of_a_pid: bool = False) -> None:
        """Prepare *program*; if *of_a_pid* is true, `install` fills in the pid."""
        machine = syscalls.machine()
        if machine is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        self._number = _NUMBER[machine]
        self._code = ctypes.create_string_buffer(program, len(program))
        # struct sock_fprog: the number of instructions and their address.
        count, address = len(program) // INSTRUCTION.size, ctypes.addressof(self._code)
        self._argument = struct.pack("=H6xQ", count, address)
        places = _places(program) if of_a_pid else []
        self._pids = [ctypes.c_uint32.from_buffer(self._code, at) for at in places]

    def install(self, pid: int = 0) -> None:
        """Install the filter, with *pid* if it has a place for one; see the function `install`."""
        for place in self._pids:
            place.value = pid
        syscall(self._number, _SET_MODE_FILTER, 0, self._argument)


def install(program: bytes) -> None:
    """Install a filter for this thread, irrevocably; threads and processes it starts inherit it.

    Needs no_new_privs or CAP_SYS_ADMIN; raises OSError (EACCES) without.
    """
    Prepared(program).install()
