"""Private pages of memory: protected, guarded, advised, given back, and run."""

from __future__ import annotations

import errno
import mmap
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NoReturn

from .._os import machine_code, mappings
from .access import Access, Advice
from .region import FREE, MemoryRegion, runs

__all__ = ["Pages"]

_STEP = 1 << 16
_ZEROS = bytes(_STEP)
# What is advised once, rather than said about all time to come.
_PASSING = frozenset({Advice.WILLNEED, Advice.COLD, Advice.PAGEOUT})


class Pages(MemoryRegion):
    """Memory of this process's own, full of zeros, in whole pages: a buffer as `View` is.

    Indexing gives numbers, slicing bytes, and both can be assigned to. An isolated function sees a
    copy of its own, as of all private memory.

    With *guard* the pages before the first and after the last may not be touched: what runs over
    the end, in C, crashes instead of writing elsewhere, which in an isolated child is an error
    like any other. That can only be at the end of a page; so for a length that is no multiple of
    `page_size`, the rest of the last page can be overrun unnoticed.

    With *huge* the memory begins and ends at the size of a huge page and asks the kernel for such,
    which makes large data faster to go through at random.

    Args:
        length: how many bytes.
        access: what may be done with them; not WRITE and EXEC at once.
        guard: keep a forbidden page on both sides.
        huge: ask for huge pages.

    Raises:
        TypeError, ValueError: the length is no number, or negative; WRITE and EXEC are combined.
        MemoryError: there is no room for that many bytes.
        OSError: there are no huge pages here, or they are turned off.

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
        _check_length(length)
        if not isinstance(access, Access):
            raise TypeError(f"access must be an Access, not {access!r}")
        if huge:
            mappings.vet_huge_pages()
        self._initial = access
        self._guard = guard
        self._unit = mappings.huge_page_size() if huge else mappings.PAGE
        # What has been advised, for a resize that makes new pages: advice, beginning and end, which
        # is None if it is for all, whatever the length.
        self._advised: list[tuple[Advice, int, int | None]] = []
        area, start = self._map(length)
        super().__init__(area, length, start)
        if huge:
            self.advise(Advice.HUGEPAGE)
        if access != FREE:
            self.protect(access)

    @property
    def size(self) -> int:
        """Its length in bytes, rounded up to whole pages, huge ones if it was made for them."""
        return self._size_for(self._length)

    def _size_for(self, length: int) -> int:
        return -(-length // self._unit) * self._unit

    def _map(self, length: int) -> tuple[mmap.mmap | None, int]:
        """Map room for *length* bytes, and tell where in it they begin."""
        size = self._size_for(length)
        if not size:
            return None, 0
        # For huge pages the beginning must be aligned, which mmap does not promise.
        align, border = self._unit, mappings.PAGE if self._guard else 0
        spare = 2 * border + (align if align > mappings.PAGE else 0)
        area = mappings.reserve(size + spare)
        if not spare:
            return area, 0
        address = mappings.address_of(area)
        start = -(-(address + border) // align) * align - address
        # All that is left over is forbidden.
        mappings.protect(address, start, mappings.NONE)
        mappings.protect(address + start + size, spare - start, mappings.NONE)
        return area, start

    def protect(self, where: slice | Access, access: Access | None = None) -> None:
        """Set what may be done with all of it, or with a slice of whole pages, from now on.

        Whatever breaks this from C (a memoryview, numpy, an extension) crashes the process: in an
        isolated child that is an error like any other. What goes through this object's own methods
        is refused by a PermissionError.

        Args:
            where: the slice, in bytes, beginning and ending at a page or at the end of all; left
                out: everything.
            access: what may be done.

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
        """Tell the kernel what is going to be done with it; see madvise(2).

        Two of them change what forked children see, isolated ones included. WIPEONFORK: they find
        zeros, as befits keys and passwords. DONTFORK: they have no such memory at all, and crash if
        they touch it.

        Args:
            advice: what is going to be done.
            where: a slice of whole pages, in bytes; left out: everything.

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
        if advice not in _PASSING:
            entry = advice, start, None if size == self.size else start + size
            self._advised = [*(old for old in self._advised if old != entry), entry]

    def decommit(self, where: slice = slice(None)) -> None:
        """Give the memory back to the kernel; it stays usable and reads as zeros from then on.

        Args:
            where: a slice of whole pages, in bytes; left out: everything.

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
        """Change the length; the content is kept, what is added is zero.

        The memory may move. Pages keep their protection and advice; new ones get the protection
        that the object was made with. Without a guard, huge pages or different protections in it,
        nothing is copied.

        Args:
            length: how many bytes it is to have.

        Raises:
            TypeError, ValueError: the length is no number, or negative.
            BufferError: a memoryview or an array still uses the memory.
            MemoryError: there is no room for that many bytes.

        Example::

            pages.resize(2 * len(pages))
        """
        self._check_open()
        _check_length(length)
        if self._area is not None:
            mappings.vet_unused(self._area)
        before, after = self.size, self._size_for(length)
        if before != after:
            self._move(length, after)
        self._changes += 1
        gone, self._length = self._length, length
        if length < gone:  # should it grow again, what comes back is zero
            self._wipe(length, min(gone, after))

    def get_function(
        self, offset: int, restype: Any = None, argtypes: Sequence[Any] = ()
    ) -> Callable[..., Any]:
        """Return what calls the machine code at *offset*, by the C calling convention.

        It keeps the pages alive. After any change of protection or length, after `decommit` and
        after `close` it refuses to be called, with a PermissionError; ask for another then.

        Args:
            offset: where the function begins.
            restype: what it returns, a type of `ctypes`; None: nothing.
            argtypes: what it takes, types of `ctypes`.

        Raises:
            PermissionError: the page is not executable.
            IndexError: the offset is outside.

        Example::

            pages.protect(Access.READ | Access.EXEC)
            add = pages.get_function(0, ctypes.c_int64, [ctypes.c_int64, ctypes.c_int64])
            assert add(43, 34) == 77
        """
        at = self._index(operator.index(offset))
        page = at // mappings.PAGE
        if self._rights is None or not self._rights[page] & Access.EXEC.value:
            raise PermissionError(
                errno.EACCES, f"byte {at} of {self!r} may not be executed: protect it so first"
            )
        changes = self._changes
        function = machine_code.function_at(self._address() + at, restype, argtypes)

        def call(*args: Any) -> Any:
            """Call the machine code."""
            area = self._area
            if area is None or self._changes != changes:
                raise PermissionError(
                    errno.EACCES, f"{self!r} has changed since the function was got from it"
                )
            with memoryview(area):  # it can't be closed meanwhile
                return function(*args)

        return call

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "Pages can't be pickled: they are this process's own memory; "
            "Snapshot.from_bytes(pages) can"
        )

    # Parts of resize

    def _move(self, length: int, after: int) -> None:
        """Get memory of another size, with the content, protections and advice of this."""
        area = self._area
        # For the kernel it must be one mapping, all of a kind, to be moved as a whole.
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
        """Return the rights for another size: pages that are new have the first ones."""
        if self._rights is None and self._initial == FREE:
            return None
        page, kept = mappings.PAGE, min(self.size, after)
        rights = bytearray([FREE.value]) * (kept // page)
        if self._rights is not None:
            rights = self._rights[: kept // page]
        rights += bytes([self._initial.value]) * ((after - kept) // page)
        return None if rights.count(FREE.value) == len(rights) else rights

    def _advise_all(self, made: mmap.mmap, start: int, size: int) -> None:
        """Give new memory the advice that this has."""
        for advice, first, stop in self._advised:
            last = size if stop is None else min(stop, size)
            if first < last:
                mappings.advise(made, advice.number(), start + first, last - first)

    def _copy_to(self, made: mmap.mmap, at: int, count: int) -> None:
        """Copy the content to where there are zeros; only what is not zero will use memory."""
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
        """Make bytes zero that no longer count, whatever their rights."""
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


def _check_length(length: int) -> None:
    if isinstance(length, bool) or not isinstance(length, int):
        raise TypeError(f"the length must be a number of bytes, not {length!r}")
    if length < 0:
        raise ValueError(f"the length must be at least 0, not {length}")
