"""Warnings that point to the line that called this package, whatever lies between."""

from __future__ import annotations

import os
import sys
import warnings

__all__ = ["warn"]

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep


def warn(text: str, category: type[Warning]) -> None:
    """Warn, by default once for each line outside that calls this package."""
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
        level += 1
    warnings.warn(text, category, stacklevel=level)
