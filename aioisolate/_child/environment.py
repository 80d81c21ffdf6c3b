"""An environment for a copy of the parent: `os.environ`, and with it what C code finds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

__all__ = ["change", "difference"]


def difference(wanted: Mapping[str, str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Tell what a copy of this process has to remove and to set; each costs a page or two there."""
    now = dict(os.environ)
    gone = [name for name in now if name not in wanted]
    return gone, [(name, value) for name, value in wanted.items() if now.get(name) != value]


def change(gone: Iterable[str], new: Iterable[tuple[str, str]]) -> None:
    """Make these changes here; putenv() and unsetenv() are called for each."""
    environ = os.environ
    for name in gone:
        environ.pop(name, None)
    for name, value in new:
        environ[name] = value
