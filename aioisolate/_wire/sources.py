"""What functions that travel by value need in the child: source lines, and lazy imports."""

from __future__ import annotations

from types import CodeType
from typing import Any

__all__ = ["load_class", "load_code", "load_lazy"]


def load_code(data: bytes, first: int, lines: list[str]) -> CodeType:
    """Load a code object whose source, from line *first* on, is *lines*.

    They go into `linecache`.
    """
    import linecache  # noqa: PLC0415 - small servers do without
    import marshal  # noqa: PLC0415 - likewise

    code: CodeType = marshal.loads(data)  # noqa: S302 - from this process's own parent
    name = code.co_filename
    entry = linecache.cache.get(name)
    known = list(entry[2]) if entry is not None and len(entry) == 4 else []
    known += ["\n"] * (first - 1 + len(lines) - len(known))
    known[first - 1 : first - 1 + len(lines)] = lines
    # Without a time of modification: it is never compared with a file.
    linecache.cache[name] = (sum(map(len, known)), None, known, name)
    return code


def load_class(module: str, name: str) -> Any:
    """Return a class that is in *module*, whatever it says of itself."""
    import importlib  # noqa: PLC0415 - small servers do without

    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def load_lazy(statement: str, name: str) -> Any:
    """Return what a lazy import binds to *name*, which is not imported yet (PEP 810)."""
    namespace: dict[str, Any] = {}
    exec(statement, namespace)  # noqa: S102 - there is no other way to make one
    return namespace[name]
