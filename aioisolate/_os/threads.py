"""A short-lived helper thread whose end can be awaited as a readable descriptor."""

from __future__ import annotations

import _socket
import _thread
import contextlib
import errno
import os
import threading
from collections.abc import Callable

from .fds import Descriptors

__all__ = ["Helper", "NoThreadError", "helpers", "others"]

# How these threads are told from the user's own: they hold no lock that a child could need.
_PREFIX = "aioisolate-"
# Somebody may have set SIGPIPE to end the process.
_NO_SIGNAL: int = getattr(_socket, "MSG_NOSIGNAL", 0)
# Those that have not ended.
_working: set[threading.Thread] = set()


class NoThreadError(OSError):
    """A thread can't be started, or there is no descriptor left for it."""


class Helper:
    """A daemon thread that does one thing and ends.

    Raises NoThreadError if it can't be started. *work* must not raise.
    """

    def __init__(self, name: str, work: Callable[[], object]) -> None:
        self._fds = Descriptors()
        try:
            # Not just a pipe that ends: gevent's selectors are not woken up by that.
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
                with contextlib.suppress(OSError):  # nobody waits for it any more
                    there.send(b"\0", _NO_SIGNAL)
                there.close()

        self._thread = thread = threading.Thread(target=run, name=_PREFIX + name, daemon=True)
        _working.add(thread)
        try:
            self._thread.start()
        except RuntimeError as exc:  # "can't start new thread": the system has said EAGAIN
            _working.discard(thread)
            there.close()
            self.close()
            raise NoThreadError(errno.EAGAIN, str(exc)) from exc

    def fileno(self) -> int:
        """Return a descriptor that is readable once the work is done."""
        return self._read

    def done(self) -> None:
        """See the thread off whose work is done: a fork should not find even its last breath."""
        self._thread.join()

    def close(self) -> None:
        """Close the descriptor, whether the thread has ended or not."""
        self._fds.close_all()


def others() -> list[str]:
    """Name the Python threads of this process besides this one and the helpers."""
    if not _thread._count():  # no thread but the main one: the common case, for next to nothing
        return []
    me = threading.current_thread()
    return [
        thread.name
        for thread in threading.enumerate()
        if thread is not me and not thread.name.startswith(_PREFIX)
    ]


def helpers() -> bool:
    """Tell whether there are any helpers: these may import modules, and open files."""
    # In a forked copy of this process they are threads that have stopped.
    return bool(_working) and any(thread.is_alive() for thread in list(_working))
