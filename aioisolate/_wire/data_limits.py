"""Limits of an encoded value, checked before it is decoded.

A decoder believes its input: sixteen megabytes of one-byte lists become a gigabyte of objects, a
deep value can't be printed or compared afterwards, and keys that are chosen well turn a dict into
a list that is searched from its head. So untrusted data is scanned first, without
making objects.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cutting import Cutter

__all__ = ["CONTAINERS_MAX", "DEPTH_MAX", "KEYS_MAX", "VALUES_MAX", "check_json", "check_msgpack"]

# Deeper than data is; far less than what the interpreter's own recursion stands.
DEPTH_MAX = 64
# Values of all kinds, keys included. The largest for their size, empty dicts, are 72 bytes each.
VALUES_MAX = 1_000_000
# Lists and dicts among them: a garbage collection looks at each one, and holds up all threads until
# it has seen them all. For so many that takes 20 to 30 ms.
CONTAINERS_MAX = 300_000
# Text and bytes are hashed with a secret of the process; for numbers anyone can work out which
# ones collide. Within this, searching them one by one takes about a millisecond.
KEYS_MAX = 1000

# Length of each token in msgpack by its first byte; 0: what follows it tells.
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
# Text and bytes whose length comes in so many bytes.
_LONG = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_TEXTS = frozenset({*range(0xA0, 0xC0), *_LONG})
# Extensions are timestamps, or nothing.
_STAMPS = {b"\xd6\xff": 6, b"\xd7\xff": 10, b"\xc7\x0c\xff": 15}

# Numbers, True, False, None; so many at once.
_RUN = 64
_run = re.compile(
    rb"(?s:[\x00-\x7f\xc0\xc2\xc3\xe0-\xff]|\xcb.{8}|[\xcc\xd0].|[\xcd\xd1]..|[\xca\xce\xd2].{4}"
    rb"|[\xcf\xd3].{8}){%d}" % _RUN
).match


def check_msgpack(  # noqa: C901, PLR0912, PLR0915 - by token
    data: bytes,
    values: int = VALUES_MAX,
    cutter: Cutter | None = None,
    containers: int = CONTAINERS_MAX,
) -> None:
    """Refuse data that is too deep, has too many values, or is made to be slow.

    Truncated data is refused here; other invalid MessagePack is left to the decoder. A *cutter*
    receives the places for cuts. *containers* is the maximum number of lists and dicts.

    Raises:
        ValueError: with the reason.
    """
    at, end = 0, len(data)
    # Where it is time to cut; where the last key of a dict was.
    due = end if cutter is None else cutter.window
    begin = 0
    containers_left = containers
    # The innermost list or dict: how many values it still lacks, and how many keys it has (-1: it
    # is a list). The keys of a dict are where an even number of values is missing.
    missing, keys = 1, -1
    # Beside those of the list or dict around: where it begins with its key, and by itself; where
    # what is in it does, and how many values that are.
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
                )  # so that it is a part of its own
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
        # Long rows of numbers, faster.
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
    """Cut at some place, after telling the cutter of the lists and dicts around it."""
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
            f"the data has a dict of {keys:,} keys that are not all text or bytes; "
            f"of others it may have {KEYS_MAX:,}"
        )


def _stamp_size(data: bytes, at: int) -> int:
    for head, size in _STAMPS.items():
        if data.startswith(head, at):
            return size
    raise ValueError(f"the data has something of a type that is not plain (code {data[at]:#x})")


# So many bytes at a time: in between, other threads get their turn.
_STEP = 128 * 1024
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))
_AS_LISTS = bytes.maketrans(b"{}", b"[]")
_TOO_DEEP = b"[" * (DEPTH_MAX + 1)


def check_json(data: bytes, values: int = VALUES_MAX, containers: int = CONTAINERS_MAX) -> None:
    """Refuse data that is too deep or has too many values; see `check_msgpack`."""
    # Text is counted along at first: most data is far below the limits even so.
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
            if (len(piece) - len(piece.rstrip(b"\\"))) & 1:  # not cut off from what it escapes
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
