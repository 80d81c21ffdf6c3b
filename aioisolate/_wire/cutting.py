"""Cutting encoded data into parts of bounded size, so that no step of decoding takes long.

A decoder in C keeps the interpreter's lock from its first byte to its last, in whatever thread it
runs, and the event loop waits. So large data is decoded in steps. This module finds the places
where data can be cut, between two elements of a list or dict; it decodes nothing.
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

# So many bytes are decoded in one step, about, but for texts, which can't be cut. The worst that
# was found takes 10 ms for these: numbers as Decimal. See `shapes.amplification` for types that
# make more of it.
WINDOW = 128 * 1024

# Bytes that are scanned in one step.
_STEP = 64 * 1024
_exponent = re.compile(rb"[eE][-+]?[0-9]").search
# Where numbers have exponents, a step has so many bytes: there are ones that take msgspec 15 µs.
COSTLY_WINDOW = 4 * 1024


def is_costly(data: bytes) -> bool:
    """Return whether JSON may have numbers with exponents that are slow to decode."""
    # The end of a step may split an exponent, so steps overlap by 3 bytes.
    return any(_exponent(data, at, at + _STEP + 3) for at in range(0, len(data), _STEP))


class Run(NamedTuple):
    """Elements that are decoded in one step.

    Attributes:
        start, end: where they are; in JSON with a comma at the end, if they are not the *last*.
        number: how many, for MessagePack.
        last: the list or dict ends here.
        follows: a comma precedes them, so there must be one.
    """

    start: int
    end: int
    number: int
    last: bool
    follows: bool


class Child(NamedTuple):
    """An element that is cut into parts itself; its key, if it has one, is at *start* to *end*."""

    start: int
    end: int
    part: Part


class Part(NamedTuple):
    """A list or a dict in parts."""

    is_dict: bool
    parts: list[Run | Child]


class _Frame:
    __slots__ = ("after", "begin", "follows", "is_dict", "key_end", "missing", "parts", "start")

    def __init__(  # noqa: PLR0917 - as `Cutter.open`
        self, is_dict: bool, begin: int, key_end: int, start: int, missing: int, after: int
    ) -> None:
        self.is_dict = is_dict
        self.begin = begin  # where it begins as an element of another: at its key, in a dict
        self.key_end = key_end
        self.start = start  # of what has not been cut yet
        self.missing = missing  # values that were missing there
        self.after = after  # values that are missing in the other one after it
        self.parts: list[Run | Child] | None = None
        self.follows = False


class Cutter:
    """Is told of the lists and dicts in some data, and when it is time to cut.

    Attributes:
        at: before this, all is cut.
        whole: all of it in parts, or None if it need not be cut.
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

    def open(  # noqa: PLR0917 - keywords take time, and there may be many
        self, is_dict: bool, begin: int, key_end: int, start: int, missing: int = 0, after: int = 0
    ) -> None:
        """A list or dict begins, in the innermost one, with so many values to come."""
        self._frames.append(_Frame(is_dict, begin, key_end, start, missing, after))

    def cut(self, at: int, missing: int = 0) -> None:
        """Cut between two elements of the innermost list or dict, and so in each one around it."""
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
        """The innermost one ends: what it has in it at *end*, itself *after* that.

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
        """A comma follows one that was cut."""
        frame = self._frames[-1]
        frame.start, frame.follows = after, True


# JSON

_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_PLAIN = rb'[^\[\]{}",]*+'
_BARE = rb'[^\[\]{}"]*+'
# Lists and dicts with lists and dicts in them, with nothing but plain values in those.
_INNER = rb"[\[{]" + _BARE + rb"(?:" + _TEXT + _BARE + rb")*+[\]}]"
_OUTER = rb"[\[{]" + _BARE + rb"(?:(?:" + _TEXT + rb"|" + _INNER + rb")" + _BARE + rb")*+[\]}]"
_ELEMENT = _PLAIN + rb"(?:(?:" + _TEXT + rb"|" + _OUTER + rb")" + _PLAIN + rb")*+"
_elements = re.compile(rb"(?s:(?:" + _ELEMENT + rb",)*+)").match
_element = re.compile(rb"(?s:" + _ELEMENT + rb")").match
_in_text = re.compile(rb'(?s:[^"\\]*+(?:\\.[^"\\]*+)*+)').match
_spaces = re.compile(rb"[ \t\r\n]*+").match


def cut_json(  # noqa: C901, PLR0912, PLR0915 - by what comes next
    data: bytes, window: int
) -> Part | None:
    """Find out where JSON can be cut; None: it is decoded in one step.

    What is wrong with it may be left to the decoder to find. Raises ValueError.
    """
    end = len(data)
    at = _skip_spaces(data, 0)
    if at >= end or data[at] not in b"[{":
        return None
    cutter = Cutter(window)
    # The innermost last: the byte that closes it, and where it begins with its key.
    opened: list[tuple[int, int]] = [(data[at] + 2, at)]
    cutter.open(data[at] == 0x7B, at, at, at + 1)
    at += 1
    begin = at
    while opened:
        # `at` is in an element of the innermost that begins at `begin`.
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
        if at - begin >= window and cutter.at < begin:  # so that it is a part of its own
            cutter.cut(begin)
        code = data[at]
        if code == 0x2C:  # a comma
            at = begin = at + 1
            if at - cutter.at >= window:
                cutter.cut(at)
        elif code == 0x22:  # a text that has not ended within a step
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
    """Return where a text of JSON ends whose inside *at* lies in, or 0: nowhere."""
    while True:
        found = _in_text(data, at, at + _STEP)
        assert found is not None
        at = found.end()
        match data[at : at + 1]:
            case b"":
                return 0
            case b'"':
                return at + 1
            case b"\\":  # cut off from what it escapes
                at += 2
