"""Map the buffers that another process has sent as buffer references."""

from __future__ import annotations

from .._os import fds, mappings
from .access import Access
from .backing_file import BackingFile
from .region import FREE
from .snapshot import View

__all__ = ["borrow"]


def borrow(fd: int, offset: int, length: int, *, shared: bool) -> memoryview:
    """Map *length* bytes of the file *fd*, which stays open, from *offset*.

    A *shared* mapping is writable if *fd* is. Other mappings are always writable, and writes change
    only this process's copy. Raises ProtocolError if the file is not sealed (or, if *shared*, not
    of fixed size) or too short, MemoryError if memory is short.
    """
    root = BackingFile.adopt(fd, offset + length, fixed_only=shared)
    start = offset // mappings.PAGE * mappings.PAGE
    access = Access.READ if shared and fds.is_for_reading(root.fd) else FREE
    view = View(root, shared=shared, offset=start, access=access)
    return memoryview(view)[offset - start :]
