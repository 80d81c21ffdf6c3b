"""The file in memory that a snapshot consists of."""

from __future__ import annotations

import errno
import os
import weakref
from typing import Protocol, Self

from .._os import mappings, memfd
from .._os.fds import Descriptors

__all__ = ["Root"]

_AT_ONCE = 1 << 30  # Linux writes at most 2 GB with one call


class Writer(Protocol):
    """Something that can write to a file as long as it is open."""

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        ...


class Root:
    """A file in memory, of fixed size; closed when the last snapshot or view of it is gone.

    Attributes:
        fd: the file.
        length: how many bytes of it count.
        frozen: nobody may change it any more, which this process sees to where there are no seals.
        writer: the view that writes through, a weak reference.
        pid: who made it, or opened it.
    """

    __slots__ = ("__weakref__", "fd", "frozen", "length", "pid", "writer")

    def __init__(self, fd: int, length: int) -> None:
        self.fd = fd
        self.length = length
        self.frozen = False
        self.pid = os.getpid()
        self.writer: weakref.ref[Writer] | None = None

    @classmethod
    def create(cls, length: int) -> Self:
        """Make one full of zeros. Raises OSError, naming the size, if it does not fit."""
        own = Descriptors()
        try:
            fd = memfd.create(own)
            os.ftruncate(fd, mappings.round_up(length))
        except (OSError, OverflowError) as exc:
            own.close_all()
            number = exc.errno if isinstance(exc, OSError) else errno.EFBIG
            raise OSError(number, f"a snapshot of {length} bytes can't be made: {exc}") from exc
        return cls(own.release(fd), length)

    def __del__(self) -> None:
        os.close(self.fd)

    def fill(self, content: memoryview, start: int = 0) -> None:
        """Write contiguous bytes from *start*. Raises OSError, naming sizes, if they do not fit.

        Written by a system call, not through a mapping: what does not fit is an error, no SIGBUS.
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
        """Return the view that writes through, if there is one."""
        writer = None if self.writer is None else self.writer()
        return None if writer is None or writer.closed else writer
