"""One function over many items, some at a time."""

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
from typing import Any, Generic, Protocol, Self, TypeVar
from weakref import WeakSet

import anyio
import anyio.lowlevel

from .._call import background
from .._child.spec import AsyncBackend
from .._errors import CallableDidNotExecuteError, Reason
from .consumers import Consumers
from .job import Job

__all__ = ["Results"]

T = TypeVar("T")

_log = logging.getLogger("aioisolate.service")


class _Service(Protocol):
    """What a map needs of its Isolator."""

    backend: AsyncBackend
    dependants: WeakSet[Any]


class Results(Generic[T]):
    """Results of one function over many items: an async iterator.

    `Isolator.map` returns one. ``Results[int]`` is the type of one whose function returns numbers::

        async with iso.map(count_words, paths) as results:
            async for count in results:
                total += count

    It ends what still runs, and reads no further items, when the last reference to it is gone: that
    of ``async for x in iso.map(...)`` goes when the loop is left, by break, an exception or a
    cancellation. A loop over a variable that lives on can be left without that; so use
    it as an async context manager then. That also waits until all has ended, the source of the
    items included: a generator, sync or async, is closed.

    Several tasks may take results from it, each of which goes to one of them. The end, or the
    error that ends it, comes to each.
    """

    def __init__(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        make_job: Callable[[Any], Job[Any]],
        service: _Service,
        *,
        ordered: bool,
        concurrency: int,
        outcomes: bool,
    ) -> None:
        self._course: _Course[T] = _Course(
            items,
            make_job,
            service,
            ordered=ordered,
            concurrency=concurrency,
            outcomes=outcomes,
        )

    def __repr__(self) -> str:
        return f"<Results{self._course.summary()}>"

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self._course.take()
        finally:
            # Or the traceback of what is raised, which may be kept for long (asyncio's tasks keep
            # that of their cancellation), would keep this object, and all would go on.
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
        """End what still runs, close the source of the items, and wait until both have ended.

        A source that waits for its next item is cancelled. If this is cancelled while it waits,
        so is the source.

        Raises:
            what the source raises while it is closed.
        """
        await self._course.aclose()

    def __del__(self) -> None:
        # If the constructor was refused, there is none.
        course: _Course[T] | None = getattr(self, "_course", None)
        if course is not None:
            course.forget()


