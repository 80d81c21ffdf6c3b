"""A pipe that kills a child when its parent process ends, whichever thread forked it (Linux).

The parent-death signal of prctl(2) is sent when the thread that forked ends, not its process. Only
the main thread lives as long as the process. For a child of any other thread, the parent keeps both
ends of a pipe; the child is their owner (F_SETOWN) and SIGKILL their signal (F_SETSIG). When the
parent has ended for any reason, the kernel closes both ends, in any order: closing the first end is
an event on the second. The child needs no descriptor for this.

Another fork of the parent inherits both ends, so a fork hook closes them there at once. A fork that
Python does not see (by C code, without exec) keeps them open, and the child lives as long as that
process.
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

# The pipe ends of this process and their owners. Entries of closed ends remain: close() of their
# owner ignores them.
_kept: dict[int, Descriptors] = {}
_hooked = False


def is_needed(pid: int) -> bool:
    """Return whether the calling thread may end before its process, *pid*, does."""
    return _thread.get_native_id() != pid and hasattr(fcntl, "F_SETSIG")


def open_pipe(owner: Descriptors) -> tuple[int, ...]:
    """Make a pipe for one child; return its ends. Raises OSError if no descriptor is free.

    Returns () where the kernel or a seccomp filter does not support F_SETSIG or O_ASYNC.
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
    """Have the kernel kill the process *pid* when the last process that holds *ends* closes them.

    The kernel checks the credentials that the caller has now. Raises OSError if *pid* has ended.
    """
    for end in ends:
        _fcntl.fcntl(end, _fcntl.F_SETOWN, pid)


def keep(ends: Iterable[int], owner: Descriptors) -> None:
    """Close *ends* in processes that are forked from this one from now on."""
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
