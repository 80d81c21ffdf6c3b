"""Snapshots, which processes share without a copy, and views of them."""

from __future__ import annotations

import errno
import os
import weakref
from typing import Any, ClassVar, Self, SupportsIndex, TypeAlias

from .._os import fds, mappings, memfd
from .._wire import fd_passing
from . import file_mappings
from .access import Access
from .backing_file import BackingFile
from .closing import Closing
from .file_mappings import Use
from .optional import numpy_for
from .region import FREE, MemoryRegion, check_items, check_length, runs

__all__ = ["Snapshot", "View", "borrow"]

_STEP = 1 << 20

# The data type, shape and order of an array.
Layout: TypeAlias = tuple[Any, tuple[int, ...], str]


class View(MemoryRegion):
    """The writable bytes of a `Snapshot`: a buffer for memoryview, numpy and others.

    `Snapshot.view` and `Snapshot.view_mut` create it. A view keeps its snapshot alive. Indexing
    gives numbers, slicing bytes, and both can be assigned to. A view that is sent to another
    process keeps its protection.

    Example::

        with snapshot.view() as view:
            view[0:5] = b"hello"
            array = np.frombuffer(view, dtype="u1")
    """

    _kind: ClassVar[str] = "view"

    def __init__(
        self,
        root: BackingFile,
        layout: Layout | None = None,
        *,
        shared: bool = False,
        writer: bool = False,
        offset: int = 0,
        access: Access = FREE,
    ) -> None:
        length = root.length - offset
        area = None
        if length:
            size = mappings.round_up(length)
            area = mappings.reserve(size)
            mappings.map_file(area, root.fd, offset, size, shared=shared, rights=access.value)
            use = Use.PRIVATE
            if shared:
                use = Use.WRITER if writer else Use.SHARED
            file_mappings.note(area, root, offset=offset, length=length, use=use)
        super().__init__(area, length)
        self._root = root
        self._layout = layout
        self._shared = shared
        self._offset = offset
        if area is not None and access != FREE:
            self._rights = bytearray([access.value]) * (self.size // mappings.PAGE)

    @property
    def writes_through(self) -> bool:
        """Whether writes to the view change the snapshot."""
        return self._shared

    def restore(self) -> None:
        """Reset the view to the content of the snapshot; changes and protection are dropped.

        The address stays the same, so memoryviews and arrays stay valid and show the restored
        content. Raises TypeError if the view writes to the snapshot, which keeps no old content.
        """
        self._check_open()
        if self._shared:
            raise TypeError("a view that writes to its snapshot can't be restored")
        if self._area is not None:
            size = self.size
            mappings.map_file(self._area, self._root.fd, self._offset, size, shared=False)
        self._rights = None
        self._changes += 1

    def take_snapshot(self) -> Snapshot:
        """Copy the current content into a new snapshot.

        Raises PermissionError if a part of the view may not be read, OSError if memory is short.
        """
        self._check_open()
        self._check(0, self._length, Access.READ)
        made = Snapshot.from_bytes(self)
        made._layout = self._layout
        return made

    def is_changed(self) -> bool:
        """Return whether the view may differ from its snapshot; True if that is unknown."""
        self._check_open()
        if self._shared or self._area is None:
            return False
        return mappings.is_private_copy(self._address(), self.size)

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> Any:
        bundle = _bundle(self)
        if self._shared:
            raise TypeError("a view that writes to its snapshot can't be sent to another process")
        rights = runs(self._rights, 0, self.size) if self._rights else []
        if self._offset or self.is_changed():
            return _reopen_view, (*self.take_snapshot()._lend(bundle), rights)
        snapshot = Snapshot._of(self._root, self._layout)
        return _reopen_view, (*snapshot._lend(bundle), rights)


class Snapshot(Closing):
    """Immutable bytes with any number of views.

    A snapshot is a file in memory (a memfd). Each `view` begins with the content of the snapshot;
    writes to a view copy the page (copy-on-write) and change only that view. Passing a snapshot to
    an isolated function costs nothing, whatever its size, and a process that keeps its large data
    in snapshots forks as fast as a small one. Besides the methods ``from_...`` of this class,
    `View.take_snapshot` creates one.

    Until a snapshot is sealed, `view_mut` can write to it; pages that a view has not written to
    show these changes, too. A snapshot is sealed by `seal`, and when it is passed to a child or
    comes from one. No process can change a sealed snapshot.

    Example::

        weights = Snapshot.from_array(load_weights())

        def classify(image):
            return model(weights.as_array(), image)

        label = await run_isolated(classify, image)
    """

    __slots__ = ("__weakref__", "_layout", "_root")

    _root: BackingFile | None
    # The layout of the array that the snapshot was made from.
    _layout: Layout | None

    def __init__(self) -> None:
        raise TypeError("use Snapshot.zeroed, from_bytes, from_file or from_array")

    @classmethod
    def _of(cls, root: BackingFile, layout: Layout | None = None) -> Self:
        self = object.__new__(cls)
        self._root = root
        self._layout = layout
        return self

    @classmethod
    def zeroed(cls, length: int, /) -> Self:
        """Create a snapshot of *length* zero bytes, which uses memory only for written pages.

        Raises TypeError or ValueError if *length* is not a length, OSError with the size if memory
        is short.
        """
        check_length(length)
        root = BackingFile.create(length)
        memfd.fix_size(root.fd)
        return cls._of(root)

    @classmethod
    def from_bytes(cls, content: Any, /) -> Self:
        """Copy a buffer: bytes, bytearray, memoryview, a numpy array...

        A buffer that is not contiguous, or in Fortran order, is copied in its logical (C) order.
        Raises TypeError if *content* is no buffer or its items are Python objects, OSError with the
        size if memory is short.
        """
        flat = _flat(content)
        root = BackingFile.create(flat.nbytes)
        root.fill(flat)
        memfd.fix_size(root.fd)
        return cls._of(root)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], /) -> Self:
        """Copy the current content of a file. Raises OSError."""
        with open(path, "rb", buffering=0) as file:
            root = BackingFile.create(os.fstat(file.fileno()).st_size)
            done = 0
            while piece := file.read(_STEP):
                root.fill(memoryview(piece), done)
                done += len(piece)
        if done != root.length:  # a file without a size, as in /proc, or one that is being written
            os.ftruncate(root.fd, mappings.round_up(done))
            root.length = done
        memfd.fix_size(root.fd)
        return cls._of(root)

    @classmethod
    def from_array(cls, array: Any, /) -> Self:
        """Copy a numpy array, or an object that numpy can convert; `as_array` returns the array.

        Raises TypeError if its items are Python objects, OSError if memory is short, and
        ImportError without numpy.
        """
        np = numpy_for("Snapshot.from_array")
        array = np.asarray(array)
        if array.dtype.hasobject:
            raise TypeError(f"an array of Python objects ({array.dtype}) can't be a snapshot")
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        flat = array.ravel(order).view(np.uint8) if array.size else np.empty(0, np.uint8)
        self = cls.from_bytes(flat)
        self._layout = (array.dtype, array.shape, order)
        return self

    def as_array(self) -> Any:
        """Return a writable numpy array on a new view; changes stay in the array.

        It has the data type and shape of the array given to `from_array`; for other snapshots it is
        an array of bytes.
        """
        np = numpy_for("Snapshot.as_array")
        dtype, shape, order = self._layout or (np.dtype(np.uint8), (len(self),), "C")
        if not len(self):
            return np.empty(shape, dtype, order)
        # Not np.ndarray(buffer=): it would not count as a use of the view.
        flat = np.frombuffer(self.view(), np.uint8)
        return flat.view(dtype).reshape(shape, order=order)

    def __len__(self) -> int:
        return self._open().length

    @property
    def size(self) -> int:
        """The length in bytes, rounded up to whole pages."""
        return mappings.round_up(len(self))

    @property
    def sealed(self) -> bool:
        """Whether the snapshot is sealed, so that no process can change it."""
        root = self._open()
        return root.frozen or memfd.is_sealed(root.fd)

    @property
    def closed(self) -> bool:
        """Whether the snapshot is closed."""
        return self._root is None

    def __repr__(self) -> str:
        if self._root is None:
            return "<Snapshot closed>"
        return f"<Snapshot of {len(self)} bytes{' sealed' if self.sealed else ''}>"

    def view(self) -> View:
        """Open a writable view; writes change only that view.

        Any number of views can be open. Raises MemoryError with the size if memory is short.
        """
        return View(self._open(), self._layout)

    def view_mut(self) -> View:
        """Open a view that writes to the snapshot itself; only one can be open.

        Raises BufferError if one is open already, PermissionError if the snapshot is sealed or
        belongs to the process that this one was forked from.
        """
        root = self._open()
        if root.writing() is not None:
            raise BufferError(
                f"{self!r} already has a view that writes to it: close that view first"
            )
        if root.pid != os.getpid():
            raise PermissionError(
                errno.EPERM, f"{self!r} belongs to process {root.pid}, which is not this one"
            )
        if self.sealed:
            raise PermissionError(errno.EPERM, f"{self!r} can't be changed: it is sealed")
        view = View(root, self._layout, shared=True, writer=True)
        # The memory, which arrays may keep alive after the view is collected.
        root.writer = weakref.ref(view if view._area is None else view._area)
        return view

    def seal(self) -> None:
        """Forbid all processes to change the snapshot later. A second call does nothing.

        Raises BufferError while a view that writes to the snapshot is open.
        """
        self._open().seal()

    def clone(self) -> Self:
        """Return a second snapshot object of the same bytes, which is closed separately."""
        return self._of(self._open(), self._layout)

    def close(self) -> None:
        """Close this object; the memory is freed when all views and clones are closed, too."""
        self._root = None

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> Any:
        return _reopen, self._lend(_bundle(self))

    def _lend(self, bundle: fd_passing.FdBundle) -> tuple[int, int, Layout | None]:
        """Seal and add to *bundle*; return `_reopen`'s arguments. Raises BufferError if in use."""
        root = self._open()
        root.seal()
        return bundle.add(root.fd, root), root.length, self._layout

    def _check_open(self) -> None:
        self._open()

    def _open(self) -> BackingFile:
        if self._root is None:
            raise ValueError("the Snapshot is closed")
        return self._root


