"""The implementation of an `Isolator`: its states, its queue, its jobs.

A `Service` is separate from its `Isolator`, so that the `Isolator` may be freed while jobs run. An
`Isolator` that is entered again gets a new service, so no state survives a close.

    new --open--> entering --> open --aclose--> closing --> closed
                     |                             ^
                     +--aclose, failure, cancelled-+

Calls are accepted in the states "entering" and "open". If entering fails or is cancelled, these
calls end with the same reason.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any, Literal, Protocol
from weakref import WeakSet

import anyio

from .._async_backend import AsyncBackend
from .._call.child import Child
from .._call.eventloop import running_backend
from .._call.plan import Plan, make_plan
from .._call.verdict import KilledFor
from .._child.layers import Start
from .._errors import CallableDidNotExecuteError, Reason
from .._options import CallOptions, check_count, check_seconds
from .._os import cpus, platform_features
from .job import Job
from .sources import Source
from .statistics import Recorder, Statistics

__all__ = ["Service", "check_queue", "warn_unclosed"]

_log = logging.getLogger("aioisolate.service")

# Number of names in the log record about calls that were ended.
_NAMES_MAX = 10
# Seconds to wait for a loop in another thread, at the end of the interpreter.
_PATIENCE = 1.0

# Services that were entered and are not closed; they are killed at the end of the interpreter.
_entered: WeakSet[Service] = WeakSet()


class Dependant(Protocol):
    """An executor or a map, which ends with the service."""

    def _end_with_service(self) -> None:
        """Accept no more calls, and refuse those that have not begun."""


class Service:
    """A source of children, a queue in front of it, and the jobs that wait or run.

    Attributes:
        backend: the event loop of the service, once it is entered.
        state: the state in the diagram above.
        owner_pid: the process of the service. In a forked copy of that process it does nothing.
        limiter: the limiter of the number of running jobs.
        post: makes the loop call a function, from any thread. RuntimeError if the loop has ended.
        created_at: the file and line that created the Isolator.
        dependants: the objects that end with the service.
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
        drain: float | None,
        created_at: str,
    ) -> None:
        self.state: Literal["new", "entering", "open", "closing", "closed"] = "new"
        self.owner_pid: int = os.getpid()
        self.backend: AsyncBackend
        self.limiter: anyio.CapacityLimiter
        self.post: Callable[[Callable[[], object]], object]
        self.created_at = created_at
        self.dependants: WeakSet[Dependant] = WeakSet()
        self._thread = 0
        self._make_source = make_source
        self._limit = limit
        self._max_queue = max_queue
        self._queue_timeout = queue_timeout
        self._defaults = defaults
        self._start: Start = start
        self._drain_seconds = drain
        self._recorder = Recorder()
        self._jobs: dict[int, Job[Any]] = {}
        self._queued = 0
        self._drained: anyio.Event | None = None
        # The scope of `open`, which closing cancels, and the scope of the wait for jobs.
        self._entering: anyio.CancelScope | None = None
        self._draining: anyio.CancelScope | None = None
        # Created when the service begins to close; set when it is closed.
        self._closed: anyio.Event | None = None
        self._source: Source | None = None

    # States

    async def open(self) -> None:
        """Start the source in the running loop.

        Raises CallableDidNotExecuteError if that fails, or if the service is closed meanwhile.
        """
        if self.state != "new":
            self.check_owner()
            state = {"entering": "being entered", "closing": "being closed"}
            raise RuntimeError(
                f"this Isolator is {state.get(self.state, 'entered')} already: it can be entered "
                "again once it is closed; to use an open Isolator, do not enter it a second time"
            )
        self.owner_pid = os.getpid()  # the Isolator may have been created before a fork
        backend = running_backend()
        self.backend = backend._replace(task=None)
        self._thread = threading.get_ident()
        if backend.loop is not None:
            self.post = backend.loop.call_soon_threadsafe
        else:
            self.post = sys.modules["trio"].lowlevel.current_trio_token().run_sync_soon
        limit = self._limit
        if not isinstance(limit, anyio.CapacityLimiter):
            limit = anyio.CapacityLimiter(cpus.available() if limit is None else limit)
        self.limiter = limit
        self._source = source = self._make_source(backend)
        self.state = "entering"
        _entered.add(self)
        try:
            with anyio.CancelScope() as self._entering:
                await source.start()
            self._check_not_closed()
        except BaseException as exc:
            await self._fail(exc)
            raise
        self.state = "open"

    def _check_not_closed(self) -> None:
        if self.state != "entering":
            raise CallableDidNotExecuteError(
                "the Isolator was closed while it was being entered", reason=Reason.CLOSED
            )

    async def _fail(self, exc: BaseException) -> None:
        """Close a service whose `open` has raised *exc*; its calls get the error."""
        self.state = "closing"
        if self._closed is None:
            self._closed = anyio.Event()
        error = None
        if isinstance(exc, CallableDidNotExecuteError):
            error = exc
        elif isinstance(exc, Exception):
            error = CallableDidNotExecuteError(
                f"fn was not called: the Isolator could not be entered: {exc!r}",
                reason=Reason.CLOSED,
            )
            error.__cause__ = exc
        self._end_jobs(error)
        await self._finish(exc)

    async def aclose(self, *, seconds: float | EllipsisType | None) -> None:
        """Refuse new jobs, wait for the current ones for at most *seconds*, end every process.

        *seconds*: None: wait without limit; ``...``: use the Isolator's *drain*.
        """
        if not self.is_owned() or self.state in ("new", "closed"):
            return
        if self.is_stranded():
            self.kill_now()
            return
        self.check_loop()
        timeout = self._drain_seconds if seconds is ... else seconds
        if self.state == "entering":
            # The task that enters the service does the rest.
            self.state = "closing"
            self._closed = anyio.Event()
            self._end_jobs(None)
            assert self._entering is not None
            self._entering.cancel()
        if self._closed is not None:  # another task is closing it
            await self._wait_until_closed(self._closed, timeout)
            return
        self.state = "closing"
        self._closed = anyio.Event()
        cause: BaseException | None = None
        start = anyio.current_time()
        try:
            if timeout != 0 and self._jobs:
                with anyio.move_on_after(timeout) as self._draining:
                    await self._drain()
        except BaseException as exc:
            cause = exc
            raise
        finally:
            waited = 0.0 if cause else anyio.current_time() - start
            self._end_jobs(None, after=waited if timeout != 0 else 0.0)
            await self._finish(cause)

    async def _wait_until_closed(self, over: anyio.Event, seconds: float | None) -> None:
        """Wait until another task has closed the service; limit its wait for jobs to *seconds*."""
        if seconds is not None and self._draining is not None:
            until = anyio.current_time() + seconds
            self._draining.deadline = min(self._draining.deadline, until)
        try:
            await over.wait()
        except BaseException:
            if self._draining is not None:
                self._draining.cancel()
            raise

    async def _finish(self, exc: BaseException | None) -> None:
        """Wait for the jobs, and end the source. *exc*: the exception that ended the service."""
        assert self._source is not None
        try:
            if not isinstance(exc, (GeneratorExit, KeyboardInterrupt, SystemExit)):
                with anyio.CancelScope(shield=True):
                    await self._drain()
                    await self._source.aclose()
        finally:
            # Needed if no await is possible any more, or if the above was cancelled in spite of the
            # shield, as tasks of asyncio can be; otherwise no process is left to kill.
            self._source.kill_now()
            self._set_closed()

    def _set_closed(self) -> None:
        if self._closed is not None and not self.is_stranded():
            self._closed.set()
        self.state = "closed"
        _entered.discard(self)
        for dependant in list(self.dependants):
            dependant._end_with_service()

    def _end_jobs(self, error: CallableDidNotExecuteError | None, *, after: float = 0.0) -> None:
        """End the jobs that are not done; *error* is for those that have not begun."""
        if self.is_stranded():
            return  # the jobs ended with the loop, or end when they are garbage-collected
        jobs = self.jobs()
        for job in jobs:
            job._end(KilledFor.CLOSED, error)
        if jobs:
            names = Counter(job.name for job in jobs).most_common(_NAMES_MAX + 1)
            listed = [name if count == 1 else f"{name} ({count})" for name, count in names]
            _log.log(
                logging.WARNING if after else logging.INFO,
                "the Isolator is being closed%s: ended %d call%s: %s",
                f", and has waited for {after:.1f} s" if after else "",
                len(jobs),
                "" if len(jobs) == 1 else "s",
                ", ".join(listed[:_NAMES_MAX]) + (", ..." if len(listed) > _NAMES_MAX else ""),
            )

    async def _drain(self) -> None:
        while self._jobs:
            if self._drained is None or self._drained.is_set():
                self._drained = anyio.Event()
            await self._drained.wait()

    def kill_now(self) -> None:
        """End every process at once, blocking. Call it in the loop's thread, or if no loop runs."""
        if not self.is_owned() or self.state in ("new", "closed"):
            return
        self._end_jobs(None)
        assert self._source is not None
        self._source.kill_now()
        self._set_closed()

    def abandon(self) -> None:
        """Make the loop kill every process; kill them here if it does not run. For any thread."""
        loop = self.backend.loop
        runs_elsewhere = (
            threading.get_ident() != self._thread
            if loop is None
            else loop.is_running() and sys.modules["asyncio"]._get_running_loop() is not loop
        )
        if runs_elsewhere:
            try:
                self.post(self.kill_now)
            except RuntimeError:
                pass  # the loop has just ended
            else:
                return
        self.kill_now()

    def is_owned(self) -> bool:
        """Return whether this process, and not the one it was forked from, entered the service."""
        return self.owner_pid == os.getpid()

    def is_stranded(self) -> bool:
        """Return whether the event loop has ended, so that only `kill_now` can end the service."""
        if self.state in ("new", "closed"):
            return False
        if self.backend.loop is not None:
            return bool(self.backend.loop.is_closed())
        try:
            self.post(_nothing)
        except RuntimeError:
            return True
        return False

    def would_block(self) -> bool:
        """Return whether a wait for a job would block for ever in this thread.

        That is so in the thread that runs the loop, and, while the loop does not run, in the thread
        that has entered the service.
        """
        loop = self.backend.loop
        if loop is None:
            return threading.get_ident() == self._thread
        if sys.modules["asyncio"]._get_running_loop() is loop:
            return True
        return threading.get_ident() == self._thread and not loop.is_running()

    # Jobs

    def check_owner(self) -> None:
        """Raise RuntimeError in a forked copy of the process that entered the service."""
        if not self.is_owned():
            raise RuntimeError(
                f"this Isolator belongs to process {self.owner_pid}, of which process "
                f"{os.getpid()} is a forked copy: create and enter another Isolator in the copy"
            )

    def check_open(self) -> None:
        """Raise CallableDidNotExecuteError if the service accepts no jobs.

        Raises RuntimeError in another loop, or in a forked copy of its process.
        """
        self.check_accepting()
        self.check_loop()

    def check_accepting(self) -> None:
        """Raise CallableDidNotExecuteError if the service accepts no jobs; for any thread."""
        self.check_owner()
        if self.state not in ("open", "entering"):
            state = "has not been entered" if self.state == "new" else f"is {self.state}"
            raise CallableDidNotExecuteError(
                f"fn was not called: the Isolator {state}", reason=Reason.CLOSED
            )

    def check_loop(self) -> None:
        """Raise RuntimeError in another event loop than the one that entered the service."""
        loop = self.backend.loop
        if loop is not None and sys.modules["asyncio"]._get_running_loop() is loop:
            return
        here = running_backend()
        if here.loop is not loop or here.name != self.backend.name:
            raise RuntimeError("an Isolator belongs to the event loop that it was entered in")

    def make_job(self, plan: Plan, **more: Any) -> Job[Any]:
        """Create a job, and add it to the jobs of the service; the caller starts it."""
        self.check_open()
        job: Job[Any] = Job(self, plan, **more)
        self._recorder.submitted += 1
        self._jobs[job.id] = job
        return job

    def submit(self, call: Callable[[], Any]) -> Job[Any]:
        """Create a job for an executor, in the loop's thread, not necessarily in a task."""
        self.check_owner()
        if self.state not in ("open", "entering"):
            raise RuntimeError("cannot schedule new futures: the Isolator is closed")
        plan = make_plan(call, (), self._defaults, platform_features.current(), start=self._start)
        job: Job[Any] = Job(self, plan, queue_timeout=self._queue_timeout)
        self._recorder.submitted += 1
        self._jobs[job.id] = job
        return job

    def jobs(self) -> list[Job[Any]]:
        """List the jobs that are not done, oldest first."""
        return list(self._jobs.values())

    def statistics(self) -> Statistics:
        """Return the current statistics."""
        recorder, source = self._recorder, self._source
        running = sum(job.state == "running" for job in self._jobs.values())
        return Statistics(
            submitted=recorder.submitted,
            queued=len(self._jobs) - running,
            running=running,
            idle=source.idle if source else 0,
            outcomes=dict(recorder.outcomes),
            reasons=dict(recorder.reasons),
            restarts=source.restarts if source else 0,
            queue=recorder.times("queue"),
            fork=recorder.times("fork"),
            run=recorder.times("run"),
            reap=recorder.times("reap"),
        )

    # The interface to a job

    def enter_nowait(self, job: Job[Any]) -> bool:
        """Start the job's turn if no queue is needed."""
        if self.limiter.available_tokens <= 0:
            return False  # in this case anyio before 4.14.2 raises trio's own WouldBlock
        try:
            self.limiter.acquire_on_behalf_of_nowait(job)
        except anyio.WouldBlock:
            return False
        return True

    async def enter(self, job: Job[Any]) -> None:
        """Wait for the job's turn. Raises CallableDidNotExecuteError if the queue is full."""
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
        """End the job's turn, so the next job in the queue can begin."""
        self.limiter.release_on_behalf_of(job)

    def provide_nowait(self, job: Job[Any]) -> Child | None:
        """Return a child for the job, or None if none is ready."""
        assert self._source is not None
        return self._source.provide_nowait(job._plan, quiet=job._quiet)

    async def provide(self, job: Job[Any]) -> Child:
        """Wait for a child for the job."""
        assert self._source is not None
        return await self._source.provide(job._plan, job._deadlines, quiet=job._quiet)

    def note_imports(self, job: Job[Any]) -> None:
        """Note the imports that a job's child did before it called fn."""
        if self._source is not None and job._supervision is not None:
            self._source.note_imports(job._plan, job._supervision.conversation.imported)

    def hindrance(self) -> str:
        """Return the reason for which a job has no child yet."""
        return "" if self._source is None else self._source.hindrance()

    def finished(self, job: Job[Any]) -> None:
        """Record the end of the job."""
        del self._jobs[job.id]
        self._recorder.note(job)
        if job._supervision is not None and self._source is not None:
            self._source.after_call()
        if not self._jobs and self._drained is not None:
            self._drained.set()


