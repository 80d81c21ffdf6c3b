"""The inside of an `Isolator`: its life, its queue, its jobs.

Apart from the object that users hold, so that this one may be forgotten while jobs still run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Literal

import anyio

from .._call.child import Child
from .._call.plan import Plan, make_plan
from .._call.waiter import running_backend
from .._child.order import AsyncBackend
from .._child.policy import Start
from .._errors import CallableDidNotExecuteError, Reason
from .._options import CallOptions
from .._os import cpus, features
from .._wire.verdict import KilledFor
from .children import Source
from .job import Job
from .statistics import Figures, Statistics

__all__ = ["Core"]


class Core:
    """A source of children, a queue in front of it, and the jobs that are in either.

    Attributes:
        backend: the event loop that it belongs to, once it is open.
        state: where it is in its life.
        owner_pid: the process that it belongs to. In a forked copy of that process it does nothing.
        limiter: who may run.
    """

    def __init__(
        self,
        make_source: Callable[[AsyncBackend], Source],
        *,
        limit: int | anyio.CapacityLimiter | None,
        max_queue: int | None,
        queue_timeout: float | None,
        defaults: CallOptions,
        start: Start,
    ) -> None:
        self.state: Literal["new", "open", "closing", "closed"] = "new"
        self.owner_pid = os.getpid()
        self.backend: AsyncBackend
        self.limiter: anyio.CapacityLimiter
        self._make_source = make_source
        self._limit = limit
        self._max_queue = max_queue
        self._queue_timeout = queue_timeout
        self._defaults = defaults
        self._start: Start = start
        self._figures = Figures()
        self._jobs: dict[int, Job[Any]] = {}
        self._queued = 0
        self._drained: anyio.Event | None = None
        # There once it is being closed.
        self._over: anyio.Event | None = None
        self._source: Source | None = None

    # Its life

    async def open(self) -> None:
        """Get ready in the running loop. Raises CallableDidNotExecuteError if that can't be."""
        if self.state == "new":
            self.owner_pid = os.getpid()  # it may have been made before a fork
        else:
            raise RuntimeError(f"an Isolator is entered once, and this one is {self.state}")
        backend = running_backend()
        self.backend = backend._replace(task=None)
        limit = self._limit
        if not isinstance(limit, anyio.CapacityLimiter):
            limit = anyio.CapacityLimiter(cpus.available() if limit is None else limit)
        self.limiter = limit
        self._source = source = self._make_source(backend)
        self.state = "open"
        try:
            await source.start()
        except BaseException:
            self.put_down()
            raise

    async def aclose(self, *, cancel: bool) -> None:
        """Let no more in, see the jobs off, end every process."""
        if not self.is_owned():
            return
        source = self._source
        if source is None or self.state == "closed":
            self.state = "closed"
            return
        if self._over is not None:  # somebody else is closing it
            if cancel:
                self._end_jobs()
            await self._over.wait()
            return
        self.state = "closing"
        self._over = anyio.Event()
        try:
            if not cancel:
                await self._drain()
        finally:
            self._end_jobs()
            try:
                with anyio.CancelScope(shield=True):
                    await self._drain()
                    await source.aclose()
            finally:
                self.state = "closed"
                self._over.set()

    def _end_jobs(self) -> None:
        for job in self.jobs():
            job.end(KilledFor.CLOSED)

    async def _drain(self) -> None:
        while self._jobs:
            if self._drained is None or self._drained.is_set():
                self._drained = anyio.Event()
            await self._drained.wait()

    def put_down(self) -> None:
        """End every process at once, blocking."""
        if not self.is_owned():
            return
        self.state = "closed"
        if self._source is not None:
            self._source.put_down()

    def is_owned(self) -> bool:
        """Tell whether this process entered it, and is not a forked copy of that one."""
        return self.owner_pid == os.getpid()

    # Its jobs

    def check_owner(self) -> None:
        """Raise RuntimeError in a forked copy of the process that entered it."""
        if not self.is_owned():
            raise RuntimeError(
                f"this Isolator belongs to process {self.owner_pid}, of which process "
                f"{os.getpid()} is a forked copy: enter an Isolator of its own here"
            )

    def check_open(self) -> None:
        """Raise CallableDidNotExecuteError if it takes no jobs.

        Raises RuntimeError in a wrong loop, or in a forked copy of its process.
        """
        self.check_owner()
        if self.state != "open":
            what = "has not been entered" if self.state == "new" else f"is {self.state}"
            raise CallableDidNotExecuteError(
                f"fn was not called: the Isolator {what}", reason=Reason.CLOSED
            )
        loop = self.backend.loop
        if loop is not None and sys.modules["asyncio"]._get_running_loop() is loop:
            return
        here = running_backend()
        if here.loop is not loop or here.name != self.backend.name:
            raise RuntimeError("an Isolator belongs to the event loop that it was entered in")

    def make_job(self, plan: Plan, **more: Any) -> Job[Any]:
        """Make a job that is to be carried out at once, and know of it from now on."""
        self.check_open()
        job: Job[Any] = Job(self, plan, **more)
        self._figures.submitted += 1
        self._jobs[job.id] = job
        return job

    def submit(self, call: Callable[[], Any]) -> Job[Any]:
        """Make a job of a call without arguments, in the loop's thread but perhaps in no task."""
        self.check_owner()
        if self.state != "open":
            raise RuntimeError("cannot schedule new futures: the Isolator is closed")
        plan = make_plan(call, (), self._defaults, features.current(), start=self._start)
        job: Job[Any] = Job(self, plan, queue_timeout=self._queue_timeout)
        self._figures.submitted += 1
        self._jobs[job.id] = job
        return job

    def jobs(self) -> list[Job[Any]]:
        """List the jobs that are not done, oldest first."""
        return list(self._jobs.values())

    def statistics(self) -> Statistics:
        """Return the figures of now."""
        figures, source = self._figures, self._source
        running = sum(job.state == "running" for job in self._jobs.values())
        return Statistics(
            submitted=figures.submitted,
            queued=len(self._jobs) - running,
            running=running,
            idle=source.idle if source else 0,
            outcomes=dict(figures.outcomes),
            reasons=dict(figures.reasons),
            restarts=source.restarts if source else 0,
            queue=figures.times("queue"),
            fork=figures.times("fork"),
            run=figures.times("run"),
            reap=figures.times("reap"),
        )

    # For a job

    def enter_nowait(self, job: Job[Any]) -> bool:
        """Take the job's turn if nobody has to wait."""
        if self.limiter.available_tokens <= 0:
            return False  # where anyio before 4.14.2 raises trio's own WouldBlock
        try:
            self.limiter.acquire_on_behalf_of_nowait(job)
        except anyio.WouldBlock:
            return False
        return True

    async def enter(self, job: Job[Any]) -> None:
        """Wait for the job's turn, in line. Raises CallableDidNotExecuteError if that is full."""
        if self._max_queue is not None and self._queued >= self._max_queue:
            raise CallableDidNotExecuteError(
                f"fn was not called: {self._queued} calls are waiting already",
                reason=Reason.QUEUE_FULL,
            )
        self._queued += 1
        try:
            await self.limiter.acquire_on_behalf_of(job)
        finally:
            self._queued -= 1

    def leave(self, job: Job[Any]) -> None:
        """Give the job's turn to the next one in line."""
        self.limiter.release_on_behalf_of(job)

    def provide_nowait(self, job: Job[Any]) -> Child | None:
        """Return a child for the job, if there is one ready."""
        assert self._source is not None
        return self._source.provide_nowait(job.plan, quiet=job.quiet)

    async def provide(self, job: Job[Any]) -> Child:
        """Wait for a child for the job."""
        assert self._source is not None
        return await self._source.provide(job.plan, job.turn, quiet=job.quiet)

    def note_imports(self, job: Job[Any]) -> None:
        """Take note of what a job's child had to import first."""
        if self._source is not None and job.supervision is not None:
            self._source.note_imports(job.plan, job.supervision.conversation.imported)

    def hindrance(self) -> str:
        """Say what keeps a job from getting a child."""
        return "" if self._source is None else self._source.hindrance()

    def finished(self, job: Job[Any]) -> None:
        """Take note of how the job has ended."""
        del self._jobs[job.id]
        self._figures.note(job)
        if job.supervision is not None and self._source is not None:
            self._source.after_call()
        if not self._jobs and self._drained is not None:
            self._drained.set()
