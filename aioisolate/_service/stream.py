"""The items of a generator that runs in a child, one by one, no faster than they are wanted."""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
import anyio.lowlevel

from .._call.decoding import INLINE_MAX, Decoding
from .._call.supervise import OnItem
from .._os.fds import Descriptors
from .._wire import codecs
from .job import Job

__all__ = ["Stream"]

T = TypeVar("T")

# The child is held up while so much is here that nobody has asked for.
_ITEMS_MAX = 64
_BYTES_MAX = 256 * 1024
# So many seconds items are decoded in a row.
_TURN = 0.005


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
        # When the event loop last had a turn.
        self._rested_at = -math.inf
        # Of the item that is to be had next. Whoever was cancelled while waiting for it comes back.
        self._decoding: Decoding | None = None
        self.job: Job[Any]

    def __repr__(self) -> str:
        if not hasattr(self, "job"):
            return "<Stream: not entered>"
        return f"<Stream of {self.job!r}: {len(self._items)} items to be taken>"

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
        self._close()
        await self.job.abort()

    def _close(self) -> None:
        self._closed = True
        while self._items:
            self._items.popleft()[1].close_all()
        if self._decoding is not None:
            self._decoding.close()
            self._decoding = None

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:  # noqa: C901, PLR0912 - the short way is not taken by a call more
        if not hasattr(self, "job"):
            raise RuntimeError("a stream is used inside `async with`")
        if self._closed:
            raise StopAsyncIteration
        decoding = self._decoding
        if decoding is None:
            if not self._items:
                await self._wait_for_one()
            elif time.monotonic() - self._rested_at > _TURN:
                # All of them are here, and who takes them may never wait for anything else.
                await anyio.lowlevel.checkpoint()
                self._rested_at = time.monotonic()
            if not self._items:  # closed meanwhile
                raise StopAsyncIteration
            pieces, luggage = self._items.popleft()
            size = sum(map(len, pieces))
            self._bytes -= size
            supervision = self.job.supervision
            if not self._is_full() and supervision is not None:
                supervision.resume()
            if (
                self._effort(pieces, size) <= INLINE_MAX
            ):  # the short way: most are small, and there may be many
                failure: BaseException | None = None
                try:
                    item: T = self._load(pieces, luggage, at_once=True)
                except codecs.ImportNeeded:
                    pass  # in a thread, then
                except BaseException as exc:  # noqa: BLE001 - loading a pickle may raise anything
                    failure = exc
                else:
                    return item
                if failure is not None:
                    self._close()
                    raise await self.job.spoil(failure)
            load = functools.partial(self._load, pieces, luggage)
            decoding = Decoding(INLINE_MAX + 1, load, otherwise=luggage.close_all)
            self._decoding = decoding
        await decoding.wait()
        self._decoding = None
        if decoding.failure is not None:
            self._close()
            raise await self.job.spoil(decoding.failure)
        value: T = decoding.value
        return value

    async def _wait_for_one(self) -> None:
        while not self._items:
            if self.job.done():
                if self.job.error is not None:
                    self._closed = True
                    raise self.job.error
                raise StopAsyncIteration
            self.job.check_owner()
            self._changed = anyio.Event()
            await self._changed.wait()
        self._rested_at = time.monotonic()

    def _effort(self, pieces: Sequence[bytes], size: int) -> int:
        options = self.job.plan.options
        if options.codec == "pickle":
            return size
        from .._wire import plain  # noqa: PLC0415 - only for those who ask for it

        return plain.effort(options.codec, pieces, options.result_type)

    def _load(self, pieces: Sequence[bytes], luggage: Descriptors, *, at_once: bool = False) -> Any:
        # Closed here, not by whoever waits for it: who does no more must not pull them away.
        again = False
        try:
            options = self.job.plan.options
            if options.codec == "pickle":
                load = codecs.load_at_once if at_once else codecs.load
                return load(pieces, fds=luggage.listed())
            from .._wire import plain  # noqa: PLC0415 - only for those who ask for it

            return plain.load(options.codec, pieces, options.result_type)
        except codecs.ImportNeeded:
            again = True
            raise
        finally:
            if not again:
                luggage.close_all()

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
