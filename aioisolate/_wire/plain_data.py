"""Results as plain data: decoding runs no code that the sender chooses.

There are two codecs. "msgspec" is MessagePack by msgspec; it preserves bytes, timestamps and
numbers as keys. "json" is JSON, by msgspec if it is installed, else by the standard library; it
encodes bytes as base64 and numeric keys as text, and refuses NaN and infinity. Tuples and sets are
decoded as lists, and objects as dicts, unless a *result_type* is given.

If a key occurs twice in a dict, the last value is used, as in the standard library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from . import data_limits
from .safe_text import shorten, tame

__all__ = ["CODECS", "available", "check_result_type", "dump", "effort", "load", "module_name"]

CODECS = ("msgspec", "json")

_WHY_MAX = 500


def available(codec: str) -> bool:
    """Return whether *codec* is available: "json" always, "msgspec" if it is installed."""
    _check_codec(codec)
    return codec == "json" or _has_msgspec()


def _check_codec(codec: str) -> None:
    if codec not in CODECS:
        raise ValueError(f"codec must be one of {', '.join(CODECS)}, not {codec!r}")


def _has_msgspec() -> bool:
    return find_spec("msgspec") is not None


def module_name(codec: str) -> str:
    """Return the module that implements *codec*, for a fork server to import in advance."""
    if codec == "json":
        return "msgspec.json" if _has_msgspec() else "aioisolate._wire.stdjson"
    return "msgspec.msgpack"


def _module(codec: str) -> Any:
    """Return msgspec's module for *codec*; None for json without msgspec."""
    _check_codec(codec)
    try:
        if codec == "json":
            import msgspec.json as module  # noqa: PLC0415 - small servers do not need it
        else:
            import msgspec.msgpack as module  # type: ignore[no-redef]  # noqa: PLC0415 - same
    except ImportError:
        if codec == "json":
            return None
        raise ImportError(
            'the codec "msgspec" needs msgspec: pip install "aioisolate[msgspec]"'
        ) from None
    return module


# In the child


def dump(codec: str, value: object, *, values: int = data_limits.VALUES_MAX) -> bytes:
    """Encode plain data.

    Raises:
        TypeError: a part of *value* is not plain data; the message names its type and path.
        ValueError: *value* is too deep, or has more than *values* values.
        ImportError: the codec is not installed.
    """
    module = _module(codec)
    if module is not None:
        encode: Callable[[object], bytes] = module.encode
    else:
        from . import stdjson  # noqa: PLC0415 - only without msgspec

        encode = stdjson.encode
    try:
        data = encode(value)
    except Exception as exc:
        path, culprit, why = _find(encode, value, "$") or ("$", value, exc)
        raise TypeError(
            f"{path} is {_name(culprit)}, which is not plain data: {_words(why)}"
        ) from exc
    if codec == "json":
        if module is not None and b"null" in data:
            # msgspec encodes NaN and infinity as null.
            _refuse_infinity(value, "$")
        data_limits.check_json(data, values)
    else:
        data_limits.check_msgpack(data, values)
    return data


def _find(
    encode: Callable[[object], bytes], value: object, path: str, depth: int = 0
) -> tuple[str, object, object] | None:
    """Find the innermost part of *value* that can't be encoded."""
    if depth > data_limits.DEPTH_MAX:
        return path, value, "it is nested too deeply, or refers to itself"
    try:
        for name, part in _parts(value):
            try:
                encode(part)
            except Exception as exc:  # noqa: BLE001 - hooks of its class may raise anything
                return _find(encode, part, path + name, depth + 1) or (path + name, part, exc)
        for key in value if isinstance(value, dict) else ():
            try:
                encode({key: None})
            except Exception as exc:  # noqa: BLE001 - hooks of its class may raise anything
                return f"a key of {path}", key, exc
    except Exception as exc:  # noqa: BLE001 - iterating may raise anything
        return path, value, exc
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of *value*, each with its path suffix."""
    if isinstance(value, dict):
        for key, part in value.items():
            is_name = isinstance(key, str) and key.isidentifier() and len(key) <= 80
            yield f".{key}" if is_name else f"[{shorten(repr(key), 80)}]", part
    elif isinstance(value, (list, tuple, set, frozenset)):
        for number, part in enumerate(value):
            yield f"[{number}]", part
    else:
        cls = type(value)
        for name in getattr(cls, "__dataclass_fields__", getattr(cls, "__struct_fields__", ())):
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)


def _refuse_infinity(value: object, path: str) -> None:
    if isinstance(value, float) and not -_INFINITY < value < _INFINITY:
        raise TypeError(f"{path} is {value}, which JSON can't represent")
    for name, part in _parts(value):
        _refuse_infinity(part, path + name)


_INFINITY = float("inf")


def _name(value: object) -> str:
    cls = type(value)
    module = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
    return f"{module}{cls.__qualname__}"


def _words(why: object) -> str:
    return tame(str(why), _WHY_MAX)


# In the parent


def check_result_type(codec: str, result_type: object | None) -> None:
    """Refuse early a type that `load` can't decode, or can't decode safely.

    A set of numbers, and a dict whose keys are converted from text, are unsafe: the sender can
    choose elements or keys with colliding hashes, and block this process for hours.

    Raises:
        TypeError: with the reason.
        ImportError: *result_type* needs msgspec, which is not installed.
    """
    if result_type is None:
        return
    module = _module(codec)
    if module is None:
        raise ImportError('result_type needs msgspec: pip install "aioisolate[msgspec]"')
    from . import schema  # noqa: PLC0415 - imports msgspec

    try:
        module.Decoder(result_type)
        schema.check(result_type, text_keys=codec == "json")
    except TypeError as exc:
        raise TypeError(f"result_type can't be {result_type!r}: {exc}") from None


def load(
    codec: str,
    pieces: Sequence[bytes],
    result_type: object | None = None,
    *,
    values: int = data_limits.VALUES_MAX,
) -> Any:
    """Decode data that was received in pieces, as *result_type* if that is given.

    The caller limits the number of bytes. Data that `data_limits` refuses is not decoded. Large
    data is decoded in steps, so that other threads can run: see `cutting`.
    Decoding runs no user code except that of *result_type*, ``__post_init__`` for example.

    Raises:
        ValueError: the data is invalid for the codec or *result_type*, or exceeds a limit.
        ImportError: the codec is not installed, or can't decode types.
    """
    module = _module(codec)
    if module is None and result_type is not None:
        raise ImportError('result_type needs msgspec: pip install "aioisolate[msgspec]"')
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    from . import incremental  # noqa: PLC0415 - children only encode

    how: Any = incremental.Standard() if module is None else incremental.steps(codec, result_type)
    part = how.cut(data, values)
    try:
        return how.whole(data) if part is None else how.build(data, part)
    except Exception as exc:  # noqa: BLE001 - RecursionError, MemoryError, errors of __post_init__
        # Without the original error, whose text may contain received data.
        raise ValueError(_words(exc) or type(exc).__name__) from None


def effort(codec: str, pieces: Sequence[bytes], result_type: object | None = None) -> int:
    """Estimate the cost of `load`, as a number of bytes of ordinary JSON."""
    from . import incremental  # noqa: PLC0415 - children only encode

    return incremental.effort(codec, pieces, result_type, _module(codec) is not None)
