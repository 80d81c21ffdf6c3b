"""Imports that other threads are in the middle of.

The import system has a lock for each module that is being imported. A fork copies it locked, by
a thread that the child does not have; whoever imports that module there waits for ever.
"""

from __future__ import annotations

import importlib._bootstrap
from _thread import get_ident
from typing import Any

__all__ = ["in_progress"]

# There is no public way to ask; without this one the answer is "none".
_bootstrap: Any = importlib._bootstrap
_locks: dict[Any, Any] = getattr(_bootstrap, "_module_locks", {})


def in_progress() -> list[str]:
    """Name the modules that threads other than this one are importing right now."""
    me = get_ident()
    found = []
    for name, reference in list(_locks.items()):
        lock = reference()
        if getattr(lock, "owner", None) not in (None, me):
            found.append(str(name))
    return found
