"""Estimate before pickling which objects may take long to pickle."""

from __future__ import annotations

import array
import copyreg
import functools
import sys
from collections.abc import Iterator
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodType, NoneType
from typing import Any

__all__ = ["PAYLOAD_MAX", "TEXT_MAX", "find_large", "may_take_long", "shows_long_text"]

# So much of large objects, which are only copied, is pickled at once.
PAYLOAD_MAX = 1 << 20
# A longer text is not left to the C pickler, which encodes and copies all of it in one go.
TEXT_MAX = 256 * 1024
# So many of a call's first objects are looked at.
_LOOK_AT = 64
_LIST_MIN = 1000

# What hands out what an object has, and computes nothing, whatever the object. Objects that have
# somebody else's `__reduce__`, or `__getstate__`, are pickled in a thread, however small they are.
_QUICK = frozenset(sys.stdlib_module_names) | {
    "aioisolate",
    "attr",
    "attrs",
    "cloudpickle",
    "msgspec",
    "numpy",
    "pydantic",
    "pydantic_core",
}
_QUICK_PART = "pandas._libs.tslibs"  # points in time
_REDUCERS = ("__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs_ex__", "__getnewargs__")
_DEFAULTS = tuple(getattr(object, name, None) for name in _REDUCERS)
_PARTLESS = frozenset(
    {
        BuiltinFunctionType,
        FunctionType,
        MethodType,
        NoneType,
        bool,
        bytes,
        complex,
        float,
        int,
        type,
    }
)
_CONTAINERS = frozenset({dict, frozenset, list, set, tuple})


def shows_long_text(call: object) -> bool:
    """Return whether the first objects of a call include a long text.

    One that is not ASCII is encoded, all of it, before the pickler writes anything.
    """
    return any(type(found) is str for found in find_large(call, _LOOK_AT))


def find_large(call: object, look_at: int) -> Iterator[str | list[Any]]:
    """Find the long texts and the long lists among the first objects of a call, so many."""
    inside: list[Any] = [call]
    for found in inside:  # which grows meanwhile
        for value in islice(found.values() if type(found) is dict else found, look_at):
            look_at -= 1
            kind = type(value)
            if kind is str:
                if len(value) > TEXT_MAX:
                    yield value
            elif kind in _CONTAINERS:
                if kind is list and len(value) >= _LIST_MIN:
                    yield value
                inside.append(value)
            elif kind is functools.partial:
                inside += (value.args, value.keywords)
            elif kind not in _PARTLESS and type(state := _state(value)) is dict:
                inside.append(state)
        if look_at <= 0:
            return


def _state(value: object) -> object:
    try:
        return getattr(value, "__dict__", None)
    except Exception:  # noqa: BLE001 - it may stand for something that is not there
        return None


def may_take_long(obj: Any) -> bool:
    """Return whether reducing an object may take long, or copies much.

    It does not if it only hands out what the object has, which is pickled in turn.
    """
    kind: Any = type(obj)
    if kind in _PARTLESS:
        return False
    if not _reduces_quickly(kind):
        return True
    if isinstance(obj, (str, bytes, bytearray)):
        return len(obj) > TEXT_MAX
    if kind is array.array:
        return len(obj) * int(obj.itemsize) > PAYLOAD_MAX
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(obj, numpy.ndarray) and int(obj.nbytes) > PAYLOAD_MAX


@functools.lru_cache(256)
def _reduces_quickly(kind: type) -> bool:
    reducer = copyreg.dispatch_table.get(kind)
    if reducer is not None:
        return _is_quick(reducer, kind)
    for name, default in zip(_REDUCERS, _DEFAULTS, strict=True):
        found = getattr(kind, name, default)
        if found is not default and not _is_quick(found, kind):
            return False
    return True


def _is_quick(reducer: object, kind: type) -> bool:
    module = getattr(reducer, "__module__", None)
    if not isinstance(module, str):  # a method written in C
        module = getattr(reducer, "__objclass__", kind).__module__
    return str(module).partition(".")[0] in _QUICK or str(module).startswith(_QUICK_PART)
