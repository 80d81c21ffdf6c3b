"""Safe text: exceptions and progress reports as escaped text that can't control a terminal or log.

Neither uses pickle, for any codec of results.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .frames import ProtocolError
from .invisible import ACTIVE, JOINED, JOINERS

if TYPE_CHECKING:
    from .._errors import RemoteError

__all__ = [
    "dump_exception",
    "dump_progress",
    "escape",
    "full_name",
    "load_exception",
    "load_progress",
    "part",
    "quote",
    "shorten",
    "tame",
    "trim",
]

# Lengths of a type's name, a message and a traceback, in bytes; of a report's message.
_PARTS = struct.Struct("<HHH")
_LIMITS = (512, 16 * 1024, 44 * 1024)
_REPORT_MAX = 32 * 1024

# Characters that make a terminal or log show another text: control characters, and characters that
# change the direction of writing, end lines or are invisible; and surrogates.
_ALONE = f"(?<![{JOINED}])[{JOINERS}]|[{JOINERS}](?![{JOINED}])"
_active = re.compile(f"[{ACTIVE}]+|{_ALONE}")
_active_in_line = re.compile(f"[\n\t{ACTIVE}]+|{_ALONE}")


def escape(text: str, *, line: bool = False) -> str:
    r"""Return *text* with the characters above replaced by escapes such as ``\x1b``.

    Line feeds and tabs are kept, unless *line* is true: then they are escaped, too.
    """
    return (_active_in_line if line else _active).sub(_code, text)


def _code(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def shorten(text: str, size: int) -> str:
    """Return at most *size* characters of *text*; a note replaces the middle of a longer text."""
    if len(text) <= size:
        return text
    left_out = len(text) - size
    return f"{text[: size // 2]} ... {left_out:,} left out ... {text[len(text) - size // 2 :]}"


def tame(text: str, size: int) -> str:
    """Make untrusted *text* one line, shortened to about *size* characters."""
    # Before, since escaping takes time; and after, since an escape has up to ten characters.
    return shorten(escape(shorten(text, size), line=True), size)


def quote(text: str, size: int) -> str:
    """Escape untrusted *text* of several lines, and begin each line with ``| ``.

    So no line can be mistaken for a log record. A note replaces the middle of a long text.
    """
    if not text:
        return ""
    lines = escape(shorten(text, size)).split("\n")
    return shorten("\n".join(f"| {line}".rstrip() for line in lines), size)


def _bytes(text: str, size: int) -> bytes:
    """Encode *text* as at most *size* bytes; a note replaces the middle of a longer text."""
    # str's own methods, since a __str__ may return an instance of a subclass.
    length = str.__len__(text)
    if length > size:  # each character has at least one byte
        head, tail = str.__getitem__(text, slice(size)), str.__getitem__(text, slice(-size, None))
        text = f"{head}{tail}"
    data = str.encode(text, errors="backslashreplace")
    if length <= size and len(data) <= size:
        return data
    half = size // 2 - 40
    note = f"\n... of {length:,} characters, the middle is left out ...\n"
    # Incomplete characters at the cuts are dropped.
    return b"".join(
        part.decode(errors="ignore").encode() for part in (data[:half], note.encode(), data[-half:])
    )


# Exceptions


def trim(exc: BaseException, is_ours: Callable[[str], bool]) -> None:
    """Remove the outer frames of *exc* that belong to this package and not to fn."""
    rest = tb = part(exc, "__traceback__")
    while tb is not None:
        if is_ours(tb.tb_frame.f_code.co_filename):
            rest = tb.tb_next
        tb = tb.tb_next
    # Not an assignment, which raises for a frozen dataclass.
    BaseException.with_traceback(exc, rest)


def part(exc: BaseException, name: str) -> Any:
    """Return an attribute that `BaseException` defines, even if a subclass redefines the name.

    ``args``, for example, may be a field of a dataclass, and ``__cause__`` a property that raises.
    """
    return BaseException.__dict__[name].__get__(exc)


def full_name(cls: type) -> str:
    """Return the names of a class's module and of the class, without calling its metaclass."""
    name: str = type.__dict__["__qualname__"].__get__(cls)
    return f"{type.__dict__['__module__'].__get__(cls)}.{name}"


def dump_exception(exc: BaseException) -> bytes:
    """Describe an exception as text, even if its methods raise."""
    texts = (_type_name(exc), _message(exc), _traceback(exc))
    parts = [_bytes(text, limit) for text, limit in zip(texts, _LIMITS, strict=True)]
    return _PARTS.pack(*map(len, parts)) + b"".join(parts)


