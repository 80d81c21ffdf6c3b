"""Streams without a service: one generator, one forked child."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, TypeVar, Unpack

from ._call.child import Child
from ._call.eventloop import running_backend
from ._call.plan import make_plan
from ._options import CallOptions, StreamArgs
from ._os import platform_features
from ._service.job import Job
from ._service.sources import ForkSource
from ._service.stream import Stream

__all__ = ["stream_isolated"]

T = TypeVar("T")


class _DirectService:
    """The service of a single job, which has no queue and forks this process."""

    def __init__(self) -> None:
        self.backend = running_backend()
        self._forks = ForkSource(self.backend)

    def enter_nowait(self, job: Job[Any]) -> bool:
        """Let the job begin."""
        del job
        return True

    async def enter(self, job: Job[Any]) -> None:
        """Let the job begin."""

    def leave(self, job: Job[Any]) -> None:
        """Do nothing: no other job waits."""

    def provide_nowait(self, job: Job[Any]) -> Child | None:
        """Fork, if no other thread runs; otherwise return None."""
        return self._forks.provide_nowait(job._plan, quiet=job._quiet)

    async def provide(self, job: Job[Any]) -> Child:
        """Fork, once no other thread is importing a module."""
        return await self._forks.provide(job._plan, job._deadlines, quiet=job._quiet)

    def note_imports(self, job: Job[Any]) -> None:
        """Do nothing: a copy has all modules of this process."""

    def hindrance(self) -> str:
        """Return the reason for which the job has no child yet."""
        return self._forks.hindrance()

    def finished(self, job: Job[Any]) -> None:
        """Do nothing: no statistics are kept."""


def stream_isolated(
    fn: Callable[..., Iterable[T] | AsyncIterable[T]],
    /,
    *args: Any,
    **options: Unpack[StreamArgs],
) -> Stream[T]:
    """Run a generator function, sync or async, in a forked child; get its items one by one.

    Takes the options of `run_isolated`; ``timeout`` is for the whole stream. The child is paused
    while its items are not taken, so memory stays bounded in both processes. An exception of the
    generator is raised after the items that precede it. Several tasks may take items; each item
    goes to one of them.

    Leaving the context early kills the child. With ``grace`` the generator is closed first, and
    its ``finally`` blocks may take that many seconds.

    Raises:
        TypeError, ValueError: fn can't be called, or an option is invalid.
        the exceptions of `run_isolated`, in the loop; and `CallableStatusUnknownError` if an item
            can't be pickled (``Reason.RESULT_ENCODING``), sent, or loaded here.

    Example::

        async with stream_isolated(read_rows, path) as rows:
            async for row in rows:
                ...
    """
    checked = CallOptions(**options)
    plan = make_plan(fn, args, checked, platform_features.current(), streaming=True)
    return Stream(lambda on_item: Job(_DirectService(), plan, on_item=on_item))
