"""The options of a call: their meaning, their defaults, and their checks."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar

from ._limits import Limits
from ._outcome import CallEvent, Progress
from .sandbox import Sandbox

__all__ = [
    "CallOptions",
    "Codec",
    "CommonArgs",
    "JobArgs",
    "MapArgs",
    "OnEvent",
    "OnLine",
    "OnProgress",
    "Output",
    "RunArgs",
    "Stdin",
    "StreamArgs",
    "check_count",
    "check_seconds",
    "checked_environment",
    "checked_names",
    "checked_program",
    "code_flags",
    "options_of_job",
]

_T = TypeVar("_T")
OnLine: TypeAlias = Callable[[str, str], object]
OnProgress: TypeAlias = Callable[[Progress], object]
OnEvent: TypeAlias = Callable[[CallEvent], object]
Output: TypeAlias = Literal["inherit", "capture", "null"] | OnLine
Stdin: TypeAlias = Literal["null", "inherit"]
Codec: TypeAlias = Literal["pickle", "msgspec", "json"]


class CommonArgs(TypedDict, total=False):
    """The keyword options that all calls have."""

    timeout: float | None
    grace: float
    stdin: Stdin
    output: Output
    start_timeout: float | None
    exit_timeout: float
    on_event: OnEvent | None
    on_progress: OnProgress | None
    pass_fds: Iterable[int]
    limits: Limits | None
    codec: Codec | None
    result_type: Any


class JobArgs(CommonArgs, total=False):
    """The keyword options of `Isolator.run`, `capture`, `stream` and `open_job`.

    Each overrides the Isolator's own. For functions that pass options on::

        async def parse(self, data: bytes, **options: Unpack[JobArgs]) -> Tree:
            return await self.iso.run(parse_tree, data, **options)
    """

    queue_timeout: float | None


class MapArgs(JobArgs, total=False):
    """The keyword options of `Isolator.map` but *capture*, for functions that pass them on."""

    ordered: bool
    concurrency: int | None


class StreamArgs(CommonArgs, total=False):
    """The keyword options of `stream_isolated`, for functions that pass them on."""

    sandbox: Sandbox | None


class RunArgs(StreamArgs, total=False):
    """The keyword options of `run_isolated`, `capture_isolated` and `isolated`.

    For functions that pass options on::

        async def parse(data: bytes, **options: Unpack[RunArgs]) -> Tree:
            return await run_isolated(parse_tree, data, **options)
    """

    start: Literal["fork"]


_NO_FDS: frozenset[int] = frozenset()


class CallOptions:
    """Checked options of one call; see `run_isolated` for their meaning.

    Raises TypeError or ValueError, naming the option, for invalid values.
    """

    # Not a dataclass, like all classes used for each call: those take long to import.
    __slots__ = (
        "_confinement",
        "codec",
        "exit_timeout",
        "grace",
        "limits",
        "on_event",
        "on_progress",
        "output",
        "pass_fds",
        "result_type",
        "sandbox",
        "start_timeout",
        "stdin",
        "timeout",
    )

    def __init__(
        self,
        *,
        timeout: float | None = None,
        grace: float = 0.0,
        start: str = "fork",
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
        **others: object,
    ) -> None:
        if others:
            raise TypeError(_why_unknown(next(iter(others))))
        if timeout is not None:
            check_seconds("timeout", timeout, optional=True)
        if grace != 0.0 or grace is False:
            check_seconds("grace", grace, finite=True)
        if start_timeout is not None:
            check_seconds("start_timeout", start_timeout, optional=True, above_zero=True)
        if exit_timeout != 5.0:
            check_seconds("exit_timeout", exit_timeout, finite=True)
        _check_choices(start, stdin, output)
        if on_event is not None:
            _check_callback("on_event", on_event)
        if on_progress is not None:
            _check_callback("on_progress", on_progress)
        self.codec: Codec = "pickle"
        if sandbox is not None or limits is not None or codec is not None:
            self.codec, limits, output = _apply_sandbox(sandbox, limits, codec, output)
            _check_stdin(stdin, sandbox)
        if result_type is not None and self.codec == "pickle":
            raise ValueError(
                "result_type needs codec='msgspec' or 'json'; a pickle contains the types itself"
            )
        # See `confinement`.
        self._confinement: Any = None
        self.limits: Limits | None = limits
        self.sandbox: Sandbox | None = sandbox
        self.result_type: Any = result_type
        self.timeout: float | None = timeout
        self.grace: float = grace
        self.stdin: Stdin = stdin
        self.output: Output = output
        self.start_timeout: float | None = start_timeout
        self.exit_timeout: float = exit_timeout
        self.on_event: OnEvent | None = on_event
        self.on_progress: OnProgress | None = on_progress
        self.pass_fds: frozenset[int] = _checked_fds(pass_fds) if pass_fds else _NO_FDS

    def confinement(self, decide: Callable[[], _T]) -> _T:
        """Return the result of *decide*: how calls with these options are confined.

        *decide* is called only once, for the first of the calls that share the options.
        """
        if self._confinement is None:
            self._confinement = decide()
        confinement: _T = self._confinement
        return confinement


def _check_choices(start: object, stdin: object, output: object) -> None:
    if start != "fork":
        raise ValueError(
            f"start must be 'fork', not {start!r}: fork servers belong to an Isolator, "
            f"Isolator(start={start!r})"
            if start in ("zygote", "template")
            else f"start must be 'fork', not {start!r}"
        )
    if stdin not in ("null", "inherit"):
        raise ValueError(f"stdin must be 'null' or 'inherit', not {stdin!r}")
    if output not in ("inherit", "capture", "null") and not callable(output):
        raise ValueError(
            "output must be 'inherit', 'capture', 'null' or a callable that takes "
            f"(stream, line), not {output!r}"
        )
    if not isinstance(output, str):
        _check_callback("output", output)


# Keyword arguments of other callables, and the end of a sentence that names the callable.
_OPTIONS_OF_OTHERS = dict.fromkeys(
    ("preload", "warm", "max_concurrency", "max_queue", "queue_timeout", "env"),
    "is an option of an Isolator",
) | dict.fromkeys(("ordered", "concurrency", "capture"), "is an option of Isolator.map")


def _why_unknown(name: str) -> str:
    """Return a message about an unknown keyword argument."""
    if name in _OPTIONS_OF_OTHERS:
        return f"{name!r} is not an option of this call: it {_OPTIONS_OF_OTHERS[name]}"
    import difflib  # noqa: PLC0415 - rarely needed, and not small

    close = difflib.get_close_matches(name, [*RunArgs.__annotations__, "start"], 1)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    return (
        f"{name!r} is not an option of a call{meant}; keyword arguments of the function itself go "
        f"along with functools.partial(function, {name}=...)"
    )


def code_flags(fn: object) -> int:
    """Return the flags (``inspect.CO_...``) of the code that a call of *fn* runs, or 0."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    code = getattr(fn, "__code__", None)  # a bound method has its function's
    if code is None:
        call = getattr(type(fn), "__call__", None)  # noqa: B004 - the value is needed
        code = getattr(call, "__code__", None)
    flags = getattr(code, "co_flags", 0)
    return flags if isinstance(flags, int) else 0


