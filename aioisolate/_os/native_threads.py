"""Find the threads that Python did not start, and the libraries that started them (Linux).

Most of these threads have the program's name, so the library that started a thread identifies it.
A thread's descriptor (``struct pthread``) lies at the end of its stack and holds the address of its
first function. The kernel knows the descriptor's place, because the list of robust locks begins
there (get_robust_list). The return addresses of the first functions are on the stack next to it.
/proc/self/maps maps an address to a file.
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

__all__ = ["PYTHON", "NativeThread", "count", "describe", "foreign_thread_ids"]

_TASKS = "/proc/self/task"
# Libraries that start threads for others, or are on the stack of every thread.
_RUNTIME = ("libc.so", "libc-", "ld-", "ld.", "libpthread", "libstdc++", "libgcc_s", "libc++", "[")
# The library name that stands for the interpreter itself.
PYTHON = "python"
# The first function's address is within this many bytes after the list of robust locks; the return
# addresses on the stack are before it. (Measured with glibc 2.36: 0x360, and some hundreds.)
_BEHIND = 0x800
_WORD = struct.calcsize("P")
# The library of each known first function: a cache, since reading a long /proc/self/maps takes a
# millisecond.
_starts: dict[int, str] = {}


class NativeThread(NamedTuple):
    """A thread.

    Attributes:
        name: the kernel's name for it, at most 15 characters; "" if it is the program's.
        library: the path of the file whose code started it, `PYTHON`, or "" if unknown.
        runs_python: the thread runs Python code, or was started by the interpreter.
    """

    name: str
    library: str
    runs_python: bool = False


def count() -> int:
    """Return the number of this process's threads, Python's included; 0 if it is unknown."""
    try:
        return max(0, os.stat(_TASKS).st_nlink - 2)
    except OSError:
        return 0


def foreign_thread_ids() -> list[int]:
    """Return the native ids of the threads that are not in `threading.enumerate`.

    Raises OSError if /proc is not readable.
    """
    known = {thread.native_id for thread in threading.enumerate()}
    known.add(get_native_id())
    return sorted({int(name) for name in os.listdir(_TASKS)} - known)


def describe(numbers: Iterable[int]) -> list[NativeThread]:
    """Describe threads, except those that have ended or not begun, and kernel threads.

    Raises OSError if the descriptors of threads can't be found.
    """
    if not _description_of(get_native_id()):
        raise OSError(errno.ENOSYS, "the C library has not registered the thread's descriptor yet")
    # Threads in Python code. (Only the keys are kept: the frames would include this one.)
    idents = set(sys._current_frames())
    # Without the main thread and foreign threads ("Dummy-"), which `threading` did not start.
    started = [t for t in threading.enumerate() if not t.name.startswith(("Dummy-", "MainThread"))]
    unknown = _count() > len(started)  # `_thread` has started some without `threading`
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
                # A thread's identifier is the address of its descriptor.
                runs = any(abs(ident - at) < _BEHIND for ident in idents)
                runs |= unknown and library == PYTHON
                found.append(NativeThread("" if name == program else name, library, runs))
    return found


def _name_of(number: int) -> str:
    with open(f"{_TASKS}/{number}/comm", errors="replace") as file:
        return file.read().strip()


def _description_of(number: int) -> int:
    """Return an address in a thread's descriptor; 0 if the thread has none (yet).

    Raises OSError if it can't be found, ProcessLookupError if the thread has ended.
    """
    kind = machine()
    if kind is None:
        raise OSError(errno.ENOSYS, "no system call numbers are known for this machine")
    head, size = ctypes.c_size_t(0), ctypes.c_size_t(0)
    call = NUMBERS[kind]["get_robust_list"]
    syscall(call, number, ctypes.byref(head), ctypes.byref(size))
    return head.value


class _Memory:
    """The address space of this process: its mapped files and its content."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._code: list[tuple[int, int, str]] = []

    def __enter__(self) -> Self:
        # Through the file, since a stack may be unmapped: then the read fails instead of crashing.
        self._file = open("/proc/self/mem", "rb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def library_of(self, at: int) -> str:
        """Return the library that started the thread whose descriptor is at *at*."""
        words = self._words(at, _BEHIND)
        for word in _starts.keys() & words:
            return _starts[word]
        start, library = next(self._code_among(words), (0, ""))
        if library and not _is_runtime(library):
            _starts[start] = library
            return library
        # A runtime library started the thread for another library, whose function it called next.
        for size in (0x4000, 0x1000, at & 0xFF8):  # less may be readable
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
        """Yield the words that point to code, with the files of that code."""
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
    """Return the executable mappings: start, end, path."""
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
