"""Exceptions that cross a process boundary whole: type, arguments, frames, causes, notes, groups.

Pickle by itself keeps a type and arguments, loses all else, and calls the constructor again, which
fails for every exception whose constructor takes something other than `args`. Here an exception
is rebuilt without its constructor, unless its class says how (`__reduce__`); tracebacks travel
by tblib.
"""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Any

from tblib.pickling_support import pickle_traceback

from . import codecs
from .inert import trim
from .kinship import KinPickler

__all__ = ["describe", "dump", "trim"]


class ExceptionPickler(KinPickler):
    """A pickler that keeps all of an exception."""

    def reducer_override(self, obj: Any) -> Any:
        """Reduce exceptions and tracebacks; leave all else to the others."""
        if isinstance(obj, BaseException):
            return _reduce(obj)
        if isinstance(obj, TracebackType):
            return pickle_traceback(obj)
        return super().reducer_override(obj)


def _reduce(exc: BaseException) -> tuple[Any, ...]:
    reduced: Any = exc.__reduce_ex__(5)
    make, arguments, *rest = reduced
    cls = type(exc)
    if cls.__reduce__ in _BUILTIN_REDUCERS and cls.__reduce_ex__ is object.__reduce_ex__:
        base = next(c for c in cls.__mro__ if c.__module__ == "builtins")
        make, arguments = _make, (cls, base, arguments)
    links = (exc.__cause__, exc.__context__, exc.__suppress_context__, exc.__traceback__)
    # As a state, set after the object is known: exceptions may refer to each other in a circle.
    return make, arguments, (rest[0] if rest else None, links), None, None, _complete


_BUILTIN_REDUCERS = {
    cls.__reduce__
    for cls in (BaseException, OSError, ImportError, AttributeError, BaseExceptionGroup)
}


def _make(cls: type[BaseException], base: Any, arguments: tuple[Any, ...]) -> BaseException:
    exc: BaseException = base.__new__(cls, *arguments)
    base.__init__(exc, *arguments)
    return exc


def _complete(exc: BaseException, state: tuple[Any, tuple[Any, ...]]) -> None:
    attributes, (cause, context, suppress, stack) = state
    own = {
        "__cause__": cause,
        "__context__": context,
        "__suppress_context__": suppress,
        "__traceback__": stack,
    }
    if isinstance(attributes, dict) and type(exc).__setstate__ is BaseException.__setstate__:
        own |= attributes
    elif attributes is not None:
        exc.__setstate__(attributes)
    for name, value in own.items():
        # Not by its own __setattr__: that of a frozen dataclass refuses.
        object.__setattr__(exc, name, value)


def dump(exc: BaseException) -> codecs.Dumped:
    """Pickle an exception such that it can be loaded again, or raise.

    That is tried out here: a constructor that wants other arguments than `args` has fails when
    it is loaded, and there nothing could be done about it any more.
    """
    dumped = stream, buffers, luggage = codecs.dump_by(ExceptionPickler, exc, lend=False)
    views = [view.toreadonly() for view in buffers if isinstance(view, memoryview)]
    copy = codecs.load([stream], views, luggage.fds if luggage else ())
    if type(copy).__qualname__ != type(exc).__qualname__:
        raise TypeError(f"it comes back as {type(copy).__qualname__}")
    return dumped


def describe(exc: BaseException) -> str:
    """Describe an exception in words, whatever its own methods do."""
    try:
        text = str(exc)
    except BaseException as broken:  # noqa: BLE001 - a broken __str__ may raise anything
        text = f"<its __str__ raised {type(broken).__name__}>"
    try:
        stack = "".join(traceback.format_tb(exc.__traceback__))
    except BaseException as broken:  # noqa: BLE001 - a broken loader of source lines, likewise
        stack = f"<its traceback could not be formatted: {type(broken).__name__}>"
    kind = f"{type(exc).__module__}.{type(exc).__qualname__}"
    return f"{kind}: {text}\n{stack}".rstrip("\n")
