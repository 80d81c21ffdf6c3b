"""The common base of views and pages: memory that is indexed, exported and protected."""

from __future__ import annotations

import errno
import mmap
import operator
import re
from typing import Any, ClassVar, SupportsIndex, overload

from .._os import mappings
from .._os.buffers import WRITABLE, exports_buffer
from .access import Access
from .closing import Closing

__all__ = ["FREE", "MemoryRegion", "check_items", "check_length", "runs"]

FREE = Access.READ | Access.WRITE
# The field names in a buffer's format, as in "T{d:Offset:O:object:}".
_NAMES = re.compile(":[^:]*:")
# For each right, the values of a page's rights byte that include it.
_ALLOW = {
    need: bytes(value for value in range(8) if value & need.value)
    for need in (Access.READ, Access.WRITE)
}


@exports_buffer
class MemoryRegion(Closing):
    """A region of memory with a fixed address; the base of `View` and `Pages`.

    It records the rights of each page, so that its methods raise an exception instead of crashing.
    """

    _kind: ClassVar[str] = "memory"

    def __init__(self, area: mmap.mmap | None, length: int, start: int = 0) -> None:
        """Use *length* bytes of *area* from *start*, the start of a page; None: an empty region."""
        self._area = area
        self._length = length
        self._start = start
        self._closed = False
        # A byte for each page; None while all are readable and writable.
        self._rights: bytearray | None = None
        # Counts the changes that invalidate pointers into the memory.
        self._changes = 0

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<{type(self).__qualname__} of {self._length} bytes{state}>"

    @property
    def size(self) -> int:
        """The length in bytes, rounded up to whole pages."""
        return mappings.round_up(self._length)

    @property
    def closed(self) -> bool:
        """Whether this object is closed."""
        return self._closed

    def close(self) -> None:
        """Close this object and free the memory. A second call does nothing.

        Raises BufferError if an object such as a memoryview or a numpy array still uses the memory.
        """
        if self._area is not None:
            try:
                self._area.close()
            except BufferError as exc:
                raise BufferError(
                    f"{self!r} can't be closed: a memoryview or an array still uses its memory"
                ) from exc
        self._area = None
        self._closed = True
        self._changes += 1

    # Reading and writing

    def __buffer__(self, flags: int, /) -> memoryview:
        self._check_open()
        if self._area is None:
            return memoryview(bytearray())
        self._check(0, self._length, Access.READ)
        # The mmap object counts its exports.
        view = memoryview(self._area)[self._start : self._start + self._length]
        if self._allows(0, self._length, Access.WRITE):
            return view
        if flags & WRITABLE:
            self._check(0, self._length, Access.WRITE)
        return view.toreadonly()

    def __release_buffer__(self, view: memoryview, /) -> None:
        view.release()

    @overload
    def __getitem__(self, key: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> bytes: ...
    def __getitem__(self, key: SupportsIndex | slice, /) -> int | bytes:
        if isinstance(key, slice):
            start, stop, step = self._indices(key)
            if self._area is None:
                return b""
            self._check(*_span(start, stop, step), Access.READ)
            with memoryview(self._area) as whole, self._mine(whole) as mine:
                return bytes(mine[key])
        at = self._index(key)
        self._check(at, at + 1, Access.READ)
        assert self._area is not None
        return self._area[self._start + at]

    def __setitem__(self, key: SupportsIndex | slice, value: Any, /) -> None:
        if isinstance(key, slice):
            start, stop, step = self._indices(key)
            with memoryview(value) as given:
                if not given.nbytes == len(range(start, stop, step)):
                    raise ValueError(
                        f"a slice of {len(range(start, stop, step))} bytes can't be set to "
                        f"{given.nbytes} bytes: the size of {self!r} is fixed"
                    )
                if self._area is None or not given.nbytes:
                    return
                check_items(given, f"a slice of a {self._kind}")
                self._check(*_span(start, stop, step), Access.WRITE)
                with memoryview(self._area) as whole, self._mine(whole) as mine:
                    mine[key] = given.cast("B") if given.c_contiguous else given.tobytes()
            return
        at = self._index(key)
        self._check(at, at + 1, Access.WRITE)
        assert self._area is not None
        self._area[self._start + at] = value

    def _mine(self, whole: memoryview) -> memoryview:
        return whole[self._start : self._start + self._length]

    def _index(self, key: SupportsIndex) -> int:
        self._check_open()
        at = wanted = operator.index(key)
        if at < 0:
            at += self._length
        if not 0 <= at < self._length:
            raise IndexError(f"{wanted} is not in {self!r}")
        return at

    def _indices(self, key: slice) -> tuple[int, int, int]:
        self._check_open()
        return key.indices(self._length)

    # Rights

    def protect(self, where: slice | Access, access: Access | None = None) -> None:
        """Set the access rights of the memory, or of a slice of whole pages.

        C code (a memoryview, numpy, an extension) that violates them crashes the process; in an
        isolated child a crash is an ordinary error. This object's own methods raise PermissionError
        instead.

        Args:
            where: a slice, in bytes, that begins and ends at a page boundary or at the end of the
                memory; everything by default.
            access: the access rights.

        Raises:
            ValueError: the slice is not made of whole pages, or WRITE and EXEC are combined.
            OSError: the kernel refuses.
        """
        if access is None and isinstance(where, Access):
            access, where = where, slice(None)
        if not isinstance(where, slice) or not isinstance(access, Access):
            raise TypeError(
                f"expected protect(slice, access) or protect(access), not ({where!r}, {access!r})"
            )
        _check_exclusive(access)
        start, size = self._whole_pages(where)
        if self._area is None:
            return
        mappings.protect(self._address() + start, size, access.value)
        if self._rights is None:
            self._rights = bytearray([FREE.value]) * (self.size // mappings.PAGE)
        first, last = start // mappings.PAGE, (start + size) // mappings.PAGE
        self._rights[first:last] = bytes([access.value]) * (last - first)
        if self._rights.count(FREE.value) == len(self._rights):
            self._rights = None
        self._changes += 1

    def _whole_pages(self, where: slice) -> tuple[int, int]:
        """Return the start and the size of a slice of whole pages."""
        self._check_open()
        page, size = mappings.PAGE, self.size
        start = 0 if where.start is None else operator.index(where.start)
        stop = size if where.stop is None else operator.index(where.stop)
        if stop == self._length:
            stop = size
        if where.step not in (None, 1) or start % page or stop % page:
            raise ValueError(
                f"{where!r} is not made of whole pages: it must begin and end at a multiple of "
                f"{page} or at the end"
            )
        if not 0 <= start <= stop <= size:
            raise ValueError(f"{where!r} is not inside {self!r}")
        return start, stop - start

    def _address(self) -> int:
        return mappings.address_of(self._area) + self._start

    def _allows(self, start: int, stop: int, need: Access) -> bool:
        if self._rights is None:
            return True
        page = mappings.PAGE
        return not self._rights[start // page : -(-stop // page)].translate(None, _ALLOW[need])

    def _check(self, start: int, stop: int, need: Access) -> None:
        if not self._allows(start, stop, need):
            raise PermissionError(
                errno.EACCES,
                f"bytes {start} to {stop} of {self!r} may not be "
                f"{'read' if need is Access.READ else 'written'}: they are protected",
            )

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"the {self._kind} is closed")


def check_length(length: int) -> None:
    """Raise TypeError or ValueError if *length* is not a length in bytes."""
    if isinstance(length, bool) or not isinstance(length, int):
        raise TypeError(f"the length must be a number of bytes, not {length!r}")
    if length < 0:
        raise ValueError(f"the length must be at least 0, not {length}")


def check_items(given: memoryview, purpose: str) -> None:
    """Raise TypeError if a buffer holds Python objects: other processes do not have these."""
    if "O" in _NAMES.sub("", given.format):
        raise TypeError(f"an array of Python objects ({given.format!r}) can't be {purpose}")


def runs(rights: bytearray | None, start: int, size: int) -> list[tuple[int, int, int]]:
    """Split whole pages into runs with the same rights: start, size and rights of each."""
    page = mappings.PAGE
    if rights is None:
        return [(start, size, FREE.value)] if size else []
    found: list[tuple[int, int, int]] = []
    for at in range(start, start + size, page):
        value = rights[at // page]
        if found and found[-1][2] == value:
            found[-1] = (found[-1][0], found[-1][1] + page, value)
        else:
            found.append((at, page, value))
    return found


def _check_exclusive(access: Access) -> None:
    """Raise ValueError if *access* has both WRITE and EXEC."""
    if Access.WRITE in access and Access.EXEC in access:
        raise ValueError(
            "memory is either writable or executable: write first, then protect(Access.READ | "
            "Access.EXEC)"
        )


def _span(start: int, stop: int, step: int) -> tuple[int, int]:
    """Return the index of the first byte of a slice, and the index after its last byte."""
    touched = range(start, stop, step)
    if not touched:
        return 0, 0
    ends = touched[0], touched[-1]
    return min(ends), max(ends) + 1