def _nothing() -> None: ...


def check_queue(
    max_concurrency: int | anyio.CapacityLimiter | None,
    max_queue: int | None,
    queue_timeout: float | None,
) -> None:
    """Check the options of the queue. Raises TypeError or ValueError."""
    if max_concurrency is not None and not isinstance(max_concurrency, anyio.CapacityLimiter):
        check_count("max_concurrency", max_concurrency, 1)
    if max_queue is not None:
        check_count("max_queue", max_queue, 0)
    if queue_timeout is not None:
        check_seconds("queue_timeout", queue_timeout, optional=True)


def warn_unclosed(
    services: Sequence[Service], source: object = None, *, stacklevel: int = 2
) -> None:
    """Warn of Isolators that were not closed; *source*: the Isolator, if it is only one."""
    places = ", ".join(dict.fromkeys(service.created_at for service in services))
    subject = "an Isolator was" if len(services) == 1 else f"{len(services)} Isolators were"
    warnings.warn(
        f"{subject} not closed (created at {places}): use `async with`, or await aclose() before "
        "the event loop ends",
        ResourceWarning,
        stacklevel=stacklevel + 1,
        source=source,
    )


@atexit.register
def _kill_all() -> None:
    # Not in a finalizer: when it runs, much of the interpreter may be finalized already.
    unclosed = [service for service in list(_entered) if service.is_owned()]  # in a copy: none
    try:
        for service in unclosed:
            service.abandon()
        _wait_for_ends(unclosed)
    finally:
        if unclosed:
            warn_unclosed(unclosed)


def _wait_for_ends(services: Sequence[Service]) -> None:
    """Wait briefly for the loops in other threads, which kill the processes of their services."""
    for service in services:
        if service.state != "closed":
            ended = threading.Event()
            try:
                service.post(ended.set)  # runs after the callback that kills the processes
            except RuntimeError:
                continue  # its loop has ended
            ended.wait(_PATIENCE)
