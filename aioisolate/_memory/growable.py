"""Memory that grows without being copied, and is seen as numbers of one type."""

from __future__ import annotations

import array
import mmap
import operator
from typing import Any

from .._os import mappings
from .._os.buffers import exports_buffer
from .closing import Closing

__all__ = ["GrowableBuffer"]

_FIRST = 16  # pages; none is used before it is written to


@exports_buffer
class GrowableBuffer(Closing):
    """The memory of a `PagedArray`, its base."""

    def __init__(self, typecode: str) -> None:
        self._typecode = typecode
        self._itemsize = array.array(typecode).itemsize
        self._length = 0
        self._area: mmap.mmap | None = None
        self._closed = False
        # Whether some memoryview of it has been given away, and may be in use.
        self._lent = False
        # Counts what an iterator that has read ahead must know of.
        self._changes = 0
        self._map(0)

    @property
    def typecode(self) -> str:
        """The character for the type of its items."""
        return self._typecode

    @property
    def itemsize(self) -> int:
        """How many bytes an item has."""
        return self._itemsize

    @property
    def capacity(self) -> int:
        """How many items it can have before it must get more memory."""
        return self._capacity

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<{type(self).__qualname__} {self._typecode!r} of {self._length} items{state}>"

    def __sizeof__(self) -> int:
        return super().__sizeof__() + (0 if self._area is None else len(self._area))

    def _map(self, capacity: int) -> None:
        """Look at the memory as items; none yet: an empty view."""
        self._capacity = capacity
        self._items = self._cast(b"" if self._area is None else self._area)

    def _cast(self, content: Any) -> memoryview[Any]:
        """Look at bytes as items."""
        if not len(content):
            return memoryview(array.array(self._typecode))
        found: memoryview[Any] = memoryview(content).cast(self._typecode)  # type: ignore[call-overload]
        return found

    def _may_resize(self) -> None:
        """Raise BufferError if something uses the memory, ValueError if it is closed."""
        self._check_open()
        if not self._lent:
            return
        if self._area is None:
            self._lent = False  # nothing to use
            return
        self._items.release()
        try:
            mappings.vet_unused(self._area)
        except BufferError as exc:
            raise BufferError(
                "cannot resize an array that is exporting buffers: a memoryview or a numpy array "
                "uses it"
            ) from exc
        finally:
            self._map(self._capacity)
        self._lent = False

    def _grow(self, count: int) -> None:
        """Get room for *count* items, which is more than there is."""
        exact = mappings.round_up(count * self._itemsize)
        size = max(exact, 2 * self._capacity * self._itemsize, _FIRST * mappings.PAGE)
        try:
            self._resize(size)
        except MemoryError:
            if size == exact:
                raise
            self._resize(exact)

    def _resize(self, size: int) -> None:
        if self._area is None:
            self._area = mappings.reserve(size)
        else:
            self._items.release()
            try:
                self._area = mappings.resize(self._area, size)
            finally:
                self._map(self._capacity)
        self._map(size // self._itemsize)

    def _room(self, count: int) -> None:
        """Make sure that the length may become *count*; it always may stay what it is."""
        if count == self._length:
            self._check_open()
            return
        self._may_resize()
        if count > self._capacity:
            self._grow(count)

    def reserve(self, count: int, /) -> None:
        """Get memory for *count* items in all, so that it need not grow before.

        Raises ValueError if *count* is negative, BufferError if something uses its memory,
        MemoryError if there is no room.
        """
        self._check_open()
        if operator.index(count) < 0:
            raise ValueError(f"the number of items must be at least 0, not {count}")
        if count > self._capacity:
            self._room(count)

    def clear(self) -> None:
        """Remove all items; the memory is kept. Raises BufferError if something uses it."""
        self._may_resize()
        self._length = 0
        self._changes += 1

    def clear_decommit(self) -> None:
        """Remove all items and give the memory back to the kernel; the capacity stays.

        Raises BufferError if something uses its memory.
        """
        self.clear()
        if self._area is not None:
            rights = mappings.READ | mappings.WRITE
            mappings.decommit(self._area, 0, len(self._area), rights)

    def close(self) -> None:
        """Give the memory back; it can't be used any more. Does nothing the second time.

        Raises BufferError if something still uses it: a memoryview, a numpy array.
        """
        if self._closed:
            return
        self._may_resize()
        self._items.release()
        if self._area is not None:
            self._area.close()
        self._area = None
        self._closed = True
        self._changes += 1
        self._length = self._capacity = 0

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the array is closed")

    def __buffer__(self, flags: int, /) -> memoryview:
        self._check_open()
        self._lent = True
        self._changes += 1
        return self._items[: self._length]

    def __release_buffer__(self, view: memoryview, /) -> None:
        view.release()
