"""What is to be said to a fork server, until its socket has taken it."""

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

# Between attempts to send what the kernel has no memory for.
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
        self._letters: deque[_Message] = deque()
        self._again: eventloop.Background | None = None
        self._closed = False
        self._socket: _socket.socket

    def open(self, sock: _socket.socket) -> None:
        """Send over *sock* from now on, which does not block."""
        self._socket = sock

    def put(self, data: bytes) -> None:
        """Send *data* as soon as possible."""
        self._letters.append(_Message(data))
        self.send()

    def pass_on(
        self,
        data: bytes,
        fds: Sequence[int],
        on_passed: Callable[[], object],
        on_refused: Callable[[OSError], object],
    ) -> None:
        """Send *data* with descriptors, which stay open until one of the callbacks is called."""
        self._letters.append(_Message(data, fds, on_passed, on_refused))
        self.send()

    def send(self) -> None:
        """Send what the server has room for."""
        while self._letters:
            letter = self._letters[0]
            try:
                sent = messages.send(self._socket, letter.data, letter.passing)
            except BlockingIOError:
                return  # it is busy; the rest goes when it next says something
            except (BrokenPipeError, ConnectionResetError):
                self._letters.clear()  # it is dead, which its end of the socket will tell
                return
            except OSError as exc:
                if not letter.passing:
                    self._try_again()
                    return
                # The server lives. How many descriptors may be on their way is counted for all of
                # a user's processes; and as they go with the first byte, none has gone.
                self._letters.popleft()
                letter.on_refused(exc)
                continue
            if sent < len(letter.data):
                self._letters[0] = _Message(letter.data[sent:])
            else:
                self._letters.popleft()
            letter.on_passed()

    def _try_again(self) -> None:
        if self._again is None and not self._closed:
            self._again = eventloop.spawn(self._backend, self._resume)

    async def _resume(self) -> None:
        await anyio.sleep(_PAUSE)
        self._again = None
        self.send()

    def forget_fds(self) -> None:
        """Forget what has not been sent and has descriptors with it, which are being closed."""
        # What is left of one that has been sent in part has none any more, and must follow.
        self._letters = deque(letter for letter in self._letters if not letter.passing)

    def close(self) -> None:
        """Forget what has not been sent, and try nothing twice."""
        self._closed = True
        self._letters.clear()
        if self._again is not None:
            self._again.cancel()
