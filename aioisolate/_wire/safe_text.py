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

# What makes a terminal or a log say something else than what is written: control characters, those
# that turn the direction of writing, end lines, or are not seen; and halves of characters.
_ALONE = f"(?<![{JOINED}])[{JOINERS}]|[{JOINERS}](?![{JOINED}])"
_active = re.compile(f"[{ACTIVE}]+|{_ALONE}")
_active_in_line = re.compile(f"[\n\t{ACTIVE}]+|{_ALONE}")


def escape(text: str, *, line: bool = False) -> str:
    r"""Return *text* with ``\x1b`` and the like for what is not to be obeyed.

    Line ends and tabs stay, unless it is to be a single *line*.
    """
    return (_active_in_line if line else _active).sub(_code, text)


def _code(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def shorten(text: str, size: int) -> str:
    """Leave out the middle of *text* so that it has at most *size* characters and a note."""
    if len(text) <= size:
        return text
    left_out = len(text) - size
    return f"{text[: size // 2]} ... {left_out:,} left out ... {text[len(text) - size // 2 :]}"


def tame(text: str, size: int) -> str:
    """Make untrusted *text* one line, shortened to about *size* characters."""
    # Before, as escaping takes its time; and after, as it makes one character up to ten.
    return shorten(escape(shorten(text, size), line=True), size)


def quote(text: str, size: int) -> str:
    """Escape untrusted *text* of several lines, and begin each line with ``| ``.

    So no line can be mistaken for a log record. Long text loses its middle.
    """
    if not text:
        return ""
    lines = escape(shorten(text, size)).split("\n")
    return shorten("\n".join(f"| {line}".rstrip() for line in lines), size)


def _bytes(text: str, size: int) -> bytes:
    """Encode at most *size* bytes of *text*, leaving out its middle, which a note tells."""
    # str's own methods: a __str__ may return a class of its own.
    length = str.__len__(text)
    if length > size:  # so many characters are as many bytes at least
        head, tail = str.__getitem__(text, slice(size)), str.__getitem__(text, slice(-size, None))
        text = f"{head}{tail}"
    data = str.encode(text, errors="backslashreplace")
    if length <= size and len(data) <= size:
        return data
    half = size // 2 - 40
    note = f"\n... of {length:,} characters, the middle is left out ...\n"
    # Halves of characters where it is cut are dropped.
    return b"".join(
        part.decode(errors="ignore").encode() for part in (data[:half], note.encode(), data[-half:])
    )


# Exceptions


def trim(exc: BaseException, is_ours: Callable[[str], bool]) -> None:
    """Cut off the outer frames of *exc* that belong to the machinery and not to fn."""
    rest = tb = part(exc, "__traceback__")
    while tb is not None:
        if is_ours(tb.tb_frame.f_code.co_filename):
            rest = tb.tb_next
        tb = tb.tb_next
    # Which an assignment would not do for a frozen dataclass.
    BaseException.with_traceback(exc, rest)


def part(exc: BaseException, name: str) -> Any:
    """Return what every exception has, whatever its class makes of that name.

    ``args``, for example, may be a field of a dataclass, and ``__class__`` a property that raises.
    """
    return BaseException.__dict__[name].__get__(exc)


def full_name(cls: type) -> str:
    """Return a class's name with that of its module, whatever its metaclass says."""
    name: str = type.__dict__["__qualname__"].__get__(cls)
    return f"{type.__dict__['__module__'].__get__(cls)}.{name}"


def dump_exception(exc: BaseException) -> bytes:
    """Describe an exception as text, even if its methods raise."""
    texts = (_type_name(exc), _message(exc), _traceback(exc))
    parts = [_bytes(text, limit) for text, limit in zip(texts, _LIMITS, strict=True)]
    return _PARTS.pack(*map(len, parts)) + b"".join(parts)


def _type_name(exc: BaseException) -> str:
    # By type's own attributes: a metaclass may lie about them, or raise.
    cls = type(exc)
    try:
        name: str = type.__dict__["__qualname__"].__get__(cls)
        module = type.__dict__["__module__"].__get__(cls)
    except BaseException:  # noqa: BLE001 - of a class's namespace, anything
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
    import traceback  # noqa: PLC0415 - of no use while all is well

    try:
        return "".join(traceback.format_exception(exc))
    except BaseException as broken:  # noqa: BLE001 - a broken loader of source lines may, too
        return f"<its traceback could not be formatted: {_type_name(broken)}>"


def load_exception(pieces: Sequence[bytes]) -> RemoteError:
    """Decode the output of `dump_exception` to an error. Raise ProtocolError."""
    from .._errors import RemoteError  # noqa: PLC0415 - a fork server and its children stay small

    data = _joined(pieces, _PARTS.size + sum(_LIMITS), "an exception")
    if len(data) < _PARTS.size:
        raise ProtocolError("an exception is cut off")
    lengths = _PARTS.unpack_from(data)
    if sum(lengths) != len(data) - _PARTS.size or not lengths[0]:
        raise ProtocolError("an exception's parts are not as long as it says")
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
        raise ProtocolError(f"{what} of {size:,} bytes came, which is more than {limit:,}")
    return b"".join(pieces)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ProtocolError("a text that came is not UTF-8") from None


# Progress

# How `done` and `total` are written, and both.
_REPORT = {
    kinds: struct.Struct(f"<2s{kinds.replace('n', '8x')}")
    for kinds in ("qq", "qd", "qn", "dq", "dd", "dn")
}
_READ = {kinds.encode(): form for kinds, form in _REPORT.items()}
_HEAD = 18


def dump_progress(done: float, total: float | None, message: str) -> bytes:
    """Write a report. Numbers beyond 64 bits become floats, endless messages lose their middle."""
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
    """Read a report (done, total, message), the message *escaped* if a stranger has written it.

    Raises ProtocolError.
    """
    data = _joined(pieces, _HEAD + _REPORT_MAX, "a report of progress")
    form = _READ.get(data[:2])
    if form is None or len(data) < _HEAD:
        raise ProtocolError("a report of progress is damaged")
    _, *numbers = form.unpack_from(data)
    message = _text(data[_HEAD:])
    total = numbers[1] if len(numbers) > 1 else None
    return numbers[0], total, escape(message, line=True) if escaped else message
