"""Work that each call of an Isolator repeats and could be done once: a warning at the second."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from .._call.caller_warnings import warn, warn_of
from .._call.plan import Plan
from .._errors import ForkSafetyWarning, PerformanceWarning
from .._forkserver.random_generators import Found
from .._wire.codecs import Call

__all__ = ["CallCosts", "warn_of_generators"]

# Pickling, sending and loading this many bytes takes some 60 ms.
_LARGE = 16 << 20
# Imports in a child that take less are not worth a warning. The seconds are CPU time, so a busy
# machine makes no import slow.
_SHORT = 0.1
# Objects examined of a larger value; the rest is estimated from these.
_OBJECTS_MAX = 20_000
_NAMED_MAX = 3
_NO_DATA = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, CodeType)
_OWN = frozenset({"__mp_main__", "aioisolate", "cloudpickle"})


class CallCosts:
    """Notes the work that calls repeat, for one Isolator."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def note_size(self, plan: Plan, call: Call) -> None:
        """Examine the pickle of a call, and warn of a large global in it."""
        if call.by_cloudpickle and call.size >= _LARGE and self._again(f"size {_name(plan.fn)}"):
            found = max(_carried(plan.fn), key=lambda item: item[1], default=("", 0))
            if found[1] < _LARGE // 2:
                return  # the arguments are the large part
            what, size = found
            _warn_of(
                plan.fn,
                f"each call of {_name(plan.fn)} sends {_mb(call.size)} to its child: {what}, "
                f"which fn uses, is about {_mb(min(size, call.size))} of it. Put it into a module "
                "and name that in preload; or pass it as a Snapshot; or use start='template', "
                "whose children have what exists when the Isolator is entered",
                (what,),
            )

    def note_imports(self, plan: Plan, told: bytes) -> None:
        """Note the imports that a child reported, and warn of those that take long."""
        first, _, rest = told.decode(errors="replace").partition("\n")
        used, took = (float(part) for part in first.split())
        cause = _cause(rest.split(","))
        if used < _SHORT or not cause or not self._again(f"imports {cause}"):
            return
        _warn_of(
            plan.fn,
            f"each call of {_name(plan.fn)} waits {took:.2g} s while its child imports {cause}: "
            f'Isolator(preload=["{cause}"]) does that once',
            (cause,),
        )

    def _again(self, what: str) -> bool:
        """Return whether something has happened for the second time."""
        count = self._seen[what] = self._seen.get(what, 0) + 1
        return count == 2


def warn_of_generators(found: Sequence[Found]) -> None:
    """Warn of random generators that each child has a copy of."""
    if not found:
        return
    named = [f"{module}.{name} ({kind})" for module, name, kind in found]
    warn(
        f"each child draws the same random numbers from its copy of {', '.join(named[:_NAMED_MAX])}"
        f"{', ...' if len(named) > _NAMED_MAX else ''}, made before children are forked: make a "
        "generator in the function, or have it seed that one. (What the modules random, "
        "numpy.random and torch draw from by themselves is seeded anew in each child.)",
        ForkSafetyWarning,
        named,
    )


def _cause(packages: list[str]) -> str:
    """Return the last imported package that is not this one; "" if there is none."""
    tops = {name.partition(".")[0]: name for name in packages}
    others = [name for top, name in tops.items() if top not in _OWN]
    foreign = [name for top, name in tops.items() if top not in _OWN | sys.stdlib_module_names]
    return next(iter(foreign or others), "")


def _warn_of(fn: Callable[..., Any], text: str, about: Iterable[str]) -> None:
    function = _function(fn)
    if function is None:
        warn(text, PerformanceWarning, about)
    else:
        warn_of(function.__code__, function.__module__ or "", text, PerformanceWarning, about)


def _function(fn: Any) -> FunctionType | None:
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = getattr(fn, "__func__", fn)
    return fn if isinstance(fn, FunctionType) else None


def _name(fn: Any) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return str(getattr(fn, "__qualname__", type(fn).__qualname__))


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _carried(fn: Any) -> Iterator[tuple[str, int]]:
    """Yield the values that are pickled with a function that uses them, with estimated sizes."""
    first = _function(fn)
    functions = [] if first is None else [first]
    done = set()
    while functions:
        function = functions.pop()
        if function in done:
            continue
        done.add(function)
        module = function.__module__
        for name, value in _used(function):
            if isinstance(value, FunctionType):
                if value.__module__ == module:
                    functions.append(value)
            else:
                kind = "variable" if name in function.__code__.co_freevars else "global"
                yield f"{kind} {name!r} of {module}", _size(value)


def _used(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue  # the variable has no value yet
    space = function.__globals__
    for name in _names(function.__code__):
        if name in space:
            yield name, space[name]


def _names(code: CodeType) -> set[str]:
    inner = (_names(const) for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*inner)


def _size(value: Any) -> int:
    """Estimate the size of a value and of all objects that it refers to."""
    waiting, total = [value], 0
    seen: set[int] = set()
    while waiting and len(seen) < _OBJECTS_MAX:
        item = waiting.pop()
        if id(item) in seen or issubclass(type(item), _NO_DATA):
            continue
        seen.add(id(item))
        total += _own_size(item)
        waiting += gc.get_referents(item)
    return total + (total * len(waiting) // len(seen) if waiting else 0)


def _own_size(item: Any) -> int:
    try:
        size = getattr(item, "nbytes", None)  # of an array, which may be a view
        if type(size) is not int and type(item).__module__.startswith("polars."):
            size = item.estimated_size() if hasattr(item, "estimated_size") else 0
        return max(size if type(size) is int else 0, sys.getsizeof(item, 0))
    except Exception:  # noqa: BLE001 - a property may raise anything, and this is an estimate
        return 0
