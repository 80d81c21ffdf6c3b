"""Processes that can't get away: a process namespace with an init.

    follower --- the process that was forked; whoever waits for it learns how the call ended
      |-- init   process 1 of the namespace: when it ends, the kernel kills every process there
      `-- the process that goes on and calls fn

The follower ends as the last one ends, and hands on to it what asks for its stack. When it is
killed instead, the init sees the pipe between them close, and ends. The process that goes on isn't
the init itself: that would be deaf to its own signals, and have orphans to collect.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C part of signal; it has no stubs
import os
import resource
from collections.abc import Iterable
from typing import Any, NoReturn

from .._os import namespaces, unpatched
from .._wire.shared_constants import STACK_SIGNAL

__all__ = ["live_under_one"]

_raw: Any = _signal
_os: Any = os  # not every platform has all of it
_FD_MAX = 1 << 20


def live_under_one() -> None:
    """Go on in a new process namespace, with an init. Its parent is outside: getppid() is 0.

    Raises OSError, in the process that was there before, if that can't be.
    """
    namespaces.unshare(namespaces.NEWPID)
    read, write = os.pipe()
    init = unpatched.fork()
    if init == 0:
        _be_init(read)
    pid = unpatched.fork()
    if pid:
        _follow(init, pid, write)
    os.close(read)
    os.close(write)


def _keep_only(fd: int, heard: Iterable[int] = ()) -> None:
    """Close all else, and hear no signal: what is sent to the group is for the others."""
    _raw.pthread_sigmask(_raw.SIG_SETMASK, set(_raw.valid_signals()).difference(heard))
    os.closerange(0, fd)
    os.closerange(fd + 1, _FD_MAX)


def _be_init(read: int) -> NoReturn:
    try:
        # Orphans are then collected by the kernel.
        _raw.signal(_raw.SIGCHLD, _raw.SIG_IGN)
        _keep_only(read)
        os.read(read, 1)
    finally:
        os._exit(0)


def _follow(init: int, pid: int, write: int) -> NoReturn:
    status = 1 << 8
    try:
        _raw.signal(STACK_SIGNAL, lambda number, _: os.kill(pid, number))
        _keep_only(write, [STACK_SIGNAL])
        # Looked at first: until it is collected its number is its own.
        _os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        _raw.pthread_sigmask(_raw.SIG_BLOCK, [STACK_SIGNAL])
        _, status = unpatched.waitpid(pid, 0)
        os.close(write)
        # With it everything is gone that was left.
        unpatched.waitpid(init, 0)
    finally:
        _end_like(status)


def _end_like(status: int) -> NoReturn:
    try:
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # there has been one, if any
            if number != _raw.SIGKILL:
                _raw.signal(number, _raw.SIG_DFL)
            os.kill(os.getpid(), number)
            _raw.pthread_sigmask(_raw.SIG_UNBLOCK, [number])
        os._exit(os.waitstatus_to_exitcode(status))
    finally:
        os._exit(1)