def _check_callback(name: str, given: object) -> None:
    """Raise TypeError if *given* can't be called, or if calling it would not run it."""
    if not callable(given):
        raise TypeError(f"{name} must be callable, not {given!r}")
    flags = code_flags(given)
    for flag, kind in _NEVER_RUN:
        if flags & flag:
            raise TypeError(
                f"{name} must be a plain function, and {given!r} is {kind}: the event loop calls "
                "it and does not await it. It may start a task, or put its arguments into a queue"
            )


# Flags of functions whose code does not run when they are called.
_NEVER_RUN = (
    (inspect.CO_ASYNC_GENERATOR, "an async generator function"),
    (inspect.CO_COROUTINE, "an async function"),
    (inspect.CO_GENERATOR, "a generator function"),
)


def _check_stdin(stdin: Stdin, sandbox: Sandbox | None) -> None:
    if stdin == "inherit" and sandbox is not None and sandbox.read is not None:
        raise ValueError(
            "stdin='inherit' can't be used with this sandbox: its children may read only what "
            "sandbox.read names"
        )


def _apply_sandbox(
    sandbox: Sandbox | None, limits: Limits | None, codec: Codec | None, output: Output
) -> tuple[Codec, Limits | None, Output]:
    """Return the codec, the limits and the output that follow from a sandbox and a call's own."""
    chosen: Codec = "pickle"
    if sandbox is not None or codec is not None:
        chosen = _chosen_codec(sandbox, codec)
    defaults = None if sandbox is None else sandbox.limits
    limits = defaults if limits is None else _checked_limits(limits, defaults)
    # Output of untrusted code must not reach this process's terminal or log.
    if sandbox is not None and sandbox.codec != "pickle" and output == "inherit":
        output = "null"
    if limits is not None and limits.output_size is not None and output == "inherit":
        raise ValueError(
            "limits.output_size needs output that this process reads: output='capture' or a "
            "callable, not 'inherit'"
        )
    return chosen, limits, output


