"""New sys.stdin, sys.stdout and sys.stderr for a child.

The parent's stream objects may hold unwritten text (the child would write it a second time), text
that has been read but not used, and a lock that another thread holds. A child therefore gets three
streams that the parent built in advance and never used. The output streams are line-buffered, so
that a child that is killed loses no printed line.
"""

from __future__ import annotations

import io
import sys
from typing import TypeAlias

__all__ = ["Streams", "build", "build_stdin", "encodings", "prepared"]

Streams: TypeAlias = tuple[io.TextIOWrapper, io.TextIOWrapper, io.TextIOWrapper]
_prepared: Streams | None = None


def prepared() -> Streams | None:
    """Return the streams for the next child, built once; None if a standard file is closed."""
    global _prepared
    if _prepared is None:
        try:
            _prepared = build()
        except OSError:
            return None
    return _prepared


def build() -> Streams:
    """Build text streams on file descriptors 0, 1 and 2."""
    stdout = _stream(1, sys.__stdout__, "strict")
    return build_stdin(), stdout, _stream(2, sys.__stderr__, "backslashreplace")


def encodings() -> tuple[str, str]:
    """Return the encodings of standard output and error in the children of this process."""
    _, stdout, stderr = prepared() or (None, sys.__stdout__, sys.__stderr__)
    return _encoding(stdout), _encoding(stderr)


def build_stdin() -> io.TextIOWrapper:
    """Build a text stream on file descriptor 0."""
    original = sys.__stdin__
    return io.TextIOWrapper(
        io.BufferedReader(io.FileIO(0, "r", closefd=False)),
        encoding=_encoding(original),
        errors=getattr(original, "errors", None) or "strict",
    )


def _encoding(original: object) -> str:
    found: str | None = getattr(original, "encoding", None)
    return found or "utf-8"


def _stream(fd: int, original: object, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(fd, "w", closefd=False)),
        encoding=_encoding(original),
        errors=getattr(original, "errors", None) or errors,
        line_buffering=True,
    )