def borrow(fd: int, offset: int, length: int, *, shared: bool) -> memoryview:
    """Map *length* bytes of the file *fd*, which stays open, from *offset*.

    If *shared* is true, writes reach the file; the memory is read-only if *fd* is. Otherwise writes
    change only this mapping. Raises ProtocolError if `BackingFile.adopt` refuses the file,
    MemoryError if memory is short.
    """
    root = BackingFile.adopt(fd, offset + length, fixed_only=shared)
    start = offset // mappings.PAGE * mappings.PAGE
    access = Access.READ if shared and fds.is_for_reading(root.fd) else FREE
    view = View(root, shared=shared, offset=start, access=access)
    return memoryview(view)[offset - start :]


def _bundle(obj: object) -> fd_passing.FdBundle:
    """Return the current bundle, which is to carry the file of *obj*. Raises TypeError."""
    bundle = fd_passing.bundle()
    if bundle is None or not memfd.sealable():
        raise TypeError(
            f"{obj!r} can't be pickled: it can be sent only as an argument or result of an "
            f"isolated function{'' if memfd.sealable() else ', and not on this platform'}"
        )
    return bundle


def _reopen(index: int, length: int, layout: Layout | None) -> Snapshot:
    return Snapshot._of(BackingFile.adopt(fd_passing.arrived(index), length), layout)


def _reopen_view(
    index: int, length: int, layout: Layout | None, rights: list[tuple[int, int, int]]
) -> View:
    view = View(BackingFile.adopt(fd_passing.arrived(index), length), layout)
    for start, size, value in rights:
        view.protect(slice(start, start + size), Access(value))
    return view


def _flat(content: Any) -> memoryview:
    """Return the bytes of a buffer, copied only if they are not contiguous."""
    try:
        view = memoryview(content)
    except (TypeError, ValueError, BufferError) as exc:
        # numpy exports no buffer for some types (dates), but can copy their bytes.
        if hasattr(content, "__array_interface__"):
            if content.dtype.hasobject:
                raise TypeError(
                    f"an array of Python objects ({content.dtype}) can't be a snapshot"
                ) from exc
            return memoryview(content.tobytes())
        raise TypeError(
            f"a snapshot is made of bytes or of another buffer, not of {type(content).__qualname__}"
        ) from exc
    check_items(view, "a snapshot")
    return view.cast("B") if view.c_contiguous and view.nbytes else memoryview(view.tobytes())
