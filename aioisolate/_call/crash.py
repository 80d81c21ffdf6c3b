"""What faulthandler wrote in a child: its Python stack at a crash, or at the deadline."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from .._child import execution
from .._wire.shared_constants import SCRATCH_START

__all__ = ["StackText", "innermost"]

_END = SCRATCH_START
# Far more than the stacks of a few threads are. It is looked through on the event loop, and a child
# that is not trusted may have filled all the room that there is.
_STRANGERS_MAX = 64 * 1024
# So much is read at a time while a stack is being written.
_LOOK_SIZE = 16 * 1024
_WORKER = f'File "{execution.__file__}"'
_CHILD = os.path.dirname(execution.__file__) + os.sep
_MARKS = (_WORKER.encode(), b"\n  ...")
# How faulthandler begins the stack of the thread that has crashed, and its C stack.
_CURRENT = "Current thread 0x"
_C_STACK = "Current thread's C stack trace"
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.+)$', re.MULTILINE)
_OVERLAP = max(map(len, _MARKS)) - 1


class StackText:
    """The text part of a scratch file."""

    __slots__ = ("_fd", "_limit", "_looked", "_start")

    def __init__(self, scratch: int, *, trusted: bool = True) -> None:
        self._fd = scratch
        self._limit = _END if trusted else _STRANGERS_MAX
        self._start = 0
        self._looked = 0

    def _read(self, size: int, start: int) -> bytes:
        try:
            data = os.pread(self._fd, min(size, _END - start), start)
        except OSError:
            return b""
        # A result further on makes the file longer; in between there are zeros.
        return data.partition(b"\0")[0]

    def forget(self) -> None:
        """Read nothing more: the file is being closed."""
        self._fd = -1

    def expect_dump(self) -> None:
        """Look only at what is written from now on."""
        self._start += len(self._read(self._limit, self._start))
        self._looked = self._start

    def whole(self) -> bool:
        """Tell whether the main thread's stack is there down to where fn was called.

        It is asked again and again, and goes on each time where it was.
        """
        data = self._read(_LOOK_SIZE, self._looked)
        if any(mark in data for mark in _MARKS):
            return True
        self._looked += max(0, len(data) - _OVERLAP)
        return False

    def text(self) -> str:
        """Return the stack without what lies below fn: this package, and the parent's frames.

        Of the C stack only those frames are left that lie above the Python ones, and they stand
        there, most recent call first like all else.
        """
        text = self._read(self._limit, self._start).decode(errors="replace")
        lines: list[str] = []
        native: list[str] = []
        skipping = in_c = False
        for line in text.splitlines():
            # From Python 3.14 on, after the Python stacks.
            in_c = line.startswith(_C_STACK) or (in_c and line.startswith("  "))
            if in_c:
                native.append(line)
                continue
            if line.startswith("  File "):
                skipping = skipping or line.lstrip().startswith(_WORKER)
            elif not line.startswith("  ..."):
                skipping = False  # the heading of the next thread, or of a list of modules
            if line.startswith("Extension modules:"):
                continue
            if not skipping:
                lines.append(line)
        at = next((n for n, line in enumerate(lines) if line.startswith(_CURRENT)), -1)
        if at >= 0:
            lines[at + 1 : at + 1] = _above_python(native[1:])
        return "\n".join(lines).strip()


def innermost(stack: str) -> str:
    """Say in which Python function the main thread was by its stack, or "" if it does not tell.

    What of this package sends items and reports is none of the user's functions.
    """
    _, marked, rest = stack.partition(_CURRENT)
    for found in _FRAME.finditer(rest if marked else stack):
        if not found[1].startswith(_CHILD):
            return f"{found[3]} ({found[1]}, line {found[2]})"
    return ""


def _above_python(frames: Sequence[str]) -> Sequence[str]:
    """Return the C frames that lie above the interpreter's: what a Python function has called.

    The first ones are those of faulthandler itself, and tell which file the interpreter is.
    """
    files = [frame.partition('"')[2].partition('"')[0] for frame in frames]
    first = next((n for n, file in enumerate(files) if file != files[0]), len(files))
    end = next((n for n in range(first, len(files)) if files[n] == files[0]), len(files))
    return frames[first:end]
