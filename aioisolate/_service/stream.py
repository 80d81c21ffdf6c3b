"""The items of a generator that runs in a child, one by one, with back-pressure."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio.lowlevel

from .._call.result import INLINE_MAX, Decoding
from .._call.supervision import OnItem
from .._errors import IsolationError
from .._os.fds import Descriptors
from .._wire import codecs
from .consumers import Consumers
from .job import Job

__all__ = ["Stream"]

T = TypeVar("T")

_log = logging.getLogger("aioisolate.service")

# The child is paused while this many items wait to be taken.
_ITEMS_MAX = 64
_BYTES_MAX = 256 * 1024
# The channel of a child that is being ended is read to its end without pauses; more items than this
# are dropped.
_FLOOD_ITEMS = 64 * 1024
_FLOOD_BYTES = 4 << 20
# Seconds for which items are decoded before the event loop runs.
_TURN = 0.005


class Stream(Generic[T]):
    """The items of a generator in a child: an async context manager and an async iterator.

    `Isolator.stream` and `stream_isolated` return one. ``Stream[Row]`` is the type of a stream
    whose items are of the type ``Row``::

        async with iso.stream(read_rows, path) as rows:
            async for row in rows:
                await store(row)

    The child may be ahead of the consumers by the content of a pipe and some 64 items (or 256 KiB);
    then it waits. An exception of the generator is raised after the items that precede it. Leaving
    the context ends the child: it is killed, or with ``grace`` its generator is closed.

    Several tasks may take items; each item goes to one of them.

    Attributes:
        job: the job of the call; it exists once the stream is entered.
    """

    def __init__(self, make_job: Callable[[OnItem], Job[Any]]) -> None:
        self._make_job = make_job
        self._items: deque[tuple[Sequence[bytes], Descriptors]] = deque()
        self._bytes = 0
        self._flooded = False
        self._consumers = Consumers()
        self._closed = False
        # The exception of an item that could not be decoded, or None.
        self._failure: BaseException | None = None
        # The time at which the event loop last ran.
        self._loop_ran_at = -math.inf
        # Items that are being decoded, by their numbers; and the numbers of those whose consumer
        # was cancelled: they are returned next.
        self._number = 0
        self._decoding: dict[int, Decoding] = {}
        self._abandoned: list[int] = []
        self.job: Job[Any]

    def __repr__(self) -> str:
        if not hasattr(self, "job"):
            return "<Stream: not entered>"
        return f"<Stream of {self.job!r}: {len(self._items)} items to be taken>"

    async def __aenter__(self) -> Self:
        if self._closed or hasattr(self, "job"):
            raise RuntimeError("a stream can be entered once only")
        self.job = self._make_job(self._take)
        self.job._on_done = self._consumers.wake
        self.job._start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()
        job = self.job
        was_done = job.done()
        await job._abort()
        error = job.error
        if not was_done and error is not None and not isinstance(error, IsolationError):
            _log.warning("%s raised while its stream was left", job.name, exc_info=error)

    def _close(self) -> None:
        self._closed = True
        while self._items:
            self._items.popleft()[1].close_all()
        for decoding in self._decoding.values():
            decoding.close()
        self._decoding.clear()
        self._abandoned.clear()
        self._consumers.wake()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:  # noqa: C901 - another call would cost the fast path
        if not hasattr(self, "job"):
            raise RuntimeError("take items of a stream inside `async with`")
        # Several tasks may take items, so after each await the state must be checked again.
        while not self._closed:
            if self._abandoned:
                return await self._decoded(self._abandoned.pop(0))
            if not self._items:
                await self._wait_for_change()
            elif time.monotonic() - self._loop_ran_at > _TURN:
                # Otherwise a consumer would never let the event loop run while items are ready.
                await anyio.lowlevel.checkpoint()
                self._loop_ran_at = time.monotonic()
            else:
                pieces, passed_fds = self._items.popleft()
                size = sum(map(len, pieces))
                self._bytes -= size
                supervision = self.job._supervision
                if not self._is_full() and supervision is not None:
                    supervision.resume()
                # The fast path: most items are small, and there may be many.
                if self._effort(pieces, size) <= INLINE_MAX:
                    try:
                        item: T = self._load(pieces, passed_fds, at_once=True)
                    except codecs.ImportNeeded:
                        pass  # decode it in a thread
                    except BaseException as exc:  # noqa: BLE001 - a pickle may raise anything
                        self._failure = exc
                        self._close()
                        break
                    else:
                        return item
                return await self._decoded(self._decode(pieces, passed_fds))
        raise await self._end()

    async def _end(self) -> BaseException:
        """Return the exception to raise when there are no more items."""
        if self._failure is not None and self._consumers.error is None:
            self._consumers.fail(await self.job._end_undecodable(self._failure))
            self.job.error = self._consumers.error
        return self._consumers.end()

    def _decode(self, pieces: Sequence[bytes], passed_fds: Descriptors) -> int:
        """Begin to decode an item in a thread; return its number."""
        load = functools.partial(self._load, pieces, passed_fds)
        self._number += 1
        self._decoding[self._number] = Decoding(
            INLINE_MAX + 1, load, otherwise=passed_fds.close_all
        )
        return self._number

    async def _decoded(self, number: int) -> T:
        """Wait until an item is decoded, and return it."""
        decoding = self._decoding[number]
        try:
            await decoding.wait()
        except BaseException:
            if number in self._decoding:
                self._abandoned.append(number)
                self._abandoned.sort()
                self._consumers.wake()
            raise
        self._decoding.pop(number, None)
        self._consumers.wake()
        if decoding.failure is not None:
            self._failure = decoding.failure
            self._close()
            raise await self._end()
        value: T = decoding.value
        return value

    async def _wait_for_change(self) -> None:
        """Wait until something has changed. Raises the final exception at the end of the stream."""
        # Items that are decoded for other consumers may be returned to the stream, or fail.
        if self.job.done() and not self._decoding:
            if self.job.error is not None:
                self._consumers.fail(self.job.error)
                self._closed = True
            raise self._consumers.end()
        self.job._check_owner()
        await self._consumers.wait()
        self._loop_ran_at = time.monotonic()

    def _effort(self, pieces: Sequence[bytes], size: int) -> int:
        options = self.job._plan.options
        if options.codec == "pickle":
            return size
        from .._wire import plain_data  # noqa: PLC0415 - only with a data-only codec

        return plain_data.effort(options.codec, pieces, options.result_type)

    def _load(
        self, pieces: Sequence[bytes], passed_fds: Descriptors, *, at_once: bool = False
    ) -> Any:
        # The descriptors are closed here, in the decoding thread: a cancelled consumer must not
        # close them meanwhile.
        again = False
        try:
            options = self.job._plan.options
            if options.codec == "pickle":
                load = codecs.load_at_once if at_once else codecs.load
                return load(pieces, fds=passed_fds.listed())
            from .._wire import plain_data  # noqa: PLC0415 - only with a data-only codec

            return plain_data.load(options.codec, pieces, options.result_type)
        except codecs.ImportNeeded:
            again = True
            raise
        finally:
            if not again:
                passed_fds.close_all()

    def _take(self, pieces: Sequence[bytes], fds: Sequence[int]) -> None:
        passed_fds = Descriptors()
        for fd in fds:
            passed_fds.own(fd)
        if self._closed or self._is_flooded():
            passed_fds.close_all()
            return
        self._items.append((pieces, passed_fds))
        self._bytes += sum(map(len, pieces))
        if self._is_full() and self.job._supervision is not None:
            self.job._supervision.pause()
        self._consumers.wake()

    def _is_full(self) -> bool:
        return len(self._items) >= _ITEMS_MAX or self._bytes >= _BYTES_MAX

    def _is_flooded(self) -> bool:
        """Return whether too many items wait, so that new ones are dropped.

        Only a child that is being ended can't be paused, and it may continue to send items.
        """
        if self._bytes >= _FLOOD_BYTES or len(self._items) >= _FLOOD_ITEMS:
            self._flooded = True
        return self._flooded
