"""Pass file-backed memory beside a pickle as descriptors, instead of copying it into the pickle.

A module that creates such memory registers a finder (`register_finder`) when it is imported. In
``__reduce__``, the module's objects call `bundle` for the current bundle, add their descriptor to
the bundle, and pickle only its index. The finder finds buffers inside such memory, those of numpy
arrays for example.
In the receiving process, `arrived` returns the descriptor; an object that keeps the descriptor
duplicates it.
"""

from __future__ import annotations

from _thread import _local
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self, TypeAlias

from .frames import ProtocolError

__all__ = [
    "FDS_MAX",
    "BufferRef",
    "FdBundle",
    "FdUnbundling",
    "arrived",
    "bundle",
    "find",
    "register_finder",
]

# Per thread, since other threads may pickle at the same time.
_here = _local()
# The maximum number of descriptors in one message (SCM_MAX_FD).
FDS_MAX = 253


class BufferRef(NamedTuple):
    """A buffer in a file: the index of the file's descriptor, and the position in the file.

    Attributes:
        which: the index of the descriptor in the bundle.
        offset, length: the position in the file, in bytes.
        shared: whether both processes see each other's changes.
    """

    which: int
    offset: int
    length: int
    shared: bool


class FdBundle:
    """The descriptors that are sent with a pickle; they stay open while the bundle exists.

    Objects that are pickled inside the bundle's ``with`` block, in the same thread, add their
    descriptors.
    """

    __slots__ = ("_before", "_owners", "fds")

    def __init__(self) -> None:
        self.fds: list[int] = []
        self._owners: list[object] = []

    def add(self, fd: int, owner: object) -> int:
        """Add *fd*, keep *owner* alive until *fd* is sent, and return the index of *fd*.

        Raise ValueError if there are too many descriptors.
        """
        if fd in self.fds:
            return self.fds.index(fd)
        if len(self.fds) == FDS_MAX:
            raise ValueError(f"one message can carry at most {FDS_MAX} snapshots and shared arrays")
        self.fds.append(fd)
        self._owners.append(owner)
        return len(self.fds) - 1

    def __enter__(self) -> Self:
        self._before = bundle()
        _here.bundle = self
        return self

    def __exit__(self, *exc: object) -> None:
        _here.bundle = self._before


class FdUnbundling:
    """The descriptors received with a pickle, for objects unpickled inside its ``with`` block."""

    __slots__ = ("_before", "_fds")

    def __init__(self, fds: Sequence[int]) -> None:
        self._fds = fds

    def __enter__(self) -> None:
        self._before = _unpacking()
        _here.arrived = self._fds

    def __exit__(self, *exc: object) -> None:
        _here.arrived = self._before


# A function that adds the file of a buffer to the bundle and returns a reference to the buffer, or
# returns None if the buffer is not in a file.
Finder: TypeAlias = Callable[[memoryview, FdBundle], BufferRef | None]

# The registered finder; None: this process has no memory in files.
find: Finder | None = None


def register_finder(finder: Finder) -> None:
    """Register the function that finds the files of buffers."""
    global find
    find = finder


def bundle() -> FdBundle | None:
    """Return the bundle that is current in this thread, or None."""
    found: FdBundle | None = getattr(_here, "bundle", None)
    return found


def _unpacking() -> Sequence[int]:
    """Return the descriptors received with the pickle that this thread is loading."""
    found: Sequence[int] = getattr(_here, "arrived", ())
    return found


def arrived(index: int) -> int:
    """Return the received descriptor with that index, which stays open. Raise ProtocolError."""
    fds = _unpacking()
    if not 0 <= index < len(fds):
        raise ProtocolError("a pickle names a descriptor that did not come with it")
    return fds[index]
