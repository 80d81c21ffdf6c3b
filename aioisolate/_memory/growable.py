"""Memory that grows without being copied and holds numbers of one type."""

from __future__ import annotations

import array
import mmap
import operator
from typing import Any

from .._os import mappings
from .._os.buffers import exports_buffer
from .closing import Closing

__all__ = ["GrowableBuffer"]

_FIRST = 16  # pages; the kernel allocates a page when it is first written to


@exports_buffer
class GrowableBuffer(Closing):
    """The memory of a `PagedArray`; its base class."""

    def __init__(self, typecode: str) -> None:
        self._typecode = typecode
        self._itemsize = array.array(typecode).itemsize
        self._length = 0
        self._area: mmap.mmap | None = None
        self._closed = False
        # Whether a memoryview has been exported and may be in use.
        self._lent = False
        # Counts the changes that invalidate what an iterator has read ahead.
        self._changes = 0
        self._map(0)

    @property
    def typecode(self) -> str:
        """The typecode character of the items."""
        return self._typecode

    @property
    def itemsize(self) -> int:
        """The size of an item in bytes."""
        return self._itemsize

    @property
    def capacity(self) -> int:
        """The number of items for which the array has memory."""
        return self._capacity

    @property
    def closed(self) -> bool:
        """Whether the array is closed."""
        return self._closed

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<{type(self).__qualname__} {self._typecode!r} of {self._length} items{state}>"

    def __sizeof__(self) -> int:
        return super().__sizeof__() + (0 if self._area is None else len(self._area))

    def _map(self, capacity: int) -> None:
        """Set the view of the memory as items; it is empty if there is no memory yet."""
        self._capacity = capacity
        self._items = self._cast(b"" if self._area is None else self._area)

    def _cast(self, content: Any) -> memoryview[Any]:
        """Return a view of bytes as items."""
        if not len(content):
            return memoryview(array.array(self._typecode))
        found: memoryview[Any] = memoryview(content).cast(self._typecode)  # type: ignore[call-overload]
        return found

    def _may_resize(self) -> None:
        """Raise BufferError if an object uses the memory, ValueError if the array is closed."""
        self._check_open()
        if not self._lent:
            return
        if self._area is None:
            self._lent = False  # there is no memory to use
            return
        self._items.release()
        try:
            mappings.check_unused(self._area)
        except BufferError as exc:
            raise BufferError(
                "cannot resize an array that is exporting buffers: a memoryview or a numpy array "
                "uses it"
            ) from exc
        finally:
            self._map(self._capacity)
        self._lent = False

    def _grow(self, count: int) -> None:
        """Get memory for *count* items, which is more than the capacity."""
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
        """Make sure that the length may become *count*; an unchanged length is always allowed."""
        if count == self._length:
            self._check_open()
            return
        self._may_resize()
        if count > self._capacity:
            self._grow(count)

    def reserve(self, count: int, /) -> None:
        """Get memory for *count* items in total, so that up to this length the array need not grow.

        Raises ValueError if *count* is negative, BufferError if an object uses the array's memory,
        MemoryError if memory is short.
        """
        self._check_open()
        if operator.index(count) < 0:
            raise ValueError(f"the number of items must be at least 0, not {count}")
        if count > self._capacity:
            self._room(count)

    def clear(self) -> None:
        """Remove all items and keep the memory. Raises BufferError if an object uses it."""
        self._may_resize()
        self._length = 0
        self._changes += 1

    def clear_decommit(self) -> None:
        """Remove all items and return the memory to the kernel; the capacity stays.

        Raises BufferError if an object uses the memory.
        """
        self.clear()
        if self._area is not None:
            rights = mappings.READ | mappings.WRITE
            mappings.decommit(self._area, 0, len(self._area), rights)

    def close(self) -> None:
        """Close the array and free its memory. A second call does nothing.

        Raises BufferError if an object such as a memoryview or a numpy array still uses the memory.
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
