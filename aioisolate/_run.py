"""Direct calls: one call, one child."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Literal, ParamSpec, TypeVar, TypeVarTuple, Unpack, cast, overload

from ._call.deadlines import Deadlines
from ._call.eventloop import running_backend
from ._call.forked import ForkedChild, let_imports_finish
from ._call.plan import Plan, check_callable, make_plan
from ._call.result import outcome_of, settle
from ._call.run import supervise
from ._call.supervision import Supervision
from ._errors import IsolationError
from ._limits import Limits
from ._options import CallOptions, Codec, OnEvent, OnProgress, Output, RunArgs, Stdin
from ._os import platform_features, threads
from ._outcome import Outcome
from .sandbox import Sandbox

__all__ = ["IsolatedDecorator", "capture_isolated", "isolated", "run_isolated"]

T = TypeVar("T")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")


@overload
async def run_isolated(
    fn: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]],
    /,
    *args: *Ts,
    **options: Unpack[RunArgs],
) -> T: ...


@overload
async def run_isolated(
    fn: Callable[[Unpack[Ts]], T], /, *args: *Ts, **options: Unpack[RunArgs]
) -> T: ...


async def run_isolated(  # noqa: D417 - others are refused
    fn: Callable[[Unpack[Ts]], Any],
    /,
    *args: *Ts,
    timeout: float | None = None,
    grace: float = 0.0,
    start: Literal["fork"] = "fork",
    stdin: Stdin = "null",
    output: Output = "inherit",
    start_timeout: float | None = 10.0,
    exit_timeout: float = 5.0,
    on_event: OnEvent | None = None,
    on_progress: OnProgress | None = None,
    pass_fds: Iterable[int] = (),
    limits: Limits | None = None,
    sandbox: Sandbox | None = None,
    codec: Codec | None = None,
    result_type: Any = None,
    **others: Any,
) -> Any:
    """Run ``fn(*args)`` in a forked copy of this process and return its result.

    The copy has this process's memory as it is now: closures, globals, context variables, objects
    that can't be pickled. Changes that fn makes there do not come back, only its result. The event
    loop runs while fn runs. When this returns or raises, the child has ended.

    Args:
        fn: the function to call: a function, lambda, bound method, `functools.partial`, callable
            object; or an ``async def``, which runs in a fresh event loop of the kind that runs
            here.
        args: its positional arguments; use `functools.partial` for keyword arguments.
        timeout: how many seconds the call may take, from its turn to its end; then the child is
            killed. None: no limit.
        grace: on timeout and on cancellation the child first gets SIGTERM, and is killed this many
            seconds later. 0: it is killed at once.
        start: how the child is created; ``"fork"`` forks this process now.
        stdin: the child's standard input. ``"null"``: empty. ``"inherit"``: this process's, a
            terminal included.
        output: where the child's standard output and error go, C code's included.
            ``"inherit"``: where this process's go. ``"null"``: nowhere. ``"capture"``: to this
            call; see `capture_isolated`, and `IsolationError.stderr_tail`. A callable is called
            here with ``(stream, line)`` for each line, ``stream`` being "stdout" or "stderr". As
            in text files a line ends with a newline, a carriage return (progress bars) or both;
            the callable gets it without them, as soon as the line has ended.
        start_timeout: how many seconds fn may take to begin; then the child is killed. This is the
            safeguard against a lock that another thread held at the fork. None: no limit.
        exit_timeout: how many seconds the unfinished work of fn may take to end: its non-daemon
            threads, and processes of multiprocessing. As at the end of a program, the child waits
            for them, then runs the exit functions that fn has registered, before the result is
            returned. Threads and processes that still run then, or when *timeout* passes, are
            killed; the result is returned nevertheless, and a warning is logged. 0: do not wait.
        on_event: called here with a `CallEvent` when the child is spawned, has started, has
            sent its result, has been reaped.
        on_progress: called here with a `Progress` whenever fn calls `report_progress`.
        limits: the resources that the call may use; see `Limits`.
        sandbox: the resources that the call may access; see `Sandbox`. The child is still a copy of
            this process, with all data that this process has in memory. For untrusted code use an
            `Isolator`, whose fork server has none of this data.
        codec: how the result is encoded. ``"pickle"``: any object, from a trusted child.
            ``"msgspec"`` (MessagePack) and ``"json"``: plain data, even if the child is hostile;
            exceptions of fn arrive as `RemoteError`, as text. None: the sandbox's codec, or
            ``"pickle"``.
        result_type: with a data-only codec, the type of the result: a type that msgspec
            knows, such as a dataclass, ``list[int]`` or a TypedDict.
        pass_fds: descriptors of sockets, pipes and the like that fn may use. Files, terminals
            and directories stay usable without that, except in a sandbox with a data-only codec.
            All other descriptors are at end of file, and a write to them raises OSError (EBADF).

    Raises:
        the exception of fn, with its own type and with the child's frames in the traceback, if it
            is an Exception. Any other (SystemExit, KeyboardInterrupt, CancelledError...) becomes
            the ``__cause__`` of a `CallableStatusUnknownError`. So does the
            CallableDidNotExecuteError of a nested call, which does not describe this call.
        CallableDidNotExecuteError: fn never began; always safe to retry. It is also a TimeoutError
            if fn did not begin in time (``Reason.START_TIMEOUT``), by either of the deadlines.
        CallableExecutedError: fn ended, but its result could not be sent or decoded.
        CallableStatusUnknownError: fn began and did not end regularly: a crash, an exit, a
            deadline (then it is also a TimeoutError), a kill.
        TypeError, ValueError: fn can't be called, or an option is invalid.
        RuntimeError: no event loop is running.

    If the call is cancelled, the child and its process group are killed and reaped before the
    cancellation is raised.

    Example::

        width, height = await run_isolated(decode, upload, timeout=5)
    """
    options = CallOptions(
        timeout=timeout,
        grace=grace,
        start=start,
        stdin=stdin,
        output=output,
        start_timeout=start_timeout,
        exit_timeout=exit_timeout,
        on_event=on_event,
        on_progress=on_progress,
        pass_fds=pass_fds,
        limits=limits,
        sandbox=sandbox,
        codec=codec,
        result_type=result_type,
        **others,  # refused, with a message that names one of them
    )
    value, error, _ = await _call(make_plan(fn, args, options, platform_features.current()))
    if error is not None:
        raise error
    return value


@overload
async def capture_isolated(
    fn: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]],
    /,
    *args: *Ts,
    **options: Unpack[RunArgs],
) -> Outcome[T]: ...


@overload
async def capture_isolated(
    fn: Callable[[Unpack[Ts]], T], /, *args: *Ts, **options: Unpack[RunArgs]
) -> Outcome[T]: ...


async def capture_isolated(
    fn: Callable[[Unpack[Ts]], Any], /, *args: *Ts, **options: Unpack[RunArgs]
) -> Outcome[Any]:
    r"""Run ``fn(*args)`` like `run_isolated`, and return its `Outcome`, success or failure.

    Takes the options of `run_isolated`. Never raises for a failed call: fn's exception or the
    `IsolationError` is the outcome's ``error``. Bad arguments and cancellation are raised.

    Example::

        outcome = await capture_isolated(convert, path, output="capture", timeout=30)
        if outcome.error:
            log.warning("%s: %s\n%s", path, outcome.error, outcome.stderr)
    """
    checked = CallOptions(**options)
    try:
        value, error, supervision = await _call(
            make_plan(fn, args, checked, platform_features.current())
        )
    except IsolationError as refusal:
        return Outcome(error=refusal, pid=refusal.pid)
    return outcome_of(supervision, value, error)


async def _call(plan: Plan) -> tuple[Any, BaseException | None, Supervision]:
    """Carry out a plan; return fn's result and None, or None and the error, and the supervision."""
    deadlines = Deadlines(plan.options)
    backend = running_backend()
    others = threads.others()
    if others or threads.has_helpers():
        await let_imports_finish(deadlines)
    child = ForkedChild(plan, backend, others)
    supervision = Supervision(child, plan.options, deadlines, fn=plan.fn)
    try:
        await supervise(supervision, plan.options.grace)
        value, error = await settle(supervision)
    finally:
        supervision.release()
    return value, error, supervision


