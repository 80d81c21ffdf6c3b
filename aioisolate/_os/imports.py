"""Imports that other threads are in the middle of, and such as are put off (PEP 810).

The import system has a lock for each module that is being imported. A fork copies it locked, by
a thread that the child does not have; whoever imports that module there waits for ever.

From Python 3.15 on an import may be lazy: it is carried out when its name is first used. What this
package or a fork server has not imported by then, each child would import anew, with descriptors
replaced and perhaps without access to files. So here lazy imports are carried out ahead.
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

# There is no public way to ask; without this one the answer is "none".
_bootstrap: Any = importlib._bootstrap
_locks: dict[Any, Any] = getattr(_bootstrap, "_module_locks", {})

# The type of what stands for a module that is not imported yet, where there is such a thing.
LazyImport: type | None = getattr(types, "LazyImportType", None)
_OWN = __name__.partition(".")[0]
_sys: Any = sys  # before Python 3.15 it can't do this


def in_progress() -> list[str]:
    """Name the modules that threads other than this one are importing right now."""
    me = get_ident()
    found = []
    for name, reference in list(_locks.items()):
        lock = reference()
        if getattr(lock, "owner", None) not in (None, me):
            found.append(str(name))
    return found


def _mode() -> str:
    """Return "all" if all imports are lazy, "normal" if those are that say so."""
    return "normal" if LazyImport is None else str(_sys.get_lazy_imports())


_mode_at_first = _mode()
_mode_before = ""
# How many modules there were when the last of this package's lazy imports was carried out.
_finished = 0


def be_eager() -> None:
    """Carry out imports where they stand from now on, but for those that say they are lazy."""
    global _mode_before
    if _mode() != "normal":
        _mode_before = _mode()
        _sys.set_lazy_imports("normal")


def be_as_lazy_as_before() -> None:
    """Take back `be_eager`."""
    global _mode_before
    if _mode_before:
        _sys.set_lazy_imports(_mode_before)
        _mode_before = ""


def import_at_once(name: str) -> None:
    """Import a module, and all that it imports unless it says that this is lazy."""
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
    """Import a module, and what it and those below it import lazily.

    If one of the latter fails, it stays lazy: whoever uses it will be told.
    """
    import_at_once(name)
    if LazyImport is not None:
        _carry_out(name)


def finish_own() -> None:
    """Carry out what this package imports lazily because everything is to be imported so."""
    global _finished
    if _mode_at_first == "normal" and _mode() == "normal":
        return
    while _finished != len(sys.modules):
        _finished = len(sys.modules)
        _carry_out(_OWN)


def _carry_out(name: str) -> None:
    """Carry out the lazy imports of a module and of those below it, as often as there are more."""
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
                getattr(module, name)  # which puts it in its place
            except Exception:  # noqa: BLE001, S112 - a module may raise anything
                continue
