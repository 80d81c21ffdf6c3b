"""seccomp filters: which system calls a process may still make, and about what (Linux 4.14).

A filter is a program for the kernel, made here as bytes, so that a parent can do it once for all
its children. `seccomp_rules` tells what it is about, `bpf` how it is put together.
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

_NUMBER = {"x86_64": 317, "aarch64": 277}  # of seccomp itself
_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
_KILL_PROCESS = struct.pack("=I", 0x80000000)

# seccomp_rules.OWN_PID, where it stands in an instruction. (Those modules are for whoever compiles
# a filter; a child that just installs one need not have them.)
_OWN_PID = struct.pack("=I", 0xA105_01A7)
_OFFSET = 4


def available() -> bool:
    """Tell whether filters can be installed here: the kernel has them, and the machine is known."""
    return not why_unavailable()


@functools.cache
def why_unavailable() -> str:
    """Say why no filter can be installed here; "" if one can be."""
    machine = syscalls.machine()
    if machine is None:
        return f"no system call numbers are known of {os.uname().machine} on {sys.platform}"
    try:
        syscall(_NUMBER[machine], _GET_ACTION_AVAIL, 0, _KILL_PROCESS)
    except OSError as exc:
        if exc.errno == errno.ENOSYS and not is_filtered():
            return "this kernel has no seccomp filters: it takes Linux 4.14"
        return (
            "the filter of system calls that this process is under, its container's perhaps, "
            "forbids the call seccomp: let the seccomp profile pass it, as Docker's own does"
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
    """Make a filter: the bytes of an array of struct sock_filter.

    A call that is forbidden fails with EPERM (EACCES where it is about the network), one that is
    newer than the tables with ENOSYS. By the interface of another architecture, calls kill.

    Args:
        kind: "default" forbids what leads out of the process, or deep into the kernel; "strict"
            allows only what computing takes, in memory and in such files as may be opened.
        part: "whole", or in two parts, whose sum is the same: "base" leaves out what a fork server
            and the setting up of its children take, "final" forbids just that.
        subprocesses: Allow to start processes and, since their pids can't be known, to signal any.
        network: Allow to make sockets.
        truncate: Allow to cut off a file that is not open for writing. Landlock has had a say in
            that since its version 3 only.
        threads: Allow to start threads.
        counting: Allow to count the processes and threads of the user, see `counting`.
        writes: Allow what only those need who may write to some file or device: locks, requests
            (ioctl) that are not listed, to wait until a file has been written out.
        machine: As `uname -m` has it; this one if not given.

    Raises:
        OSError: Nothing is known of the machine.
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
    """Make a filter, whole or final, that of the process *pid*, the only one it may be about.

    Raises ValueError if the filter has no place for a pid, as a base has none.
    """
    bound = bytearray(program)
    for at in _places(program):
        bound[at : at + 4] = struct.pack("=I", pid)
    return bytes(bound)


def _places(program: bytes) -> list[int]:
    """Tell where the pid goes."""
    numbers = range(_OFFSET, len(program), INSTRUCTION.size)
    places = [at for at in numbers if program.startswith(_OWN_PID, at)]
    if not places:
        raise ValueError("this filter has no place for a pid, or is bound already")
    return places


class Prepared:
    """A filter with all laid out that it takes to install it, so that children have little to do.

    Made by a parent for its children: what it takes to make one costs a fresh child, which copies
    each page that it touches, as much as the kernel's work.
    """

    __slots__ = ("_argument", "_code", "_number", "_pids")

    def __init__(self, program: bytes, *, of_a_pid: bool = False) -> None:
        """Lay out *program*; *of_a_pid*: it has a place for a pid, which `install` fills in."""
        machine = syscalls.machine()
        if machine is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        self._number = _NUMBER[machine]
        self._code = ctypes.create_string_buffer(program, len(program))
        # struct sock_fprog: how many instructions, and where.
        count, address = len(program) // INSTRUCTION.size, ctypes.addressof(self._code)
        self._argument = struct.pack("=H6xQ", count, address)
        places = _places(program) if of_a_pid else []
        self._pids = [ctypes.c_uint32.from_buffer(self._code, at) for at in places]

    def install(self, pid: int = 0) -> None:
        """Do what `install` does; for the process *pid*, if the filter has a place for one."""
        for place in self._pids:
            place.value = pid
        syscall(self._number, _SET_MODE_FILTER, 0, self._argument)


def install(program: bytes) -> None:
    """Put a filter on this thread, and on all that it starts, for good.

    Needs no_new_privs (or the right to administrate the system), otherwise OSError (EACCES).
    """
    Prepared(program).install()
