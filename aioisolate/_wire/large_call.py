"""What of a call is too long for a message: two files that travel beside its request.

Filled where a call is pickled in a thread: a little at a time, so that the GIL is let go of again
and again, and from where the data lies, without a copy of it in between.
"""

from __future__ import annotations

import array
from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias

__all__ = [
    "ChangedError",
    "Halt",
    "LargeCall",
    "Part",
    "TooMuch",
    "UnwritableError",
    "copied",
    "shows_change",
]

# So many bytes are copied at once with the GIL held.
_STEP = 1 << 20

# A part of the second file that is text, in UTF-8: offset and length in bytes.
Part: TypeAlias = tuple[int, int]


class TooMuch(BaseException):
    """This is not to be pickled here and now: it takes long, or nobody wants it any more.

    No Exception: a ``__reduce__`` that expects some must not catch it.

    Attributes:
        by_value: it is known that plain pickle can't do it.
    """

    def __init__(self, *, by_value: bool = False) -> None:
        super().__init__("this takes a thread")
        self.by_value = by_value


class Halt(Exception):  # noqa: N818 - not each is an error
    """Pickling stops, though nothing can be named that can't be pickled."""


class ChangedError(Halt):
    """An argument was changed while it was pickled."""


class UnwritableError(Halt, OSError):
    """A file for what is pickled could not be made or written."""


class LargeCall(Protocol):
    """The pickle of a call, and what is not in it, in files.

    One thread fills it; another one waits for that, or gives it up. A protocol, because this layer
    opens no files: the class, `LargeCallFiles`, lies with the fork servers.

    Attributes:
        stream: the file that holds the pickle, or -1: it is short.
        beside: the file that holds large buffers and texts, each at a page of its own, or -1.
        size: how long the pickle is.
    """

    stream: int
    beside: int
    size: int

    @property
    def head(self) -> bytes:
        """The pickle, if it is short."""
        ...

    @property
    def total(self) -> int:
        """How many bytes it has."""
        ...

    # For the thread that fills it

    def write(self, data: Any) -> None:
        """Add to the pickle, as its file: bytes, a bytearray, or a PickleBuffer.

        Raises UnwritableError, ChangedError, and TooMuch if it is unwanted.
        """

    def add_buffer(self, view: memoryview) -> int:
        """Add a buffer to the second file, and return its offset there. Raises like `write`."""
        ...

    def add_text(self, text: str) -> Part:
        """Add text to the second file, encoded part by part. Raises like `write`."""
        ...

    def rewind(self) -> None:
        """Forget what was added so far."""

    def check(self) -> None:
        """Raise TooMuch if nobody wants it any more."""

    # For the one that waits

    def release(self) -> list[int]:
        """Hand its files over, sealed: nobody can change them any more."""
        ...

    def drop(self) -> None:
        """Want it no more: the other thread gives up as soon as it can."""


def shows_change(exc: Exception) -> bool:
    """Tell whether an error of pickling says that a dict, a set or a deque was changed."""
    return isinstance(exc, RuntimeError) and "during iteration" in str(exc)


def copied(what: bytearray | array.array[Any]) -> Iterator[bytes]:
    """Copy something piece by piece; whoever changes its size meanwhile is not hindered by that.

    Raises ChangedError if that happens.
    """
    size, step = len(what), _STEP
    if isinstance(what, array.array):
        step //= what.itemsize
    for start in range(0, size, step):
        if len(what) != size:
            kind = type(what).__name__
            raise ChangedError(f"the size of a {kind} changed from {size} to {len(what)}")
        part = what[start : start + step]
        yield bytes(part) if isinstance(part, bytearray) else part.tobytes()
