"""Which of a child's descriptors are listened to, and how often they may wake this process up."""

from __future__ import annotations

import math
import time

from .._options import CallOptions
from .child import Child

__all__ = ["WakeupRateLimiter"]

# To be woken up for a byte costs this process about as much as it costs the child to write it, so
# one child could keep it busy. One that is not trusted may wake it up so often in a row, and so
# often a second from then on; in between it is left alone, and what it writes adds up.
_BURST = 64
_RATE = 250.0
# A wake-up that brings so much is paid for by that: who has much to say is not held up.
_WORTH = 16 * 1024
# What costs as much as a wake-up: so many reports of progress, so many bytes of them (each is
# looked through, and escaped), so many lines that a callable is called with.
_REPORTS = 64
_REPORT_BYTES = 2 * 1024
_LINES = 1024
# Timers of event loops may be early by so much; not to sleep once more for the rest of it.
_EARLY = 1e-3


class WakeupRateLimiter:
    """A child's channel and its output, as far as they are waited for.

    Attributes:
        until: when they are listened to again, if they are left alone for a while; else infinity.
    """

    __slots__ = ("_bounded", "_fds", "_noted_at", "_tokens", "_waitset", "until")

    def __init__(self, child: Child, options: CallOptions) -> None:
        self._waitset = child.waitset
        self._bounded = options.codec != "pickle"
        self._fds = {stream.fd for stream in child.streams}
        if child.talks:
            self._fds.add(child.channel)
        self._tokens = float(_BURST)
        self._noted_at = 0.0
        self.until = math.inf

    def add(self, fd: int) -> None:
        """Listen to one more."""
        self._fds.add(fd)
        if self.until == math.inf:
            self._waitset.add(fd)

    def remove(self, fd: int) -> None:
        """Listen to it no more, if it was listened to; it must still be open."""
        self._fds.discard(fd)
        self._waitset.remove(fd)

    def heard(self, size: int) -> None:
        """Take note that they have woken this process up, and brought so many bytes."""
        self._charge(1 - size / _WORTH)

    def took_reports(self, count: int, size: int) -> None:
        """Take note of reports of progress, *size* bytes together."""
        self._charge(count / _REPORTS + size / _REPORT_BYTES)

    def took_lines(self, count: int) -> None:
        """Take note of lines that a callable was called with."""
        self._charge(count / _LINES)

    def _charge(self, cost: float) -> None:
        if not self._bounded:
            return
        now = time.monotonic()
        self._tokens = min(_BURST, self._tokens + (now - self._noted_at) * _RATE) - cost
        self._noted_at = now
        if self._tokens < 0:
            self.until = now - self._tokens / _RATE
            for fd in self._fds:
                self._waitset.remove(fd)

    def go_on(self) -> None:
        """Listen again if it is time."""
        if self.until != math.inf and time.monotonic() >= self.until - _EARLY:
            self.until = math.inf
            for fd in self._fds:
                self._waitset.add(fd)
