"""Fresh sys.stdout and sys.stderr for a child.

The parent's own stream objects may hold text that is not written yet (the child would write it a
second time) and a lock that another thread had taken. So a child gets a pair that the parent
built ahead and never used. They are line-buffered: a child may be killed at any time, and
what it printed before must not die with it.
"""

from __future__ import annotations

import io
import sys

__all__ = ["build", "prepared"]

_prepared: tuple[io.TextIOWrapper, io.TextIOWrapper] | None = None


def prepared() -> tuple[io.TextIOWrapper, io.TextIOWrapper] | None:
    """Return the streams for the next child, built once; None where 1 or 2 is closed by now."""
    global _prepared
    if _prepared is None:
        try:
            _prepared = build()
        except OSError:
            return None
    return _prepared


def build() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """Build a stream on 1 and one on 2."""
    return _stream(1, sys.__stdout__, "strict"), _stream(2, sys.__stderr__, "backslashreplace")


def _stream(fd: int, model: object, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(fd, "w", closefd=False)),
        encoding=getattr(model, "encoding", None) or "utf-8",
        errors=getattr(model, "errors", None) or errors,
        line_buffering=True,
    )
