"""The files in memory that carry a large call."""

from __future__ import annotations

import mmap
import os
from typing import Any, Self

from .._os import memfd
from .._os.fds import Descriptors
from .._wire.large_call import LargeCall, Part, TooMuch, UnwritableError, copied

__all__ = ["HEAD_MAX", "LargeCallFiles"]

# Bytes of a pickle that are sent in the request itself.
HEAD_MAX = 64 * 1024
# Bytes written in one step, in a millisecond or two; the thread can stop between steps.
_STEP = 4 << 20
# Characters encoded at once, with the GIL held.
_TEXT_STEP = 1 << 20


class LargeCallFiles(LargeCall):
    """A `LargeCall` whose data is in files in memory."""

    def __init__(self) -> None:
        self._fds = Descriptors()
        self._head: list[bytes] = []
        self.stream = self.beside = -1
        self.size = self._end = 0
        self._unwanted = self._finished = False
        # The thread that takes the item out of the list closes the files.
        self._to_be_closed = [True]

    @classmethod
    def of(cls, stream: bytes) -> Self:
        """Make an instance from a finished pickle. Raises UnwritableError."""
        large_call = cls()
        try:
            large_call.write(stream)
        except BaseException:
            large_call.drop()
            raise
        finally:
            large_call.finish()
        return large_call

    @property
    def head(self) -> bytes:
        """The pickle, if it is short enough for the request."""
        return b"".join(self._head)

    @property
    def total(self) -> int:
        """Number of bytes in both files."""
        return self.size + self._end

    # For the thread that writes the files

    def write(self, data: Any) -> None:
        """Append *data*, a bytes, bytearray or PickleBuffer object, to the file of the pickle.

        Raises UnwritableError or ChangedError; or TooMuch if the call is no longer needed.
        """
        if isinstance(data, bytes):
            self._add(memoryview(data))
        elif isinstance(data, bytearray):
            for piece in copied(data):
                self._add(memoryview(piece))
        else:
            with data.raw() as view:
                self._add(view)

    def _add(self, view: memoryview) -> None:
        self.check()
        if self.stream < 0:
            if self.size + len(view) <= HEAD_MAX:
                self._head.append(bytes(view))
                self.size += len(view)
                return
            self.stream = self._create()
            self._put(self.stream, memoryview(self.head), 0)
            self._head.clear()
        self.size = self._put(self.stream, view, self.size)

    def add_buffer(self, view: memoryview) -> int:
        """Append a buffer to the second file, and return its offset there. Raises like `write`."""
        start = self._begin()
        self._end = self._put(self.beside, view, start)
        return start

    def add_text(self, text: str) -> Part:
        """Append text to the second file, encoded part by part. Raises like `write`."""
        start = self._begin()
        for at in range(0, len(text), _TEXT_STEP):
            piece = text[at : at + _TEXT_STEP].encode("utf-8", "surrogatepass")
            self._end = self._put(self.beside, memoryview(piece), self._end)
        return start, self._end - start

    def _begin(self) -> int:
        if self.beside < 0:
            self.beside = self._create()
        self._end = -(-self._end // mmap.PAGESIZE) * mmap.PAGESIZE
        return self._end

    def _create(self) -> int:
        try:
            return memfd.create(self._fds)
        except OSError as exc:
            raise UnwritableError(exc.errno, exc.strerror) from exc

    def _put(self, file: int, view: memoryview, at: int) -> int:
        while view:
            self.check()
            try:
                done = os.pwrite(file, view[:_STEP], at)
            except OSError as exc:
                raise UnwritableError(exc.errno, exc.strerror) from exc
            view, at = view[done:], at + done
        return at

    def rewind(self) -> None:
        """Discard the data written so far."""
        for file in (self.stream, self.beside):
            if file >= 0:
                self._fds.close(file)
        self._head.clear()
        self.stream = self.beside = -1
        self.size = self._end = 0

    def check(self) -> None:
        """Raise TooMuch if the call is no longer needed."""
        if self._unwanted:
            raise TooMuch

    def finish(self) -> None:
        """Note that the writing thread will not use the files any more."""
        self._finished = True
        if self._unwanted:
            self._close()

    # For the thread that waits

    def release(self) -> list[int]:
        """Hand over the files, sealed: their content cannot change any more."""
        files = [file for file in (self.stream, self.beside) if file >= 0]
        for file in files:
            if memfd.sealable():
                memfd.seal(file)
        return [self._fds.release(file) for file in files]

    def drop(self) -> None:
        """Cancel: the writing thread stops as soon as possible, and the files are closed."""
        self._unwanted = True
        if self._finished:
            self._close()

    def _close(self) -> None:
        try:
            self._to_be_closed.pop()
        except IndexError:
            return
        self._fds.close_all()
