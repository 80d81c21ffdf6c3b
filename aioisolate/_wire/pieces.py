"""Decode plain data in steps, so that no step holds the GIL for long.

Other threads, such as the event loop's, can run between the steps. The result is the same as that
of decoding in one step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

from .cutting import Child, Part, Run

__all__ = ["Decode", "Form", "Json", "MessagePack", "build", "located", "runs_of"]

Decode: TypeAlias = Callable[[bytes], Any]


class Form(Protocol):
    """How to make complete data of a codec from some elements of a list or dict.

    Attributes:
        head: the number of bytes that are put before the elements.
    """

    head: int

    def text(self, data: bytes, part: Part, run: Run) -> bytes:
        """Return a list or dict, encoded, of the elements of a run."""
        ...

    def key(self, data: bytes, child: Child) -> bytes:
        """Return a dict, encoded, of the child's key with the value None."""
        ...


class Json:
    """The `Form` of JSON."""

    head = 1

    @staticmethod
    def text(data: bytes, part: Part, run: Run) -> bytes:
        """Return a list or dict, encoded, of the elements of a run. Raises ValueError."""
        inner = data[run.start : run.end if run.last else run.end - 1]
        # A comma without an element after it.
        if (run.follows or not run.last) and not inner.lstrip(b" \t\r\n"):
            raise ValueError(f"JSON is malformed: invalid character (byte {run.end})")
        return b"{%b}" % inner if part.is_dict else b"[%b]" % inner

    @staticmethod
    def key(data: bytes, child: Child) -> bytes:
        """Return a dict, encoded, of the child's key with the value None."""
        return b"{%bnull}" % data[child.start : child.end]


class MessagePack:
    """The `Form` of MessagePack."""

    head = 5

    @staticmethod
    def text(data: bytes, part: Part, run: Run) -> bytes:
        """Return a list or dict, encoded, of the elements of a run."""
        head = b"\xdf" if part.is_dict else b"\xdd"
        return head + run.number.to_bytes(4, "big") + data[run.start : run.end]

    @staticmethod
    def key(data: bytes, child: Child) -> bytes:
        """Return a dict, encoded, of the child's key with the value None."""
        return b"\x81%b\xc0" % data[child.start : child.end]


def runs_of(form: Form, data: bytes, part: Part, decode: Decode) -> Iterator[tuple[Any, Any]]:
    """Yield the pieces of a part in order: (decoded elements, None) or (None, child).

    Raises ValueError, and errors of *decode*.
    """
    for piece in part.parts:
        if isinstance(piece, Child):
            if not part.is_dict and data[piece.start : piece.end].strip(b" \t\r\n"):
                raise ValueError(f"JSON is malformed: invalid character (byte {piece.start})")
            yield None, piece
            continue
        text = form.text(data, part, piece)
        try:
            yield decode(text), None
        except ValueError as exc:
            raise _moved(exc, piece.start - form.head) from None


def build(form: Form, data: bytes, part: Part, decode: Decode) -> Any:
    """Decode cut data without a given type. Raises errors of *decode*."""
    found: Any = {} if part.is_dict else []
    add = found.update if part.is_dict else found.extend
    for elements, child in runs_of(form, data, part, decode):
        if child is None:
            add(elements)
        elif part.is_dict:
            key = only_key(decode(form.key(data, child)))
            found[key] = build(form, data, child.part, decode)
        else:
            found.append(build(form, data, child.part, decode))
    return found


def only_key(found: dict[Any, Any]) -> Any:
    """Return the only key of a dict. Raises ValueError."""
    (key, value), *more = found.items()
    if more or value is not None:
        raise ValueError("JSON is malformed: expected one key")
    return key


_byte = re.compile(r"\(byte ([0-9]+)\)")
_path = re.compile(r" - at `(key in )?\$((?:[^`]|`(?!$))*)`$", re.DOTALL)


def _moved(exc: ValueError, by: int) -> ValueError:
    """Return an error of a step with its byte position counted from the start of the data."""
    return ValueError(_byte.sub(lambda found: f"(byte {int(found[1]) + by})", str(exc)))


def located(exc: Exception, path: str, start: int | None = None) -> ValueError:
    """Return an error of a step with its path counted from the outermost value.

    Args:
        exc: the error of the step.
        path: the path of the list or dict that contains the step.
        start: the index of the step's first element, if that is a list; else None.
    """
    text = str(exc)
    found = _path.search(text)
    if found is None:
        return ValueError(f"{text} - at `${path}`" if path and "(byte " not in text else text)
    inner = found[2]
    if start is not None:
        number, _, rest = inner[1:].partition("]")
        inner = f"[{int(number) + start}]{rest}" if number.isdigit() else inner
    return ValueError(f"{text[: found.start()]} - at `{found[1] or ''}${path}{inner}`")
