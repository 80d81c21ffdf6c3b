"""The file mappings of this process, whose memory can be sent as a descriptor.

They are recorded by mapping, not by view: an array may outlive the view that it was made from.
"""

from __future__ import annotations

import enum
import mmap
import weakref
from typing import NamedTuple

from .._os import mappings
from .._wire import fd_passing
from .._wire.codecs import OUT_OF_BAND_MIN
from .backing_file import BackingFile

__all__ = ["FileMapping", "Use", "at", "note"]


class Use(enum.Enum):
    """How a file is mapped."""

    PRIVATE = "writes change only this mapping"
    WRITER = "writes change a snapshot that is not sealed yet"
    SHARED = "writes are visible to all processes that have the file"


class FileMapping(NamedTuple):
    """A mapping of a file.

    Attributes:
        address, length: its address in this process, and its length in bytes.
        root: the file.
        offset: the offset of its first byte in the file.
        use: how the file is mapped.
    """

    address: int
    length: int
    root: BackingFile
    offset: int
    use: Use


_known: weakref.WeakKeyDictionary[mmap.mmap, FileMapping] = weakref.WeakKeyDictionary()


def note(area: mmap.mmap, root: BackingFile, *, offset: int, length: int, use: Use) -> None:
    """Record a mapping for as long as *area* exists."""
    _known[area] = FileMapping(mappings.address_of(area), length, root, offset, use)


def at(address: int, size: int) -> FileMapping | None:
    """Return the mapping that contains *size* bytes at *address*, or None."""
    for place in list(_known.values()):
        if place.address <= address and address + size <= place.address + place.length:
            return place
    return None


def _find(buffer: memoryview, bundle: fd_passing.FdBundle) -> fd_passing.BufferRef | None:
    """Return a reference to a buffer; None if it has no file, or another content than its file."""
    size = buffer.nbytes
    address = mappings.address_of(buffer) if size and _known else 0
    place = at(address, size) if address else None
    if place is None or place.use is Use.WRITER:
        return None
    if place.use is Use.PRIVATE:
        # A small buffer costs less inside the pickle than as a mapping.
        if size < OUT_OF_BAND_MIN or mappings.is_private_copy(address, size):
            return None
        try:
            place.root.seal()
        except BufferError:  # a view writes to it
            return None
    offset = place.offset + address - place.address
    shared = place.use is Use.SHARED
    root = place.root.reader() if shared and buffer.readonly else place.root
    return fd_passing.BufferRef(bundle.add(root.fd, root), offset, size, shared)


fd_passing.register_finder(_find)
