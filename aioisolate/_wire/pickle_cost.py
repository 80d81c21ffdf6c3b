"""Find objects that may take long to pickle, before they are pickled."""

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

# The maximum size in bytes of an object that pickling only copies, for pickling it in one step.
PAYLOAD_MAX = 1 << 20
# Longer texts are not given to the C pickler, which encodes and copies a text in one step.
TEXT_MAX = 256 * 1024
# The number of objects of a call that are checked.
_CHECKED_MAX = 64
_LIST_MIN = 1000

# Packages whose reducers return the attributes of an object without computing anything. Objects
# with a `__reduce__` or `__getstate__` from another package are pickled in a thread, whatever their
# size.
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

    The pickler encodes a text that is not ASCII completely before it writes anything.
    """
    return any(type(found) is str for found in find_large(call, _CHECKED_MAX))


def find_large(call: object, count: int) -> Iterator[str | list[Any]]:
    """Yield the long texts and long lists among the first *count* objects of a call."""
    inside: list[Any] = [call]
    for found in inside:  # the loop body appends to the list
        for value in islice(found.values() if type(found) is dict else found, count):
            count -= 1
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
        if count <= 0:
            return


def _state(value: object) -> object:
    try:
        return getattr(value, "__dict__", None)
    except Exception:  # noqa: BLE001 - a proxy may raise anything
        return None


def may_take_long(obj: Any) -> bool:
    """Return whether reducing an object may take long, or copies much.

    Reducing is fast if it only returns the object's attributes, which are pickled separately.
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
