"""Warnings about work that each call of an Isolator repeats and that could be done once."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from .._call.caller_warnings import warn, warn_of
from .._call.plan import Plan, name_of
from .._errors import ForkSafetyWarning, PerformanceWarning
from .._forkserver.random_generators import Found
from .._wire.codecs import Call

__all__ = ["CallCosts", "warn_of_generators"]

# Pickling, sending and loading this many bytes takes some 60 ms.
_LARGE = 16 << 20
# Imports in a child that take less CPU time than this, in seconds, cause no warning. CPU time does
# not depend on the load of the machine.
_SHORT = 0.1
# Of a value with more objects, only this many are examined; the rest is estimated from these.
_OBJECTS_MAX = 20_000
_NAMED_MAX = 3
_NO_DATA = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, CodeType)
_OWN = frozenset({"__mp_main__", "aioisolate", "cloudpickle"})


class CallCosts:
    """Counts the work that the calls of one Isolator repeat, and warns at the second call."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def note_size(self, plan: Plan, call: Call) -> None:
        """Examine the pickle of a call, and warn of a large global in it."""
        if not (call.by_cloudpickle and call.size >= _LARGE):
            return
        name = name_of(plan.fn)
        if self._is_second(f"size {name}"):
            variable, size = max(
                _pickled_values(plan.fn), key=lambda item: item[1], default=("", 0)
            )
            if size < _LARGE // 2:
                return  # the arguments are the large part
            _warn_of(
                plan.fn,
                f"each call of {name} sends {_mb(call.size)} to its child: {variable}, "
                f"which fn uses, is about {_mb(min(size, call.size))} of it. Put it into a module "
                "and name that in preload; or pass it as a Snapshot; or use start='template', "
                "whose children have all objects that exist when the Isolator is entered",
                (variable,),
            )

    def note_imports(self, plan: Plan, report: bytes) -> None:
        """Note the imports that a child reported, and warn of those that take long."""
        first, _, rest = report.decode(errors="replace").partition("\n")
        cpu_time, duration = (float(part) for part in first.split())
        cause = _cause(rest.split(","))
        if cpu_time < _SHORT or not cause or not self._is_second(f"imports {cause}"):
            return
        name = name_of(plan.fn)
        _warn_of(
            plan.fn,
            f"each call of {name} waits {duration:.2g} s while its child imports {cause}: "
            f'Isolator(preload=["{cause}"]) does that once',
            (cause,),
        )

    def _is_second(self, event: str) -> bool:
        """Count an event, and return whether this is the second one."""
        count = self._counts[event] = self._counts.get(event, 0) + 1
        return count == 2


def warn_of_generators(found: Sequence[Found]) -> None:
    """Warn of random generators that each child has a copy of."""
    if not found:
        return
    named = [f"{module}.{name} ({kind})" for module, name, kind in found]
    warn(
        f"each child draws the same random numbers from its copy of {', '.join(named[:_NAMED_MAX])}"
        f"{', ...' if len(named) > _NAMED_MAX else ''}, made before children are forked: make a "
        "generator in the function, or seed that one in the function. (The global generators of "
        "random, numpy.random and torch are seeded anew in each child.)",
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


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _pickled_values(fn: Any) -> Iterator[tuple[str, int]]:
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
        for name, value in _variables(function):
            if isinstance(value, FunctionType):
                if value.__module__ == module:
                    functions.append(value)
            else:
                kind = "variable" if name in function.__code__.co_freevars else "global"
                yield f"{kind} {name!r} of {module}", _size(value)


def _variables(function: FunctionType) -> Iterator[tuple[str, Any]]:
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
