"""The event loop, as far as this package uses it: waiting, callbacks, and background tasks.

A call waits until a descriptor is readable or a time has come: on asyncio (and uvloop) by readers
and timers of the loop, armed before the fork because touching the loop's memory afterwards copies
its pages; on every other loop by anyio. Background tasks are tasks of asyncio or system tasks of
trio. None of them belongs to a cancel scope of the caller, so each has to be cancelled explicitly.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import anyio

from .._async_backend import AsyncBackend

__all__ = [
    "AnyioWaiter",
    "AsyncioWaiter",
    "Background",
    "Waiter",
    "current_task",
    "is_being_cancelled",
    "poster",
    "running_backend",
    "soon",
    "spawn",
    "watch",
]

_log = logging.getLogger("aioisolate.service")

# The loop itself does not keep its tasks alive.
_alive: set[Any] = set()


class Waiter(Protocol):
    """Waits for one descriptor, repeatedly, each time until a given time at most."""

    @property
    def cancelled(self) -> type[BaseException]:
        """The exception that is raised in a cancelled task."""
        ...

    def arm(self, until: float) -> None:
        """Prepare to wait until *until*, on the clock of time.monotonic."""

    def wait(self) -> Awaitable[None]:
        """Return when the descriptor is readable, or at the given time, or a little earlier."""
        ...

    def ring(self) -> None:
        """Wake the waiting task up, now or as soon as it waits."""

    def close(self) -> None:
        """Stop watching; the descriptor may be closed afterwards."""


class AsyncioWaiter:
    """Waits with a reader and a timer of an asyncio loop.

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
        # Only the loop may keep a reference to the callback: see its class.
        callback = _ReaderCallback(self, on_loss)
        self._on_loss = callback.on_loss
        loop.add_reader(fd, callback)

    def ring(self) -> None:
        """Wake the waiting task up."""
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
        """Return when the descriptor is readable, or at the given time, or a little earlier."""
        future: Awaitable[None] = self._future
        return future

    def close(self) -> None:
        """Stop watching; the descriptor may be closed afterwards."""
        self._on_loss.clear()
        if self._timer is not None:
            self._timer.cancel()
        # A forked copy of the loop has the same epoll: removing would affect the original's reader.
        if not self._loop.is_closed() and self._owner_pid == os.getpid():
            self._loop.remove_reader(self._fd)


class _ReaderCallback:
    """The callback of the loop for a readable descriptor.

    Only the loop refers to it. If it is collected before `on_loss` is cleared, the loop has been
    closed during the call, and no task will wait for the child any more.
    """

    __slots__ = ("_waiter", "on_loss")

    def __init__(self, waiter: AsyncioWaiter, on_loss: Callable[[], None]) -> None:
        self._waiter = waiter
        self.on_loss = [on_loss]

    def __call__(self) -> None:
        self._waiter.ring()

    def __del__(self) -> None:
        while self.on_loss:
            self.on_loss.pop()()


class AnyioWaiter:
    """Waits with anyio, on every loop that anyio supports."""

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
        """Return when the descriptor is readable, or at the given time, or a little earlier."""
        with anyio.move_on_after(max(0.0, self._until - time.monotonic())) as self._scope:
            if self._rung:
                self._scope.cancel()
            await anyio.wait_readable(self._fd)
        self._scope = None
        self._rung = False

    def close(self) -> None:
        """Stop watching; the descriptor may be closed afterwards."""


