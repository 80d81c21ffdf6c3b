"""Find the part of an object that can't be pickled, and its path, for error messages."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import CodeType, FunctionType, MemberDescriptorType, MethodType
from typing import Any

from . import fd_passing

__all__ = ["find", "find_in_call"]

# The time limit in seconds: each step pickles parts of the object again, which may take long.
_PATIENCE = 0.25
_DEPTH_MAX = 12
_TEXT_MAX = 60


def find(pickler: Callable[..., Any], name: str, whole: Any) -> str:
    """Return the path of the part that *pickler* refuses: "global 'lock' of work"; or *name*."""
    end = time.monotonic() + _PATIENCE
    path = [name] if name else []
    seen: set[int] = set()
    culprit = whole
    for _ in range(_DEPTH_MAX):
        seen.add(id(culprit))
        try:
            found = _refused_part(pickler, culprit, seen, end)
        except Exception:  # noqa: BLE001 - attribute access may run any code
            break
        if found is None:
            break
        label, culprit = found
        if label:
            path.append(label)
    text = " of ".join(reversed(path))
    if type(culprit) is ContextVar:
        text += f"{', ' if text else ''}the ContextVar {culprit.name!r}"
    return text


def _refused_part(
    pickler: Callable[..., Any], whole: Any, seen: set[int], end: float
) -> tuple[str, Any] | None:
    for label, part in _parts(whole):
        if time.monotonic() > end:
            break
        if id(part) not in seen and _is_refused(pickler, part, end):
            return label, part
    return None


class _TooLongError(BaseException):
    """A part takes long to pickle."""


class _DiscardingFile:
    """A file that discards data, and raises _TooLongError after the time *end*."""

    def __init__(self, end: float) -> None:
        self._end = end

    def write(self, _: object, /) -> None:
        if time.monotonic() > self._end:
            raise _TooLongError


def _is_refused(pickler: Callable[..., Any], part: object, end: float) -> bool:
    if type(part) in (str, bytes, int, float, bool, type(None)):
        return False
    try:
        with fd_passing.FdBundle():
            pickler(_DiscardingFile(end), 5, buffer_callback=_discard_buffer).dump(part)
    except _TooLongError:
        return False
    except Exception:  # noqa: BLE001 - a __reduce__ may raise anything
        return True
    return False


def _discard_buffer(_: object) -> bool:
    return False  # keep the buffer out of the stream, and discard it


def _text(thing: object) -> str:
    try:
        text = repr(thing)
    except Exception:  # noqa: BLE001 - a broken __repr__ may raise anything
        return f"<a {type(thing).__name__}>"
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}..."


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts that are pickled with *thing*, each with a description."""
    cls = type(thing)
    if cls is _Call:
        yield _name(thing.fn), thing.fn
        for at, argument in enumerate(thing.args, 1):
            yield f"argument {at}", argument
    elif cls is FunctionType:
        yield from _parts_of_function(thing)
    elif cls is MethodType:
        yield "its object", thing.__self__
        yield "", thing.__func__
    elif issubclass(cls, functools.partial):
        yield "", thing.func
        yield from ((f"argument {at}", value) for at, value in enumerate(thing.args, 1))
        yield from ((f"argument {name!r}", value) for name, value in thing.keywords.items())
    else:
        yield from _parts_of_container(thing, cls)
        yield from _attributes(thing)


def _parts_of_container(thing: Any, cls: type) -> Iterator[tuple[str, Any]]:
    if issubclass(cls, dict):
        for key, value in thing.items():
            yield f"key {_text(key)}", key
            yield f"item {_text(key)}", value
    elif issubclass(cls, (list, tuple)):
        yield from ((f"item {at}", value) for at, value in enumerate(thing))
    elif issubclass(cls, (set, frozenset)):
        yield from (("an element", value) for value in thing)
    elif cls is property:
        yield from (("", part) for part in (thing.fget, thing.fset, thing.fdel))
    elif cls in (staticmethod, classmethod) or hasattr(thing, "cache_parameters"):
        yield "", thing.__wrapped__


def _attributes(thing: Any) -> Iterator[tuple[str, Any]]:
    for name, value in list(getattr(thing, "__dict__", {}).items()):
        if name not in ("__dict__", "__weakref__", "__wrapped__"):
            yield f"attribute {name!r}", value
    for base in type(thing).__mro__:
        for name, slot in list(vars(base).items()):
            if type(slot) is MemberDescriptorType and hasattr(thing, name):
                yield f"attribute {name!r}", getattr(thing, name)
    yield "its class", type(thing)


def _parts_of_function(fn: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield f"variable {name!r}", cell.cell_contents
        except ValueError:  # an empty cell
            continue
    for name in _names(fn.__code__):
        if name in fn.__globals__:
            yield f"global {name!r}", fn.__globals__[name]
    yield from ((f"attribute {name!r}", value) for name, value in vars(fn).items())
    defaults = (*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values())
    yield from (("a default value", value) for value in defaults)


def _names(code: CodeType) -> Iterator[str]:
    yield from dict.fromkeys(code.co_names)
    for inner in code.co_consts:
        if type(inner) is CodeType:
            yield from _names(inner)


def _name(fn: Any) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None)
    return name.rpartition("<locals>.")[2] if isinstance(name, str) else _text(fn)


class _Call:
    """A function and its arguments."""

    def __init__(self, fn: Any, args: Any) -> None:
        self.fn = fn
        self.args = args

    def __reduce__(self) -> tuple[Any, ...]:
        return _Call, (self.fn, self.args)


def find_in_call(pickler: Callable[..., Any], fn: Any, args: Any) -> str:
    """Return the path of the part of a call that *pickler* refuses, or ""."""
    return find(pickler, "", _Call(fn, args))
