"""The items of a generator that runs in a child, one by one, no faster than they are wanted."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio

from .._call.supervise import OnItem
from .._os.fds import Descriptors
from .._wire import codecs
from .job import Job

__all__ = ["Stream"]

T = TypeVar("T")

# The child is held up while so much is here that nobody has asked for.
_ITEMS_MAX = 64
_BYTES_MAX = 256 * 1024


class Stream(Generic[T]):
    """The items of a generator in a child: an async context manager and an async iterator.

    The child runs ahead as far as a pipe and some 64 items (or 256 KiB) reach, then waits. What
    the generator raises comes after the items before it. Leaving the context ends the child.

    Attributes:
        job: the call behind it.
    """

    def __init__(self, make_job: Callable[[OnItem], Job[Any]]) -> None:
        self._make_job = make_job
        self._items: deque[tuple[Sequence[bytes], Descriptors]] = deque()
        self._bytes = 0
        self._changed = anyio.Event()
        self._closed = False
        self.job: Job[Any]

    async def __aenter__(self) -> Self:
        if self._closed or hasattr(self, "job"):
            raise RuntimeError("a stream is entered once")
        self.job = self._make_job(self._take)
        self.job.on_done = self._wake
        self.job.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed = True
        while self._items:
            self._items.popleft()[1].close_all()
        await self.job.abort()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        if not hasattr(self, "job"):
            raise RuntimeError("a stream is used inside `async with`")
        if self._closed:
            raise StopAsyncIteration
        while not self._items:
            if self.job.done():
                if self.job.error is not None:
                    self._closed = True
                    raise self.job.error
                raise StopAsyncIteration
            self._changed = anyio.Event()
            await self._changed.wait()
        pieces, luggage = self._items.popleft()
        self._bytes -= sum(map(len, pieces))
        supervision = self.job.supervision
        if not self._is_full() and supervision is not None:
            supervision.resume()
        try:
            options = self.job.plan.options
            if options.codec != "pickle":
                from .._wire import plain  # noqa: PLC0415 - only for those who ask for it

                item: T = plain.load(options.codec, pieces, options.result_type)
            else:
                item = codecs.load(pieces, fds=luggage.listed())
        finally:
            luggage.close_all()
        return item

    def _take(self, pieces: Sequence[bytes], fds: Sequence[int]) -> None:
        luggage = Descriptors()
        for fd in fds:
            luggage.own(fd)
        if self._closed:
            luggage.close_all()
            return
        self._items.append((pieces, luggage))
        self._bytes += sum(map(len, pieces))
        if self._is_full() and self.job.supervision is not None:
            self.job.supervision.pause()
        self._wake()

    def _is_full(self) -> bool:
        return len(self._items) >= _ITEMS_MAX or self._bytes >= _BYTES_MAX

    def _wake(self) -> None:
        self._changed.set()
