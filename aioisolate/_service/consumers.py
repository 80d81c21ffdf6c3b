"""The tasks that take results of one map or items of one stream: wake them, and end them."""

from __future__ import annotations

import weakref
from typing import Any

import anyio

from .._call import eventloop

__all__ = ["Consumers"]


class Consumers:
    """The tasks that take results or items; there may be several at once.

    Attributes:
        error: the exception that each task gets once at the end, or None.
    """

    __slots__ = ("_changed", "_notified", "error")

    def __init__(self) -> None:
        self._changed = anyio.Event()
        self.error: BaseException | None = None
        self._notified: weakref.WeakSet[Any] | None = None

    async def wait(self) -> None:
        """Wait until something has changed; the caller then checks its condition again."""
        if self._changed.is_set():
            self._changed = anyio.Event()
        await self._changed.wait()

    def wake(self) -> None:
        """Wake all consumers."""
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """Set the error for the end; later errors are ignored."""
        if self.error is not None:
            return
        if isinstance(error, StopAsyncIteration):
            # A StopAsyncIteration would be taken for the regular end of a map or stream.
            wrapped = RuntimeError("StopAsyncIteration was raised; it does not end the loop here")
            wrapped.__cause__ = error
            error = wrapped
        self.error = error

    def end(self) -> BaseException:
        """Return the exception to raise in this task at the end, at each further request.

        Each task gets the error, so that no task takes the end for a regular one; but only once, as
        with a generator.
        """
        if self.error is None:
            return StopAsyncIteration()
        task = eventloop.current_task()
        if self._notified is None:
            self._notified = weakref.WeakSet()
        if task in self._notified:
            return StopAsyncIteration()
        self._notified.add(task)
        return self.error
