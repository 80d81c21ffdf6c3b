"""A child's output: read as it arrives, limited in size, split into lines on request."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable

from .._options import Output
from .._os.fds import Descriptors, pipe

__all__ = ["CAPTURE_MAX", "TAIL_MAX", "OutputStream", "open_streams"]

# Bytes kept of each stream with output="capture": the first and the last half of this.
CAPTURE_MAX = 1024 * 1024
# Bytes of standard error that errors carry.
TAIL_MAX = 8 * 1024
# Longer lines are passed to the callable in parts.
LINE_MAX = 64 * 1024
# Encodings whose characters are always a multiple of this many bytes.
_UNITS = {"utf-16": 2, "utf-32": 4}


class OutputStream:
    """One of a child's output streams: it is collected, and a callable may get each line."""

    __slots__ = (
        "_decoder",
        "_dropped",
        "_encoding",
        "_head",
        "_line",
        "_marked",
        "_name",
        "_on_line",
        "_returned",
        "_tail",
        "fd",
    )

    @property
    def hands_over(self) -> bool:
        """Whether a callable is called for each line."""
        return self._on_line is not None

    def __init__(
        self,
        name: str,
        fd: int,
        on_line: Callable[[str, str], object] | None,
        encoding: str = "utf-8",
    ) -> None:
        """Prepare to read *fd*; if the *encoding* is unknown, UTF-8 is used."""
        self.fd = fd
        self._name = name
        self._on_line = on_line
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0
        self._line = ""
        self._returned = False  # the last line that the callable got ended with a carriage return
        try:
            self._encoding = codecs.lookup(encoding).name
        except LookupError:
            self._encoding = "utf-8"
        # In these encodings, a stream begins with a byte order mark or has the native byte order.
        self._marked = self._encoding in _UNITS
        if self._marked:
            self._encoding += "-le" if sys.byteorder == "little" else "-be"
        self._decoder = codecs.getincrementaldecoder(self._encoding)("replace")

    def feed(self, data: bytes) -> None:
        """Add data that was read. Raises the exceptions of the callable."""
        room = CAPTURE_MAX // 2 - len(self._head)
        if room > 0:
            self._head += data[:room]
        if len(data) > room:
            self._tail += data[max(room, 0) :]
            excess = len(self._tail) - CAPTURE_MAX // 2
            if excess > 0:
                del self._tail[:excess]
                self._dropped += excess
        if self._on_line is not None:
            self._hand_over(self._decoder.decode(data))

    def finish(self) -> None:
        """Pass a last line without a newline to the callable. Raises the callable's exceptions."""
        if self._on_line is not None:
            self._hand_over(self._decoder.decode(b"", final=True))
            if self._line:
                line, self._line = self._line, ""
                self._on_line(self._name, line)

    def _hand_over(self, text: str) -> None:
        r"""Pass the complete lines to the callable.

        As in Python's text files ``\n``, ``\r`` and ``\r\n`` end a line. An empty line that ends
        with ``\r`` is skipped, since the output of a progress bar begins with one.
        """
        assert self._on_line is not None
        if self._marked and text:
            text, self._marked = text.removeprefix("\ufeff"), False
        if self._returned and text:
            text = text.removeprefix("\n")  # the callable has already got the line
            self._returned = False
        if "\r" in text:
            text = self._hand_over_returned(text)
        *lines, rest = (self._line + text).split("\n")
        whole = len(rest) - len(rest) % LINE_MAX
        self._line = rest[whole:]
        for line in (*lines, rest[:whole]) if whole else lines:
            for start in range(0, len(line) or 1, LINE_MAX):
                self._on_line(self._name, line[start : start + LINE_MAX])

    def _hand_over_returned(self, text: str) -> str:
        """Pass all lines up to the last carriage return to the callable; return the rest."""
        assert self._on_line is not None
        text, self._line = self._line + text, ""
        returned = ""
        whole, _, rest = text.replace("\r\n", "\n").rpartition("\r")
        for part in whole.split("\r"):
            *lines, returned = part.split("\n")
            for line in (*lines, returned) if returned else lines:
                for start in range(0, len(line) or 1, LINE_MAX):
                    self._on_line(self._name, line[start : start + LINE_MAX])
        self._returned = not rest and bool(returned)
        return rest

    def text(self) -> str:
        """Return the collected output; if some was dropped, a line in the middle says how much."""
        if not self._dropped:
            return self._decode(self._head + self._tail, 0)
        head = self._decode(self._head, 0)
        tail = self._decode(self._tail, len(self._head) + self._dropped)
        return f"{head}\n[... {self._dropped} bytes dropped ...]\n{tail}"

    def tail(self) -> str:
        """Return the end of the collected output."""
        end = self._tail[-TAIL_MAX:]
        if len(end) < TAIL_MAX and not self._dropped:
            end = (self._head + end)[-TAIL_MAX:]
        return self._decode(end, len(self._head) + self._dropped + len(self._tail) - len(end))

    def _decode(self, data: bytearray, start: int) -> str:
        """Decode bytes that begin at *start*, perhaps inside a character."""
        unit = _UNITS.get(self._encoding[:6], 1)
        text = data[-start % unit :].decode(self._encoding, errors="replace")
        return text if start or unit == 1 else text.removeprefix("\ufeff")


def open_streams(
    output: Output, null: int, fds: Descriptors, encodings: tuple[str, str]
) -> tuple[tuple[OutputStream, ...], int, int]:
    """Open the files for a child's output: return the streams to read, and the child's 1 and 2.

    *encodings*: the encodings of the child's streams.
    """
    if output == "inherit":
        return (), -1, -1
    if output == "null":
        return (), null, null
    on_line = output if callable(output) else None
    out_read, out_write = pipe(fds)
    err_read, err_write = pipe(fds)
    streams = (
        OutputStream("stdout", out_read, on_line, encodings[0]),
        OutputStream("stderr", err_read, on_line, encodings[1]),
    )
    return streams, out_write, err_write
