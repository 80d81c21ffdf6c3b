"""Calls of one function with many items, with bounded concurrency."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import anyio
import anyio.lowlevel

from .._call import eventloop
from .._errors import CallableDidNotExecuteError, Reason
from .consumers import Consumers
from .job import Job

if TYPE_CHECKING:
    from .service import Service

__all__ = ["Results"]

T = TypeVar("T")

_log = logging.getLogger("aioisolate.service")


class Results(Generic[T]):
    """The results of one function for many items: an async iterator.

    `Isolator.map` returns one. ``Results[int]`` is its type if the function returns numbers::

        async with iso.map(count_words, paths) as results:
            async for count in results:
                total += count

    When the last reference to the iterator is dropped, it ends the running calls and reads no more
    items. A loop ``async for x in iso.map(...)`` drops its reference when it is left by break, an
    exception or a cancellation. If a variable refers to the iterator after the loop, use it as an
    async context manager. This also waits until everything has ended, the source of the items
    included: a generator, sync or async, is closed.

    Several tasks may take results from it; each result goes to one of them. Each task gets the end,
    or the error that ends the map.
    """

    def __init__(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        make_job: Callable[[Any], Job[Any]],
        service: Service,
        *,
        ordered: bool,
        concurrency: int,
        outcomes: bool,
    ) -> None:
        self._state: _MapState[T] = _MapState(
            items,
            make_job,
            service,
            ordered=ordered,
            concurrency=concurrency,
            outcomes=outcomes,
        )

    def __repr__(self) -> str:
        return f"<Results{self._state.summary()}>"

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self._state.take()
        finally:
            # Otherwise the traceback of an exception, which may be kept for long (a task of asyncio
            # keeps that of its cancellation), would keep this object, and the calls would continue.
            del self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the running calls, close the source of the items, and wait until both have ended.

        A source that waits for its next item is cancelled. If this method is cancelled while it
        waits, so is the source.

        Raises:
            the exception that the source raises while it is closed.
        """
        await self._state.aclose()

    def __del__(self) -> None:
        # The attribute is missing if the constructor raised.
        state: _MapState[T] | None = getattr(self, "_state", None)
        if state is not None:
            state.forget()


