"""One call that a service carries out: waiting, running, done."""

from __future__ import annotations

import copy
import itertools
import math
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Literal, Protocol, TypeVar

import anyio

from .._async_backend import AsyncBackend
from .._call import eventloop
from .._call.child import Child
from .._call.deadlines import Deadlines
from .._call.plan import Plan, name_of
from .._call.result import loss_of_item, outcome_of, settle
from .._call.run import supervise
from .._call.supervision import OnItem, Supervision
from .._call.verdict import KilledFor
from .._errors import CallableDidNotExecuteError, IsolationError, Reason, StartTimeoutError
from .._outcome import Outcome, Progress

__all__ = ["Job", "JobService"]

T = TypeVar("T")
R = TypeVar("R")

_numbers = itertools.count(1)
# How many children a job gets, if each ends before it has received its call.
_ATTEMPTS = 3


class JobService(Protocol):
    """The interface of a job to its service.

    It is implemented by `Service`, whose module imports this one, and for `stream_isolated`.
    """

    backend: AsyncBackend

    def enter_nowait(self, job: Job[Any]) -> bool:
        """Start the job's turn if it need not wait in the queue."""
        ...

    async def enter(self, job: Job[Any]) -> None:
        """Wait for the job's turn. Raises CallableDidNotExecuteError if the job is refused."""

    def provide_nowait(self, job: Job[Any]) -> Child | None:
        """Return a child for the job, or None if none is ready."""
        ...

    async def provide(self, job: Job[Any]) -> Child:
        """Return a child for the job. Raises CallableDidNotExecuteError if there can be none."""
        ...

    def hindrance(self) -> str:
        """Return the reason for which a job has no child yet."""
        ...

    def note_imports(self, job: Job[Any]) -> None:
        """Note the imports that the job's child did before it called fn."""

    def leave(self, job: Job[Any]) -> None:
        """End the job's turn, so the next job can begin; called once, if the job had a turn."""

    def finished(self, job: Job[Any]) -> None:
        """Record the end of the job."""