def _chosen_codec(sandbox: object, codec: object) -> Codec:
    if sandbox is not None and not isinstance(sandbox, Sandbox):
        raise TypeError(f"sandbox must be a Sandbox, not {sandbox!r}")
    if codec is None:
        assert sandbox is not None
        return sandbox.codec
    if codec not in ("pickle", "msgspec", "json"):
        raise ValueError(f"codec must be 'pickle', 'msgspec' or 'json', not {codec!r}")
    if codec == "pickle" and sandbox is not None and sandbox.codec != "pickle":
        raise ValueError(
            "this sandbox needs a data-only codec: unpickling a result would run its code here"
        )
    return codec


def _checked_limits(limits: object, others: Limits | None) -> Limits:
    if not isinstance(limits, Limits):
        raise TypeError(f"limits must be Limits, not {limits!r}")
    return limits.over(others)


def check_seconds(
    name: str,
    value: object,
    *,
    optional: bool = False,
    finite: bool = False,
    above_zero: bool = False,
) -> None:
    """Raise TypeError or ValueError if an option is not a number of seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        expected = "a number of seconds" + (" or None" if optional else "")
        raise TypeError(f"{name} must be {expected}, not {value!r}")
    if math.isnan(value) or value < 0 or (above_zero and value == 0):
        raise ValueError(f"{name} must be {'above' if above_zero else 'at least'} 0, not {value!r}")
    if finite and math.isinf(value):
        raise ValueError(f"{name} must be finite, not {value!r}")


def _checked_fds(fds: Iterable[int]) -> frozenset[int]:
    if not isinstance(fds, Iterable):
        raise TypeError(f"pass_fds must be an iterable of descriptor numbers, not {fds!r}")
    checked = set()
    for fd in fds:
        if isinstance(fd, bool) or not isinstance(fd, int):
            raise TypeError(f"pass_fds must hold descriptor numbers, not {fd!r}")
        try:
            os.fstat(fd)
        except (OSError, OverflowError) as exc:
            raise ValueError(f"pass_fds names {fd}, which is not an open descriptor") from exc
        checked.add(fd)
    return frozenset(checked)


# Options of an Isolator


def options_of_job(defaults: StreamArgs, options: JobArgs) -> CallOptions:
    """Check the options of one call of an Isolator; *defaults* are the Isolator's own."""
    if "sandbox" in options:
        raise TypeError("a sandbox belongs to the Isolator, not to one of its calls")
    if "start" in options:
        raise TypeError("start belongs to the Isolator, not to one of its calls")
    combined: dict[str, Any] = {**defaults, **options}
    combined.pop("queue_timeout", None)
    limits = options.get("limits")
    if isinstance(limits, Limits):
        combined["limits"] = limits.over(defaults.get("limits"))
    return CallOptions(**combined)


def checked_program(python: str | os.PathLike[str] | None) -> str:
    """Check *python*: return it as text, or "" for None. Raises TypeError or ValueError."""
    if python is None:
        return ""
    if not isinstance(python, (str, os.PathLike)):
        raise TypeError(f"python must be the path of an interpreter, not {python!r}")
    program: Any = os.fspath(python)
    if not isinstance(program, str):
        raise TypeError(f"python must be the path of an interpreter, as text, not {program!r}")
    if not os.path.isabs(program) or "\0" in program:
        raise ValueError(f"python must be an absolute path, not {program!r}")
    return program


def checked_names(preload: Iterable[str]) -> tuple[str, ...]:
    """Check *preload*: return the names of modules. Raises TypeError."""
    if isinstance(preload, str):
        raise TypeError(f"preload must be names of modules, not the string {preload!r}")
    names = tuple(preload)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"preload must be names of modules, not {name!r}")
    return names


def checked_environment(env: Mapping[str, str] | None) -> dict[str, str] | None:
    """Check *env*: return a copy. Raises TypeError or ValueError."""
    if env is None:
        return None
    if not isinstance(env, Mapping):
        raise TypeError(f"env must be a mapping of names to values or None, not {env!r}")
    checked = dict(env)
    unchecked: Any = checked  # callers may pass values of other types
    for name, value in unchecked.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError(f"env must be a mapping of strings to strings, not {name!r}: {value!r}")
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"env must hold what an environment can hold, not {name!r}: {value!r}")
    return checked


def check_count(name: str, value: object, least: int) -> None:
    """Raise TypeError or ValueError if an option is not a whole number of at least *least*."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")
