"""What a service needs of the event loop besides waiting: callbacks and tasks that go on beside it.

For asyncio (and uvloop) its own readers, timers and tasks; for trio system tasks. None of them
belongs to a scope of the caller's, so each has an end that must be brought about by hand.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import anyio

from .._async_backend import AsyncBackend
from .eventloop import running_backend

__all__ = [
    "Background",
    "current_task",
    "is_being_cancelled",
    "poster",
    "soon",
    "spawn",
    "watch",
]

_log = logging.getLogger("aioisolate.service")


# The loop itself does not keep its tasks alive.
_alive: set[Any] = set()


class Background(Protocol):
    """Something that goes on beside its caller."""

    def cancel(self) -> None:
        """End it, now or at its next await; does nothing if it has ended."""


class _Task:
    """A task of asyncio's."""

    def __init__(
        self, loop: Any, work: Callable[[], Awaitable[object]], on_end: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._task = loop.create_task(_logged(work))
        _alive.add(self._task)
        self._task.add_done_callback(_alive.discard)
        # Not at the end of the coroutine: a task that is cancelled early never begins it.
        self._task.add_done_callback(lambda _: on_end())

    def cancel(self) -> None:
        if not self._loop.is_closed():
            self._task.cancel()


class _SystemTask:
    """A system task of trio's."""

    def __init__(self, work: Callable[[], Awaitable[object]], on_end: Callable[[], object]) -> None:
        # Neither is kept here: they mostly refer to what keeps this.
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
    """A reader of an asyncio loop's."""

    def __init__(self, loop: Any, fd: int, callback: Callable[[], object]) -> None:
        self._loop = loop
        self._fd = fd
        self._owner_pid = os.getpid()
        loop.add_reader(fd, callback)

    def cancel(self) -> None:
        # A forked copy of the loop has the same epoll: the reader would be the original's.
        if not self._loop.is_closed() and self._owner_pid == os.getpid():
            self._loop.remove_reader(self._fd)


async def _logged(work: Callable[[], Awaitable[object]]) -> None:
    name = str(getattr(work, "__qualname__", work))
    awaitable = work()
    # The traceback of an exception that *work* keeps may lead here, by its frames.
    del work
    try:
        await awaitable
    except Exception:  # noqa: BLE001
        # There is nobody to raise it to.
        _log.exception("%s failed", name)


def spawn(
    backend: AsyncBackend,
    work: Callable[[], Awaitable[object]],
    on_end: Callable[[], object] = lambda: None,
) -> Background:
    """Run *work()* in a task that belongs to nobody. What it raises is logged.

    *on_end* is called when the task is over, even if it was cancelled before it began.
    """
    if backend.loop is not None:
        return _Task(backend.loop, work, on_end)
    return _SystemTask(work, on_end)


def watch(backend: AsyncBackend, fd: int, callback: Callable[[], object]) -> Background:
    """Call *callback* whenever *fd* is readable. End it before *fd* is closed."""
    if backend.loop is not None:
        return _Reader(backend.loop, fd, callback)

    async def look() -> None:
        while True:
            await anyio.wait_readable(fd)
            callback()

    return _SystemTask(look, lambda: None)


def soon(backend: AsyncBackend, callback: Callable[[], object]) -> None:
    """Call *callback* in the loop's next turn: what nobody waits for need not hold up anyone."""
    if backend.loop is not None:
        backend.loop.call_soon(callback)
    else:
        sys.modules["trio"].lowlevel.current_trio_token().run_sync_soon(callback)


def poster(backend: AsyncBackend) -> Callable[[Callable[[], object]], None]:
    """Return a function that has a callback called in a later turn of the loop.

    To be made in the loop. It may be called in any thread and in a finalizer; it does nothing once
    the loop has ended.
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
    """Return the task that runs, asyncio's or trio's. Raises RuntimeError if none does."""
    backend = running_backend()
    if backend.task is not None:
        return backend.task
    return sys.modules["trio"].lowlevel.current_task()


def is_being_cancelled() -> bool:
    """Tell whether the task that runs has been cancelled from outside.

    If not, a cancellation that is raised there has come from something that it awaited.
    """
    backend = running_backend()
    if backend.task is not None:
        return bool(backend.task.cancelling())
    return bool(sys.modules["trio"].current_effective_deadline() == -math.inf)