class _Course(Generic[T]):
    """What goes on in the background.

    The task that reads the items, and the jobs, know this, and not the object that the user
    holds: so that one is gone as soon as the user lets go of it.
    """

    def __init__(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        make_job: Callable[[Any], Job[Any]],
        service: _Service,
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
        # In the order of the items, or of their ends.
        self._line: deque[Job[Any]] = deque()
        self._alive: set[Job[Any]] = set()
        self._closed = self._forgotten = False
        # The service has ended, and begins nothing any more.
        self._refused = False
        backend = service.backend
        self._on_trio = backend.loop is None
        self._consumers = Consumers()
        self._owner_pid = os.getpid()
        self._post = background.poster(backend)
        # What reads the items: whether it waits for the source, for room, or has ended.
        self._reading = False
        self._room = anyio.Event()
        self._over = anyio.Event()
        self._reader: Any = None
        # What the source raised; and what it raised while it was closed.
        self._failure: BaseException | None = None
        self._parting: BaseException | None = None
        self._pump = background.spawn(backend, self._feed, self._end_feeding)
        service.dependants.add(self)

    # Reading the items, in a task of its own

    async def _feed(self) -> None:
        items, self._items = self._items, None
        iterator: Iterator[Any] | AsyncIterator[Any] | None = None
        self._reader = background.current_task()
        try:
            if isinstance(items, AsyncIterable):
                iterator = aiter(items)
                await self._begin_each_async(iterator)
            elif items is not None:
                iterator = iter(items)
                await self._begin_each(iterator)
        except BaseException as exc:  # noqa: BLE001 - raised where the results are taken
            self._note(exc)
        del items
        try:
            await _close(iterator)
        except BaseException as exc:  # noqa: BLE001 - raised by aclose, or logged
            self._part(exc)
        del self  # likewise: an exception of the source's leads to this frame

    def _end_feeding(self) -> None:
        self._reader = self._items = None
        self._over.set()
        self._consumers.wake()
        if self._forgotten and self._parting is not None:
            _log_parting(self._parting)

    async def _begin_each_async(self, iterator: AsyncIterator[Any]) -> None:
        while await self._has_room():
            self._reading = True
            if self._refused:
                self._pump.cancel()  # as soon as it has to wait: this may be the end of the source
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
        """Wait until another one may begin; False once none may."""
        await anyio.lowlevel.checkpoint()
        while not self._closed and (
            len(self._alive) >= self._concurrency or self._untaken() >= 2 * self._concurrency
        ):
            self._room = anyio.Event()
            await self._room.wait()
        return not self._closed

    def _untaken(self) -> int:
        return len(self._line) + (0 if self._ordered else len(self._alive))

    def _begin(self, item: Any) -> None:
        if self._closed:
            return  # meanwhile
        job = self._make_job(item)
        self._alive.add(job)
        if self._ordered:
            self._line.append(job)
        job._on_done = functools.partial(self._end, job)
        job._start()

    def _end(self, job: Job[Any]) -> None:
        self._alive.discard(job)
        if not self._ordered and not self._closed:
            self._line.append(job)
        self._room.set()
        self._consumers.wake()

    def _note(self, exc: BaseException) -> None:
        """Keep what the source has raised for whoever takes the results."""
        _strip(exc)
        if self._closed:
            self._part(exc)
        elif _is_cancelled(exc) or (self._on_trio and _is_cancellation(exc)):
            if self._refused:
                self._failure = CallableDidNotExecuteError(
                    "the Isolator was closed before all items of the map were read",
                    reason=Reason.CLOSED,
                )
                return
            # Not raised as itself: the task that takes the results is not the one that was
            # cancelled. (And what trio cancels by must not leave its scope.)
            self._failure = RuntimeError("the task that reads the items of a map was cancelled")
            self._failure.__cause__ = exc
        else:
            self._failure = exc

    def _part(self, exc: BaseException) -> None:
        """Keep what the source has raised while it was closed for whoever waits for that."""
        _strip(exc)
        if self._parting is None and not _is_cancelled(exc):
            self._parting = exc

    def summary(self) -> str:
        """Say how many run, and how many results nobody has taken yet."""
        done = sum(job.done() for job in self._line)
        state = " closed" if self._closed else ""
        return f"{state}: {len(self._alive)} running, {done} to be taken"

    # Taking the results

    async def take(self) -> T:
        """Wait for the next result. Raises StopAsyncIteration, or what ends it all."""
        self._check_owner()
        try:
            while self._is_urgent() or not (self._line and self._line[0].done()):
                if self._closed:
                    raise self._consumers.end()
                if self._is_urgent() or self._is_complete():
                    if self._failure is not None:
                        raise await self._fail(self._failure)
                    self._closed = True
                else:
                    await self._consumers.wait()
            job = self._line.popleft()
            self._room.set()
            if self._outcomes:
                outcome: T = job._as_outcome()  # type: ignore[assignment]  # T is an Outcome then
                return outcome
            if job.error is not None:
                raise await self._fail(job.error)
            value: T = job._value
            return value
        finally:
            # What is raised would refer to itself by its traceback, and be freed late.
            job = None  # type: ignore[assignment]
            del self

    def _check_owner(self) -> None:
        if self._owner_pid != os.getpid():
            raise RuntimeError(
                f"this map belongs to process {self._owner_pid}, of which process {os.getpid()} is "
                "a forked copy: nothing comes here"
            )

    def _is_complete(self) -> bool:
        return self._over.is_set() and not self._line and not self._alive

    def _is_urgent(self) -> bool:
        """Tell whether what the source has raised is to end the program: that does not wait."""
        return isinstance(self._failure, (KeyboardInterrupt, SystemExit)) and not self._closed

    async def _fail(self, error: BaseException) -> BaseException:
        """End it all because of an error; return what to raise."""
        self._consumers.fail(error)
        try:
            await self.aclose()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as parting:  # noqa: BLE001 - of two errors the first one is raised
            _log_parting(parting)
        return self._consumers.end()

    # Its end

    async def aclose(self) -> None:
        """End what runs, close the source, wait until both have ended; see `Results.aclose`."""
        if self._owner_pid != os.getpid():
            return
        self._leave()
        try:
            for job in list(self._alive):
                await job._abort()
        finally:
            await self._see_reader_off()
        parting, self._parting = self._parting, None
        if parting is None and isinstance(self._failure, (KeyboardInterrupt, SystemExit)):
            parting = None if self._consumers.error is self._failure else self._failure
        if parting is not None:
            self._failure = None
            raise parting

    async def _see_reader_off(self) -> None:
        if self._over.is_set() or background.current_task() is self._reader:
            return
        try:
            await self._over.wait()
        except anyio.get_cancelled_exc_class():
            # As a task group does: its tasks are cancelled, too, and then waited for.
            self._pump.cancel()
            while not self._over.is_set():
                try:
                    with anyio.CancelScope(shield=True):
                        await self._over.wait()
                except anyio.get_cancelled_exc_class():
                    self._pump.cancel()
            raise

    def _leave(self) -> None:
        """Begin nothing any more, free what nobody takes, and end what runs."""
        self._closed = True
        self._line.clear()
        if self._reading:
            self._pump.cancel()
        # Else it waits for room, and closes the source in its own time.
        self._room.set()
        self._consumers.wake()
        for job in list(self._alive):
            job.cancel()

    def _end_with_service(self) -> None:
        """Take note that the service has ended: what the source is waited for has no use."""
        self._post(self._refuse)

    def _refuse(self) -> None:
        self._refused = True
        if self._reading and not self._closed:
            self._pump.cancel()

    def forget(self) -> None:
        """End it without waiting: nobody holds it any more. In any thread, at any moment."""
        if self._over.is_set() and not self._alive:
            return
        self._closed = True
        # Not here: a collection may come in the middle of anything.
        self._forgotten = True
        self._post(self._leave)


async def _close(iterator: Iterator[Any] | AsyncIterator[Any] | None) -> None:
    """Close a generator; any other source may be wanted further."""
    if isinstance(iterator, AsyncGenerator):
        await iterator.aclose()
    elif isinstance(iterator, Generator):
        iterator.close()


def _strip(exc: BaseException) -> None:
    """Drop the frames of this module from a traceback: they refer to what keeps the exception."""
    traceback = exc.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        with contextlib.suppress(RuntimeError):  # it is still running
            traceback.tb_frame.clear()  # those that remain lead to it, by f_back
        traceback = traceback.tb_next
    exc.__traceback__ = traceback


def _is_cancellation(exc: BaseException) -> bool:
    return isinstance(exc, anyio.get_cancelled_exc_class())


def _is_cancelled(exc: BaseException) -> bool:
    """Tell whether *exc* is how this task is cancelled, and not merely what it has awaited."""
    return _is_cancellation(exc) and background.is_being_cancelled()


def _log_parting(exc: BaseException) -> None:
    _log.warning("the source of a map raised while it was closed", exc_info=exc)