@overload
def isolated(fn: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, Coroutine[Any, Any, T]]: ...


@overload
def isolated(fn: Callable[P, T], /) -> Callable[P, Coroutine[Any, Any, T]]: ...


@overload
def isolated(**options: Unpack[RunArgs]) -> IsolatedDecorator: ...


def isolated(fn: Callable[..., Any] | None = None, /, **options: Unpack[RunArgs]) -> Any:
    """Turn a function into an async one that runs isolated at each call.

    Use it bare, or with the options of `run_isolated`. The async function takes the same arguments,
    keyword arguments included, and has the same name, signature and docstring.

    Example::

        @isolated(timeout=5)
        def thumbnail(data: bytes, *, width: int = 128) -> bytes: ...

        small = await thumbnail(data, width=64)
    """
    decorator = IsolatedDecorator(CallOptions(**options))
    if fn is None and options:
        return decorator
    check_callable(fn)
    return decorator(cast("Callable[..., Any]", fn))


class IsolatedDecorator:
    """The decorator that `isolated` returns when it is given options; it may be used repeatedly.

    Example::

        briefly: IsolatedDecorator = isolated(timeout=1, output="null")

        @briefly
        def parse(text: str) -> Tree: ...
    """

    def __init__(self, options: CallOptions) -> None:
        self._options = options

    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...

    @overload
    def __call__(self, fn: Callable[P, T], /) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __call__(self, fn: Any, /) -> Any:
        check_callable(fn)
        options = self._options

        @functools.wraps(fn)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = functools.partial(fn, *args, **kwargs) if kwargs else fn
            plan = make_plan(call, () if kwargs else args, options, platform_features.current())
            value, error, _ = await _call(plan)
            if error is not None:
                raise error
            return value

        return wrapper
