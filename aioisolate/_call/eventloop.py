"""The event loop, as far as a call needs one: wake up when a descriptor is readable or it is time.

Two of them: asyncio's own readers and timers (uvloop's, too), armed before the fork because
touching the loop's memory afterwards means copying it; and anyio for every other loop.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import anyio

from .._async_backend import AsyncBackend

__all__ = ["AnyioWaiter", "AsyncioWaiter", "Waiter", "running_backend"]


class Waiter(Protocol):
    """Waits for one descriptor, again and again, each time no longer than until a given time."""

    @property
    def cancelled(self) -> type[BaseException]:
        """What is raised where a task is cancelled."""
        ...

    def arm(self, until: float) -> None:
        """Prepare to wait until *until*, on the clock of time.monotonic."""

    def wait(self) -> Awaitable[None]:
        """Return when the descriptor is readable, or the time has come, or a little earlier."""
        ...

    def ring(self) -> None:
        """Wake the waiting task up, now or as soon as it waits."""

    def close(self) -> None:
        """Stop watching; the descriptor may be closed afterwards."""


class AsyncioWaiter:
    """Waits by a reader and a timer of an asyncio loop.

    *on_loss* is called if the loop drops the reader by itself, as `loop.close` does.
    """

    def __init__(self, loop: Any, fd: int, on_loss: Callable[[], None]) -> None:
        self.cancelled: type[BaseException] = sys.modules["asyncio"].CancelledError
        self._loop = loop
        self._fd = fd
        self._owner_pid = os.getpid()
        self._future: Any = loop.create_future()
        self._timer: Any = None
        self._timer_at = -1.0
        # Only the loop may hold the doorbell: see there.
        doorbell = _Doorbell(self, on_loss)
        self._lose = doorbell.lose
        loop.add_reader(fd, doorbell)

    def ring(self) -> None:
        """Wake the waiting task."""
        if not self._future.done():
            self._future.set_result(None)

    def _on_time(self) -> None:
        self._timer_at = -1.0
        self.ring()

    def arm(self, until: float) -> None:
        """Prepare to wait until *until*, on the clock of time.monotonic."""
        if self._future.done():
            self._future = self._loop.create_future()
        if until != self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if until != float("inf"):
                delay = max(0.0, until - time.monotonic())
                self._timer = self._loop.call_later(delay, self._on_time)
            self._timer_at = until

    def wait(self) -> Awaitable[None]:
        """Return when the descriptor is readable, or the time has come, or a little earlier."""
        future: Awaitable[None] = self._future
        return future

    def close(self) -> None:
        """Stop watching; the descriptor may be closed afterwards."""
        self._lose.clear()
        if self._timer is not None:
            self._timer.cancel()
        # A forked copy of the loop has the same epoll: the reader would be the original's.
        if not self._loop.is_closed() and self._owner_pid == os.getpid():
            self._loop.remove_reader(self._fd)


class _Doorbell:
    """What the loop calls when the descriptor is readable.

    The loop is the only one who holds it. So if it is collected while it is still connected, the
    loop has been closed under a running call, and nobody will ever wait for that child again.
    """

    __slots__ = ("_waiter", "lose")

    def __init__(self, waiter: AsyncioWaiter, on_loss: Callable[[], None]) -> None:
        self._waiter = waiter
        self.lose = [on_loss]

    def __call__(self) -> None:
        self._waiter.ring()

    def __del__(self) -> None:
        while self.lose:
            self.lose.pop()()


class AnyioWaiter:
    """Waits by anyio, on whatever loop it supports."""

    def __init__(self, fd: int) -> None:
        self.cancelled: type[BaseException] = anyio.get_cancelled_exc_class()
        self._fd = fd
        self._until = 0.0
        self._rung = False
        self._scope: anyio.CancelScope | None = None

    def ring(self) -> None:
        """Wake the waiting task up, now or as soon as it waits."""
        self._rung = True
        if self._scope is not None:
            self._scope.cancel()

    def arm(self, until: float) -> None:
        """Prepare to wait until *until*, on the clock of time.monotonic."""
        self._until = until

    async def wait(self) -> None:
        """Return when the descriptor is readable, or the time has come, or a little earlier."""
        with anyio.move_on_after(max(0.0, self._until - time.monotonic())) as self._scope:
            if self._rung:
                self._scope.cancel()
            await anyio.wait_readable(self._fd)
        self._scope = None
        self._rung = False

    def close(self) -> None:
        """Stop watching; the descriptor may be closed afterwards."""


def running_backend() -> AsyncBackend:
    """Find out which event loop runs this task. Raises RuntimeError if none does."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        loop = asyncio._get_running_loop()
        # Without a task it is the host of another loop (trio's guest mode), or a callback.
        task = asyncio.current_task(loop) if loop is not None else None
        if task is not None:
            uvloop = type(loop).__module__.startswith("uvloop")
            return AsyncBackend("asyncio", loop, task, uvloop)
    try:
        anyio.get_cancelled_exc_class()
    except RuntimeError as exc:
        raise RuntimeError(
            "an isolated call must be awaited inside a running asyncio or trio event loop"
        ) from exc
    return AsyncBackend("trio")
