"""Killing a child that this process may not signal (Linux).

A child with another user id takes CAP_KILL. A process that has lost that capability since, or that
runs under a filter of system calls without the ones for signals, still has another way: the kernel
sends the signal of a descriptor's owner by the rights of whoever named the owner, and root, even
without any capability, may name a process of any user.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["kill_through_descriptor"]

_fcntl: Any = fcntl  # not every platform has all of it
_ASYNC: int = getattr(os, "O_ASYNC", 0o20000)


def kill_through_descriptor(pid: int, has_ended: Callable[[], bool]) -> bool:
    """Kill the process *pid* by an event on a descriptor that it is made the owner of.

    *has_ended* is asked once the owner is named: if the process has not ended by then, the number
    was its own. Returns False where that can't be tried. Whether the signal has arrived nothing
    tells but the end of the process.
    """
    if not hasattr(fcntl, "F_SETSIG"):
        return False
    try:
        here, there = socket.socketpair()
    except OSError:
        return False  # no descriptor is left
    with here, there:
        try:
            _fcntl.fcntl(there, _fcntl.F_SETOWN, pid)
            _fcntl.fcntl(there, _fcntl.F_SETSIG, int(signal.SIGKILL))
            _fcntl.fcntl(there, _fcntl.F_SETFL, _ASYNC | os.O_NONBLOCK)
            if has_ended():
                return True
            here.send(b"\0")
        except OSError:
            return False  # it has gone; or a filter forbids this, too
    return True
