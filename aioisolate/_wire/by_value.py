"""Pickle functions by value with cloudpickle, keeping their file names and source.

cloudpickle replaces the file name of a code object by ``<dynamic-code>`` (from 3.1.3 on), so a
traceback or a crash report would not show where the code is from. Code objects are therefore
pickled by marshal, which keeps the file name. Both sides run the same interpreter.

If the child can't read the file, the function's source lines are sent with the call and put into
the child's `linecache`: lines of a notebook cell, of ``python -c``, and, for a child in a sandbox,
of any file.

Lazy imports (PEP 810) that a module has not used yet are among the globals of its functions, and
pickle refuses them. They are pickled as lazy imports: the child imports the module on first use,
this process does not import it.
"""

from __future__ import annotations

import gc
import linecache
import marshal
import operator
import pickle
import sys
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from cloudpickle import Pickler

from .._os.imports import LazyImport
from . import decorated
from .sources import load_class, load_code, load_lazy

__all__ = ["CodePickler", "by_name"]


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: not a static type


class CodePickler(Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """cloudpickle, but code objects keep their file name.

    Attributes:
        needs_source: return whether the source lines of a file are to be sent with the call.
        names_culprit: the object is a function and its arguments; if pickling fails, the error
            names the part that can't be pickled.
    """

    needs_source: Callable[[str], bool] | None = None
    names_culprit = True

    def dump(self, obj: Any) -> Any:
        """Pickle a call. Raise PicklingError naming the part that can't be pickled."""
        try:
            return super().dump(obj)
        except Exception as exc:
            from . import large_call  # noqa: PLC0415 - only where something is wrong

            stopped = isinstance(exc, large_call.Halt) or large_call.shows_change(exc)
            where = self._where(obj) if self.names_culprit and not stopped else ""
            if not where:
                raise
            raise pickle.PicklingError(f"{where}: {type(exc).__name__}: {exc}") from exc

    def _where(self, call: Any) -> str:
        from . import unpicklable  # noqa: PLC0415 - only where something is wrong

        known = getattr(self, "persistent_id", None)

        class Probe(CodePickler):
            names_culprit = False

            def persistent_id(self, obj: Any) -> Any:
                return known(obj) if type(obj) is FunctionType and known is not None else None

        return unpicklable.find_in_call(Probe, *call)

    def reducer_override(self, obj: Any) -> Any:
        """Reduce a code object; delegate all other objects to cloudpickle."""
        if type(obj) is CodeType:
            return self._reduce_code(obj)
        if type(obj) is LazyImport:
            return _reduce_lazy(obj)
        if issubclass(type(obj), type) and (place := _other_place(obj)):
            return load_class, place
        reduced = decorated.reduce(obj)
        if reduced is not NotImplemented:
            return reduced
        return decorated.keep_slots(obj, super().reducer_override(obj))

    def _reduce_code(self, code: CodeType) -> Any:
        try:
            data = marshal.dumps(code)
        except ValueError:  # a tool has put something other than a literal among its constants
            return NotImplemented
        if self.needs_source is not None and self.needs_source(code.co_filename):
            first, lines = _source(code)
            if lines:
                return load_code, (data, first, lines)
        return marshal.loads, (data,)


def _reduce_lazy(lazy: Any) -> Any:
    """Reduce a lazy import of a module or of a module's attribute."""
    # There is no public API for the target of a lazy import; if this fails, it is imported here.
    name = repr(lazy).partition("'")[2].partition("'")[0]
    module, _, part = name.rpartition(".")
    if not name or not all(map(str.isidentifier, name.split("."))):
        return operator.itemgetter(0), ((lazy.resolve(),),)
    if not module or name in gc.get_referents(lazy):
        return load_lazy, (f"lazy import {name}", name.partition(".")[0])
    return load_lazy, (f"lazy from {module} import {part}", part)


def by_name(cls: type) -> object:
    """Look up a class by ``__module__`` and ``__qualname__``, except in ``__main__``."""
    if cls.__module__ == "__main__":
        return None
    found: object = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found


def _other_place(cls: type) -> tuple[str, str] | None:
    """Return module and name of a class whose ``__module__`` is wrong, for example ``builtins``."""
    name = cls.__qualname__
    if cls.__module__ == "__main__" or "<" in name or by_name(cls) is cls:
        return None
    if not cls.__flags__ & _HEAP_TYPE:  # cloudpickle handles static types
        return None
    for module, found in list(sys.modules.items()):
        value: object = found
        for part in name.split("."):
            value = getattr(value, "__dict__", {}).get(part)  # does not import anything
        if value is cls and module != "__main__":
            return module, name
    return None


def _source(code: CodeType) -> tuple[int, list[str]]:
    """Return the first line number of a code object, and its source lines if they are known."""
    first = code.co_firstlineno
    if code.co_filename == "<string>":
        lines = _lines_of_command(code)
    else:
        lines = linecache.getlines(code.co_filename) or _registered(code)
    return first, lines[first - 1 : _last_line(code)]


def _last_line(code: CodeType) -> int:
    last = max((line for _, _, line in code.co_lines() if line), default=code.co_firstlineno)
    inner = (const for const in code.co_consts if type(const) is CodeType)
    return max(last, *map(_last_line, inner), 0)


def _lines_of_command(code: CodeType) -> list[str]:
    """Return the lines of the ``-c`` program if *code* is from that program."""
    lines = _registered(code)
    options = sys.orig_argv
    if not lines and "-c" in options[:-1]:
        lines = options[options.index("-c") + 1].splitlines(keepends=True)
    # Code from `exec` has the same file name.
    begins = "".join(lines[code.co_firstlineno - 1 : code.co_firstlineno])
    return lines if code.co_name.strip("<>") in begins else []


def _registered(code: CodeType) -> list[str]:
    """Return the lines that the interpreter keeps for interactive input and ``-c``."""
    known = getattr(linecache, "_getlines_from_code", None)  # not before 3.13.1
    return [] if known is None else list(known(code))