class _MapState(Generic[T]):
    """The state of a map: its jobs, and the task that reads the items.

    The task and the jobs refer to this object, and not to the `Results` object, so that this one is
    freed as soon as the user drops it.
    """

    def __init__(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        make_job: Callable[[Any], Job[Any]],
        service: Service,
        *,
        ordered: bool,
        concurrency: int,
        outcomes: bool,
    ) -> None:
        self._items: Iterable[Any] | AsyncIterable[Any] | None = items
        self._make_job = make_job
        self._ordered = ordered
        self._outcomes = outcomes
        self._concurrency = concurrency
        # The jobs whose results were not taken, in the order of the items or of the jobs' ends.
        self._results: deque[Job[Any]] = deque()
        self._running: set[Job[Any]] = set()
        self._closed = self._forgotten = False
        # Whether the service has ended, and starts no more calls.
        self._refused = False
        backend = service.backend
        self._on_trio = backend.loop is None
        self._consumers = Consumers()
        self._owner_pid = os.getpid()
        self._post = eventloop.poster(backend)
        # The state of the task that reads: whether it waits for the source; an event if it waits
        # for room; whether it has ended; and its task object.
        self._reading = False
        self._room = anyio.Event()
        self._reader_ended = anyio.Event()
        self._reader_task: Any = None
        # The exception of the source; and the exception that it raised when it was closed.
        self._failure: BaseException | None = None
        self._closing_error: BaseException | None = None
        self._reader = eventloop.spawn(backend, self._read, self._end_reading)
        service.dependants.add(self)

    # Reading the items, in a task of its own

    async def _read(self) -> None:
        items, self._items = self._items, None
        iterator: Iterator[Any] | AsyncIterator[Any] | None = None
        self._reader_task = eventloop.current_task()
        try:
            if isinstance(items, AsyncIterable):
                iterator = aiter(items)
                await self._begin_each_async(iterator)
            elif items is not None:
                iterator = iter(items)
                await self._begin_each(iterator)
        except BaseException as exc:  # noqa: BLE001 - raised to the consumers
            self._set_failure(exc)
        del items
        try:
            await _close(iterator)
        except BaseException as exc:  # noqa: BLE001 - raised by aclose, or logged
            self._set_closing_error(exc)
        del self  # an exception of the source refers to this frame

    def _end_reading(self) -> None:
        self._reader_task = self._items = None
        self._reader_ended.set()
        self._consumers.wake()
        if self._forgotten and self._closing_error is not None:
            _log_closing_error(self._closing_error)

    async def _begin_each_async(self, iterator: AsyncIterator[Any]) -> None:
        while await self._has_room():
            self._reading = True
            if self._refused:
                self._reader.cancel()  # at its next await: the source may be at its end
            try:
                item = await anext(iterator)
            except StopAsyncIteration:
                return
            finally:
                self._reading = False
            self._begin(item)
            del item

    async def _begin_each(self, iterator: Iterator[Any]) -> None:
        while await self._has_room():
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._begin(item)
            del item

    async def _has_room(self) -> bool:
        """Wait until another call may begin; return False if the map is closed."""
        await anyio.lowlevel.checkpoint()
        while not self._closed and (
            len(self._running) >= self._concurrency or self._untaken() >= 2 * self._concurrency
        ):
            self._room = anyio.Event()
            await self._room.wait()
        return not self._closed

    def _untaken(self) -> int:
        return len(self._results) + (0 if self._ordered else len(self._running))

    def _begin(self, item: Any) -> None:
        if self._closed:
            return  # refused while the item was read
        job = self._make_job(item)
        self._running.add(job)
        if self._ordered:
            self._results.append(job)
        job._on_done = functools.partial(self._end, job)
        job._start()

    def _end(self, job: Job[Any]) -> None:
        self._running.discard(job)
        if not self._ordered and not self._closed:
            self._results.append(job)
        self._room.set()
        self._consumers.wake()

    def _set_failure(self, exc: BaseException) -> None:
        """Keep the exception of the source for the consumers."""
        _drop_frames(exc)
        if self._closed:
            self._set_closing_error(exc)
        elif _is_cancelled(exc) or (self._on_trio and _is_cancellation(exc)):
            if self._refused:
                self._failure = CallableDidNotExecuteError(
                    "the Isolator was closed before all items of the map were read",
                    reason=Reason.CLOSED,
                )
                return
            # Raise another exception: the consumer's task is not the one that was cancelled. (And
            # trio's cancellation exception must not leave its scope.)
            self._failure = RuntimeError("the task that reads the items of a map was cancelled")
            self._failure.__cause__ = exc
        else:
            self._failure = exc

    def _set_closing_error(self, exc: BaseException) -> None:
        """Keep the exception that the source raised while it was closed, for `aclose`."""
        _drop_frames(exc)
        if self._closing_error is None and not _is_cancelled(exc):
            self._closing_error = exc

    def summary(self) -> str:
        """Return the numbers of running calls and of results to be taken, as text."""
        done = sum(job.done() for job in self._results)
        state = " closed" if self._closed else ""
        return f"{state}: {len(self._running)} running, {done} to be taken"

    # Taking the results

    async def take(self) -> T:
        """Wait for the next result. Raises StopAsyncIteration, or the error that ends the map."""
        self._check_owner()
        try:
            while self._is_urgent() or not (self._results and self._results[0].done()):
                if self._closed:
                    raise self._consumers.end()
                if self._is_urgent() or self._is_complete():
                    if self._failure is not None:
                        raise await self._fail(self._failure)
                    self._closed = True
                else:
                    await self._consumers.wait()
            job = self._results.popleft()
            self._room.set()
            if self._outcomes:
                outcome: T = job._as_outcome()  # type: ignore[assignment]  # T is an Outcome then
                return outcome
            if job.error is not None:
                raise await self._fail(job.error)
            value: T = job._value
            return value
        finally:
            # Otherwise the exception would refer to itself through its traceback, and only the
            # garbage collector would free it.
            job = None  # type: ignore[assignment]
            del self

    def _check_owner(self) -> None:
        if self._owner_pid != os.getpid():
            raise RuntimeError(
                f"this map belongs to process {self._owner_pid}, of which process {os.getpid()} is "
                "a forked copy: no results arrive in the copy"
            )

    def _is_complete(self) -> bool:
        return self._reader_ended.is_set() and not self._results and not self._running

    def _is_urgent(self) -> bool:
        """Return whether the source's exception ends the program and must be raised at once."""
        return isinstance(self._failure, (KeyboardInterrupt, SystemExit)) and not self._closed

    async def _fail(self, error: BaseException) -> BaseException:
        """End the map because of an error; return the exception to raise."""
        self._consumers.fail(error)
        try:
            await self.aclose()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as closing_error:  # noqa: BLE001 - of two errors the first one is raised
            _log_closing_error(closing_error)
        return self._consumers.end()

    # The end of the map

    async def aclose(self) -> None:
        """End the calls, close the source, wait until both have ended; see `Results.aclose`."""
        if self._owner_pid != os.getpid():
            return
        self._leave()
        try:
            for job in list(self._running):
                await job._abort()
        finally:
            await self._wait_for_reader()
        closing_error, self._closing_error = self._closing_error, None
        if closing_error is None and isinstance(self._failure, (KeyboardInterrupt, SystemExit)):
            closing_error = None if self._consumers.error is self._failure else self._failure
        if closing_error is not None:
            self._failure = None
            raise closing_error

    async def _wait_for_reader(self) -> None:
        if self._reader_ended.is_set() or eventloop.current_task() is self._reader_task:
            return
        try:
            await self._reader_ended.wait()
        except anyio.get_cancelled_exc_class():
            # Cancel the task that reads, then wait for it, as a task group does.
            self._reader.cancel()
            while not self._reader_ended.is_set():
                try:
                    with anyio.CancelScope(shield=True):
                        await self._reader_ended.wait()
                except anyio.get_cancelled_exc_class():
                    self._reader.cancel()
            raise

    def _leave(self) -> None:
        """Begin no more calls, drop untaken results, and end the running calls."""
        self._closed = True
        self._results.clear()
        if self._reading:
            self._reader.cancel()
        # A task that waits for room then closes the source by itself.
        self._room.set()
        self._consumers.wake()
        for job in list(self._running):
            job.cancel()

    def _end_with_service(self) -> None:
        """Note that the service has ended, and stop waiting for the source."""
        self._post(self._refuse)

    def _refuse(self) -> None:
        self._refused = True
        if self._reading and not self._closed:
            self._reader.cancel()

    def forget(self) -> None:
        """End the map without waiting, since the user has dropped it; for any thread and moment."""
        if self._reader_ended.is_set() and not self._running:
            return
        self._closed = True
        # Not in this frame: the garbage collector may run in the middle of any code.
        self._forgotten = True
        self._post(self._leave)


async def _close(iterator: Iterator[Any] | AsyncIterator[Any] | None) -> None:
    """Close a generator; any other source may be used again by the caller."""
    if isinstance(iterator, AsyncGenerator):
        await iterator.aclose()
    elif isinstance(iterator, Generator):
        iterator.close()


def _drop_frames(exc: BaseException) -> None:
    """Drop the frames of this module from a traceback: they refer to the map, which keeps *exc*."""
    traceback = exc.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        with contextlib.suppress(RuntimeError):  # the frame is still running
            traceback.tb_frame.clear()  # the other frames refer to it by f_back
        traceback = traceback.tb_next
    exc.__traceback__ = traceback


def _is_cancellation(exc: BaseException) -> bool:
    return isinstance(exc, anyio.get_cancelled_exc_class())


def _is_cancelled(exc: BaseException) -> bool:
    """Return whether *exc* cancels this task, and does not come from an object that it awaited."""
    return _is_cancellation(exc) and eventloop.is_being_cancelled()


def _log_closing_error(exc: BaseException) -> None:
    _log.warning("the source of a map raised while it was closed", exc_info=exc)
