"""Fresh sys.stdin, sys.stdout and sys.stderr for a child.

The parent's own stream objects may hold text that is not written yet (the child would write it a
second time), text that is read but not used yet, and a lock that another thread had taken. So a
child gets three that the parent built ahead and never used. Those for output are line-buffered: a
child may be killed at any time, and what it printed before must not die with it.
"""

from __future__ import annotations

import io
import sys
from typing import TypeAlias

__all__ = ["Streams", "build", "build_stdin", "encodings", "prepared"]

Streams: TypeAlias = tuple[io.TextIOWrapper, io.TextIOWrapper, io.TextIOWrapper]
_prepared: Streams | None = None


def prepared() -> Streams | None:
    """Return the streams for the next child, built once; None where one is closed by now."""
    global _prepared
    if _prepared is None:
        try:
            _prepared = build()
        except OSError:
            return None
    return _prepared


def build() -> Streams:
    """Build a stream on 0, one on 1 and one on 2."""
    stdout = _stream(1, sys.__stdout__, "strict")
    return build_stdin(), stdout, _stream(2, sys.__stderr__, "backslashreplace")


def encodings() -> tuple[str, str]:
    """Return the encodings of standard output and error in the children of this process."""
    _, stdout, stderr = prepared() or (None, sys.__stdout__, sys.__stderr__)
    return _encoding(stdout), _encoding(stderr)


def build_stdin() -> io.TextIOWrapper:
    """Build a stream on 0."""
    model = sys.__stdin__
    return io.TextIOWrapper(
        io.BufferedReader(io.FileIO(0, "r", closefd=False)),
        encoding=_encoding(model),
        errors=getattr(model, "errors", None) or "strict",
    )


def _encoding(model: object) -> str:
    found: str | None = getattr(model, "encoding", None)
    return found or "utf-8"


def _stream(fd: int, model: object, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(fd, "w", closefd=False)),
        encoding=_encoding(model),
        errors=getattr(model, "errors", None) or errors,
        line_buffering=True,
    )
