"""Snapshots, which any number of processes can have at no cost, and views of them."""

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
from .region import FREE, MemoryRegion, check_items, runs

__all__ = ["Snapshot", "View", "borrow"]

_STEP = 1 << 20

# The data type, shape and order of an array.
Layout: TypeAlias = tuple[Any, tuple[int, ...], str]


class View(MemoryRegion):
    """The bytes of a `Snapshot`, writable: a buffer for memoryview, numpy and the like.

    Made by `Snapshot.view` or `Snapshot.view_mut`; keeps its snapshot alive. Indexing gives
    numbers, slicing bytes, and both can be assigned to. In another process it is protected as here.

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
        """Whether what is written to it reaches the snapshot."""
        return self._shared

    def restore(self) -> None:
        """Make it again what the snapshot is: changes and protections are dropped.

        It stays where it is, so memoryviews and arrays of it stay valid and show the same. Raises
        TypeError if it writes to the snapshot, where there is nothing to go back to.
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
        """Copy it as it is now into a snapshot of its own.

        Raises PermissionError if a part of it may not be read, OSError if the copy does not fit.
        """
        self._check_open()
        self._check(0, self._length, Access.READ)
        made = Snapshot.from_bytes(self)
        made._layout = self._layout
        return made

    def is_changed(self) -> bool:
        """Tell whether it may differ from its snapshot; where that can't be known, True."""
        self._check_open()
        if self._shared or self._area is None:
            return False
        return mappings.is_private_copy(self._address(), self.size)

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> Any:
        bundle = _bundle(self)
        if self._shared:
            raise TypeError("a view that writes to its snapshot can't go to another process")
        rights = runs(self._rights, 0, self.size) if self._rights else []
        if self._offset or self.is_changed():
            return _reopen_view, (*self.take_snapshot()._lend(bundle), rights)
        snapshot = Snapshot._of(self._root, self._layout)
        return _reopen_view, (*snapshot._lend(bundle), rights)


