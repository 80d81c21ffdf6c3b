"""Private pages of memory, with protection, guard pages, advice and machine code."""

from __future__ import annotations

import errno
import mmap
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NoReturn

from .._os import machine_code, mappings
from .access import Access, Advice
from .region import FREE, MemoryRegion, check_length, runs

__all__ = ["Pages"]

_STEP = 1 << 16
_ZEROS = bytes(_STEP)
# Advice that acts once and does not last.
_ONE_TIME = frozenset({Advice.WILLNEED, Advice.COLD, Advice.PAGEOUT})


class Pages(MemoryRegion):
    """Private memory, filled with zeros, in whole pages; like `View`, it is a buffer.

    Indexing gives numbers, slicing bytes, and both can be assigned to. An isolated function sees
    its own copy, as of all private memory.

    With *guard*, the pages before the first and after the last are inaccessible: C code that runs
    over the end crashes instead of changing other memory, and a crash in an isolated child is an
    ordinary error. The guard begins at the end of a page. If the length is no multiple of
    `page_size`, an overrun within the last page goes unnoticed.

    With *huge*, the memory is aligned to the size of a huge page, and the kernel is asked to use
    huge pages, which makes random access to large data faster.

    Args:
        length: the number of bytes.
        access: the access rights; not WRITE and EXEC at once.
        guard: keep an inaccessible page on both sides.
        huge: ask for huge pages.

    Raises:
        TypeError, ValueError: the length is no number, or negative; WRITE and EXEC are combined.
        MemoryError: memory is short.
        OSError: the system has no huge pages, or they are turned off.

    Example::

        with Pages(100_000, guard=True) as pages:
            pages[:5] = b"hello"
            array = np.frombuffer(pages, dtype="u1")
            ...
    """

    _kind: ClassVar[str] = "memory"

    def __init__(
        self, length: int, access: Access = FREE, *, guard: bool = False, huge: bool = False
    ) -> None:
        check_length(length)
        if not isinstance(access, Access):
            raise TypeError(f"access must be an Access, not {access!r}")
        if huge:
            mappings.check_huge_pages()
        self._initial = access
        self._guard = guard
        self._unit = mappings.huge_page_size() if huge else mappings.PAGE
        # The advice that lasts, which a resize applies to new pages, with start and end. The end is
        # None if the advice is for all of the memory, also after a resize.
        self._advised: list[tuple[Advice, int, int | None]] = []
        area, start = self._map(length)
        super().__init__(area, length, start)
        if huge:
            self.advise(Advice.HUGEPAGE)
        if access != FREE:
            self.protect(access)

    @property
    def size(self) -> int:
        """The length in bytes, rounded up to whole pages (to huge pages if created with *huge*)."""
        return self._size_for(self._length)

    def _size_for(self, length: int) -> int:
        return -(-length // self._unit) * self._unit

    def _map(self, length: int) -> tuple[mmap.mmap | None, int]:
        """Map memory for *length* bytes; return it and the offset of the first byte."""
        size = self._size_for(length)
        if not size:
            return None, 0
        # The beginning must be aligned for huge pages, which mmap does not guarantee.
        align, border = self._unit, mappings.PAGE if self._guard else 0
        spare = 2 * border + (align if align > mappings.PAGE else 0)
        area = mappings.reserve(size + spare)
        if not spare:
            return area, 0
        address = mappings.address_of(area)
        start = -(-(address + border) // align) * align - address
        # The rest on both sides is inaccessible.
        mappings.protect(address, start, mappings.NONE)
        mappings.protect(address + start + size, spare - start, mappings.NONE)
        return area, start

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

        Example::

            pages[: len(code)] = code
            pages.protect(Access.READ | Access.EXEC)
            pages.protect(slice(0, page_size()), Access.READ | Access.WRITE)
        """
        super().protect(where, access)
        where, access = (slice(None), where) if isinstance(where, Access) else (where, access)
        if self._area is not None and access is not None and (Access.READ | Access.EXEC) in access:
            start, size = self._whole_pages(where)
            machine_code.publish_code(self._address() + start, size)

    def advise(self, advice: Advice, where: slice = slice(None)) -> None:
        """Advise the kernel about the use of the memory; see madvise(2).

        Two values change the memory of forked children, isolated ones included. WIPEONFORK: the
        children find zeros, which protects keys and passwords. DONTFORK: the children do not have
        the memory, and crash if they touch it.

        Args:
            advice: the advice.
            where: a slice of whole pages, in bytes; everything by default.

        Raises:
            NotImplementedError: the platform has no such advice.
            ValueError: the slice is not made of whole pages.
            OSError: the kernel refuses.

        Example::

            secret = Pages(4096)
            secret.advise(Advice.WIPEONFORK)
        """
        number = advice.number()
        start, size = self._whole_pages(where)
        if self._area is not None and size:
            mappings.advise(self._area, number, self._start + start, size)
        if advice not in _ONE_TIME:
            entry = advice, start, None if size == self.size else start + size
            self._advised = [*(old for old in self._advised if old != entry), entry]

    def decommit(self, where: slice = slice(None)) -> None:
        """Return the memory to the kernel; it stays usable and reads as zeros afterwards.

        Args:
            where: a slice of whole pages, in bytes; everything by default.

        Raises:
            ValueError: the slice is not made of whole pages.
            OSError: the kernel refuses.

        Example::

            pages.decommit()
        """
        start, size = self._whole_pages(where)
        if self._area is None or not size:
            return
        for first, length, rights in runs(self._rights, start, size):
            mappings.decommit(self._area, self._start + first, length, rights)
        self._changes += 1

    def resize(self, length: int) -> None:
        """Change the length. The content is kept; added bytes are zero.

        The memory may move. Pages keep their protection and advice; new pages get the protection
        that the object was created with. Nothing is copied unless the object has a guard, huge
        pages or pages of different protection.

        Args:
            length: the new number of bytes.

        Raises:
            TypeError, ValueError: the length is no number, or negative.
            BufferError: a memoryview or an array still uses the memory.
            MemoryError: memory is short.

        Example::

            pages.resize(2 * len(pages))
        """
        self._check_open()
        check_length(length)
        if self._area is not None:
            mappings.check_unused(self._area)
        before, after = self.size, self._size_for(length)
        if before != after:
            self._move(length, after)
        self._changes += 1
        gone, self._length = self._length, length
        if length < gone:  # if it grows again, the added bytes must be zero
            self._wipe(length, min(gone, after))

    def get_function(
        self, offset: int, restype: Any = None, argtypes: Sequence[Any] = ()
    ) -> Callable[..., Any]:
        """Return a callable for the machine code at *offset*, with the C calling convention.

        The callable keeps the pages alive. After a change of protection or length, `decommit` or
        `close`, a call raises PermissionError; get a new callable then.

        Args:
            offset: the offset of the function.
            restype: the type of its result, a `ctypes` type; None if it has no result.
            argtypes: the types of its arguments, `ctypes` types.

        Raises:
            PermissionError: the page is not executable.
            IndexError: the offset is out of range.

        Example::

            pages.protect(Access.READ | Access.EXEC)
            add = pages.get_function(0, ctypes.c_int64, [ctypes.c_int64, ctypes.c_int64])
            assert add(43, 34) == 77
        """
        at = self._index(operator.index(offset))
        page = at // mappings.PAGE
        if self._rights is None or not self._rights[page] & Access.EXEC.value:
            raise PermissionError(
                errno.EACCES,
                f"byte {at} of {self!r} may not be executed: call protect with Access.EXEC first",
            )
        changes = self._changes
        function = machine_code.function_at(self._address() + at, restype, argtypes)

        def call(*args: Any) -> Any:
            """Call the machine code."""
            area = self._area
            if area is None or self._changes != changes:
                raise PermissionError(
                    errno.EACCES,
                    f"{self!r} has changed since the function was created: call get_function again",
                )
            with memoryview(area):  # prevents closing during the call
                return function(*args)

        return call

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "Pages can't be pickled, since they are private memory of this process; send "
            "Snapshot.from_bytes(pages)"
        )

    # Parts of resize

    def _move(self, length: int, after: int) -> None:
        """Replace the memory by memory of another size, with its content, rights and advice."""
        area = self._area
        # The kernel can move the memory only if it is a single mapping with uniform attributes.
        alike = self._rights is None and all(stop is None for _, _, stop in self._advised)
        made: mmap.mmap | None
        if area is not None and after and alike and len(area) == self.size:
            made, start = mappings.resize(area, after), 0
        else:
            made, start = self._map(length)
        rights = self._rights_for(after)
        if made is not None:
            if made is not area:
                self._advise_all(made, start, after)
            if area is not None and area is not made and not area.closed:
                self._copy_to(made, start, min(length, self._length))
            address = mappings.address_of(made) + start
            for first, size, value in runs(rights, 0, after):
                if value != FREE.value:
                    mappings.protect(address + first, size, value)
        if area is not None and made is not area:
            area.close()
        self._area, self._start, self._rights = made, start, rights

    def _rights_for(self, after: int) -> bytearray | None:
        """Return the rights for another size: new pages have the initial rights."""
        if self._rights is None and self._initial == FREE:
            return None
        page, kept = mappings.PAGE, min(self.size, after)
        rights = bytearray([FREE.value]) * (kept // page)
        if self._rights is not None:
            rights = self._rights[: kept // page]
        rights += bytes([self._initial.value]) * ((after - kept) // page)
        return None if rights.count(FREE.value) == len(rights) else rights

    def _advise_all(self, made: mmap.mmap, start: int, size: int) -> None:
        """Apply the advice that lasts to new memory."""
        for advice, first, stop in self._advised:
            last = size if stop is None else min(stop, size)
            if first < last:
                mappings.advise(made, advice.number(), start + first, last - first)

    def _copy_to(self, made: mmap.mmap, at: int, count: int) -> None:
        """Copy the content to zeroed memory; blocks of zeros are skipped and use no memory."""
        assert self._area is not None
        for first, size, value in runs(self._rights, 0, self.size):
            if not value & Access.READ.value:
                mappings.protect(self._address() + first, size, Access.READ.value)
        with memoryview(self._area) as source, memoryview(made) as target:
            for done in range(0, count, _STEP):
                step = min(_STEP, count - done)
                piece = bytes(source[self._start + done : self._start + done + step])
                if piece != _ZEROS[:step]:
                    target[at + done : at + done + step] = piece

    def _wipe(self, start: int, stop: int) -> None:
        """Zero bytes that are no longer in use, with any rights."""
        area, page = self._area, mappings.PAGE
        if area is None or start >= stop:
            return
        whole = mappings.round_up(start)
        if start < whole:
            first = whole - page
            ((_, _, value),) = runs(self._rights, first, page)
            address = self._address() + first
            mappings.protect(address, page, FREE.value)
            area[self._start + start : self._start + whole] = bytes(whole - start)
            mappings.protect(address, page, value)
        for first, size, value in runs(self._rights, whole, mappings.round_up(stop) - whole):
            mappings.decommit(area, self._start + first, size, value)
