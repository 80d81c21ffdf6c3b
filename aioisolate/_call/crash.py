"""The text of faulthandler: a child's Python stack at a crash, or at the deadline."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from .._child import execution
from .._wire.shared_constants import SCRATCH_START

__all__ = ["StackText", "innermost"]

_END = SCRATCH_START
# Far more than the stacks of a few threads. The text is searched on the event loop, and an
# untrusted child may have filled the whole file.
_UNTRUSTED_MAX = 64 * 1024
# Bytes read at a time while a stack is being written.
_STEP = 16 * 1024
# The frames of the function that calls fn, and of all functions of the child's side.
_CALLER = f'File "{execution.__file__}"'
_CHILD = os.path.dirname(execution.__file__) + os.sep
_MARKS = (_CALLER.encode(), b"\n  ...")
# The headings that faulthandler writes above the crashed thread's stack, and its C stack.
_CURRENT = "Current thread 0x"
_C_STACK = "Current thread's C stack trace"
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.+)$', re.MULTILINE)
_OVERLAP = max(map(len, _MARKS)) - 1


class StackText:
    """The text part of a scratch file."""

    __slots__ = ("_fd", "_limit", "_searched", "_start")

    def __init__(self, scratch: int, *, trusted: bool = True) -> None:
        self._fd = scratch
        self._limit = _END if trusted else _UNTRUSTED_MAX
        self._start = 0
        self._searched = 0

    def _read(self, size: int, start: int) -> bytes:
        try:
            data = os.pread(self._fd, min(size, _END - start), start)
        except OSError:
            return b""
        # A result at a later offset makes the file longer; the bytes in between are zeros.
        return data.partition(b"\0")[0]

    def forget(self) -> None:
        """Stop reading: the file is being closed."""
        self._fd = -1

    def expect_dump(self) -> None:
        """Skip the text written before now."""
        self._start += len(self._read(self._limit, self._start))
        self._searched = self._start

    def whole(self) -> bool:
        """Return whether the main thread's stack is complete down to the call of fn.

        Each call continues where the last one stopped.
        """
        data = self._read(_STEP, self._searched)
        if any(mark in data for mark in _MARKS):
            return True
        self._searched += max(0, len(data) - _OVERLAP)
        return False

    def text(self) -> str:
        """Return the stack down to fn, without frames of this package and of the parent.

        Of the C stack, only the frames that were called by Python functions are included. They
        precede the Python frames, since the most recent call comes first.
        """
        text = self._read(self._limit, self._start).decode(errors="replace")
        lines: list[str] = []
        c_frames: list[str] = []
        skipping = in_c = False
        for line in text.splitlines():
            # From Python 3.14 on, the C stack follows the Python stacks.
            in_c = line.startswith(_C_STACK) or (in_c and line.startswith("  "))
            if in_c:
                c_frames.append(line)
                continue
            if line.startswith("  File "):
                skipping = skipping or line.lstrip().startswith(_CALLER)
            elif not line.startswith("  ..."):
                skipping = False  # the heading of the next thread, or of a list of modules
            if line.startswith("Extension modules:"):
                continue
            if not skipping:
                lines.append(line)
        at = next((n for n, line in enumerate(lines) if line.startswith(_CURRENT)), -1)
        if at >= 0:
            lines[at + 1 : at + 1] = _above_python(c_frames[1:])
        return "\n".join(lines).strip()


def innermost(stack: str) -> str:
    """Return the main thread's innermost Python function in *stack*, or "" if it is not shown.

    Functions of this package that send items and reports are skipped.
    """
    _, marked, rest = stack.partition(_CURRENT)
    for found in _FRAME.finditer(rest if marked else stack):
        if not found[1].startswith(_CHILD):
            return f"{found[3]} ({found[1]}, line {found[2]})"
    return ""


def _above_python(frames: Sequence[str]) -> Sequence[str]:
    """Return the C frames above those of the interpreter: those that a Python function has called.

    The first frames are faulthandler's; their file contains the interpreter.
    """
    files = [frame.partition('"')[2].partition('"')[0] for frame in frames]
    first = next((n for n, file in enumerate(files) if file != files[0]), len(files))
    end = next((n for n in range(first, len(files)) if files[n] == files[0]), len(files))
    return frames[first:end]
