"""Texts of JSON that are too long to be decoded in one step."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .cutting import end_of_text

__all__ = ["LONG_TEXT", "decode_around"]

# Texts of so many bytes are decoded in steps.
LONG_TEXT = 2 << 20
_STEP = 128 * 1024

# What lies between two texts: in data that is a single text, or a list or dict of one that is long.
_before = re.compile(rb"[ \t\r\n\[{]{0,64}").match
_between = re.compile(rb"[ \t\r\n]{0,64}:[ \t\r\n]{0,64}").match
# Whole characters and escapes; both halves of a pair together.
_units = re.compile(
    rb'(?s:[^"\\]++|\\u[dD][89aAbB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}'
    rb"|\\u(?![dD][89aAbB])[0-9a-fA-F]{4}|\\[^u])*+"
).match


def decode_around(data: bytes, decode: Callable[[bytes], Any]) -> Any:
    """Decode a text, or a list or dict of one element that is one, as *decode* would do it.

    Whatever else it is, *decode* does it. Raises what that raises.
    """
    found = _before(data)
    assert found is not None
    start = found.end()
    end = end_of_text(data, start + 1) if data[start : start + 1] == b'"' else 0
    between = _between(data, end) if end else None
    if between is not None:  # that was a key
        start = between.end()
        end = end_of_text(data, start + 1) if data[start : start + 1] == b'"' else 0
    if end - start <= LONG_TEXT:
        return decode(data)
    text = _decode_text(data, start + 1, end - 1, decode)
    # The rest is decoded with nothing in its place, and that is replaced.
    made = decode(data[:start] + b"null" + data[end:])
    if made is None:
        return text
    if isinstance(made, dict) and len(made) == 1:
        return dict.fromkeys(made, text)
    if isinstance(made, list) and len(made) == 1:
        return [text]
    return decode(data)


def _decode_text(data: bytes, at: int, end: int, decode: Callable[[bytes], Any]) -> str:
    parts: list[str] = []
    while at < end:
        found = _units(data, at, min(at + _STEP, end))
        assert found is not None
        stop = found.end()
        while stop < end and stop > at and data[stop] & 0xC0 == 0x80:  # in a character
            stop -= 1
        if stop == at:  # it is no text
            stop = end
        parts.append(decode(b'"%b"' % data[at:stop]))
        at = stop
    return "".join(parts)
