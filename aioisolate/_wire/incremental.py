"""Decode data in steps: for each codec, where to cut the data and how to decode a step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from . import data_limits
from .cutting import COSTLY_WINDOW, WINDOW, Cutter, Part, cut_json, is_costly
from .long_text import LONG_TEXT, decode_around
from .pieces import Decode, Json, MessagePack, build

__all__ = ["Standard", "effort", "steps"]

# Data of fewer bytes is always decoded in one step.
_SMALL = 2 * 1024
# The standard library's decoder takes about four times as long as msgspec, longer for numbers.
_STANDARD_WINDOW = 32 * 1024


class Standard:
    """Decoder of JSON that uses the standard library."""

    def __init__(self) -> None:
        from . import stdjson  # noqa: PLC0415 - only without msgspec

        self.whole: Decode = stdjson.decode

    def cut(self, data: bytes, values: int) -> Part | None:
        """Check data, and return where to cut it; None: decode at once. Raises ValueError."""
        data_limits.check_json(data, values)
        return cut_json(data, _STANDARD_WINDOW) if len(data) > _STANDARD_WINDOW else None

    def build(self, data: bytes, part: Part) -> Any:
        """Decode data that cut() has cut. Raises ValueError."""
        return build(Json(), data, part, self.whole)


class _Json:
    """Decoder of JSON that uses msgspec."""

    def __init__(self) -> None:
        import msgspec.json  # noqa: PLC0415 - small servers do not need it

        from . import stdjson  # noqa: PLC0415 - small servers do not need it

        self._decode: Decode = msgspec.json.decode
        # The standard library decodes in 0.5 microseconds numbers for which msgspec needs 15.
        self._decode_numbers: Decode = msgspec.json.Decoder(float_hook=stdjson.number).decode

    def cut(self, data: bytes, values: int) -> Part | None:
        """Check data, and return where to cut it; None: decode at once. Raises ValueError."""
        data_limits.check_json(data, values)
        return cut_json(data, WINDOW) if len(data) > WINDOW else None

    def whole(self, data: bytes) -> Any:
        """Decode one step; a long text is decoded in several. Raises ValueError."""
        if len(data) > LONG_TEXT:
            return decode_around(data, self._at_once)
        return self._at_once(data)

    def _at_once(self, data: bytes) -> Any:
        if len(data) > _SMALL and is_costly(data):
            return self._decode_numbers(data)
        return self._decode(data)

    def build(self, data: bytes, part: Part) -> Any:
        """Decode data that cut() has cut. Raises ValueError."""
        return build(Json(), data, part, self.whole)


class _MessagePack:
    def __init__(self) -> None:
        import msgspec.msgpack  # noqa: PLC0415 - small servers do not need it

        self.whole: Decode = msgspec.msgpack.decode

    def cut(self, data: bytes, values: int) -> Part | None:
        """Check data, and return where to cut it; None: decode at once. Raises ValueError."""
        return _cut_msgpack(data, values, WINDOW)

    def build(self, data: bytes, part: Part) -> Any:
        """Decode data that cut() has cut. Raises ValueError."""
        return build(MessagePack(), data, part, self.whole)


def _cut_msgpack(
    data: bytes, values: int, window: int, containers: int = data_limits.CONTAINERS_MAX
) -> Part | None:
    if len(data) <= window:
        data_limits.check_msgpack(data, values, None, containers)
        return None
    cutter = Cutter(window)
    data_limits.check_msgpack(data, values, cutter, containers)
    if cutter.whole is not None and cutter.at < len(data):
        raise ValueError(f"MessagePack data is malformed: trailing characters (byte {cutter.at})")
    return cutter.whole


class _Typed:
    """Decoder of JSON or MessagePack as a given type, by msgspec."""

    def __init__(self, codec: str, result_type: object) -> None:
        from . import shapes  # noqa: PLC0415 - imports msgspec.inspect

        self._is_json = codec == "json"
        module: Any
        if self._is_json:
            import msgspec.json as module  # noqa: PLC0415 - small servers do not need it
        else:
            import msgspec.msgpack as module  # noqa: PLC0415 - same
        form = Json() if self._is_json else MessagePack()
        self._shapes = shapes.Shapes(result_type, module.Decoder, form)
        self._decode: Decode = module.Decoder(result_type).decode
        objects, self.factor = shapes.amplification(self._shapes.node)
        self._containers = data_limits.CONTAINERS_MAX // objects

    def cut(self, data: bytes, values: int) -> Part | None:
        """Check data, and return where to cut it; None: decode at once. Raises ValueError."""
        window = max(WINDOW // self.factor, 512)
        if not self._is_json:
            return _cut_msgpack(data, values, window, self._containers)
        data_limits.check_json(data, values, self._containers)
        if len(data) > COSTLY_WINDOW and is_costly(data):
            window = min(window, COSTLY_WINDOW)
        return cut_json(data, window) if len(data) > max(window, _SMALL) else None

    def whole(self, data: bytes) -> Any:
        """Decode data in one step. Raises ValueError."""
        self._shapes.check_text(len(data), self._shapes.node)
        return self._decode(data)

    def build(self, data: bytes, part: Part) -> Any:
        """Decode data that cut() has cut. Raises ValueError, and errors that a class raises."""
        return self._shapes.build(data, part, self._shapes.node)


def steps(codec: str, result_type: object | None) -> Any:
    """Return the decoder of a codec; *result_type* None: plain data of any type."""
    if result_type is None:
        return _untyped(codec)
    try:
        return _typed(codec, result_type)
    except TypeError:  # *result_type* is not hashable, so it can't be a cache key
        return _Typed(codec, result_type)


@functools.cache
def _untyped(codec: str) -> Any:
    return _Json() if codec == "json" else _MessagePack()


@functools.lru_cache(64)
def _typed(codec: str, result_type: object) -> _Typed:
    return _Typed(codec, result_type)


def effort(codec: str, pieces: Sequence[bytes], result_type: object | None, has: bool) -> int:
    """Estimate the time for decoding, as a number of bytes of ordinary JSON.

    The estimate may be too low for data that takes longer than a window in any case.
    *has*: whether msgspec is installed.
    """
    size = sum(map(len, pieces))
    if size <= _SMALL:
        return size
    factor = 1 if has and codec == "json" else 4
    if result_type is not None and has:
        factor *= 2 * steps(codec, result_type).factor
    # is_costly() blocks the event loop: a scan of 16 MiB would take half a second.
    if codec == "json" and size * factor <= WINDOW and any(map(is_costly, pieces)):
        factor *= 16
    return size * factor
