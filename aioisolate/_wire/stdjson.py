"""JSON by the standard library, compatible with msgspec, for when msgspec is not installed."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import decimal
import enum
import json
import re
import uuid
from typing import Any

__all__ = ["decode", "encode", "number"]


def encode(value: object) -> bytes:
    """Encode plain data; sets become lists, bytes base64, dataclasses dicts. Raises any error."""
    text = json.dumps(
        value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
    )
    return text.encode()


def _plain(value: Any) -> Any:
    match value:
        case set() | frozenset():
            return list(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case enum.Enum():
            return value.value
        case dt.datetime() | dt.date() | dt.time():
            text = value.isoformat()
            return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text
        case uuid.UUID() | decimal.Decimal():
            return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"Encoding objects of type {type(value).__qualname__} is unsupported")


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def decode(data: bytes) -> Any:
    """Decode JSON. Raises ValueError, or RecursionError."""
    value = json.loads(data.decode(), parse_float=number, parse_constant=_no_number)
    if _SURROGATE.search(data):
        # Raises UnicodeEncodeError for unpaired surrogates, which can't be written to a file.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def number(text: str) -> float:
    """Parse a float as msgspec does. Raises ValueError for numbers beyond the range of float."""
    value = float(text)
    if value in (_INFINITY, -_INFINITY):
        raise ValueError("Number out of range")
    return value


_INFINITY = float("inf")


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")