def _type_name(exc: BaseException) -> str:
    # By the attributes of `type`: those of a metaclass may raise, or have other values.
    cls = type(exc)
    try:
        name: str = type.__dict__["__qualname__"].__get__(cls)
        module = type.__dict__["__module__"].__get__(cls)
    except BaseException:  # noqa: BLE001 - a class's namespace may raise anything
        return "BaseException"
    if not isinstance(module, str) or module == "builtins":
        return name or "?"
    return f"{module}.{name}"


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except BaseException as broken:  # noqa: BLE001 - a broken __str__ may raise anything
        return f"<its __str__ raised {_type_name(broken)}>"


def _traceback(exc: BaseException) -> str:
    import traceback  # noqa: PLC0415 - only for errors

    try:
        return "".join(traceback.format_exception(exc))
    except BaseException as broken:  # noqa: BLE001 - a loader of source lines may raise anything
        return f"<its traceback could not be formatted: {_type_name(broken)}>"


def load_exception(pieces: Sequence[bytes]) -> RemoteError:
    """Decode the output of `dump_exception` to an error. Raise ProtocolError."""
    from .._errors import RemoteError  # noqa: PLC0415 - a fork server and its children stay small

    data = _joined(pieces, _PARTS.size + sum(_LIMITS), "an exception")
    if len(data) < _PARTS.size:
        raise ProtocolError("an exception is cut off")
    lengths = _PARTS.unpack_from(data)
    if sum(lengths) != len(data) - _PARTS.size or not lengths[0]:
        raise ProtocolError("the lengths of an exception's parts are wrong")
    if any(length > limit for length, limit in zip(lengths, _LIMITS, strict=True)):
        raise ProtocolError("a part of an exception is longer than allowed")
    at, texts = _PARTS.size, []
    for length in lengths:
        texts.append(_text(data[at : at + length]))
        at += length
    return RemoteError(
        escape(texts[0], line=True),
        escape(texts[1], line=True),
        quote(texts[2].rstrip("\n"), _LIMITS[2]),
    )


def _joined(pieces: Sequence[bytes], limit: int, what: str) -> bytes:
    size = sum(map(len, pieces))
    if size > limit:
        raise ProtocolError(f"{what} has {size:,} bytes; the limit is {limit:,}")
    return b"".join(pieces)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ProtocolError("a received text is not UTF-8") from None


# Progress

# The encodings of `done` and `total`: q is an integer, d a float, n is None.
_REPORT = {
    kinds: struct.Struct(f"<2s{kinds.replace('n', '8x')}")
    for kinds in ("qq", "qd", "qn", "dq", "dd", "dn")
}
_READ = {kinds.encode(): form for kinds, form in _REPORT.items()}
_HEAD = 18


def dump_progress(done: float, total: float | None, message: str) -> bytes:
    """Encode a progress report.

    Integers beyond 64 bits become floats; a note replaces the middle of a long message.
    """
    if total is None:
        kind, done = _number(done)
        head = _REPORT[f"{kind}n"].pack(f"{kind}n".encode(), done)
    else:
        kind, done = _number(done)
        other, total = _number(total)
        head = _REPORT[kind + other].pack(f"{kind}{other}".encode(), done, total)
    return head + (_bytes(message, _REPORT_MAX) if message else b"")


def _number(value: float) -> tuple[str, float]:
    if isinstance(value, int):
        if -(1 << 63) <= value < 1 << 63:
            return "q", value
        try:
            return "d", float(value)
        except OverflowError:
            return "d", float("inf") if value > 0 else float("-inf")
    return "d", value


def load_progress(
    pieces: Sequence[bytes], *, escaped: bool = False
) -> tuple[float, float | None, str]:
    """Decode a progress report: done, total, message. *escaped*: escape an untrusted message.

    Raises ProtocolError.
    """
    data = _joined(pieces, _HEAD + _REPORT_MAX, "a progress report")
    form = _READ.get(data[:2])
    if form is None or len(data) < _HEAD:
        raise ProtocolError("a progress report is damaged")
    _, *numbers = form.unpack_from(data)
    message = _text(data[_HEAD:])
    total = numbers[1] if len(numbers) > 1 else None
    return numbers[0], total, escape(message, line=True) if escaped else message
