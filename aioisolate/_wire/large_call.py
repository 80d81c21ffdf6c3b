"""Large calls: two files that are sent with a request because the call is too long for a message.

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

# The number of bytes that are copied in one step, with the GIL held.
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
        super().__init__("this call must be pickled in a thread")
        self.by_value = by_value


class Halt(Exception):  # noqa: N818 - not every subclass is an error
    """Pickling stops for a reason other than an unpicklable object."""


class ChangedError(Halt):
    """An argument was changed while it was pickled."""


class UnwritableError(Halt, OSError):
    """A file for the pickle could not be created or written."""


class LargeCall(Protocol):
    """The pickle of a call and its out-of-band data, in files.

    One thread writes the files; another thread waits until they are complete, or cancels. This is a
    protocol because this package opens no files; `_forkserver.large_call_files` implements it.

    Attributes:
        stream: the file that contains the pickle; -1 if the pickle is short.
        beside: the file that contains large buffers and texts, each from the start of a page; -1 if
            there are none.
        size: the length of the pickle in bytes.
    """

    stream: int
    beside: int
    size: int

    @property
    def head(self) -> bytes:
        """The pickle if it is short, otherwise no bytes."""
        ...

    @property
    def total(self) -> int:
        """The number of bytes of the pickle and the out-of-band data."""
        ...

    # For the thread that writes the files

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

    # For the thread that waits

    def release(self) -> list[int]:
        """Seal the files against changes and return them."""
        ...

    def drop(self) -> None:
        """Cancel: the thread that writes stops as soon as possible, and the files are closed."""


def shows_change(exc: Exception) -> bool:
    """Return whether a pickling error reports a changed dict, set or deque."""
    return isinstance(exc, RuntimeError) and "during iteration" in str(exc)


def copied(source: bytearray | array.array[Any]) -> Iterator[bytes]:
    """Yield the bytes of *source* in pieces, without exporting a buffer between the pieces.

    So other threads can change the size of *source*; then this function raises ChangedError.
    """
    size, step = len(source), _STEP
    if isinstance(source, array.array):
        step //= source.itemsize
    for start in range(0, size, step):
        if len(source) != size:
            kind = type(source).__name__
            raise ChangedError(f"the size of a {kind} changed from {size} to {len(source)}")
        part = source[start : start + step]
        yield bytes(part) if isinstance(part, bytearray) else part.tobytes()
