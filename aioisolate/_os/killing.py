"""Signal the process group of a child, and kill a child that this process may not signal (Linux).

Signalling a child with another user id takes CAP_KILL. A process that has dropped this capability,
or whose seccomp filter forbids the system calls for signals, has another way: the kernel signals a
descriptor's owner with the credentials of the process that set the owner, and root, even without
any capability, may set a process of any user.
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

    Where the kernel can't do that (EINVAL: before Linux 6.9; EPERM: perhaps a seccomp filter
    forbids it), or if *pidfd* is -1, the group *pid* is signalled by its number. Pass *pid* only
    while no other group can have that number, or for the signal 0.

    Raises OSError: ProcessLookupError if the group is empty, PermissionError if this process may
    signal no member of it; without *pid*, the error of the system call.
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
