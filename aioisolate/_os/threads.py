"""A short-lived helper thread whose end makes a descriptor readable."""

from __future__ import annotations

import _socket
import _thread
import contextlib
import errno
import os
import threading
from collections.abc import Callable

from .fds import Descriptors

__all__ = ["Helper", "NoThreadError", "has_helpers", "others"]

# Distinguishes helpers from the user's threads: a helper holds no lock that a child could need.
_PREFIX = "aioisolate-"
# The program may have set SIGPIPE to SIG_DFL, which would kill the process.
_NO_SIGNAL: int = getattr(_socket, "MSG_NOSIGNAL", 0)
# The helper threads that have not ended.
_working: set[threading.Thread] = set()


class NoThreadError(OSError):
    """A thread can't be started, or no descriptor is free for it."""


class Helper:
    """A daemon thread that runs one function and ends.

    Raises NoThreadError if it can't be started. *work* must not raise.
    """

    def __init__(self, name: str, work: Callable[[], object]) -> None:
        self._fds = Descriptors()
        try:
            # Not the end of a pipe: it does not wake up gevent's selectors.
            here, there = _socket.socketpair()
        except OSError as exc:
            raise NoThreadError(exc.errno, exc.strerror) from exc
        self._read = self._fds.own(here.detach())
        os.set_blocking(self._read, False)

        def run() -> None:
            try:
                work()
            finally:
                _working.discard(thread)
                with contextlib.suppress(OSError):  # the read end is closed
                    there.send(b"\0", _NO_SIGNAL)
                there.close()

        self._thread = thread = threading.Thread(target=run, name=_PREFIX + name, daemon=True)
        _working.add(thread)
        try:
            self._thread.start()
        except RuntimeError as exc:  # "can't start new thread": EAGAIN
            _working.discard(thread)
            there.close()
            self.close()
            raise NoThreadError(errno.EAGAIN, str(exc)) from exc

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the work is done."""
        return self._read

    def done(self) -> None:
        """Join the thread, whose work is done, so that it does not exist at the next fork."""
        self._thread.join()

    def close(self) -> None:
        """Close the descriptor, whether the thread has ended or not."""
        self._fds.close_all()


def others() -> list[str]:
    """Return the names of the Python threads besides this one and the helpers."""
    if not _thread._count():  # only the main thread: a fast path for the common case
        return []
    me = threading.current_thread()
    return [
        thread.name
        for thread in threading.enumerate()
        if thread is not me and not thread.name.startswith(_PREFIX)
    ]


def has_helpers() -> bool:
    """Return whether a helper is running, which may import modules and open files."""
    # In a forked copy of this process, helpers are in the set but not alive.
    return bool(_working) and any(thread.is_alive() for thread in list(_working))
