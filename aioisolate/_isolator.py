"""The `Isolator`: isolated calls as a service for a whole application."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import EllipsisType, TracebackType
from typing import Any, Literal, Self, TypeVar, TypeVarTuple, Unpack, overload

import anyio

from ._async_backend import AsyncBackend
from ._call.plan import make_plan, sandbox_features
from ._child.layers import Start
from ._errors import IsolationError
from ._limits import Limits
from ._options import (
    CallOptions,
    Codec,
    JobArgs,
    MapArgs,
    Output,
    Stdin,
    StreamArgs,
    check_count,
    check_seconds,
    checked_environment,
    checked_names,
    checked_program,
    options_of_job,
)
from ._os import platform_features
from ._outcome import Outcome, Progress
from ._service.executor import Executor
from ._service.job import Job
from ._service.map import Results
from ._service.service import Service, check_queue, warn_unclosed
from ._service.sources import ForkSource, Source, fresh_interpreter, template
from ._service.statistics import Statistics
from ._service.stream import Stream
from .sandbox import Sandbox

__all__ = ["Isolator"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_log = logging.getLogger("aioisolate.service")

_STARTS = ("fork", "zygote", "template")


class Isolator:
    """Isolated calls as a service: one fork server, warm children, a bounded queue.

    Enter it in an application's lifespan, and use it in all its tasks::

        async with Isolator(preload=["myapp.parsers"], warm=2) as iso:
            result = await iso.run(parse, upload, timeout=5)

    Args:
        start: how children are created. ``"zygote"``: forked from a fresh, single-threaded
            interpreter that has imported *preload*; functions and arguments are pickled, by
            cloudpickle if they are defined in ``__main__``, lambdas or closures. ``"template"``:
            forked from a copy of this process made when the Isolator is entered; functions that
            existed then are as they were then. ``"fork"``: forked from this process, at each call,
            as with `run_isolated`.
        preload: names of modules to import when the Isolator is entered, and not in each child;
            lazy imports, too. The fork server imports them, a template after it was copied. With
            ``start="fork"`` this process imports them, in the event loop's thread, since that is
            the thread that forks; each import blocks the loop (unless the module is already
            imported). Under a data-only codec, children find an empty file in place of the files
            that these modules have open, and writable shared memory is refused.
        warm: how many children to fork before calls need them. Each runs one call. With
            ``start="fork"`` there are none, and *warm* is ignored.
        max_concurrency: how many calls may run at once; a number, or an
            `anyio.CapacityLimiter` that may be shared. None: the number of CPUs, by affinity and
            cgroup quota. Further calls wait, first come, first served.
        max_queue: how many calls may wait; further calls are refused, which is safe to retry. None:
            any number.
        queue_timeout: how many seconds a call may wait for its turn; then it is refused, which is
            safe to retry (``Reason.QUEUE_TIMEOUT``). None: no limit. *timeout* and
            *start_timeout* count from the call's turn on, the time for pickling the arguments
            included.
        python: the program of the fork server's interpreter, an absolute path; of the same version
            and build as this process's. None: `sys.executable`. Needed where `sys.executable` is
            not an interpreter: in a frozen application, an embedded Python. Only
            ``start="zygote"`` uses it.
        env: the children's whole environment. None: this process's, as it is when the Isolator is
            entered, or with ``start="fork"`` at each call. A zygote is started with this
            environment, a template sets it before *preload*. With ``start="fork"`` each child sets
            it before fn is called, for `os.environ` and C code; values that a library read when it
            was loaded do not change.
        limits: the resources that each call may use; a call's own limits take precedence.
        sandbox: the resources that children may access; applied once in the fork server, as far as
            children share it. *env* is the sandbox's unless it is given.
        drain: how many seconds leaving ``async with`` and `aclose` wait for calls that run or wait;
            then these are ended. None: no limit. Service managers usually send SIGKILL 30 seconds
            after SIGTERM; the default leaves a server some of that time for other work.
        codec, timeout, grace, stdin, output, start_timeout, exit_timeout: defaults for each call;
            see `run_isolated`.

    Raises:
        TypeError, ValueError: an argument is invalid.

    An Isolator belongs to the process and the event loop that enter it. When it has been closed, it
    can be entered again, also in another event loop; its statistics begin anew, and an earlier
    executor stays closed. (A limiter given as *max_concurrency* stays the same one.) Entering it
    while it is entered raises RuntimeError. In a forked copy of that process (a child of
    `multiprocessing`, for example) it owns nothing: leaving its context or deleting it there does
    nothing, and any other use there, `aclose` included, raises RuntimeError.

    Calls may be made as soon as the Isolator is being entered; they wait until it is open.

    Entering it raises `CallableDidNotExecuteError` if the fork server can't be started or can't
    import *preload* (the message has the traceback), or if the Isolator is closed meanwhile
    (``Reason.CLOSED``). Calls that are waiting then raise the same; if entering is cancelled,
    ``Reason.CLOSED``.
    """

    def __init__(
        self,
        start: Start = "zygote",
        *,
        preload: Iterable[str] = (),
        warm: int = 0,
        max_concurrency: int | anyio.CapacityLimiter | None = None,
        max_queue: int | None = None,
        queue_timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        grace: float = 0.0,
        stdin: Stdin = "null",
        output: Output = "inherit",
        start_timeout: float | None = 10.0,
        exit_timeout: float = 5.0,
        limits: Limits | None = None,
        sandbox: Sandbox | None = None,
        codec: Codec | None = None,
        python: str | os.PathLike[str] | None = None,
        drain: float | None = 20.0,
    ) -> None:
        if start not in _STARTS:
            raise ValueError(f"start must be one of {', '.join(map(repr, _STARTS))}, not {start!r}")
        modules = checked_names(preload)
        program = checked_program(python)
        check_queue(max_concurrency, max_queue, queue_timeout)
        environment = checked_environment(env)
        check_count("warm", warm, 0)
        if start == "fork" and warm:
            _log.debug("with start='fork' no children are forked ahead: warm=%d is ignored", warm)
        if drain is not None:
            check_seconds("drain", drain, optional=True)
        self._queue_timeout = queue_timeout
        self._start: Start = start
        self._defaults: StreamArgs = {
            "timeout": timeout,
            "grace": grace,
            "stdin": stdin,
            "output": output,
            "start_timeout": start_timeout,
            "exit_timeout": exit_timeout,
            "limits": limits,
            "sandbox": sandbox,
            "codec": codec,
        }
        self._default_options = CallOptions(**self._defaults)

        def make_source(backend: AsyncBackend) -> Source:
            confinement = None
            if sandbox is not None:
                from ._call.confinement import make_confinement  # noqa: PLC0415 - only with a sandbox

                confinement = make_confinement(sandbox, sandbox_features(), start)
            if start == "fork":
                return ForkSource(backend, preload=modules, environment=environment)
            if start == "template":
                return template(
                    backend,
                    preload=modules,
                    environment=environment,
                    warm=warm,
                    confinement=confinement,
                    patience=start_timeout,
                )
            return fresh_interpreter(
                backend,
                preload=modules,
                environment=environment,
                python=program,
                warm=warm,
                confinement=confinement,
                patience=start_timeout,
            )

        caller = sys._getframe(1)
        created_at = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        defaults = self._default_options  # so that the functions below do not refer to *self*

        def make_service() -> Service:
            return Service(
                make_source,
                limit=max_concurrency,
                max_queue=max_queue,
                queue_timeout=queue_timeout,
                defaults=defaults,
                start=start,
                drain=drain,
                created_at=created_at,
            )

        self._make_service = make_service
        self._service = make_service()

    def __repr__(self) -> str:
        service = self._service
        parts: list[str] = [service.state]
        if service.state != "new":
            now = service.statistics()
            parts += [f"{now.running} running", f"{now.queued} queued", f"{now.idle} idle"]
        return f"<Isolator start={self._start!r}: {', '.join(parts)}>"

    # Life cycle

    async def __aenter__(self) -> Self:
        service = self._service
        if service.is_owned() and service.is_stranded():  # it can't be closed any more
            self._give_up()
        if service.state == "closed":
            service = self._service = self._make_service()
        await service.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After an exception, Ctrl-C and cancellation included, the results are not needed.
        if self._service.is_owned():  # a forked copy only unwinds its stack
            await self.aclose(cancel=kind is not None)

    async def aclose(
        self, *, cancel: bool = False, timeout: float | EllipsisType | None = ...
    ) -> None:
        """Refuse further calls, wait for the current ones, and end every process.

        Args:
            cancel: do not wait: the same as ``timeout=0``. Cancelling this method while it waits
                has the same effect.
            timeout: how many seconds to wait; then the remaining calls are ended, as by
                `Job.cancel`, but raise `IsolationError` with ``Reason.CLOSED``. A message of the
                logger ``aioisolate.service`` names them. None: no limit. Default: the
                Isolator's *drain*.

        While another task is closing the Isolator, this waits for that task, and the shorter of the
        two times counts. If another task is entering it, that task gets
        `CallableDidNotExecuteError` with ``Reason.CLOSED``, and so do the calls that wait. Closing
        an Isolator that is closed or has not been entered does nothing.

        Raises:
            TypeError, ValueError: *timeout* is invalid.
            RuntimeError: this is a forked copy of the process, or this is another event loop than
                the one that entered the Isolator, and that loop has not ended. (If it has ended,
                every process is killed.)
        """
        if timeout is not ... and timeout is not None:
            check_seconds("timeout", timeout, optional=True)
        if self._service.state not in ("new", "closed"):
            self._service.check_owner()
        await self._service.aclose(seconds=0 if cancel else timeout)

    def __del__(self) -> None:
        service = getattr(self, "_service", None)
        if service is not None and service.state not in ("new", "closed") and service.is_owned():
            self._give_up()

    def _give_up(self) -> None:
        service = self._service
        try:
            service.abandon()
        finally:
            warn_unclosed([service], self, stacklevel=3)

    # Calls

    @overload
    async def run(
        self,
        fn: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]],
        /,
        *args: *Ts,
        **options: Unpack[JobArgs],
    ) -> T: ...

    @overload
    async def run(
        self, fn: Callable[[Unpack[Ts]], T], /, *args: *Ts, **options: Unpack[JobArgs]
    ) -> T: ...

    async def run(
        self, fn: Callable[[Unpack[Ts]], Any], /, *args: *Ts, **options: Unpack[JobArgs]
    ) -> Any:
        """Run ``fn(*args)`` in a child of its own and return its result.

        Takes the options of `run_isolated`, except ``start`` and ``sandbox``. The call may have to
        wait for its turn, at most *queue_timeout* seconds.

        Raises:
            the exceptions of `run_isolated`, and `CallableDidNotExecuteError` also if the queue is
            full (``Reason.QUEUE_FULL``), the call's turn does not come within *queue_timeout*
            (``Reason.QUEUE_TIMEOUT``, also a TimeoutError), the Isolator is closed or not entered
            (``Reason.CLOSED``), or fn or its arguments can't be pickled
            (``Reason.ARGUMENT_ENCODING``). RuntimeError in another event loop or process than
            the one that entered the Isolator.

        Example::

            text = await iso.run(extract_text, pdf, timeout=30)
        """
        value, error = await self._submit(fn, args, options)._run()
        if error is not None:
            raise error
        return value

    @overload
    async def capture(
        self,
        fn: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]],
        /,
        *args: *Ts,
        **options: Unpack[JobArgs],
    ) -> Outcome[T]: ...

    @overload
    async def capture(
        self, fn: Callable[[Unpack[Ts]], T], /, *args: *Ts, **options: Unpack[JobArgs]
    ) -> Outcome[T]: ...

    async def capture(
        self, fn: Callable[[Unpack[Ts]], Any], /, *args: *Ts, **options: Unpack[JobArgs]
    ) -> Outcome[Any]:
        """Run ``fn(*args)`` like `run`, and return its `Outcome`, as `capture_isolated` does."""
        job = self._submit(fn, args, options, whole=True)
        try:
            await job._run()
        except IsolationError as refusal:
            return Outcome(error=refusal)
        return job._as_outcome()

    def _submit(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any],
        options: JobArgs,
        *,
        streaming: bool = False,
        service: Service | None = None,
        **more: Any,
    ) -> Job[Any]:
        checked, queue_timeout = self._default_options, self._queue_timeout
        if options:
            checked = self._checked(options)
            queue_timeout = options.get("queue_timeout", queue_timeout)
        plan = make_plan(
            fn, args, checked, platform_features.current(), streaming=streaming, start=self._start
        )
        return (service or self._service).make_job(plan, queue_timeout=queue_timeout, **more)

    def _checked(self, options: JobArgs) -> CallOptions:
        check_queue(None, None, options.get("queue_timeout"))
        return options_of_job(self._defaults, options)

    def stream(
        self,
        fn: Callable[..., Iterable[T] | AsyncIterable[T]],
        /,
        *args: Any,
        **options: Unpack[JobArgs],
    ) -> Stream[T]:
        """Run a generator function, sync or async, in a child, and get its items one by one.

        Takes the options of `run`; ``timeout`` is for the whole stream. The child is paused while
        its items are not taken. An exception of the generator is raised after the items that
        precede it. Several tasks may take items; each item goes to one of them, and each task gets
        the end or the error.

        Leaving the context early kills the child. With ``grace`` the generator is closed first, and
        its ``finally`` blocks may take that many seconds. An exception that they raise is logged,
        and is the error of the stream's job.

        Raises:
            the exceptions of `run`, in the loop; and `CallableStatusUnknownError` if an item can't
            be pickled (``Reason.RESULT_ENCODING``), sent, or loaded here. The generator is closed.

        Example::

            async with iso.stream(parse_rows, path) as rows:
                async for row in rows:
                    await store(row)
        """
        return Stream(
            lambda on_item: self._submit(fn, args, options, on_item=on_item, streaming=True)
        )

    @overload
    def map(
        self,
        fn: Callable[[Any], Coroutine[Any, Any, T]],
        items: Iterable[Any] | AsyncIterable[Any],
        /,
        *,
        capture: Literal[False] = False,
        **options: Unpack[MapArgs],
    ) -> Results[T]: ...

    @overload
    def map(
        self,
        fn: Callable[[Any], T],
        items: Iterable[Any] | AsyncIterable[Any],
        /,
        *,
        capture: Literal[False] = False,
        **options: Unpack[MapArgs],
    ) -> Results[T]: ...

    @overload
    def map(
        self,
        fn: Callable[[Any], Any],
        items: Iterable[Any] | AsyncIterable[Any],
        /,
        *,
        capture: bool,
        **options: Unpack[MapArgs],
    ) -> Results[Any]: ...

    def map(
        self,
        fn: Callable[[Any], Any],
        items: Iterable[Any] | AsyncIterable[Any],
        /,
        *,
        ordered: bool = True,
        concurrency: int | None = None,
        capture: bool = False,
        **options: Unpack[JobArgs],
    ) -> Results[Any]:
        """Call fn with each of *items*, each call in a child of its own, several at a time.

        Args:
            fn: takes one item.
            items: an iterable or an async iterable; only a bounded number of items is read in
                advance. An exception that the iterable raises is raised after the results of the
                items before it; KeyboardInterrupt and SystemExit are raised at once.
            ordered: return the results in the order of the items; otherwise as they arrive.
            concurrency: how many calls may run at once; None: as many as the Isolator allows.
            capture: return an `Outcome` for each item. Otherwise return fn's results; the first
                failure is raised, and ends all other calls.
            options: the options of `run`, for each call.

        Returns:
            an async iterator, which is an async context manager, too. Several tasks may take
            results from it, and each task gets the end or the error. If the Isolator is closed
            before all items are read, the error is a `CallableDidNotExecuteError`
            (``Reason.CLOSED``) after the results.

        A loop may be left early. As soon as no reference to the iterator is left, running calls are
        killed, no further calls begin, and a generator that yields the items is closed. With
        ``async for ... in iso.map(...)`` that is at once. If a variable refers to the iterator, or
        if everything must have ended before the next statement, use ``async with``.

        Examples::

            async for thumbnail in iso.map(shrink, paths, concurrency=8):
                ...

            async with iso.map(probe, hosts, ordered=False) as results:
                async for found in results:
                    if found:
                        break
            # no probe runs any more
        """
        if not isinstance(items, (Iterable, AsyncIterable)):
            raise TypeError(f"items must be iterable, not {items!r}")
        # The map ends with this service, even if the Isolator is entered again.
        service = self._service
        service.check_open()
        if concurrency is None:
            concurrency = max(1, int(min(service.limiter.total_tokens, 10_000)))
        check_count("concurrency", concurrency, 1)
        make_plan(fn, (), self._checked(options), platform_features.current(), start=self._start)
        return Results(
            items,
            lambda item: self._submit(fn, (item,), options, service=service, whole=capture),
            service,
            ordered=ordered,
            concurrency=concurrency,
            outcomes=capture,
        )

    @overload
    def open_job(
        self, fn: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, **options: Unpack[JobArgs]
    ) -> AbstractAsyncContextManager[Job[T]]: ...

    @overload
    def open_job(
        self, fn: Callable[..., T], /, *args: Any, **options: Unpack[JobArgs]
    ) -> AbstractAsyncContextManager[Job[T]]: ...

    def open_job(
        self, fn: Callable[..., Any], /, *args: Any, **options: Unpack[JobArgs]
    ) -> AbstractAsyncContextManager[Job[Any]]:
        """Start ``fn(*args)`` and return its `Job`, which can be observed, awaited and cancelled.

        Takes the options of `run`. Leaving the context ends a job that is not done.

        Example::

            async with iso.open_job(render, report, output="capture") as job:
                await anyio.sleep(5)
                log.info("%s: %s after %.0f s, %s", job.name, job.state, job.age, job.progress)
                pdf = await job.result()
        """
        return self._open_job(fn, args, options)

    @asynccontextmanager
    async def _open_job(
        self, fn: Callable[..., Any], args: Sequence[Any], options: JobArgs
    ) -> AsyncGenerator[Job[Any], None]:
        on_progress = options.get("on_progress")

        def note(progress: Progress) -> None:
            job.progress = progress
            if on_progress is not None:
                on_progress(progress)

        CallOptions(on_progress=on_progress)
        noting: JobArgs = {**options, "on_progress": note}
        job = self._submit(fn, args, noting, whole=True)
        job._start()
        try:
            yield job
        finally:
            await job._abort()

    def executor(self) -> Executor:
        """Return a `concurrent.futures.Executor` that runs each call in a child of its own.

        This method and the executor may be used in any thread. Cancelling one of its futures kills
        the child. In the event loop's own thread, blocking on its futures (``future.result()``,
        ``list(executor.map(...))``) raises RuntimeError.

        Raises:
            CallableDidNotExecuteError: the Isolator is closed or not entered (``Reason.CLOSED``).
            RuntimeError: this is a forked copy of the process.

        Example::

            await loop.run_in_executor(iso.executor(), parse, data)
        """
        self._service.check_accepting()
        return Executor(self._service, keep=self)

    # Monitoring

    def jobs(self) -> list[Job[Any]]:
        """List the calls that wait or run, oldest first."""
        return self._service.jobs()

    def statistics(self) -> Statistics:
        """Return the current statistics."""
        return self._service.statistics()
