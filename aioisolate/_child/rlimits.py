"""Resource limits that a child sets for itself, right before it calls fn.

If fn is trusted, the soft limit is the requested one, and the hard limit leaves room for the answer
that is encoded after fn: the child must be able to report a MemoryError. Untrusted fn could raise
the soft limit itself, so the hard limit is the requested one. The room for the answer is then part
of the requested memory, and the answer uses no descriptors.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal

from .._os import process_count, rlimit
from .._os.fds import closed_numbers
from .layers import RlimitSpec

__all__ = ["apply", "note", "open_statm", "raise_soft_limits", "rehearse"]

# The memory in bytes that is kept for the answer of trusted code.
_ROOM = 64 << 20
# The share of the requested memory that is kept for the answer of untrusted code: one eighth, at
# most 64 MiB.
_PART, _PART_MAX = 8, 64 << 20
_DESCRIPTORS_ROOM = 32
# How many descriptor numbers are checked in one step, and in total.
_AT_ONCE = 128
_NUMBERS_MAX = 1 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")

# The resources whose soft limits are below the hard limits, to be raised for the answer.
_raisable: list[int] = []
# From `note`: the lowest closed descriptor number at that time, and the numbers, among the first
# ones, that will be closed right before fn.
_noted: tuple[int, list[int]] = -1, []
_rehearsing = False
_ALL_LIMITS = RlimitSpec(1, 1, 1, 1, 1, 1, 0, strict=True)


def open_statm(proc: int | None = None) -> int:
    """Open the file of this process's size, for use when /proc is inaccessible; -1 if impossible.

    *proc* is a file descriptor of /proc, if /proc is not at its usual path.
    """
    path = "/proc/self/statm" if proc is None else "self/statm"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return -1


def rehearse(statm: int, scratch: int) -> None:
    """Run the code of `apply` without changing any limit."""
    global _rehearsing
    _rehearsing = True
    apply(_ALL_LIMITS, statm, scratch)
    _rehearsing = False


def note(statm: int) -> None:
    """Find in advance the numbers that are closed once *statm* is closed; the search is slow."""
    global _noted
    maximum, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    closed = closed_numbers(0, min(_AT_ONCE, maximum))
    _noted = closed[0] if closed else -1, sorted({*closed, statm} - {-1})


def apply(rlimits: RlimitSpec, statm: int, scratch: int, *, as_noted: bool = False) -> None:
    """Set the limits. Raises OSError naming the one that can't be set.

    *statm* is from `open_statm`, and is closed. When CPU time is used up, the stack is written to
    *scratch*. *as_noted*: no descriptors have been received since `note`.
    """
    _raisable.clear()
    size = 0
    if rlimits.memory is not None or (rlimits.address_space is not None and statm >= 0):
        size = _address_space(statm)
    # A file opened since `note`, by unpickling for example, has the number that was the lowest.
    closed = _noted[1] if as_noted and _noted[0] == _lowest_closed() else []
    if statm >= 0 and not _rehearsing:
        os.close(statm)  # before descriptors are counted
    if rlimits.core_size is not None:
        _set("core_size", rlimits.core_size)
    if rlimits.file_size is not None:
        # The child's result is written to a file, and may be larger.
        room = 0 if rlimits.strict else rlimit.INFINITY
        _set("file_size", rlimits.file_size, room)
    if rlimits.processes is not None:
        others = process_count.count_tasks() - 1 if rlimits.besides else 0
        _set("processes", others + rlimits.processes)
    if rlimits.cpu_time is not None:
        # One second after SIGXCPU the kernel kills the child, even if fn handles the signal.
        _set("cpu_time", rlimits.cpu_time, 1)
        faulthandler.register(signal.SIGXCPU, scratch, chain=True)
    if rlimits.open_files is not None:
        count = rlimits.open_files
        number = closed[count] if count < len(closed) else _number_after(count)
        _set("open_files", number, 0 if rlimits.strict else _DESCRIPTORS_ROOM)
    # Last, so that the steps above have enough memory.
    _limit_memory(rlimits, size)


def _limit_memory(rlimits: RlimitSpec, size: int) -> None:
    """Limit the address space, of which *size* bytes are in use."""
    space = rlimits.address_space
    if rlimits.memory is not None:
        above = size + rlimits.memory
        space = above if space is None else min(space, above)
    if space is not None and rlimits.strict:
        room = min(max(0, space - size) // _PART, _PART_MAX)
        _set("memory", space - room, room)
    elif space is not None:
        # Leave room for the answer above the current size, even if fn may allocate nothing.
        _set("memory", space, max(_ROOM, size + _ROOM - space))


def raise_soft_limits() -> None:
    """Raise the soft limits to the hard limits, to make room for the answer."""
    while _raisable:
        resource_number = _raisable.pop()
        _, hard = resource.getrlimit(resource_number)
        rlimit.apply([(resource_number, hard, hard)])


def _set(name: str, soft: int, room: int = 0) -> None:
    resource_number = rlimit.NUMBERS["address_space" if name == "memory" else name]
    _, hard = resource.getrlimit(resource_number)
    ceiling = rlimit.INFINITY if room == rlimit.INFINITY else soft + room
    if hard != rlimit.INFINITY:  # a lower hard limit stays
        ceiling = hard if ceiling == rlimit.INFINITY else min(ceiling, hard)
        soft = min(soft, hard)
    if _rehearsing:
        soft, ceiling = resource.getrlimit(resource_number)
    rlimit.apply([(resource_number, soft, ceiling)])
    if room and name != "cpu_time":
        _raisable.append(resource_number)


def _number_after(count: int) -> int:
    """Return the RLIMIT_NOFILE that allows opening *count* more descriptors."""
    maximum, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if maximum == rlimit.INFINITY:
        maximum = _NUMBERS_MAX
    first = 0
    while first < maximum:  # the current limit is the maximum
        closed = closed_numbers(first, min(_AT_ONCE, maximum - first))
        if count < len(closed):
            return closed[count]
        count -= len(closed)
        first += _AT_ONCE
    return maximum


def _lowest_closed() -> int:
    try:
        number = os.dup(0)
    except OSError:  # descriptor 0 is closed, for example
        return -1
    os.close(number)
    return number


def _address_space(statm: int) -> int:
    if statm < 0:
        return rlimit.measure_address_space()
    return int(os.pread(statm, 64, 0).split()[0]) * _PAGE
