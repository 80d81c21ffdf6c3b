"""Imports in progress in other threads, and lazy imports (PEP 810).

The import system has a lock for each module that is being imported. A fork copies a lock that
another thread holds; that thread does not exist in the child, so importing the module there blocks
for ever.

From Python 3.15 on an import may be lazy: it runs when its name is first used. Each child would run
the imports that this package or a fork server has not run before the fork, with descriptors
replaced and perhaps without access to files. This module runs lazy imports in advance.
"""

from __future__ import annotations

import importlib._bootstrap
import sys
import types
from _thread import get_ident
from typing import Any

__all__ = [
    "LazyImport",
    "be_as_lazy_as_before",
    "be_eager",
    "finish_own",
    "import_at_once",
    "import_whole",
    "in_progress",
]

# There is no public API for this. Without the private one, `in_progress` finds nothing.
_bootstrap: Any = importlib._bootstrap
_locks: dict[Any, Any] = getattr(_bootstrap, "_module_locks", {})

# The type of the placeholder for a lazy import, or None before Python 3.15.
LazyImport: type | None = getattr(types, "LazyImportType", None)
_OWN = __name__.partition(".")[0]
_sys: Any = sys  # its functions for lazy imports are new in Python 3.15


def in_progress() -> list[str]:
    """Return the names of the modules that other threads are importing now."""
    me = get_ident()
    found = []
    for name, reference in list(_locks.items()):
        lock = reference()
        if getattr(lock, "owner", None) not in (None, me):
            found.append(str(name))
    return found


def _mode() -> str:
    """Return "all" if all imports are lazy, "normal" if only those marked ``lazy`` are."""
    return "normal" if LazyImport is None else str(_sys.get_lazy_imports())


_mode_at_first = _mode()
_mode_before = ""
# The number of modules when the last of this package's lazy imports ran.
_finished = 0


def be_eager() -> None:
    """Make imports eager from now on, except those marked ``lazy``."""
    global _mode_before
    if _mode() != "normal":
        _mode_before = _mode()
        _sys.set_lazy_imports("normal")


def be_as_lazy_as_before() -> None:
    """Undo `be_eager`."""
    global _mode_before
    if _mode_before:
        _sys.set_lazy_imports(_mode_before)
        _mode_before = ""


def import_at_once(name: str) -> None:
    """Import a module eagerly, and its imports except those marked ``lazy``."""
    mode = _mode()
    if mode == "normal":
        __import__(name)
        return
    _sys.set_lazy_imports("normal")
    try:
        __import__(name)
    finally:
        _sys.set_lazy_imports(mode)


def import_whole(name: str) -> None:
    """Import a module, and run the lazy imports of it and its submodules.

    A lazy import that fails stays lazy, so that its first use raises the error.
    """
    import_at_once(name)
    if LazyImport is not None:
        _carry_out(name)


def finish_own() -> None:
    """Run the imports of this package that are lazy because all imports are."""
    global _finished
    if _mode_at_first == "normal" and _mode() == "normal":
        return
    while _finished != len(sys.modules):
        _finished = len(sys.modules)
        _carry_out(_OWN)


def _carry_out(name: str) -> None:
    """Run the lazy imports of a module and its submodules until none is left."""
    mode = _mode()
    _sys.set_lazy_imports("normal")
    below = name + "."
    done: set[str] = set()
    try:
        while more := [
            n for n in list(sys.modules) if (n == name or n.startswith(below)) and n not in done
        ]:
            for found in more:
                done.add(found)
                _carry_out_in(sys.modules.get(found))
    finally:
        _sys.set_lazy_imports(mode)


def _carry_out_in(module: object) -> None:
    for name, value in list(getattr(module, "__dict__", {}).items()):
        if type(value) is LazyImport:
            try:
                getattr(module, name)  # runs the import and binds the name
            except Exception:  # noqa: BLE001, S112 - a module may raise anything
                continue
