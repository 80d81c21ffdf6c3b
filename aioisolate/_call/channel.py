"""A child's channel: its bytes and descriptors become messages, or a fault.

`WakeupRateLimiter` bounds how often a child may wake this process by its channel and its output.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from .._options import CallOptions
from .._os import messages
from .._os.fds import Descriptors
from .._wire.conversation import Conversation, Message
from .._wire.frames import Kind, ProtocolError, TooLarge
from .child import Child
from .verdict import KilledFor

__all__ = ["READ_SIZE", "Channel", "FaultError", "WakeupRateLimiter"]

# For larger reads malloc maps and unmaps memory each time.
READ_SIZE = 64 * 1024
# The kinds of frames that are a fault: the key says whether items are expected, whether progress
# reports are expected, and whether the child is trusted.
_UNASKED = {
    (items, reports, trusted): frozenset(
        [Kind.ITEM] * (not items)
        + [Kind.PROGRESS] * (not reports)
        + [Kind.IMPORTED] * (not trusted)
    )
    for items in (False, True)
    for reports in (False, True)
    for trusted in (False, True)
}
# Token bucket: a wake-up for one byte costs this process about as much as the write costs the
# child, so a child could keep this process busy. An untrusted child may wake this process 64 times
# in a row, then 250 times a second; in between the child is not watched, and its data accumulates.
_BURST = 64
_RATE = 250.0
# A wake-up with this many bytes is free, so that large data is not slowed down.
_FREE_SIZE = 16 * 1024
# Each of these costs as much as a wake-up: this many progress reports, bytes of reports (which are
# searched and escaped), and lines for which a callable is called.
_REPORTS_PER_TOKEN = 64
_REPORT_BYTES_PER_TOKEN = 2 * 1024
_LINES_PER_TOKEN = 1024
# An event loop may call a timer this many seconds early; do not sleep again for the rest.
_EARLY = 1e-3


class FaultError(Exception):
    """A child's frames are wrong, or reading them failed.

    Attributes:
        cause: the reason to kill the child.
    """

    def __init__(self, cause: KilledFor, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


class Channel:
    """The parent's end of a child's channel.

    Attributes:
        conversation: the frames so far.
        received: the descriptors that arrived.
    """

    __slots__ = ("_child", "conversation", "received")

    def __init__(self, child: Child, options: CallOptions, *, items: bool) -> None:
        """Read *child*'s channel; *items*: fn is a generator whose items are expected."""
        self._child = child
        limits = options.limits
        self.received = Descriptors()
        self.conversation = Conversation(
            child.nonce,
            None if limits is None else limits.result_size,
            plain=options.codec != "pickle",
            confined=child.layers is not None,
            unasked=_UNASKED[items, options.on_progress is not None, options.codec == "pickle"],
        )

    def read(self) -> tuple[int, Sequence[Message]]:
        """Read once; return the number of bytes, and the messages between STARTED and the answer.

        0 bytes: the other end is closed. Raises BlockingIOError if there is no data, or FaultError.
        """
        try:
            data, fds, cut = messages.receive_on(self._child.channel, READ_SIZE)
        except BlockingIOError:
            raise
        except ConnectionResetError:
            return 0, ()  # the child ended without reading its request
        except OSError as exc:
            text = f"reading its channel failed: {exc.strerror}"
            raise FaultError(KilledFor.CHANNEL_READ, text) from exc
        for fd in fds:
            self.received.own(fd)
        if cut:
            raise FaultError(
                KilledFor.CHANNEL_READ,
                "this process may not open the descriptors that came with its answer "
                "(RLIMIT_NOFILE)",
            )
        try:
            return len(data), self.conversation.receive(data, fds) if data else ()
        except ProtocolError as exc:
            raise _fault(exc) from exc

    def fault(self) -> FaultError:
        """Return the fault that follows the messages of the last `read`; there must be one."""
        assert self.conversation.fault is not None
        return _fault(self.conversation.fault)


def _fault(exc: ProtocolError) -> FaultError:
    if not isinstance(exc, TooLarge):
        return FaultError(KilledFor.PROTOCOL, str(exc))
    item = exc.kind is Kind.ITEM
    cause = KilledFor.ITEM_TOO_LARGE if item else KilledFor.RESULT_TOO_LARGE
    return FaultError(cause, str(exc))


class WakeupRateLimiter:
    """Watches a child's channel and output, and limits how often they wake this process.

    Attributes:
        until: the end of a pause, in which nothing is watched; infinity if there is no pause.
    """

    __slots__ = ("_charged_at", "_fds", "_limited", "_tokens", "_waitset", "until")

    def __init__(self, child: Child, options: CallOptions) -> None:
        self._waitset = child.waitset
        self._limited = options.codec != "pickle"
        self._fds = {stream.fd for stream in child.streams}
        if child.talks:
            self._fds.add(child.channel)
        self._tokens = float(_BURST)
        self._charged_at = 0.0
        self.until = math.inf

    def add(self, fd: int) -> None:
        """Watch one more descriptor."""
        self._fds.add(fd)
        if self.until == math.inf:
            self._waitset.add(fd)

    def remove(self, fd: int) -> None:
        """Stop watching a descriptor, if it was watched; it must still be open."""
        self._fds.discard(fd)
        self._waitset.remove(fd)

    def heard(self, size: int) -> None:
        """Count a wake-up that brought *size* bytes."""
        self._charge(1 - size / _FREE_SIZE)

    def took_reports(self, count: int, size: int) -> None:
        """Count reports of progress, of *size* bytes together."""
        self._charge(count / _REPORTS_PER_TOKEN + size / _REPORT_BYTES_PER_TOKEN)

    def took_lines(self, count: int) -> None:
        """Count lines for which a callable was called."""
        self._charge(count / _LINES_PER_TOKEN)

    def _charge(self, cost: float) -> None:
        if not self._limited:
            return
        now = time.monotonic()
        self._tokens = min(_BURST, self._tokens + (now - self._charged_at) * _RATE) - cost
        self._charged_at = now
        if self._tokens < 0:
            self.until = now - self._tokens / _RATE
            for fd in self._fds:
                self._waitset.remove(fd)

    def go_on(self) -> None:
        """Watch again if the pause is over."""
        if self.until != math.inf and time.monotonic() >= self.until - _EARLY:
            self.until = math.inf
            for fd in self._fds:
                self._waitset.add(fd)
