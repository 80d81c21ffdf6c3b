"""Memory mappings: created as `mmap` objects, which count their exports, and changed in place.

Each mapping begins as anonymous memory, and its file is then mapped over it: `mmap` itself would
hold a duplicate of the descriptor for as long as the mapping lives (before Python 3.13).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from typing import Any

__all__ = [
    "EXEC",
    "NONE",
    "PAGE",
    "READ",
    "WRITE",
    "address_of",
    "advise",
    "check_huge_pages",
    "check_unused",
    "decommit",
    "huge_page_size",
    "is_private_copy",
    "map_empty",
    "map_file",
    "map_private",
    "protect",
    "reserve",
    "resize",
    "round_up",
]

PAGE = mmap.PAGESIZE
NONE, READ, WRITE, EXEC = 0, mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
_MAP_FIXED = 0x10  # the same on Linux, the BSDs and macOS
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_FAILED = ctypes.c_void_p(-1).value
_PAGEMAP_PRESENT, _PAGEMAP_SWAPPED, _PAGEMAP_FILE = 1 << 63, 1 << 62, 1 << 61
_PAGEMAP_AT_ONCE = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class _Buffer(ctypes.Structure):
    """Py_buffer; only its first fields are used."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("rest", ctypes.c_byte * 96),
    )


_get_buffer = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p, ctypes.c_int)(
    ("PyObject_GetBuffer", ctypes.pythonapi)
)
_release_buffer = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("PyBuffer_Release", ctypes.pythonapi))
_ANY_CONTIGUOUS = 0x98  # PyBUF_ANY_CONTIGUOUS


def round_up(size: int) -> int:
    """Return *size* rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def reserve(size: int) -> mmap.mmap:
    """Map *size* bytes of private, readable and writable memory, filled with zeros.

    Raises MemoryError with the size if memory is short.
    """
    try:
        return mmap.mmap(-1, size, flags=_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as exc:
        raise MemoryError(f"{size} bytes of memory can't be mapped: {exc}") from exc


def check_unused(area: mmap.mmap) -> None:
    """Raise BufferError if an object such as a memoryview or an array uses the memory."""
    try:
        area.resize(len(area))
    except (OSError, SystemError):
        pass  # the kernel can't resize it, or has no such call; mmap checks the exports first


def resize(area: mmap.mmap, size: int) -> mmap.mmap:
    """Return memory of *size* bytes with the content of *area*, which must not be used afterwards.

    *area* must be private, readable and writable, without exports. Nothing is copied where the
    kernel can move pages. Added memory is zero. Raises MemoryError with the size, and leaves *area*
    unchanged, if memory is short.
    """
    if sys.platform == "linux":
        try:
            area.resize(size)
        except (OSError, OverflowError, ValueError) as exc:
            # EFAULT: the area consists of several mappings, which mremap does not move together.
            if getattr(exc, "errno", None) != errno.EFAULT:
                raise MemoryError(f"{size} bytes of memory can't be mapped: {exc}") from exc
        else:
            return area
    made = reserve(size)
    kept = min(size, len(area))
    with memoryview(area) as old, memoryview(made) as new:
        new[:kept] = old[:kept]
    area.close()
    return made


def map_file(
    area: mmap.mmap,
    fd: int,
    offset: int,
    size: int,
    *,
    shared: bool,
    rights: int = READ | WRITE,
) -> None:
    """Map *size* bytes of a file over the beginning of *area*.

    If *shared* is true, writes reach the file and all other shared mappings of it; otherwise they
    stay in this mapping. *rights* is the memory's protection. Raises OSError.
    """
    flags = _MAP_FIXED | (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE)
    found = _libc.mmap(address_of(area), size, rights, flags, fd, offset)
    if found == _FAILED:
        raise _error(f"{size} bytes of a file can't be mapped")


def map_empty(address: int, size: int) -> None:
    """Replace the mappings at *address* by private memory, filled with zeros. Raises OSError.

    The address and the size must be multiples of the page size.
    """
    if _libc.mmap(address, size, READ | WRITE, _MAP_FIXED | _ANONYMOUS, -1, 0) == _FAILED:
        raise _error(f"{size} bytes of memory can't be replaced")


def map_private(fd: int, offset: int, length: int) -> memoryview:
    """Map a part of a sealed file copy-on-write: writes change only this mapping.

    *offset* must be a multiple of the page size. The mapping lives as long as the view or any
    object made from it. Raises MemoryError if memory is short.
    """
    area = reserve(length)
    map_file(area, fd, offset, length, shared=False)
    return memoryview(area)


def address_of(buffer: Any) -> int:
    """Return the address of the first byte of an object that exports a contiguous buffer."""
    view = _Buffer()
    _get_buffer(buffer, ctypes.byref(view), _ANY_CONTIGUOUS)
    address = view.buf or 0
    _release_buffer(ctypes.byref(view))
    return address


def protect(address: int, size: int, rights: int) -> None:
    """Set the protection of memory, a combination of READ, WRITE and EXEC. Raises OSError."""
    if _libc.mprotect(address, size, rights) != 0:
        raise _error("the protection of memory can't be changed")


def advise(area: mmap.mmap, advice: int, start: int, size: int) -> None:
    """Call madvise for a part of *area*. Raises OSError."""
    area.madvise(advice, start, size)


def decommit(area: mmap.mmap, start: int, size: int, rights: int) -> None:
    """Return private memory to the kernel; it reads as zeros afterwards. Raises OSError.

    *rights* is the protection of all of that memory.
    """
    if sys.platform == "linux":
        area.madvise(mmap.MADV_DONTNEED, start, size)
    # On other systems MADV_DONTNEED may keep the content, so new pages are mapped over it.
    elif _libc.mmap(address_of(area) + start, size, rights, _MAP_FIXED | _ANONYMOUS, -1, 0) == (
        _FAILED
    ):
        raise _error("memory can't be given back")


def is_private_copy(address: int, size: int) -> bool:
    """Return whether a page of a private file mapping may differ from the file.

    Return True where the kernel does not tell (Linux does, in /proc/self/pagemap).
    """
    if sys.byteorder != "little":
        return True
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        first, count = address // PAGE, round_up(size) // PAGE
        while count:
            data = os.pread(fd, 8 * min(count, _PAGEMAP_AT_ONCE), 8 * first)
            if not data:
                return True
            if data[7::8].translate(None, _NOT_OWN):
                return True
            first += len(data) // 8
            count -= len(data) // 8
    finally:
        os.close(fd)
    return False


def _owned(top: int) -> bool:
    entry = top << 56
    there = entry & (_PAGEMAP_PRESENT | _PAGEMAP_SWAPPED)
    return bool(there) and not entry & _PAGEMAP_FILE


# The possible last bytes of a pagemap entry for a page that is not private to this process.
_NOT_OWN = bytes(top for top in range(256) if not _owned(top))


def huge_page_size() -> int:
    """Return the size of a transparent huge page. Raises OSError if there are none here."""
    try:
        with open("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size") as file:
            return int(file.read())
    except OSError as exc:
        raise OSError(errno.ENOTSUP, "there are no transparent huge pages here") from exc


def check_huge_pages() -> None:
    """Raise OSError if transparent huge pages are turned off in the kernel."""
    huge_page_size()
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
        if "[never]" in file.read():
            raise OSError(
                errno.ENOTSUP,
                "huge pages are turned off (/sys/kernel/mm/transparent_hugepage/enabled)",
            )


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
