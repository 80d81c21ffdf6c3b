"""Attacks on memory outside the address space: what the kernel keeps for a process."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import socket
import stat

from .scene import Attack, Scene
from .system import call, libc

__all__ = ["ATTACKS", "pin_all"]

_HUGE = 2 << 20
_PIECES = 16
_NORMAL_BUFFER = 1 << 20
_MAP = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_ANYWHERE_ELSE = 0x100000  # MAP_FIXED_NOREPLACE
_FAR = 1 << 40
_GIB = 1 << 30

libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
)  # fmt: skip
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _map(address: int, size: int, more: int = 0) -> int:
    at = libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, _MAP | more, -1, 0)
    if at is None or at == ctypes.c_void_p(-1).value:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return at


def _huge_page() -> tuple[int, int, int]:
    """Map a huge page, if there are some; return where it is, and what to unmap."""
    area = _map(0, 2 * _HUGE)
    at = -(-area // _HUGE) * _HUGE
    libc.madvise(at, _HUGE, 14)  # MADV_HUGEPAGE
    ctypes.memset(at, 1, _HUGE)
    return at, area, 2 * _HUGE


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def pin_by_vmsplice(pieces):
    """Have a pipe keep one byte of each of some huge pages, that is, each whole."""
    kept = []
    for _ in range(pieces):
        if len(kept) % 8 == 0:
            kept.append(os.pipe())
        at, area, size = _huge_page()
        try:
            vector = _Vector(at, 1)
            call("vmsplice", kept[-1][1], ctypes.addressof(vector), 1, 0)
        finally:
            libc.munmap(area, size)
    return pieces


def move_by_splice():
    """Have a pair of sockets keep what was in a pipe, which then has room again."""
    read, write = os.pipe()
    here, there = socket.socketpair()
    with here, there:
        os.write(write, b"x")
        call("splice", read, None, here.fileno(), None, 1, 0)
        return there.recv(1) == b"x"


def double_by_tee():
    """Have two pipes keep what was in one."""
    read, write = os.pipe()
    _again, other = os.pipe()
    os.write(write, b"x")
    return call("tee", read, other, 1, 0)


def pin_by_sendfile(path):
    """Have a pair of sockets keep a page of a file by one byte of it."""
    fd = os.open(path, os.O_RDONLY)
    here, there = socket.socketpair()
    with here, there:
        os.sendfile(here.fileno(), fd, 0, 1)
        return len(there.recv(1))


def enlarge_a_buffer():
    """Have the kernel keep more for a pair of sockets than it does by default."""
    here, there = socket.socketpair()
    with here, there:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _NORMAL_BUFFER)
        here.setblocking(False)
        return here.send(bytes(4 * _NORMAL_BUFFER))


# All together


def _fill(pair: tuple[socket.socket, socket.socket]) -> socket.socket:
    """Have one socket keep as much as can be, and close the other."""
    sender, owner = pair
    sender.setblocking(False)
    for size in (212_900, 100_000, 10_000, 1000, 1):
        try:
            while True:
                sender.send(bytes(size))
        except OSError:
            continue
    sender.close()
    return owner


def _pairs():
    """Make pairs that are full, until there are no more descriptors."""
    try:
        while True:
            yield _fill(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    except OSError:
        return


def _send_away(kept: list) -> int:
    """Have full sockets be on their way, where they need no descriptors, as long as it goes."""
    line, end = socket.socketpair()
    kept += line, end
    count = 0
    while pairs := [pair for pair, _ in zip(_pairs(), range(20), strict=False)]:
        try:
            socket.send_fds(line, [b"x"], [pair.fileno() for pair in pairs])
        except OSError:
            kept += pairs
            return count
        count += len(pairs)
        for pair in pairs:
            pair.close()
    return count


def _watch(kept: list) -> int:
    """Watch a few descriptors under all numbers that there are."""
    polls = [select.epoll() for _ in range(20)]
    reads = []
    for _ in range(10):
        read, write = os.pipe()
        os.close(write)
        reads.append(read)
    kept += polls
    count = 0
    try:
        copies = [os.dup(0)]
        while len(copies) < 1000:
            copies.append(os.dup(0))
    except OSError:
        pass
    for read in reads:
        for number in copies:
            os.dup2(read, number)
            for poll in polls:
                try:
                    poll.register(number, 0)
                except OSError:
                    continue
                count += 1
    for number in copies:
        os.close(number)
    return count


def _fill_files() -> int:
    """Fill every file that happens to be open for writing."""
    total = 0
    for fd in range(3, 256):
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.posix_fallocate(fd, 0, 64 << 20)
                total += os.fstat(fd).st_blocks * 512
        except OSError:
            continue
    return total


def _spread(most: int) -> int:
    """Have page tables for one page in each GiB, as far as there are addresses and mappings."""
    count = 0
    try:
        while count < most:
            at = _map(_FAR + count * _GIB, mmap.PAGESIZE, _ANYWHERE_ELSE)
            ctypes.memset(at, 1, 1)
            count += 1
    except OSError:
        pass
    return count


def _take(most: int) -> int:
    """Use up the address space, in few pieces."""
    total = 0
    size = 64 << 20
    while size >= mmap.PAGESIZE and total < most:
        size = min(size, most - total)
        try:
            at = _map(0, size)
        except OSError:
            size //= 2
            continue
        ctypes.memset(at, 1, size)
        total += size
    return total


def _pin_huge_pages(kept: list) -> int:
    count = 0
    try:
        for _ in range(10):
            read, write = os.pipe()
            kept.append((read, write))
            for _ in range(8):
                at, area, size = _huge_page()
                vector = _Vector(at, 1)
                try:
                    call("vmsplice", write, ctypes.addressof(vector), 1, 0)
                finally:
                    libc.munmap(area, size)
                count += 1
    except OSError:
        pass
    return count


def pin_all(line, memory):
    """Take what can be taken in each way at the same time; tell, and wait to be looked at.

    Page tables are largest where there are many small mappings, of which there can be 65,530.
    """
    mappings = min(memory // mmap.PAGESIZE, 65_000)
    with socket.socket(fileno=line) as wait:
        wait.recv(1)
        kept: list = []
        taken = {
            "files": _fill_files(),
            "watches": _watch(kept),
            "huge": _pin_huge_pages(kept),
            "away": _send_away(kept),
            "sockets": len(pairs := list(_pairs())),
            "many": _take(memory - mappings * mmap.PAGESIZE),
            "spread": _spread(mappings),
            "rest": _take(memory),
        }
        wait.send(b"x")
        wait.recv(1)
        del pairs
    os._exit(0 if taken else 1)


def _no_huge_pages() -> str:
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
            return "there are no huge pages" if "[never]" in file.read() else ""
    except OSError as exc:
        return f"there are no huge pages: {exc}"


def _outside(name, run, *more, **rest):
    return Attack(name, "resources", run, *more, **rest)


def _large_buffers() -> str:
    with open("/proc/sys/net/core/wmem_max") as file:
        most = int(file.read())
    return "" if most > _NORMAL_BUFFER else "nobody may enlarge the buffers of sockets"


_library = lambda scene: ("/etc/ld.so.cache",)
_pieces = lambda scene: (_PIECES,)


def _is_large(result: object, scene: Scene) -> bool:
    return isinstance(result, int) and result > _NORMAL_BUFFER


ATTACKS = [
    _outside("pin-by-vmsplice", pin_by_vmsplice, _pieces, needs=_no_huge_pages),
    _outside("move-by-splice", move_by_splice),
    _outside("double-by-tee", double_by_tee),
    _outside("pin-by-sendfile", pin_by_sendfile, _library),
    _outside(
        "enlarge-a-buffer",
        enlarge_a_buffer,
        succeeded=_is_large,
        needs=_large_buffers,
        expect="value",
    ),
]
