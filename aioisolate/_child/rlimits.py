"""Limits that a child sets for itself, right before it calls fn.

Where fn is trusted, a soft limit is what it feels, and the hard one leaves some room, for the
answer that is made once fn is over: a MemoryError must be told, too. Where fn may be hostile, it
could raise the soft limit itself, so the hard one is what was promised: the room for the answer is
a part of it, and an answer takes no descriptors.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal

from .._os import process_count, rlimit
from .._os.fds import closed_numbers
from .layers import RlimitSpec

__all__ = ["apply", "ease", "open_statm", "rehearse"]

_ROOM = 64 << 20
# Of the memory that was promised, the part that answers have, and how much at most.
_PART, _PART_MAX = 8, 64 << 20
_DESCRIPTORS_ROOM = 32
# So many numbers are looked at at once, and at most.
_AT_ONCE = 128
_NUMBERS_MAX = 1 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")

_eased: list[int] = []
# The lowest number that was closed when that was noted, and those, of the first ones, that will be
# right before fn.
_noted: tuple[int, list[int]] = -1, []
_rehearsing = False
_EVERYTHING = RlimitSpec(1, 1, 1, 1, 1, 1, 0, strict=True)


def open_statm(proc: int | None = None) -> int:
    """Open what tells this process's size, for later, when /proc is out of reach; or return -1.

    *proc* is a descriptor of /proc, where that is not in its place.
    """
    path = "/proc/self/statm" if proc is None else "self/statm"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return -1


def rehearse(statm: int, scratch: int) -> None:
    """Do all that `apply` does, and leave everything as it is."""
    global _rehearsing
    _rehearsing = True
    apply(_EVERYTHING, statm, scratch)
    _rehearsing = False


def note(statm: int) -> None:
    """Look ahead of need which numbers will be closed once *statm* is: that takes long."""
    global _noted
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    closed = closed_numbers(0, min(_AT_ONCE, most))
    _noted = closed[0] if closed else -1, sorted({*closed, statm} - {-1})


def apply(bounds: RlimitSpec, statm: int, scratch: int, *, as_noted: bool = False) -> None:
    """Set the limits. Raises OSError naming the one that can't be set.

    *statm* is from `open_statm`, and is closed. *scratch* gets the stack when CPU time is up.
    *as_noted*: no descriptors have come since `note`.
    """
    _eased.clear()
    size = 0
    if bounds.memory is not None or (bounds.address_space is not None and statm >= 0):
        size = _address_space(statm)
    # Whatever has been opened since then, by unpickling say, has got the lowest number first.
    closed = _noted[1] if as_noted and _noted[0] == _lowest_closed() else []
    if statm >= 0 and not _rehearsing:
        os.close(statm)  # before descriptors are counted
    if bounds.core_size is not None:
        _set("core_size", bounds.core_size)
    if bounds.file_size is not None:
        # Its own results may be larger, and go through a file.
        room = 0 if bounds.strict else rlimit.INFINITY
        _set("file_size", bounds.file_size, room)
    if bounds.processes is not None:
        others = process_count.count_tasks() - 1 if bounds.besides else 0
        _set("processes", others + bounds.processes)
    if bounds.cpu_time is not None:
        # A second later it is killed, whatever it does about the signal.
        _set("cpu_time", bounds.cpu_time, 1)
        faulthandler.register(signal.SIGXCPU, scratch, chain=True)
    if bounds.open_files is not None:
        count = bounds.open_files
        number = closed[count] if count < len(closed) else _number_after(count)
        _set("open_files", number, 0 if bounds.strict else _DESCRIPTORS_ROOM)
    # Last, so that none of the above is short of memory.
    _limit_memory(bounds, size)


def _limit_memory(bounds: RlimitSpec, size: int) -> None:
    """Limit the address space, of which *size* bytes are in use."""
    space = bounds.address_space
    if bounds.memory is not None:
        above = size + bounds.memory
        space = above if space is None else min(space, above)
    if space is not None and bounds.strict:
        room = min(max(0, space - size) // _PART, _PART_MAX)
        _set("memory", space - room, room)
    elif space is not None:
        # An answer has room above what there is, even where fn has none at all.
        _set("memory", space, max(_ROOM, size + _ROOM - space))


def ease() -> None:
    """Raise the soft limits as far as the answer needs room."""
    while _eased:
        which = _eased.pop()
        _, hard = resource.getrlimit(which)
        rlimit.apply([(which, hard, hard)])


def _set(name: str, soft: int, room: int = 0) -> None:
    which = rlimit.NUMBERS["address_space" if name == "memory" else name]
    _, hard = resource.getrlimit(which)
    ceiling = rlimit.INFINITY if room == rlimit.INFINITY else soft + room
    if hard != rlimit.INFINITY:  # where less is allowed anyway, it stays so
        ceiling = hard if ceiling == rlimit.INFINITY else min(ceiling, hard)
        soft = min(soft, hard)
    if _rehearsing:
        soft, ceiling = resource.getrlimit(which)
    rlimit.apply([(which, soft, ceiling)])
    if room and name != "cpu_time":
        _eased.append(which)


def _number_after(count: int) -> int:
    """Return the first descriptor number that is too much when *count* more may be opened."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == rlimit.INFINITY:
        most = _NUMBERS_MAX
    first = 0
    while first < most:  # no more than that in any case
        closed = closed_numbers(first, min(_AT_ONCE, most - first))
        if count < len(closed):
            return closed[count]
        count -= len(closed)
        first += _AT_ONCE
    return most


def _lowest_closed() -> int:
    try:
        number = os.dup(0)
    except OSError:  # 0 is closed, say
        return -1
    os.close(number)
    return number


def _address_space(statm: int) -> int:
    if statm < 0:
        return rlimit.measure_address_space()
    return int(os.pread(statm, 64, 0).split()[0]) * _PAGE
