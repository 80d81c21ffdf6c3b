"""Warnings that point to the user's line that called this package, however deep the stack."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from types import CodeType, FrameType
from typing import Any, NamedTuple

from .._os.warning_filters import action_for

__all__ = ["warn", "warn_of"]

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
# The warnings given so far: their category, and their place and subject.
_given: set[tuple[type[Warning], object]] = set()


class _Place(NamedTuple):
    file: str
    line: int
    module: str


def warn(text: str, category: type[Warning], about: Iterable[str] = ()) -> None:
    """Warn, by default once for each line of user code that calls this package.

    *about*: the subject, if the text also contains details that vary. In a notebook, where each
    cell is another place, the warning is given once for the process.
    """
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    module = frame.f_globals.get("__name__") or "<unknown>"
    place = _Place(frame.f_code.co_filename, frame.f_lineno, module)
    _give(text, category, place, (None if _is_cell(frame) else place, frozenset(about) or text))


def warn_of(
    code: CodeType, module: str, text: str, category: type[Warning], about: Iterable[str]
) -> None:
    """Warn, by default once, about a function; the warning points to its definition.

    *about*: as in `warn`.
    """
    place = _Place(code.co_filename, code.co_firstlineno, module)
    _give(text, category, place, (place, frozenset(about)))


def _give(text: str, category: type[Warning], place: _Place, key: object) -> None:
    # Python's own record of given warnings is cleared whenever the filters change, as at the end of
    # each `warnings.catch_warnings`.
    if action_for(text, category, place.module, place.line) in ("default", "module", "once"):
        if (category, key) in _given:
            return
        _given.add((category, key))
    registry: dict[Any, Any] = {}
    warnings.warn_explicit(text, category, *place, registry=registry)


def _is_cell(frame: FrameType) -> bool:
    return "get_ipython" in frame.f_globals and frame.f_globals.get("__name__") == "__main__"
