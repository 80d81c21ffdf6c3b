"""One function over many items, some at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio

from .._call import loops
from .._child.order import AsyncBackend
from .job import Job

__all__ = ["Results"]

T = TypeVar("T")


class Results(Generic[T]):
    """Results of one function over many items: an async iterator.

    Use it as an async context manager as well if the loop over it may be left early: that ends
    what still runs. Without, it ends when it is collected or its Isolator is closed.
    """

    def __init__(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        make_job: Callable[[Any], Job[Any]],
        backend: AsyncBackend,
        *,
        ordered: bool,
        concurrency: int,
        outcomes: bool,
    ) -> None:
        self._items = items
        self._make_job = make_job
        self._ordered = ordered
        self._outcomes = outcomes
        # Running ones, and as many whose results nobody has taken yet.
        self._room = anyio.Semaphore(concurrency)
        self._taken_room = anyio.Semaphore(2 * concurrency)
        # In the order of the items, or of their ends.
        self._line: deque[Job[Any]] = deque()
        self._alive: set[Job[Any]] = set()
        self._source_error: BaseException | None = None
        self._exhausted = False
        self._closed = False
        self._changed = anyio.Event()
        self._pump = loops.spawn(backend, self._feed)

    def __repr__(self) -> str:
        done = sum(job.done() for job in self._line)
        state = " closed" if self._closed else ""
        return f"<Results{state}: {len(self._alive)} running, {done} to be taken>"

    async def _feed(self) -> None:
        try:
            if isinstance(self._items, AsyncIterable):
                async for item in self._items:
                    await self._begin(item)
            else:
                for item in self._items:
                    await self._begin(item)
        except Exception as exc:  # noqa: BLE001 - raised where the results are taken
            self._source_error = exc
        finally:
            self._exhausted = True
            self._changed.set()

    async def _begin(self, item: Any) -> None:
        await self._taken_room.acquire()
        await self._room.acquire()
        if self._closed:
            return  # before the cancellation of this task has got here
        job = self._make_job(item)
        self._alive.add(job)
        if self._ordered:
            self._line.append(job)

        def done() -> None:
            self._alive.discard(job)
            self._room.release()
            if not self._ordered:
                self._line.append(job)
            self._changed.set()

        job.on_done = done
        job.start()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        while not (self._line and self._line[0].done()):
            if self._closed:
                raise StopAsyncIteration
            if self._exhausted and not self._line and not self._alive:
                await self.aclose()
                if self._source_error is not None:
                    raise self._source_error
                raise StopAsyncIteration
            self._changed = anyio.Event()
            await self._changed.wait()
        job = self._line.popleft()
        self._taken_room.release()
        if self._outcomes:
            outcome: T = job.as_outcome()  # type: ignore[assignment]  # T is an Outcome then
            return outcome
        if job.error is not None:
            await self.aclose()
            raise job.error
        value: T = job.value
        return value

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
        """End what still runs, and wait until it has."""
        self._closed = True
        self._line.clear()
        self._pump.cancel()
        for job in list(self._alive):
            await job.abort()

    def __del__(self) -> None:
        if not self._closed and hasattr(self, "_pump"):
            self._pump.cancel()
            for job in list(self._alive):
                job.cancel()
