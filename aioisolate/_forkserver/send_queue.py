"""Messages for a fork server that its socket has not accepted yet."""

from __future__ import annotations

import _socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import anyio

from .._async_backend import AsyncBackend
from .._call import eventloop
from .._os import messages

__all__ = ["SendQueue"]

# Seconds between attempts to send a message for which the kernel has no memory.
_PAUSE = 0.02


class _Message(NamedTuple):
    data: bytes
    passing: Sequence[int] = ()
    on_passed: Callable[[], object] = lambda: None
    on_refused: Callable[[OSError], object] = lambda _: None


class SendQueue:
    """Messages for a fork server, sent in order and without blocking."""

    def __init__(self, backend: AsyncBackend) -> None:
        self._backend = backend
        self._messages: deque[_Message] = deque()
        self._again: eventloop.Background | None = None
        self._closed = False
        self._socket: _socket.socket

    def open(self, sock: _socket.socket) -> None:
        """Send over *sock*, which is not blocking, from now on."""
        self._socket = sock

    def put(self, data: bytes) -> None:
        """Send *data* as soon as possible."""
        self._messages.append(_Message(data))
        self.send()

    def pass_on(
        self,
        data: bytes,
        fds: Sequence[int],
        on_passed: Callable[[], object],
        on_refused: Callable[[OSError], object],
    ) -> None:
        """Send *data* with descriptors, which stay open until one of the callbacks is called."""
        self._messages.append(_Message(data, fds, on_passed, on_refused))
        self.send()

    def send(self) -> None:
        """Send as many messages as the socket accepts."""
        while self._messages:
            message = self._messages[0]
            try:
                sent = messages.send(self._socket, message.data, message.passing)
            except BlockingIOError:
                return  # the server is busy; the rest is sent when its next record arrives
            except (BrokenPipeError, ConnectionResetError):
                self._messages.clear()  # the server has ended, which the socket's reader handles
                return
            except OSError as exc:
                if not message.passing:
                    self._retry_later()
                    return
                # The server is alive. The kernel limits a user's descriptors in flight. No byte has
                # been sent, since the descriptors are sent with the first one.
                self._messages.popleft()
                message.on_refused(exc)
                continue
            if sent < len(message.data):
                self._messages[0] = _Message(message.data[sent:])
            else:
                self._messages.popleft()
            message.on_passed()

    def _retry_later(self) -> None:
        if self._again is None and not self._closed:
            self._again = eventloop.spawn(self._backend, self._resume)

    async def _resume(self) -> None:
        await anyio.sleep(_PAUSE)
        self._again = None
        self.send()

    def forget_fds(self) -> None:
        """Remove unsent messages that carry descriptors, which are about to be closed."""
        # The rest of a message sent in part carries no descriptors any more, and must follow.
        self._messages = deque(message for message in self._messages if not message.passing)

    def close(self) -> None:
        """Remove all unsent messages, and do not retry."""
        self._closed = True
        self._messages.clear()
        if self._again is not None:
            self._again.cancel()
