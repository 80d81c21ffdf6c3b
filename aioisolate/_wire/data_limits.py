"""Limits of an encoded value, checked before it is decoded.

A decoder does not limit its input: sixteen megabytes of one-byte lists become a gigabyte of
objects, a deeply nested value can't be printed or compared, and colliding keys make each lookup in
a dict a linear search. Untrusted data is therefore scanned first, without creating objects.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cutting import Cutter

__all__ = ["CONTAINERS_MAX", "DEPTH_MAX", "KEYS_MAX", "VALUES_MAX", "check_json", "check_msgpack"]

# Deeper than real data; far below the interpreter's recursion limit.
DEPTH_MAX = 64
# Values of all kinds, including keys. Empty dicts need the most memory for their encoded size: 72
# bytes each.
VALUES_MAX = 1_000_000
# Lists and dicts among the values. A garbage collection traverses all of them while it holds the
# GIL, which takes 20 to 30 ms for this number.
CONTAINERS_MAX = 300_000
# The maximum number of keys in a dict with keys other than text and bytes. Hashes of text and bytes
# depend on a secret of the process; colliding numbers are easy to compute. Up to this number, a
# linear search takes about a millisecond.
KEYS_MAX = 1000

# The length of each MessagePack token by its first byte; 0: the next bytes contain the length.
_SIZES = bytearray(256)
_SIZES[0x00:0x80] = b"\1" * 128
_SIZES[0xA0:0xC0] = range(1, 33)
_SIZES[0xE0:0x100] = b"\1" * 32
for _codes, _size in ((b"\xc0\xc2\xc3", 1), (b"\xcc\xd0", 2), (b"\xcd\xd1", 3)):
    for _code in _codes:
        _SIZES[_code] = _size
for _codes, _size in ((b"\xca\xce\xd2", 5), (b"\xcb\xcf\xd3", 9)):
    for _code in _codes:
        _SIZES[_code] = _size
# Text and bytes: the number of bytes of the length field.
_LONG = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_TEXTS = frozenset({*range(0xA0, 0xC0), *_LONG})
# The only extension type allowed is the timestamp.
_STAMPS = {b"\xd6\xff": 6, b"\xd7\xff": 10, b"\xc7\x0c\xff": 15}

# Numbers, True, False, None; the regular expression matches _RUN of them.
_RUN = 64
_run = re.compile(
    rb"(?s:[\x00-\x7f\xc0\xc2\xc3\xe0-\xff]|\xcb.{8}|[\xcc\xd0].|[\xcd\xd1]..|[\xca\xce\xd2].{4}"
    rb"|[\xcf\xd3].{8}){%d}" % _RUN
).match


def check_msgpack(  # noqa: C901, PLR0912, PLR0915 - one branch for each token
    data: bytes,
    values: int = VALUES_MAX,
    cutter: Cutter | None = None,
    containers: int = CONTAINERS_MAX,
) -> None:
    """Refuse data that is too deep, has too many values, or keys that may collide.

    Truncated data is refused here; other invalid MessagePack is left to the decoder. A *cutter*
    receives the places for cuts. *containers* is the maximum number of lists and dicts.

    Raises:
        ValueError: with the reason.
    """
    at, end = 0, len(data)
    # due: the position of the next cut. begin: the start of the current element, with its key.
    due = end if cutter is None else cutter.window
    begin = 0
    containers_left = containers
    # The innermost list or dict: the number of values still to come, and the number of keys (-1: a
    # list). In a dict, the next value is a key if an even number of values is still to come.
    missing, keys = 1, -1
    # For each open list or dict: `missing` and `keys` of the outer one, its start with its key, its
    # own start, the start of its content, and its number of values.
    outer: list[tuple[int, int, int, int, int, int]] = []
    left = values
    while True:
        while not missing:
            if not outer:
                return
            missing, keys, *_ = outer.pop()
            if cutter is not None and cutter.depth > len(outer):
                cutter.close(at, at)
        is_value = keys >= 0 and missing & 1
        if at >= due and not is_value and cutter is not None and outer:
            if at > cutter.at:
                _cut(cutter, outer, keys, at, missing)
            due = at + cutter.window
        if at >= end:
            raise ValueError("the data ends too early")
        left -= 1
        if left < 0:
            raise ValueError(f"the data has more than {values:,} values")
        code = data[at]
        if not is_value:
            begin = at
            if keys >= 0 and code not in _TEXTS:
                _check_key(code, keys)
        missing -= 1
        size = _SIZES[code]
        if size:
            at += size
            continue
        if width := _LONG.get(code):
            size = 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "big")
            if cutter is not None and size >= cutter.window and outer and cutter.at < begin:
                _cut(
                    cutter, outer, keys, begin, missing + 1 + bool(is_value)
                )  # make the text a separate part
            at += size
            continue
        token = at
        containers_left -= 1
        if code <= 0x9F:
            count, at = code & 15, at + 1
        elif 0xDC <= code <= 0xDF:
            width = 2 + 2 * (code & 1)
            count = int.from_bytes(data[at + 1 : at + 1 + width], "big")
            at += 1 + width
        else:
            at += _stamp_size(data, at)
            containers_left += 1
            continue
        if containers_left < 0:
            raise ValueError(f"the data has more than {containers:,} lists and dicts")
        if len(outer) >= DEPTH_MAX:
            raise ValueError(f"the data is nested deeper than {DEPTH_MAX} levels")
        if not count:
            continue
        is_dict = code < 0x90 or code >= 0xDE
        own = 2 * count if is_dict else count
        outer.append((missing, keys, begin, token, at, own))
        missing, keys = own, count if is_dict else -1
        # A fast path for long lists of numbers.
        while missing >= _RUN and keys < 0 and left >= _RUN and (run := _run(data, at)):
            at = run.end()
            missing -= _RUN
            left -= _RUN
            if at >= due and cutter is not None:
                _cut(cutter, outer, keys, at, missing)
                due = at + cutter.window


def _cut(
    cutter: Cutter,
    outer: list[tuple[int, int, int, int, int, int]],
    keys: int,
    at: int,
    missing: int,
) -> None:
    """Cut at position *at*, after opening the enclosing lists and dicts in the cutter."""
    for depth in range(cutter.depth, len(outer)):
        after, _, begin, token, start, own = outer[depth]
        inner_keys = outer[depth + 1][1] if depth + 1 < len(outer) else keys
        cutter.open(inner_keys >= 0, begin, token, start, own, after)
    cutter.cut(at, missing)


def _check_key(code: int, keys: int) -> None:
    if not _SIZES[code]:
        raise ValueError("the data has a dict with a key that is neither text, bytes nor a number")
    if keys > KEYS_MAX:
        raise ValueError(
            f"the data has a dict of {keys:,} keys that are not all text or bytes; the limit for "
            f"such a dict is {KEYS_MAX:,}"
        )


def _stamp_size(data: bytes, at: int) -> int:
    for head, size in _STAMPS.items():
        if data.startswith(head, at):
            return size
    raise ValueError(f"the data has a value of an unknown type (code {data[at]:#x})")


# The number of bytes in one step: other threads can run between steps.
_STEP = 128 * 1024
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))
_AS_LISTS = bytes.maketrans(b"{}", b"[]")
_TOO_DEEP = b"[" * (DEPTH_MAX + 1)


def check_json(data: bytes, values: int = VALUES_MAX, containers: int = CONTAINERS_MAX) -> None:
    """Refuse data that is too deep or has too many values; see `check_msgpack`."""
    # First count brackets inside texts, too: even so, most data is far below the limits.
    opened = data.count(b"[") + data.count(b"{")
    if (
        opened <= min(DEPTH_MAX, containers)
        and opened + data.count(b",") + data.count(b":") < values
    ):
        return
    bare = _without_texts(data, values)
    opened = bare.count(b"[") + bare.count(b"{")
    if opened + bare.count(b",") + bare.count(b":") >= values:
        raise ValueError(f"the data has more than {values:,} values")
    if opened > containers:
        raise ValueError(f"the data has more than {containers:,} lists and dicts")
    lists = bare.translate(_AS_LISTS, _OTHERS)
    for _ in range(DEPTH_MAX):
        if not lists or _TOO_DEEP in lists:
            break
        lists = lists.replace(b"[]", b"")
    if lists:
        raise ValueError(f"the data is nested deeper than {DEPTH_MAX} levels, or does not close")


def _without_texts(data: bytes, values: int) -> bytes:
    rest: list[bytes] = []
    at, inside, quotes = 0, 0, 0
    while at < len(data):
        end = at + _STEP
        piece = data[at:end]
        if b"\\" in piece:
            if (len(piece) - len(piece.rstrip(b"\\"))) & 1:  # the piece ends inside an escape
                piece += data[end : end + 1]
                end += 1
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        rest += parts[inside::2]
        quotes += len(parts) - 1
        inside = quotes & 1
        if quotes > 2 * values:
            raise ValueError("the data has more texts than values are allowed")
        at = end
    return b"".join(rest)