class Job(Generic[T]):
    """One isolated call: its name, its state, its result, and a way to end it.

    `Isolator.open_job` returns the job of a new call, `Isolator.jobs` lists the jobs of all calls
    that wait or run, and `Stream.job` is the job of a stream. A program does not create jobs
    itself. ``Job[bytes]`` is the type of a job whose function returns bytes.

    Attributes:
        id: a number, unique in this process.
        name: the function's name.
        created_at: when the job was submitted, in seconds since the epoch.
        started_at: when the job got its child, in seconds since the epoch; None: it waits.
        progress: the last report of fn by `report_progress`, or None.
        error: the exception that `result` raises; None if fn returned, or while the job is not
            done.

    Example::

        async with iso.open_job(render, report) as job:
            while not job.done():
                show(job.state, job.age, job.progress)
                await anyio.sleep(1)
            pdf = await job.result()
    """

    def __init__(
        self,
        service: JobService,
        plan: Plan,
        *,
        whole: bool = False,
        on_item: OnItem | None = None,
        queue_timeout: float | None = None,
    ) -> None:
        self.id: int = next(_numbers)
        self.name: str = name_of(plan.fn)
        self.created_at: float = time.time()
        self.started_at: float | None = None
        self.progress: Progress | None = None
        self._service = service
        self._owner_pid = os.getpid()
        self._plan = plan
        self._deadlines: Deadlines
        self._queue_timeout = queue_timeout
        self._whole = whole
        self._on_item = on_item
        self._created = time.monotonic()
        self._child_wait = 0.0
        self._queue_wait = 0.0
        self._supervision: Supervision | None = None
        # The scope of the wait for a turn or a child. If the job was ended: the cause, and the
        # error in case that fn has not begun.
        self._queueing: anyio.CancelScope | None = None
        self._ended_for: KilledFor | None = None
        self._error_if_queued: CallableDidNotExecuteError | None = None
        self._done = False
        self._value: Any = None
        self.error: BaseException | None = None
        self._finished: anyio.Event | None = None
        self._on_done: Callable[[], object] | None = None

    def __repr__(self) -> str:
        state: str = self.state
        if state == "running":
            since = time.time() - (self.started_at or self.created_at)
            state = f"running for {since:.1f} s in process {self.pid}"
        elif state == "queued":
            state = f"queued for {self.age:.1f} s"
        elif self.error is not None:
            state = f"done, with {type(self.error).__name__}"
        return f"<Job {self.id} of {self.name}: {state}>"

    @property
    def _quiet(self) -> bool:
        """Whether no callable needs to know at once that fn is about to be called."""
        options = self._plan.options
        return not (options.on_event or options.on_progress or self._plan.streaming)

    # For users

    @property
    def state(self) -> Literal["queued", "running", "done"]:
        """The stage of the job."""
        if self._done:
            return "done"
        return "queued" if self._supervision is None else "running"

    @property
    def pid(self) -> int | None:
        """The child's process id, or None while there is no child."""
        return None if self._supervision is None else self._supervision.child.pid

    @property
    def age(self) -> float:
        """Seconds since the job was submitted."""
        return time.monotonic() - self._created

    @property
    def stdout(self) -> str | None:
        """The child's standard output so far, with ``output="capture"``; else None."""
        return self._output(0)

    @property
    def stderr(self) -> str | None:
        """The child's standard error so far, with ``output="capture"``; else None."""
        return self._output(1)

    def _output(self, number: int) -> str | None:
        streams = () if self._supervision is None else self._supervision.child.streams
        return streams[number].text() if streams else None

    def done(self) -> bool:
        """Return whether the job has ended, in any way."""
        return self._done

    def cancel(self) -> None:
        """End the job: a queued job never begins, the child of a running job is ended or killed.

        `result` then raises an `IsolationError` with ``Reason.CANCELLED``, unless the result has
        already arrived. Does nothing if the job is done.
        """
        self._end(KilledFor.CANCELLED)

    async def result(self) -> T:
        """Wait for the job; return fn's result or raise its error, as `run_isolated` does."""
        await self.wait()
        if self.error is not None:
            raise self.error
        value: T = self._value
        return value

    async def outcome(self) -> Outcome[T]:
        """Wait for the job; return its `Outcome`."""
        await self.wait()
        return self._as_outcome()

    async def wait(self) -> None:
        """Wait until the job is done. Raises RuntimeError in a forked copy of its process."""
        if not self._done:
            self._check_owner()
            if self._finished is None:
                self._finished = anyio.Event()
            await self._finished.wait()

    # For the service

    def _check_owner(self) -> None:
        """Raise RuntimeError in a forked copy of its process."""
        if not self._is_owned():
            raise RuntimeError(
                f"this job belongs to process {self._owner_pid}, of which process "
                f"{os.getpid()} is a forked copy: the job never ends in the copy"
            )

    def _end(
        self, cause: KilledFor, error_if_queued: CallableDidNotExecuteError | None = None
    ) -> None:
        """End the job for *cause*; do nothing in a forked copy of its process.

        *error_if_queued*: the error of the job if fn has not begun.
        """
        if self._done or not self._is_owned():
            return
        if self._ended_for is None:
            self._ended_for, self._error_if_queued = cause, error_if_queued
        if self._supervision is not None:
            self._supervision.end(cause, self._plan.options.grace)
        elif self._queueing is not None:
            self._queueing.cancel()

    def _start(self) -> None:
        """Run the job in the background."""
        # The task is not kept: like `_on_done`, it refers to this job.
        eventloop.spawn(self._service.backend, self._in_background, self._after_background)

    async def _in_background(self) -> None:
        try:
            await self._run()
        except IsolationError as refusal:
            # The refusal is the job's error. Its traceback is of no use to the user, and its frames
            # refer to this job, and so to fn's arguments, which would be freed only by the garbage
            # collector.
            refusal.__traceback__ = None
        except Exception as exc:  # noqa: BLE001 - a callable of the caller has raised
            self.error = exc

    def _after_background(self) -> None:
        if not self._done:  # the task was cancelled before it began
            self.error = self._refusal()
            self._finish()

    async def _end_undecodable(self, failure: BaseException) -> IsolationError:
        """End the job since an item could not be decoded; return the job's error.

        This method can't be cancelled.
        """
        supervision = self._supervision
        assert supervision is not None  # items come from a supervision only
        if not self._done:
            supervision.kill(KilledFor.RESULT_DECODING)
            supervision.child.waiter.ring()
        with anyio.CancelScope(shield=True):
            await self.wait()
        self.error = error = loss_of_item(supervision, failure)
        return error

    async def _abort(self) -> None:
        """End the job, and wait until it has ended; this method can't be cancelled."""
        if not self._is_owned():
            return
        self._end(KilledFor.CANCELLED)
        with anyio.CancelScope(shield=True):
            await self.wait()

    def _is_owned(self) -> bool:
        return self._owner_pid == os.getpid()

    async def _run(self) -> tuple[Any, BaseException | None]:
        """Run the job; return fn's result and None, or None and the error.

        Raises CallableDidNotExecuteError if the job never had a child, or the cancellation.
        """
        try:
            self._value, self.error = await self._carry_out()
        except BaseException as exc:
            self.error = exc
            raise
        finally:
            self._finish()
        return self._value, self.error

    def _finish(self) -> None:
        self._done = True
        self._service.finished(self)
        if self._finished is not None:
            self._finished.set()
        # The callback refers to this job: without this, only the garbage collector frees both.
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done()

    async def _carry_out(self) -> tuple[Any, BaseException | None]:
        service = self._service
        self._check_not_ended()
        if not service.enter_nowait(self):
            entered = await self._queue(service.enter, self._queue_timeout)
            if not entered:
                raise StartTimeoutError(
                    "fn was not called: it waited for its turn longer than "
                    f"{self._queue_timeout:g} s",
                    reason=Reason.QUEUE_TIMEOUT,
                )
        self._deadlines = Deadlines(self._plan.options)
        self._queue_wait = time.monotonic() - self._created
        try:
            value, error = await self._attempt()
            for _ in range(_ATTEMPTS - 1):
                if not self._lost_idle_child(error):
                    break
                value, error = await self._attempt()
            return value, error
        finally:
            service.leave(self)

    async def _attempt(self) -> tuple[Any, BaseException | None]:
        self._supervision = None
        self._check_not_ended()
        start = time.monotonic()
        child = self._service.provide_nowait(self)
        if child is None:
            seconds = self._deadlines.left()
            provided = await self._queue(
                self._service.provide, None if seconds == math.inf else seconds
            )
            if not provided:
                raise self._deadlines.late(self._service.hindrance())
            child = provided[0]
        if self._ended_for is not None:
            child.kill_now()
            child.release()
            raise self._refusal()
        self._child_wait = time.monotonic() - start
        self.started_at = time.time()
        options = self._plan.options
        supervision = Supervision(
            child,
            options,
            self._deadlines,
            whole=self._whole,
            on_item=self._on_item,
            fn=self._plan.fn,
        )
        self._supervision = supervision
        try:
            await supervise(supervision, options.grace)
            settled = await settle(supervision)
            if supervision.conversation.imported:
                self._service.note_imports(self)
            return settled
        finally:
            supervision.release()

    async def _queue(
        self, wait: Callable[[Job[T]], Awaitable[R]], seconds: float | None
    ) -> tuple[R] | None:
        """Await ``wait(self)``, at most *seconds*; return its result in a tuple, or None.

        Raises CallableDidNotExecuteError if the job is ended meanwhile.
        """
        result: tuple[R] | None = None
        with anyio.move_on_after(seconds) as self._queueing:
            result = (await wait(self),)
        self._queueing = None
        if result is None:
            self._check_not_ended()
        return result

    def _check_not_ended(self) -> None:
        if self._ended_for is not None:
            raise self._refusal()

    def _lost_idle_child(self, error: BaseException | None) -> bool:
        """Return whether the child ended before it received its call."""
        return (
            isinstance(error, CallableDidNotExecuteError)
            and error.reason is Reason.CHILD_SETUP
            and self._ended_for is None
            and self._supervision is not None
            and self._supervision.child.talks
            and self._supervision.conversation.answer is None
        )

    def _refusal(self) -> CallableDidNotExecuteError:
        error = self._error_if_queued
        if error is not None:  # copy it: each raise adds to an exception's traceback
            refusal = copy.copy(error)
            refusal.__cause__ = error.__cause__
            return refusal
        cause = self._ended_for or KilledFor.CANCELLED
        return CallableDidNotExecuteError(
            f"fn was not called: {cause.value}", reason=Reason[cause.name]
        )

    def _take_value(self) -> Any:
        """Return fn's result, and keep no reference to it."""
        value, self._value = self._value, None
        return value

    def _as_outcome(self) -> Outcome[T]:
        """Return the outcome of the job, which is done."""
        if self._supervision is None:
            return Outcome(error=self.error)
        return outcome_of(self._supervision, self._value, self.error)
