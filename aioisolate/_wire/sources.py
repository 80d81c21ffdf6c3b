"""Loaders for parts of functions sent by value: source lines, classes, lazy imports."""

from __future__ import annotations

from types import CodeType
from typing import Any

__all__ = ["load_class", "load_code", "load_lazy"]


def load_code(data: bytes, first: int, lines: list[str]) -> CodeType:
    """Load a code object whose source, from line *first* on, is *lines*.

    The lines are stored in `linecache`, so that tracebacks show them.
    """
    import linecache  # noqa: PLC0415 - small servers do not need it
    import marshal  # noqa: PLC0415 - same

    code: CodeType = marshal.loads(data)  # noqa: S302 - from this process's own parent
    name = code.co_filename
    entry = linecache.cache.get(name)
    known = list(entry[2]) if entry is not None and len(entry) == 4 else []
    known += ["\n"] * (first - 1 + len(lines) - len(known))
    known[first - 1 : first - 1 + len(lines)] = lines
    # A modification time of None: linecache never compares the entry with a file.
    linecache.cache[name] = (sum(map(len, known)), None, known, name)
    return code


def load_class(module: str, name: str) -> Any:
    """Return the class *name* of *module*; its `__module__` may differ."""
    import importlib  # noqa: PLC0415 - small servers do not need it

    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def load_lazy(statement: str, name: str) -> Any:
    """Return the lazy import object that *statement* binds to *name* (PEP 810)."""
    namespace: dict[str, Any] = {}
    exec(statement, namespace)  # noqa: S102 - only a statement makes a lazy import
    return namespace[name]
