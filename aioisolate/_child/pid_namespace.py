"""A PID namespace with an init, so that no process that a call starts outlives the call.

    follower --- the forked process; the parent gets its exit status
      |-- init   process 1 of the namespace: when it ends, the kernel kills all other processes
      `-- worker the process that calls fn

The follower waits for the worker, ends with the same status, and forwards the signal that asks for
a stack trace. If the follower is killed, the init reads end of file from the pipe between them, and
ends. The worker isn't the init itself: the kernel discards signals that an init has no handler for,
and an init has to reap orphans.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C part of signal; it has no stubs
import os
import resource
from collections.abc import Iterable
from typing import Any, NoReturn

from .._os import namespaces, unpatched
from .._wire.shared_constants import STACK_SIGNAL

__all__ = ["enter_namespace"]

_raw: Any = _signal
_os: Any = os  # some platforms lack some of its functions
_FD_MAX = 1 << 20


def enter_namespace() -> None:
    """Return in the worker, in a new PID namespace with an init; os.getppid() returns 0 there.

    Raises OSError, in the calling process, if the namespace can't be created.
    """
    namespaces.unshare(namespaces.NEWPID)
    read, write = os.pipe()
    init = unpatched.fork()
    if init == 0:
        _run_init(read)
    pid = unpatched.fork()
    if pid:
        _follow(init, pid, write)
    os.close(read)
    os.close(write)


def _keep_only(fd: int, handled: Iterable[int] = ()) -> None:
    """Close all other files and block all signals except *handled*: the worker gets the others."""
    _raw.pthread_sigmask(_raw.SIG_SETMASK, set(_raw.valid_signals()).difference(handled))
    os.closerange(0, fd)
    os.closerange(fd + 1, _FD_MAX)


def _run_init(read: int) -> NoReturn:
    try:
        # With SIGCHLD ignored, the kernel reaps orphans.
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
        # WNOWAIT: the pid stays in use until waitpid(), so the handler signals no other process.
        _os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        _raw.pthread_sigmask(_raw.SIG_BLOCK, [STACK_SIGNAL])
        _, status = unpatched.waitpid(pid, 0)
        os.close(write)
        # The init has now ended, and with it every process left in the namespace.
        unpatched.waitpid(init, 0)
    finally:
        _end_like(status)


def _end_like(status: int) -> NoReturn:
    try:
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the worker has dumped core
            if number != _raw.SIGKILL:
                _raw.signal(number, _raw.SIG_DFL)
            os.kill(os.getpid(), number)
            _raw.pthread_sigmask(_raw.SIG_UNBLOCK, [number])
        os._exit(os.waitstatus_to_exitcode(status))
    finally:
        os._exit(1)
