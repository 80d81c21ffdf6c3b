"""The plan of a call: all decisions, made before any action."""

from __future__ import annotations

import errno
import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, NamedTuple

from .._child.layers import NO_LIMITS, ConfinementSpec, Enforcement, Start
from .._errors import CallableDidNotExecuteError, Reason, StartTimeoutError, may_pass
from .._options import CallOptions, code_flags
from .._os import platform_features as _features
from .._os.platform_features import Containment, Features

__all__ = ["Plan", "check_callable", "make_plan", "name_of", "sandbox_features"]

_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class Plan(NamedTuple):
    """One planned call: the function, its arguments, and the decisions about them.

    Attributes:
        fn, args: the function and its arguments.
        options: the checked options.
        streaming: whether fn returns an iterable whose items are sent one by one.
        confinement: the confinement of the child, or None.
        enforcement: how the limits are enforced.
    """

    fn: Callable[..., Any]
    args: Sequence[Any]
    options: CallOptions
    streaming: bool = False
    confinement: ConfinementSpec | None = None
    enforcement: Enforcement = NO_LIMITS


def make_plan(
    fn: Callable[..., Any],
    args: Sequence[Any],
    options: CallOptions,
    features: Features,
    *,
    streaming: bool = False,
    start: Start = "fork",
) -> Plan:
    """Plan a call, or refuse it before any side effect.

    Raises TypeError if *fn* can't be called, or is a generator function whose items would not be
    taken. Raises CallableDidNotExecuteError if the platform lacks a feature that the call needs, or
    if the timeout is 0.
    """
    check_callable(fn)
    if not streaming and code_flags(fn) & _GENERATOR:
        raise TypeError(
            f"{name_of(fn)} is a generator function, and a generator can't be sent: take its items "
            "one by one with stream_isolated() or Isolator.stream(), or run a function that "
            "returns a list of them"
        )
    if not features.waitid:
        raise CallableDidNotExecuteError(
            f"no safe way to wait for a child: os.waitid is missing on {features.platform} with "
            "this Python (macOS has it from Python 3.13 on)",
            reason=Reason.FEATURE_UNAVAILABLE,
        )
    if options.timeout == 0:
        raise StartTimeoutError(
            "fn was not called: the timeout is 0 s",
            reason=Reason.START_TIMEOUT,
            transient=False,
        )
    if options.codec == "pickle" and options.sandbox is None and options.limits is None:
        return Plan(fn, args, options, streaming)
    confinement, enforcement = options.confinement(lambda: _confine(options, start))
    return Plan(fn, args, options, streaming, confinement, enforcement)


def _confine(options: CallOptions, start: Start) -> tuple[ConfinementSpec | None, Enforcement]:
    """Decide how a call is confined; raises if it can't be."""
    # These modules are large, and most calls do not need them.
    from .confinement import make_confinement  # noqa: PLC0415 - only with a sandbox or limits
    from .enforcement import plan_limits  # noqa: PLC0415 - only with a sandbox or limits

    sandbox = options.sandbox
    if options.codec != "pickle":
        _check_codec(options)
    here = sandbox_features()
    confinement = None if sandbox is None else make_confinement(sandbox, here, start)
    return confinement, plan_limits(options.limits, sandbox, confinement, here, start)


def sandbox_features() -> Containment:
    """Return the sandbox features of this machine. Raises CallableDidNotExecuteError."""
    try:
        return _features.containment()
    except OSError as exc:
        no_descriptor = exc.errno in (errno.EMFILE, errno.ENFILE)
        raise CallableDidNotExecuteError(
            f"the sandbox layers that work on this machine could not be determined: {exc}",
            reason=Reason.PIPE_CREATION if no_descriptor else Reason.FORK,
            transient=may_pass(exc.errno),
        ) from exc


def _check_codec(options: CallOptions) -> None:
    from .._wire import plain_data  # noqa: PLC0415 - only with a data-only codec

    if not plain_data.available(options.codec):
        raise CallableDidNotExecuteError(
            f"codec={options.codec!r} needs msgspec, which is not installed: "
            "pip install 'aioisolate[msgspec]', or codec='json'",
            reason=Reason.FEATURE_UNAVAILABLE,
        )
    kind = options.result_type
    if kind is not None:
        (_check_type if isinstance(kind, Hashable) else _check_new_type)(options.codec, kind)


def _check_new_type(codec: str, kind: object) -> None:
    from .._wire import plain_data  # noqa: PLC0415 - only with a data-only codec

    plain_data.check_result_type(codec, kind)


_check_type = functools.lru_cache(256)(_check_new_type)


def check_callable(fn: object) -> None:
    """Raise TypeError, with a hint at the probable mistake, if *fn* is not callable."""
    if callable(fn):
        return
    kind = _KINDS.get(type(fn))
    if kind is None:
        raise TypeError(
            f"expected a function, not {fn!r}: pass the function and its arguments separately"
        )
    name = getattr(fn, "__name__", "function")
    if inspect.iscoroutine(fn) and inspect.getcoroutinestate(fn) == inspect.CORO_CREATED:
        fn.close()  # otherwise Python would warn later that the coroutine was never awaited
    raise TypeError(
        f"expected a function, not the {kind} {name}(): it has been called already. Pass the "
        f"function and its arguments, as in run_isolated({name}, ...)"
    )


# The types of objects that a call of a function returns, by mistake instead of the function.
_KINDS = {
    CoroutineType: "coroutine",
    GeneratorType: "generator",
    AsyncGeneratorType: "async generator",
}


def name_of(fn: object) -> str:
    """Return the name of a function for messages; for a partial, the name of its function."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None)
    return name if isinstance(name, str) else type(fn).__qualname__