def running_backend() -> AsyncBackend:
    """Return the event loop that runs this task. Raises RuntimeError if none does."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        loop = asyncio._get_running_loop()
        # Without a task, the loop hosts another one (trio's guest mode), or runs a callback.
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


class Background(Protocol):
    """A callback or task that runs beside its caller."""

    def cancel(self) -> None:
        """Stop it, now or at its next await; do nothing if it has ended."""


class _Task:
    """A task of asyncio."""

    def __init__(
        self, loop: Any, work: Callable[[], Awaitable[object]], on_end: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._task = loop.create_task(_logged(work))
        _alive.add(self._task)
        self._task.add_done_callback(_alive.discard)
        # Not at the end of the coroutine: a task that is cancelled early never starts it.
        self._task.add_done_callback(lambda _: on_end())

    def cancel(self) -> None:
        if not self._loop.is_closed():
            self._task.cancel()


class _SystemTask:
    """A system task of trio."""

    def __init__(self, work: Callable[[], Awaitable[object]], on_end: Callable[[], object]) -> None:
        # Neither argument is kept: usually both refer to the object that keeps this one.
        self._scope = anyio.CancelScope()
        sys.modules["trio"].lowlevel.spawn_system_task(self._run, work, on_end)

    async def _run(
        self, work: Callable[[], Awaitable[object]], on_end: Callable[[], object]
    ) -> None:
        logged = _logged(work)
        del work  # as in `_logged`
        try:
            with self._scope:
                await logged
        finally:
            on_end()
            del on_end

    def cancel(self) -> None:
        self._scope.cancel()


class _Reader:
    """A reader of an asyncio loop."""

    def __init__(self, loop: Any, fd: int, callback: Callable[[], object]) -> None:
        self._loop = loop
        self._fd = fd
        self._owner_pid = os.getpid()
        loop.add_reader(fd, callback)

    def cancel(self) -> None:
        # A forked copy of the loop has the same epoll: removing would affect the original's reader.
        if not self._loop.is_closed() and self._owner_pid == os.getpid():
            self._loop.remove_reader(self._fd)


async def _logged(work: Callable[[], Awaitable[object]]) -> None:
    name = str(getattr(work, "__qualname__", work))
    awaitable = work()
    # An exception that *work* keeps may refer to this frame, through its traceback.
    del work
    try:
        await awaitable
    except Exception:  # noqa: BLE001
        # No caller could handle the exception.
        _log.exception("%s failed", name)


def spawn(
    backend: AsyncBackend,
    work: Callable[[], Awaitable[object]],
    on_end: Callable[[], object] = lambda: None,
) -> Background:
    """Run *work()* in a task outside all scopes. The exceptions that it raises are logged.

    *on_end* is called when the task is over, even if it was cancelled before it began.
    """
    if backend.loop is not None:
        return _Task(backend.loop, work, on_end)
    return _SystemTask(work, on_end)


def watch(backend: AsyncBackend, fd: int, callback: Callable[[], object]) -> Background:
    """Call *callback* whenever *fd* is readable. Cancel it before *fd* is closed."""
    if backend.loop is not None:
        return _Reader(backend.loop, fd, callback)

    async def wait_and_call() -> None:
        while True:
            await anyio.wait_readable(fd)
            callback()

    return _SystemTask(wait_and_call, lambda: None)


def soon(backend: AsyncBackend, callback: Callable[[], object]) -> None:
    """Call *callback* in the next iteration of the loop, so that the caller need not wait."""
    if backend.loop is not None:
        backend.loop.call_soon(callback)
    else:
        sys.modules["trio"].lowlevel.current_trio_token().run_sync_soon(callback)


def poster(backend: AsyncBackend) -> Callable[[Callable[[], object]], None]:
    """Return a function that makes the loop call its argument in a later iteration.

    Create it in the loop. The returned function may be called in any thread and in a finalizer;
    it does nothing once the loop has ended.
    """
    post: Callable[[Callable[[], object]], object]
    if backend.loop is not None:
        post = backend.loop.call_soon_threadsafe
    else:
        post = sys.modules["trio"].lowlevel.current_trio_token().run_sync_soon

    def call(callback: Callable[[], object]) -> None:
        try:
            post(callback)
        except RuntimeError:
            _log.debug("the event loop has ended before %r could be called", callback)

    return call


def current_task() -> Any:
    """Return the running task of asyncio or trio. Raises RuntimeError if there is none."""
    backend = running_backend()
    if backend.task is not None:
        return backend.task
    return sys.modules["trio"].lowlevel.current_task()


def is_being_cancelled() -> bool:
    """Return whether the running task has been cancelled from outside.

    If not, a cancellation that is raised there comes from an object that the task awaited.
    """
    backend = running_backend()
    if backend.task is not None:
        return bool(backend.task.cancelling())
    return bool(sys.modules["trio"].current_effective_deadline() == -math.inf)
