"""Buffers that have come as handles: mapped again on this side."""

from __future__ import annotations

from .._os import fds, mappings
from .access import Access
from .backing_file import BackingFile
from .region import FREE
from .snapshot import View

__all__ = ["borrow"]


def borrow(fd: int, offset: int, length: int, *, shared: bool) -> memoryview:
    """Map *length* bytes of the file *fd*, which stays open, from *offset*.

    What is *shared* may be written if *fd* may; what is not, in any case: writes stay here.
    Raises ProtocolError if the file is not what it should be, MemoryError if there is no room.
    """
    root = BackingFile.adopt(fd, offset + length, fixed_only=shared)
    start = offset // mappings.PAGE * mappings.PAGE
    access = Access.READ if shared and fds.is_for_reading(root.fd) else FREE
    view = View(root, shared=shared, offset=start, access=access)
    return memoryview(view)[offset - start :]
