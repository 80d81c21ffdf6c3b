"""Set the environment of a copy of the parent: `os.environ`, and the one that C code reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

__all__ = ["change", "difference"]


def difference(wanted: Mapping[str, str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the variables to remove and to set in a copy: each change copies a page or two."""
    current = dict(os.environ)
    removed = [name for name in current if name not in wanted]
    return removed, [(name, value) for name, value in wanted.items() if current.get(name) != value]


def change(removed: Iterable[str], new: Iterable[tuple[str, str]]) -> None:
    """Remove and set variables; `os.environ` calls unsetenv() or putenv() for each."""
    environ = os.environ
    for name in removed:
        environ.pop(name, None)
    for name, value in new:
        environ[name] = value
