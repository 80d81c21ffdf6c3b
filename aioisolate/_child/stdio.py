"""Fresh sys.stdout and sys.stderr for a child.

The parent's own stream objects may hold text that is not written yet (the child would write it a
second time) and a lock that another thread had taken. So a child gets a pair that the parent
built ahead and never used. They are line-buffered: a child may be killed at any time, and
what it printed before must not die with it.
"""

from __future__ import annotations

import io
import sys

__all__ = ["install", "prepare"]

_spare: tuple[io.TextIOWrapper, io.TextIOWrapper] | None = None
_replaced: list[object] = []


def prepare() -> None:
    """Build the streams, in the parent, once; does nothing where 1 or 2 is closed by now."""
    global _spare
    if _spare is None:
        try:
            _spare = _build()
        except OSError:
            return


def install() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """Make the fresh streams sys.stdout and sys.stderr, in the child."""
    streams = _spare or _build()
    # The old ones must live on: collecting a stream writes out what it holds.
    _replaced.extend((sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__))
    sys.stdout = sys.__stdout__ = streams[0]
    sys.stderr = sys.__stderr__ = streams[1]
    return streams


def _build() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    return _stream(1, sys.__stdout__, "strict"), _stream(2, sys.__stderr__, "backslashreplace")


def _stream(fd: int, model: io.TextIOBase | object, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(fd, "w", closefd=False)),
        encoding=getattr(model, "encoding", None) or "utf-8",
        errors=getattr(model, "errors", None) or errors,
        line_buffering=True,
    )
