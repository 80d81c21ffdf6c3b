"""Signalling the process group of a child, and killing a child that may not be signalled (Linux).

A child with another user id takes CAP_KILL. A process that has lost that capability since, or that
runs under a filter of system calls without the ones for signals, still has another way: the kernel
sends the signal of a descriptor's owner by the rights of whoever named the owner, and root, even
without any capability, may name a process of any user.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["kill_through_descriptor", "signal_group"]

# Not every platform has all of these.
_fcntl: Any = fcntl
_signal: Any = signal
_ASYNC: int = getattr(os, "O_ASYNC", 0o20000)
_SIGNAL_GROUP = 4  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9


def signal_group(pidfd: int, number: int, pid: int = 0) -> None:
    """Send a signal to the process group of the process that *pidfd* names, which leads it.

    Where the kernel can't do that (EINVAL: before Linux 6.9; EPERM: perhaps a filter of system
    calls forbids it), or if *pidfd* is -1, the group *pid* is signalled by its number. Pass *pid*
    only while nobody else can have that number, or for the signal 0.

    Raises OSError: ProcessLookupError if the group is empty, PermissionError if this process may
    signal none of it, and without a *pid* what the kernel said.
    """
    if pidfd >= 0:
        try:
            _signal.pidfd_send_signal(pidfd, number, None, _SIGNAL_GROUP)
            return
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.EPERM) or not pid:
                raise
    elif not pid:
        raise ProcessLookupError
    os.killpg(pid, number)


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
