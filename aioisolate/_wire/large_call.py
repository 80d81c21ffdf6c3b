"""Large calls: two files that are sent with the request of a call that is too long for a message.

A thread fills the files in small steps, so that the GIL is released often, and directly from the
data's memory, without an intermediate copy.
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

# Bytes that are copied in one step with the GIL held.
_STEP = 1 << 20

# A part of the second file that is text, in UTF-8: offset and length in bytes.
Part: TypeAlias = tuple[int, int]


class TooMuch(BaseException):
    """The call must not be pickled inline since it takes long, or it was cancelled.

    Not an Exception, so that a ``__reduce__`` does not catch it by accident.

    Attributes:
        by_value: plain pickle is known to fail.
    """

    def __init__(self, *, by_value: bool = False) -> None:
        super().__init__("this takes a thread")
        self.by_value = by_value


class Halt(Exception):  # noqa: N818 - not each is an error
    """Pickling stops for a reason other than an unpicklable object."""


class ChangedError(Halt):
    """An argument was changed while it was pickled."""


class UnwritableError(Halt, OSError):
    """A file for the pickle could not be created or written."""


class LargeCall(Protocol):
    """The pickle of a call and its out-of-band data, in files.

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
        """Append bytes, a bytearray or a PickleBuffer to the pickle.

        Raise UnwritableError, ChangedError, and TooMuch if the call was cancelled.
        """

    def add_buffer(self, view: memoryview) -> int:
        """Add a buffer to the second file, and return its offset there. Raises like `write`."""
        ...

    def add_text(self, text: str) -> Part:
        """Add text to the second file, encoded part by part. Raises like `write`."""
        ...

    def rewind(self) -> None:
        """Discard all data added so far."""

    def check(self) -> None:
        """Raise TooMuch if the call was cancelled."""

    # For the one that waits

    def release(self) -> list[int]:
        """Seal the files against changes and return them."""
        ...

    def drop(self) -> None:
        """Cancel: the other thread stops as soon as possible."""


def shows_change(exc: Exception) -> bool:
    """Return whether a pickling error reports a changed dict, set or deque."""
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
