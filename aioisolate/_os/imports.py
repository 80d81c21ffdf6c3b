"""Imports in progress in other threads, and lazy imports (PEP 810).

The import system has a lock for each module that is being imported. A fork copies a lock that
another thread holds; that thread does not exist in the child, so importing the module there blocks
for ever.

From Python 3.15 on an import may be lazy: it runs when its name is first used. Each child would run
the imports that this package or a fork server has not run before the fork, after its descriptors
were replaced and perhaps without access to files. This module runs lazy imports in advance.
"""

from __future__ import annotations

import importlib._bootstrap
import sys
import types
from _thread import get_ident
from typing import Any

__all__ = [
    "LazyImport",
    "disable_lazy_imports",
    "import_at_once",
    "import_whole",
    "in_progress",
    "restore_lazy_imports",
    "run_own_lazy_imports",
]

# There is no public API for this. Without the private one, `in_progress` finds nothing.
_bootstrap: Any = importlib._bootstrap
_locks: dict[Any, Any] = getattr(_bootstrap, "_module_locks", {})

# The type of the placeholder for a lazy import, or None before Python 3.15.
LazyImport: type | None = getattr(types, "LazyImportType", None)
_OWN = __name__.partition(".")[0]
_sys: Any = sys  # the functions for lazy imports are new in Python 3.15


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


_first_mode = _mode()
_saved_mode = ""
# The number of modules when the last of this package's lazy imports ran.
_modules_finished = 0


def disable_lazy_imports() -> None:
    """Make imports eager from now on, except those marked ``lazy``."""
    global _saved_mode
    if _mode() != "normal":
        _saved_mode = _mode()
        _sys.set_lazy_imports("normal")


def restore_lazy_imports() -> None:
    """Undo `disable_lazy_imports`."""
    global _saved_mode
    if _saved_mode:
        _sys.set_lazy_imports(_saved_mode)
        _saved_mode = ""


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
        _run_lazy_imports(name)


def run_own_lazy_imports() -> None:
    """Run the imports of this package that are lazy because all imports are."""
    global _modules_finished
    if _first_mode == "normal" and _mode() == "normal":
        return
    while _modules_finished != len(sys.modules):
        _modules_finished = len(sys.modules)
        _run_lazy_imports(_OWN)


def _run_lazy_imports(name: str) -> None:
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
                _run_lazy_imports_in(sys.modules.get(found))
    finally:
        _sys.set_lazy_imports(mode)


def _run_lazy_imports_in(module: object) -> None:
    for name, value in list(getattr(module, "__dict__", {}).items()):
        if type(value) is LazyImport:
            try:
                getattr(module, name)  # runs the import and binds the name
            except Exception:  # noqa: BLE001, S112 - a module may raise anything
                continue
