"""A pipe that kills a child when its parent process ends, whichever thread has forked it (Linux).

The parent-death signal of prctl(2) is about the thread that forked: it comes as soon as that ends.
The main thread ends with its process only. For a child of any other thread the parent keeps both
ends of a pipe, of which the child is the owner (F_SETOWN) and SIGKILL the signal. When the parent
has ended, however it did, the kernel closes both ends, in any order: the first one to be closed is
an event on the other one. The child itself needs no descriptor for that.

A copy of the parent that somebody else forks has both ends, too, so they are closed there at once.
A copy that Python does not know of (a fork by C code, without exec) keeps them open, and the child
alive as long as itself.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import signal
from collections.abc import Iterable
from typing import Any

from .fds import Descriptors

__all__ = ["is_needed", "keep", "open_pipe", "tie"]

_fcntl: Any = fcntl  # not every platform has all of it
_ASYNC: int = getattr(os, "O_ASYNC", 0o20000)

# Which descriptors of this process are such ends, and in whose charge; also some that no longer
# are, of which their former owner knows.
_kept: dict[int, Descriptors] = {}
_hooked = False


def is_needed(pid: int) -> bool:
    """Tell whether the calling thread of this process, *pid*, may end before the process does."""
    return _thread.get_native_id() != pid and hasattr(fcntl, "F_SETSIG")


def open_pipe(owner: Descriptors) -> tuple[int, ...]:
    """Make a pipe for one child; return its ends. Raises OSError if no descriptor is left.

    Returns () where the kernel or a filter knows no such signals.
    """
    ends = tuple(map(owner.own, os.pipe()))
    try:
        for end in ends:
            _fcntl.fcntl(end, _fcntl.F_SETSIG, int(signal.SIGKILL))
            _fcntl.fcntl(end, _fcntl.F_SETFL, _ASYNC)
    except OSError:
        for end in ends:
            owner.close(end)
        return ()
    return ends


def tie(ends: Iterable[int], pid: int) -> None:
    """Have the process *pid* killed when the last one that has *ends* has closed them.

    By the rights of the caller as it is now. Raises OSError if the process has gone.
    """
    for end in ends:
        _fcntl.fcntl(end, _fcntl.F_SETOWN, pid)


def keep(ends: Iterable[int], owner: Descriptors) -> None:
    """Close *ends* in copies of this process that are forked from now on."""
    global _hooked
    if not _hooked:
        _hooked = True
        os.register_at_fork(after_in_child=_close_in_copy)
    for end in ends:
        _kept[end] = owner


def _close_in_copy() -> None:
    for end, owner in _kept.items():
        owner.close(end)
    _kept.clear()
