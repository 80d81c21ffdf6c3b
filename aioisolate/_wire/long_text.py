"""Decode JSON strings that are too long to be decoded in one step."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .cutting import end_of_text

__all__ = ["LONG_TEXT", "decode_around"]

# JSON strings of more bytes are decoded in steps.
LONG_TEXT = 2 << 20
_STEP = 128 * 1024

# The data before the first string, and between a key and its value, if the data is a single string,
# or a list or dict with a single, long string.
_before = re.compile(rb"[ \t\r\n\[{]{0,64}").match
_between = re.compile(rb"[ \t\r\n]{0,64}:[ \t\r\n]{0,64}").match
# Whole characters and escapes; the two halves of a surrogate pair stay together.
_units = re.compile(
    rb'(?s:[^"\\]++|\\u[dD][89aAbB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}'
    rb"|\\u(?![dD][89aAbB])[0-9a-fA-F]{4}|\\[^u])*+"
).match


def decode_around(data: bytes, decode: Callable[[bytes], Any]) -> Any:
    """Decode a string, or a list or dict with one string, with the same result as *decode*.

    All other data is passed to *decode*. Raises the errors of *decode*.
    """
    found = _before(data)
    assert found is not None
    start = found.end()
    end = end_of_text(data, start + 1) if data[start : start + 1] == b'"' else 0
    between = _between(data, end) if end else None
    if between is not None:  # the first string was a key
        start = between.end()
        end = end_of_text(data, start + 1) if data[start : start + 1] == b'"' else 0
    if end - start <= LONG_TEXT:
        return decode(data)
    text = _decode_text(data, start + 1, end - 1, decode)
    # The rest of the data is decoded with null in place of the string, which is inserted then.
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
        while stop < end and stop > at and data[stop] & 0xC0 == 0x80:  # inside a character
            stop -= 1
        if stop == at:  # malformed: *decode* raises the error
            stop = end
        parts.append(decode(b'"%b"' % data[at:stop]))
        at = stop
    return "".join(parts)