class Snapshot(Closing):
    """Bytes that do not change, of which any number of views can be had.

    A file in memory (a memfd). Each `view` begins as what the snapshot holds; what is written to
    it is its own (copy-on-write), page by page. Handing it to an isolated function costs nothing
    for whatever size, and a process that keeps its large data in snapshots forks in the time of a
    small one.

    Until it is sealed `view_mut` can write to it, which pages that a view has not written yet will
    show as well. It is sealed by `seal`, or when it is handed to a child or comes from one; from
    then on nobody can change it any more, whatever he does.

    Example::

        weights = Snapshot.from_array(load_weights())

        def classify(image):
            return model(weights.as_array(), image)

        label = await run_isolated(classify, image)
    """

    __slots__ = ("__weakref__", "_layout", "_root")

    _root: BackingFile | None
    # Of the array that it was made from.
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
        """Make one of *length* zero bytes; memory is used only for what is written.

        Raises TypeError or ValueError for what is no length, OSError, naming the size, if it does
        not fit.
        """
        if isinstance(length, bool) or not isinstance(length, int):
            raise TypeError(f"the length must be a number of bytes, not {length!r}")
        if length < 0:
            raise ValueError(f"the length must be at least 0, not {length}")
        root = BackingFile.create(length)
        memfd.fix_size(root.fd)
        return cls._of(root)

    @classmethod
    def from_bytes(cls, content: Any, /) -> Self:
        """Copy anything that is a buffer: bytes, bytearray, memoryview, a numpy array...

        What is not contiguous is copied in its logical (C) order; what lies in Fortran's order,
        too. Raises TypeError if it is no buffer or its items are Python objects, OSError, naming
        the size, if it does not fit.
        """
        flat = _flat(content)
        root = BackingFile.create(flat.nbytes)
        root.fill(flat)
        memfd.fix_size(root.fd)
        return cls._of(root)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], /) -> Self:
        """Copy a file as it is now; later changes of the file are not seen. Raises OSError."""
        with open(path, "rb", buffering=0) as file:
            root = BackingFile.create(os.fstat(file.fileno()).st_size)
            done = 0
            while piece := file.read(_STEP):
                root.fill(memoryview(piece), done)
                done += len(piece)
        if done != root.length:  # it has no size of its own, as in /proc, or is being written
            os.ftruncate(root.fd, mappings.round_up(done))
            root.length = done
        memfd.fix_size(root.fd)
        return cls._of(root)

    @classmethod
    def from_array(cls, array: Any, /) -> Self:
        """Copy a numpy array, or whatever numpy makes one of; `as_array` gives it back.

        Raises TypeError if its items are Python objects, OSError if it does not fit, and
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
        """Return a numpy array on a view of its own: writable, changes stay in it.

        With the data type and shape of what `from_array` was given; of another snapshot, bytes.
        """
        np = numpy_for("Snapshot.as_array")
        dtype, shape, order = self._layout or (np.dtype(np.uint8), (len(self),), "C")
        if not len(self):
            return np.empty(shape, dtype, order)
        # Not np.ndarray(buffer=): that would not count as using the view.
        flat = np.frombuffer(self.view(), np.uint8)
        return flat.view(dtype).reshape(shape, order=order)

    def __len__(self) -> int:
        return self._open().length

    @property
    def size(self) -> int:
        """Its length in bytes, rounded up to whole pages."""
        return mappings.round_up(len(self))

    @property
    def sealed(self) -> bool:
        """Whether nobody can change it any more."""
        root = self._open()
        return root.frozen or memfd.is_sealed(root.fd)

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._root is None

    def __repr__(self) -> str:
        if self._root is None:
            return "<Snapshot closed>"
        return f"<Snapshot of {len(self)} bytes{' sealed' if self.sealed else ''}>"

    def view(self) -> View:
        """Open a view that may be written; what is written is seen only there.

        Any number at once. Raises MemoryError, naming the size, if it can't be mapped.
        """
        return View(self._open(), self._layout)

    def view_mut(self) -> View:
        """Open the view that writes to the snapshot itself, until it is closed.

        Raises BufferError if there is one already, PermissionError if the snapshot is sealed or
        belongs to the process that this one was forked from.
        """
        root = self._open()
        if root.writing() is not None:
            raise BufferError(f"{self!r} has a view that writes to it already")
        if root.pid != os.getpid():
            raise PermissionError(
                errno.EPERM, f"{self!r} belongs to process {root.pid}, which is not this one"
            )
        if self.sealed:
            raise PermissionError(errno.EPERM, f"{self!r} can't be changed: it is sealed")
        view = View(root, self._layout, shared=True, writer=True)
        # The memory, which arrays may keep when the view itself is forgotten.
        root.writer = weakref.ref(view if view._area is None else view._area)
        return view

    def seal(self) -> None:
        """Let nobody change it any more, in whatever process. Does nothing the second time.

        Raises BufferError while a view is open that writes to it.
        """
        self._open().seal()

    def clone(self) -> Self:
        """Return another handle of the same bytes, to be closed by itself."""
        return self._of(self._open(), self._layout)

    def close(self) -> None:
        """Give it up; the memory is given back once views and other handles are closed as well."""
        self._root = None

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> Any:
        return _reopen, self._lend(_bundle(self))

    def _lend(self, bundle: fd_passing.FdBundle) -> tuple[int, int, Layout | None]:
        """Publish it; return what `_reopen` needs. Raises BufferError if somebody writes to it."""
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

    What is *shared* may be written if *fd* may; what is not, in any case: writes stay here.
    Raises ProtocolError if the file is not what it should be, MemoryError if there is no room.
    """
    root = BackingFile.adopt(fd, offset + length, fixed_only=shared)
    start = offset // mappings.PAGE * mappings.PAGE
    access = Access.READ if shared and fds.is_for_reading(root.fd) else FREE
    view = View(root, shared=shared, offset=start, access=access)
    return memoryview(view)[offset - start :]


def _bundle(what: object) -> fd_passing.FdBundle:
    bundle = fd_passing.bundle()
    if bundle is None or not memfd.sealable():
        raise TypeError(
            f"{what!r} can't be pickled: it travels only as an argument to an isolated function or "
            f"as its result{'' if memfd.sealable() else ', and not on this platform'}"
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
    """Return the bytes of a buffer, copied only if they do not lie one after the other."""
    try:
        view = memoryview(content)
    except (TypeError, ValueError, BufferError) as exc:
        # numpy exports no buffer of some types (dates); its bytes are as good.
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
