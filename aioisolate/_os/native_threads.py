"""The threads of this process that Python did not start, and whose code they run (Linux).

Most of them have no name of their own but the program's. What tells them apart is the library that
they were started in. Each thread's description (``struct pthread``) lies at the end of its stack
and holds the address of its first function; the kernel tells where it is, since the list of robust
locks begins there (get_robust_list). Behind it, on the stack, are the addresses that its first
functions return to. /proc/self/maps tells which file an address is from.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
import threading
from _thread import _count, get_native_id
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

from .syscall_numbers import NUMBERS
from .syscalls import machine, syscall

__all__ = ["PYTHON", "NativeThread", "count", "describe", "strangers"]

_TASKS = "/proc/self/task"
# What starts threads for others, or is on everybody's stack.
_RUNTIME = ("libc.so", "libc-", "ld-", "ld.", "libpthread", "libstdc++", "libgcc_s", "libc++", "[")
# In place of the name of a thread's library: the interpreter itself.
PYTHON = "python"
# The first function's address comes so many bytes behind the list of robust locks; the addresses
# on the stack come before it. (Measured with glibc 2.36: 0x360, and some hundreds.)
_BEHIND = 0x800
_WORD = struct.calcsize("P")
# From which library each first function is that was met: saves looking at /proc/self/maps, which
# takes a millisecond where there are many.
_starts: dict[int, str] = {}


class NativeThread(NamedTuple):
    """A thread.

    Attributes:
        name: as the kernel has it, 15 characters at most; "" if it is that of the program.
        library: the path of the file whose code it was started in, `PYTHON`, or "" if unknown.
        runs_python: it has called Python code, or was started to.
    """

    name: str
    library: str
    runs_python: bool = False


def count() -> int:
    """Count the threads of this process, those of Python included; 0 if nothing tells."""
    try:
        return max(0, os.stat(_TASKS).st_nlink - 2)
    except OSError:
        return 0


def strangers() -> list[int]:
    """List the threads, by the kernel's numbers, that `threading` does not know of.

    Raises OSError if nothing tells.
    """
    known = {thread.native_id for thread in threading.enumerate()}
    known.add(get_native_id())
    return sorted({int(name) for name in os.listdir(_TASKS)} - known)


def describe(numbers: Iterable[int]) -> list[NativeThread]:
    """Describe threads, but for those that have ended or not begun, and the kernel's own.

    Raises OSError if nothing tells.
    """
    if not _description_of(get_native_id()):
        raise OSError(errno.ENOSYS, "the C library says only later where threads are described")
    # Of threads that are in Python code. (A copy: the frames would include this one.)
    idents = set(sys._current_frames())
    # Not counted, since started by others: the main thread, and such as have asked for a name.
    started = [t for t in threading.enumerate() if not t.name.startswith(("Dummy-", "MainThread"))]
    unknown = _count() > len(started)  # there are some that `threading` did not start
    program = _name_of(os.getpid())
    found = []
    with _Memory() as memory:
        for number in numbers:
            try:
                name = _name_of(number)
                at = _description_of(number)
            except (FileNotFoundError, ProcessLookupError):
                continue
            if at:
                library = memory.library_of(at)
                # A thread's identifier is the address of its description.
                runs = any(abs(ident - at) < _BEHIND for ident in idents)
                runs |= unknown and library == PYTHON
                found.append(NativeThread("" if name == program else name, library, runs))
    return found


def _name_of(number: int) -> str:
    with open(f"{_TASKS}/{number}/comm", errors="replace") as file:
        return file.read().strip()


def _description_of(number: int) -> int:
    """Return an address in the description of a thread; 0 if it has none (yet).

    Raises OSError if nothing tells, ProcessLookupError if the thread has ended.
    """
    kind = machine()
    if kind is None:
        raise OSError(errno.ENOSYS, "the number of a system call is not known here")
    head, size = ctypes.c_size_t(0), ctypes.c_size_t(0)
    call = NUMBERS[kind]["get_robust_list"]
    syscall(call, number, ctypes.byref(head), ctypes.byref(size))
    return head.value


class _Memory:
    """The address space of this process: what is where, and what it holds."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._code: list[tuple[int, int, str]] = []

    def __enter__(self) -> Self:
        # Read through the file: a stack may be gone, which costs an error and not the process.
        self._file = open("/proc/self/mem", "rb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def library_of(self, at: int) -> str:
        """Name the library in which the thread was started whose description is at *at*."""
        words = self._words(at, _BEHIND)
        for word in _starts.keys() & words:
            return _starts[word]
        start, library = next(self._code_among(words), (0, ""))
        if library and not _is_runtime(library):
            _starts[start] = library
            return library
        # It was started by a library for another one, whose function was called next.
        for size in (0x4000, 0x1000, at & 0xFF8):  # there may be less that can be read
            if words := self._words(at - size, size):
                break
        called = (library for _, library in self._code_among(words[::-1]))
        return next((library for library in called if not _is_runtime(library)), "")

    def _words(self, at: int, size: int) -> tuple[int, ...]:
        try:
            data = os.pread(self._file.fileno(), size, at)
        except OSError:
            return ()
        count = len(data) // _WORD
        return struct.unpack_from(f"{count}P", data)

    def _code_among(self, words: Iterable[int]) -> Iterator[tuple[int, str]]:
        """Find those words that point to code, and the files that it is from."""
        for word in words:
            if word > 0xFFFF and (path := self._file_of(word)):
                yield word, path

    def _file_of(self, address: int) -> str:
        if not self._starts:
            self._code = _mapped_code()
            self._starts = [start for start, _, _ in self._code]
        place = bisect_right(self._starts, address) - 1
        if place < 0 or address >= self._code[place][1]:
            return ""
        return self._code[place][2]


def _is_runtime(path: str) -> bool:
    return os.path.basename(path).startswith(_RUNTIME)


def _mapped_code() -> list[tuple[int, int, str]]:
    """List what is mapped to be executed: start, end, path."""
    found = []
    python = ctypes.cast(ctypes.pythonapi.Py_GetVersion, ctypes.c_void_p).value or 0
    with open("/proc/self/maps", "rb") as file:
        for line in file:
            fields = line.split(None, 5)
            if fields[1][2:3] != b"x" or len(fields) < 6:
                continue
            start, end = (int(part, 16) for part in fields[0].split(b"-"))
            found.append((start, end, os.fsdecode(fields[5].rstrip(b"\n"))))
    own = {path for start, end, path in found if start <= python < end}
    return [(start, end, PYTHON if path in own else path) for start, end, path in found]
