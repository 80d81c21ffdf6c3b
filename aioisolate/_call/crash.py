"""What faulthandler wrote in a child: its Python stack at a crash, or at the deadline."""

from __future__ import annotations

import os

from .._child import worker

__all__ = ["StackText"]

_MAX = worker.SCRATCH_START
_WORKER = f'File "{worker.__file__}"'
_TRUNCATED = "\n  ..."


class StackText:
    """The text part of a scratch file."""

    __slots__ = ("_fd", "_start")

    def __init__(self, scratch: int) -> None:
        self._fd = scratch
        self._start = 0

    def _read(self) -> str:
        try:
            data = os.pread(self._fd, _MAX - self._start, self._start)
        except OSError:
            return ""
        # A result further on makes the file longer; in between there are zeros.
        return data.split(b"\0", 1)[0].decode(errors="replace")

    def expect_dump(self) -> None:
        """Look only at what is written from now on."""
        self._start += len(self._read().encode())

    def whole(self) -> bool:
        """Tell whether the main thread's stack is there down to where fn was called."""
        text = self._read()
        return _WORKER in text or _TRUNCATED in text

    def text(self) -> str:
        """Return the stack without what lies below fn: this package, and the parent's frames."""
        lines = []
        skipping = False
        for line in self._read().splitlines():
            if line.startswith("  File "):
                skipping = skipping or line.lstrip().startswith(_WORKER)
            elif not line.startswith("  ..."):
                skipping = False  # the heading of the next thread, or of a list of modules
            if line.startswith("Extension modules:"):
                continue
            if not skipping:
                lines.append(line)
        return "\n".join(lines).strip()
