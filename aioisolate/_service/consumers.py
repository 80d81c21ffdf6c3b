"""Tasks that take from the same map or stream: how they are woken, and how it ends for each."""

from __future__ import annotations

import weakref
from typing import Any

import anyio

from .._call import eventloop

__all__ = ["Consumers"]


class Consumers:
    """The tasks that take results or items, of which there may be several at once.

    Attributes:
        error: what each of them is to have at the end, once; or None.
    """

    __slots__ = ("_changed", "_told", "error")

    def __init__(self) -> None:
        self._changed = anyio.Event()
        self.error: BaseException | None = None
        self._told: weakref.WeakSet[Any] | None = None

    async def wait(self) -> None:
        """Wait until something has changed; then each of them looks for itself what that is."""
        if self._changed.is_set():
            self._changed = anyio.Event()
        await self._changed.wait()

    def wake(self) -> None:
        """Let all of them look."""
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """Let it end with *error*; the first one counts."""
        if self.error is not None:
            return
        if isinstance(error, StopAsyncIteration):
            # Raised as itself it would look like the end of a map or stream that is complete.
            wrapped = RuntimeError("StopAsyncIteration was raised, which is no end of a loop here")
            wrapped.__cause__ = error
            error = wrapped
        self.error = error

    def end(self) -> BaseException:
        """Return what to raise in this task at the end, each time that it asks for more.

        Each task gets the error, so that none takes its end for a complete one; but only once, as
        with a generator.
        """
        if self.error is None:
            return StopAsyncIteration()
        task = eventloop.current_task()
        if self._told is None:
            self._told = weakref.WeakSet()
        if task in self._told:
            return StopAsyncIteration()
        self._told.add(task)
        return self.error
