"""Cut encoded data into parts of bounded size, so that no step of decoding takes long.

A decoder written in C holds the GIL from the first byte to the last, in any thread, and blocks the
event loop. Large data is therefore decoded in steps. This module finds the places where data can be
cut, between two elements of a list or dict; it decodes nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = [
    "COSTLY_WINDOW",
    "WINDOW",
    "Child",
    "Cutter",
    "Part",
    "Run",
    "cut_json",
    "end_of_text",
    "is_costly",
]

# The approximate number of bytes that are decoded in one step. A text can't be cut, so a step with
# a long text may be larger. The slowest known data, numbers decoded as Decimal, takes 10 ms for a
# step. See `shapes.amplification` for types whose steps are smaller.
WINDOW = 128 * 1024

# Bytes that are scanned in one step.
_STEP = 64 * 1024
_exponent = re.compile(rb"[eE][-+]?[0-9]").search
# The bytes of a step if numbers have exponents: msgspec may take 15 µs for one such number.
COSTLY_WINDOW = 4 * 1024


def is_costly(data: bytes) -> bool:
    """Return whether JSON may have numbers with exponents that are slow to decode."""
    # The end of a step may split an exponent, so steps overlap by 3 bytes.
    return any(_exponent(data, at, at + _STEP + 3) for at in range(0, len(data), _STEP))


class Run(NamedTuple):
    """Elements that are decoded in one step.

    Attributes:
        start, end: the position of the elements. In JSON it includes the comma at the end, except
            for the *last* run.
        number: the number of elements, for MessagePack.
        last: whether the list or dict ends with this run.
        follows: whether a comma precedes the run, so the run must not be empty.
    """

    start: int
    end: int
    number: int
    last: bool
    follows: bool


class Child(NamedTuple):
    """An element that is itself cut into parts; in a dict, its key is at *start* to *end*."""

    start: int
    end: int
    part: Part


class Part(NamedTuple):
    """A list or dict that is cut into parts."""

    is_dict: bool
    parts: list[Run | Child]


class _Frame:
    __slots__ = ("after", "begin", "follows", "is_dict", "key_end", "missing", "parts", "start")

    def __init__(  # noqa: PLR0917 - the arguments of `Cutter.open`
        self, is_dict: bool, begin: int, key_end: int, start: int, missing: int, after: int
    ) -> None:
        self.is_dict = is_dict
        self.begin = begin  # its position in the outer one; in a dict, that of its key
        self.key_end = key_end
        self.start = start  # the start of the part that has not been cut yet
        self.missing = missing  # the number of values still to come at *start*
        self.after = after  # the number of values still to come in the outer one after it
        self.parts: list[Run | Child] | None = None
        self.follows = False


class Cutter:
    """Collects the parts of some data from calls at the beginnings and ends of lists and dicts.

    Attributes:
        at: the position of the last cut.
        window: the number of bytes after which to cut.
        whole: the outermost list or dict in parts, or None if it has not been cut.
    """

    def __init__(self, window: int) -> None:
        self.at = 0
        self.window = window
        self.whole: Part | None = None
        self._frames: list[_Frame] = []

    @property
    def depth(self) -> int:
        """Return the number of open lists and dicts."""
        return len(self._frames)

    def open(  # noqa: PLR0917 - keyword arguments are slower
        self, is_dict: bool, begin: int, key_end: int, start: int, missing: int = 0, after: int = 0
    ) -> None:
        """Begin a list or dict inside the innermost one.

        *missing*: its number of values. *after*: the number of values still to come in the outer
        one after it.
        """
        self._frames.append(_Frame(is_dict, begin, key_end, start, missing, after))

    def cut(self, at: int, missing: int = 0) -> None:
        """Cut between two elements of the innermost list or dict, and so in all outer ones, too."""
        self.at = at
        frames = self._frames
        outer: _Frame | None = None
        for frame in frames:
            if frame.parts is None:
                frame.parts = []
                if outer is not None:
                    own = 2 if outer.is_dict else 1
                    self._run(outer, frame.begin, frame.after + own)
            outer = frame
        if outer is not None:
            self._run(outer, at, missing)

    @staticmethod
    def _run(frame: _Frame, end: int, missing: int, *, last: bool = False) -> None:
        assert frame.parts is not None
        if end > frame.start or last:
            count = frame.missing - missing
            if frame.is_dict:
                count //= 2
            frame.parts.append(Run(frame.start, end, count, last, frame.follows))
            frame.follows = True
        frame.start, frame.missing = end, missing

    def close(self, end: int, after: int) -> bool:
        """End the innermost list or dict: its last element ends at *end*, the list at *after*.

        Return whether it was cut.
        """
        frame = self._frames.pop()
        if frame.parts is None:
            return False
        self._run(frame, end, 0, last=True)
        part = Part(frame.is_dict, frame.parts)
        if self._frames:
            outer = self._frames[-1]
            assert outer.parts is not None
            outer.parts.append(Child(frame.begin, frame.key_end, part))
            outer.start, outer.missing, outer.follows = after, frame.after, False
        else:
            self.whole = part
        self.at = max(self.at, end)
        return True

    def separate(self, after: int) -> None:
        """Continue after the comma that follows an element that was cut."""
        frame = self._frames[-1]
        frame.start, frame.follows = after, True


# JSON

_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_PLAIN = rb'[^\[\]{}",]*+'
_BARE = rb'[^\[\]{}"]*+'
# Lists and dicts that contain lists and dicts, which contain only plain values.
_INNER = rb"[\[{]" + _BARE + rb"(?:" + _TEXT + _BARE + rb")*+[\]}]"
_OUTER = rb"[\[{]" + _BARE + rb"(?:(?:" + _TEXT + rb"|" + _INNER + rb")" + _BARE + rb")*+[\]}]"
_ELEMENT = _PLAIN + rb"(?:(?:" + _TEXT + rb"|" + _OUTER + rb")" + _PLAIN + rb")*+"
_elements = re.compile(rb"(?s:(?:" + _ELEMENT + rb",)*+)").match
_element = re.compile(rb"(?s:" + _ELEMENT + rb")").match
_in_text = re.compile(rb'(?s:[^"\\]*+(?:\\.[^"\\]*+)*+)').match
_spaces = re.compile(rb"[ \t\r\n]*+").match


def cut_json(  # noqa: C901, PLR0912, PLR0915 - one branch for each token
    data: bytes, window: int
) -> Part | None:
    """Return where JSON can be cut; None: it is decoded in one step.

    Raises ValueError. Some errors in the data are left to the decoder.
    """
    end = len(data)
    at = _skip_spaces(data, 0)
    if at >= end or data[at] not in b"[{":
        return None
    cutter = Cutter(window)
    # The open lists and dicts, innermost last: the closing byte, and the start with the key.
    opened: list[tuple[int, int]] = [(data[at] + 2, at)]
    cutter.open(data[at] == 0x7B, at, at, at + 1)
    at += 1
    begin = at
    while opened:
        # `at` is inside an element of the innermost list or dict; the element begins at `begin`.
        if at == begin:
            found = _elements(data, at, min(at + window, end))
            assert found is not None
            at = begin = found.end()
            if at - cutter.at >= window:
                cutter.cut(at)
        found = _element(data, at, min(at + _STEP, end))
        assert found is not None
        at = found.end()
        if at >= end:
            raise ValueError("Input data was truncated")
        if at - begin >= window and cutter.at < begin:  # make the element a separate part
            cutter.cut(begin)
        code = data[at]
        if code == 0x2C:  # a comma
            at = begin = at + 1
            if at - cutter.at >= window:
                cutter.cut(at)
        elif code == 0x22:  # a text that is longer than a step
            at = end_of_text(data, at + 1)
            if not at:
                raise ValueError("Input data was truncated")
            if at - begin >= window and cutter.at < begin:
                cutter.cut(begin)
        elif code in b"[{":
            opened.append((code + 2, begin))
            cutter.open(code == 0x7B, begin, at, at + 1)
            at = begin = at + 1
        elif code in b"]}":
            expected, begin = opened.pop()
            if code != expected:
                raise ValueError(f"JSON is malformed: unexpected bracket (byte {at})")
            was_cut = cutter.close(at, at + 1)
            at += 1
            if was_cut and opened:
                at = _skip_spaces(data, at)
                if data[at : at + 1] == b",":
                    at = begin = at + 1
                    cutter.separate(at)
                elif data[at : at + 1] not in (b"]", b"}"):
                    raise ValueError(f"JSON is malformed: invalid character (byte {at})")
    if cutter.whole is not None and (after := _skip_spaces(data, at)) < end:
        raise ValueError(f"JSON is malformed: trailing characters (byte {after})")
    return cutter.whole


def _skip_spaces(data: bytes, at: int) -> int:
    while True:
        found = _spaces(data, at, at + _STEP)
        assert found is not None
        if found.end() < at + _STEP:
            return found.end()
        at = found.end()


def end_of_text(data: bytes, at: int) -> int:
    """Return the end of the JSON text that contains position *at*; 0 if the text does not end."""
    while True:
        found = _in_text(data, at, at + _STEP)
        assert found is not None
        at = found.end()
        match data[at : at + 1]:
            case b"":
                return 0
            case b'"':
                return at + 1
            case b"\\":  # the step ends inside an escape
                at += 2
