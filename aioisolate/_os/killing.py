"""Kill a child that this process may not signal (Linux).

Signalling a child with another user id takes CAP_KILL. A process that has dropped this capability,
or whose seccomp filter forbids the system calls for signals, has another way: the kernel signals a
descriptor's owner with the credentials of the process that set the owner, and root, even without
any capability, may set a process of any user.
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
    """Kill the process *pid* by an event on a descriptor whose owner it becomes.

    *has_ended* is called after the owner is set: if the process has not ended by then, the pid was
    not reused. Returns False if the attempt fails. Only the end of the process shows that the
    signal has arrived.
    """
    if not hasattr(fcntl, "F_SETSIG"):
        return False
    try:
        here, there = socket.socketpair()
    except OSError:
        return False  # no descriptor is free
    with here, there:
        try:
            _fcntl.fcntl(there, _fcntl.F_SETOWN, pid)
            _fcntl.fcntl(there, _fcntl.F_SETSIG, int(signal.SIGKILL))
            _fcntl.fcntl(there, _fcntl.F_SETFL, _ASYNC | os.O_NONBLOCK)
            if has_ended():
                return True
            here.send(b"\0")
        except OSError:
            return False  # it has ended, or a filter forbids this, too
    return True
