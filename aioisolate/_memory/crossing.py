"""Buffers that have come as handles: mapped again on this side."""

from __future__ import annotations

from .._os import mappings
from .root import Root
from .snapshot import View

__all__ = ["borrow"]


def borrow(fd: int, offset: int, length: int, *, shared: bool) -> memoryview:
    """Map *length* bytes of the file *fd*, which stays open, from *offset*.

    Raises ProtocolError if the file is not what it should be, MemoryError if there is no room.
    """
    root = Root.adopt(fd, offset + length, fixed_only=shared)
    start = offset // mappings.PAGE * mappings.PAGE
    view = View(root, shared=shared, offset=start)
    return memoryview(view)[offset - start :]
