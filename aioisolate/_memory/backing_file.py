"""The file in memory that backs a snapshot or a shared array."""

from __future__ import annotations

import errno
import os
import weakref
from typing import Protocol, Self

from .._os import fds, mappings, memfd
from .._os.fds import Descriptors
from .._wire.frames import ProtocolError

__all__ = ["BackingFile"]

_AT_ONCE = 1 << 30  # bytes; Linux writes at most 2 GiB with one call


class Writer(Protocol):
    """An object that can write to a file until it is closed: a `View` or its mmap."""

    @property
    def closed(self) -> bool:
        """Whether the view is closed."""
        ...


class BackingFile:
    """A file in memory, of fixed size; closed when its last snapshot or view is collected.

    Attributes:
        fd: the file's descriptor.
        length: the number of bytes in use.
        frozen: the file must not change any more; without seals, only this process ensures that.
        writer: a weak reference to the view that writes to the file.
        pid: the process that created or opened it.
    """

    __slots__ = ("__weakref__", "_reader", "fd", "frozen", "length", "pid", "writer")

    def __init__(self, fd: int, length: int) -> None:
        self.fd: int = fd
        fds.kept.add(fd)
        self.length: int = length
        self.frozen: bool = False
        self.pid: int = os.getpid()
        self.writer: weakref.ref[Writer] | None = None
        self._reader: weakref.ref[BackingFile] | None = None

    @classmethod
    def create(cls, length: int) -> Self:
        """Create a file filled with zeros. Raises OSError with the size if it does not fit."""
        own = Descriptors()
        try:
            fd = memfd.create(own)
            os.ftruncate(fd, mappings.round_up(length))
        except (OSError, OverflowError) as exc:
            own.close_all()
            number = exc.errno if isinstance(exc, OSError) else errno.EFBIG
            raise OSError(number, f"a snapshot of {length} bytes can't be made: {exc}") from exc
        return cls(own.release(fd), length)

    @classmethod
    def adopt(cls, fd: int, length: int, *, fixed_only: bool = False) -> Self:
        """Use a file that another process has sent; *fd* itself stays open.

        The file must be sealed or, if *fixed_only* is true, have a fixed size: otherwise another
        process could change its content during use, or kill this process by truncating it (SIGBUS).
        Raises ProtocolError if it is not, or is too short.
        """
        vetted = memfd.has_fixed_size(fd) if fixed_only else memfd.is_sealed(fd)
        if not vetted:
            raise ProtocolError(
                "the descriptor received for a snapshot or shared array is not a file in memory "
                f"that {'has a fixed size' if fixed_only else 'is sealed'}"
            )
        size = os.fstat(fd).st_size
        if not 0 <= length <= size:
            raise ProtocolError(f"a snapshot or shared array of {length} bytes has only {size}")
        return cls(fds.duplicate(fd), length)

    def seal(self) -> None:
        """Forbid all later changes of the file. Raises BufferError while a view writes to it."""
        if self.writing() is not None:
            raise BufferError(
                f"a snapshot of {self.length} bytes can't be sealed while a view is open that "
                "writes to it: close that first"
            )
        self.writer = None
        self.frozen = True
        if memfd.sealable() and not memfd.is_sealed(self.fd):
            memfd.seal(self.fd)

    def reader(self) -> BackingFile:
        """Return the same file, opened read-only: the kernel refuses writes and writable mappings.

        Without /proc, a descriptor can't be reopened, and this object is returned.
        """
        found = None if self._reader is None else self._reader()
        if found is None:
            if fds.is_for_reading(self.fd):
                return self
            own = Descriptors()
            try:
                fd = own.own(fds.reopen(self.fd, os.O_RDONLY))
                # /proc may belong to another pid namespace.
                if not os.path.samestat(os.fstat(fd), os.fstat(self.fd)):
                    return self
                found = BackingFile(own.release(fds.lift(fd, own)), self.length)
            except OSError:
                return self
            finally:
                own.close_all()
            self._reader = weakref.ref(found)
        return found

    def __del__(self) -> None:
        fds.kept.discard(self.fd)
        os.close(self.fd)

    def fill(self, content: memoryview, start: int = 0) -> None:
        """Write contiguous bytes from *start*. Raises OSError with the sizes if they do not fit.

        Uses pwrite instead of a mapping: if memory is short, pwrite fails, but a mapping causes
        SIGBUS.
        """
        done = 0
        try:
            while done < len(content):
                done += os.pwrite(self.fd, content[done : done + _AT_ONCE], start + done)
        except OSError as exc:
            raise OSError(
                exc.errno,
                f"a snapshot of {self.length} bytes can't be filled: {exc.strerror}, after "
                f"{start + done} bytes",
            ) from exc

    def writing(self) -> Writer | None:
        """Return the view that writes to the file, or None."""
        writer = None if self.writer is None else self.writer()
        return None if writer is None or writer.closed else writer
