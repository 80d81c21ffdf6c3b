"""Attacks by what a child has from its parent without having asked for it."""

from __future__ import annotations

import ctypes
import functools
import gc
import mmap
import os
import re
import select
import stat
from typing import Any

from .scene import ENVIRONMENT, Attack, Scene
from .system import libc

__all__ = ["ATTACKS"]

_PREFIX = "HEAP-SECRET-"
_PATTERN = re.compile(_PREFIX.encode() + rb"[0-9a-f]{24}")

# A page that the parent shares with whoever is forked from it.
shared: Any = None


def steal_events():
    """Take an event that the parent's loop waits for."""
    for fd in range(3, 1024):
        try:
            events = select.epoll.fromfd(os.dup(fd)).poll(0)
        except OSError:
            continue
        if events:
            return len(events)
    raise LookupError("no epoll with an event")


def write_to_shared_page():
    if shared is not None:
        shared[:8] = b"attacked"
        return True
    with open("/proc/self/maps") as file:
        for line in file:
            place, access, _, _, inode, *_ = line.split()
            if access == "rw-s" and inode != "0":
                start = int(place.partition("-")[0], 16)
                ctypes.memmove(start, b"attacked", 8)
                return True
    raise LookupError("no page is shared")


def overwrite(array):
    """Try to write to an array in shared memory that may only be read; name what has worked."""
    address, size = array.ctypes.data, mmap.PAGESIZE
    memory, done = ctypes.c_void_p(address), []

    def unprotect(where):
        if where.value in (None, 2**64 - 1) or libc.mprotect(where, size, 3):
            raise OSError(ctypes.get_errno(), "mprotect")
        ctypes.memmove(where, b"attacked", 8)

    def map_again():
        libc.mremap.restype = ctypes.c_void_p
        unprotect(ctypes.c_void_p(libc.mremap(memory, ctypes.c_size_t(0), size, 1)))

    def is_its(fd):
        try:
            return stat.S_IMODE(os.fstat(fd).st_mode) == 0o444 and os.fstat(fd).st_size == size
        except OSError:
            return False

    files = [fd for fd in range(3, 1024) if is_its(fd)]
    if not files:
        raise LookupError("its file is not open")
    by_file = {
        "write": lambda fd: os.pwrite(fd, b"attacked", 0),
        "map": lambda fd: mmap.mmap(fd, size).write(b"attacked"),
        "cut": lambda fd: os.ftruncate(fd, 1 << 20),
        "open": lambda fd: os.pwrite(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), b"attacked", 0),
        "allow": lambda fd: os.fchmod(fd, 0o666),
        "allow-by-name": lambda fd: os.chmod(f"/proc/self/fd/{fd}", 0o666),
    }
    ways = [("protect", lambda: unprotect(memory)), ("map again", map_again)]
    ways += [(name, functools.partial(way, fd)) for name, way in by_file.items() for fd in files]
    for name, way in ways:
        try:
            way()
        except OSError:
            continue
        done.append(name)
    return done


def look_at_environment():
    libc.getenv.restype = ctypes.c_char_p
    found = os.environ.get(ENVIRONMENT) or (libc.getenv(ENVIRONMENT.encode()) or b"").decode()
    if not found:
        raise LookupError("not in the environment")
    return found


def look_at_first_environment():
    with open("/proc/self/environ") as file:
        found = re.search(f"{ENVIRONMENT}=([^\0]*)", file.read())
    if not found:
        raise LookupError("not in the environment")
    return found[1]


def search_heap():
    """Look for a secret that the parent has somewhere in its memory."""
    try:
        with open("/proc/self/maps") as file:
            lines = file.readlines()
        memory = os.open("/proc/self/mem", os.O_RDONLY)
    except OSError:
        lines = []
    for line in lines:
        place, access, *_ = line.split()
        start, end = (int(part, 16) for part in place.split("-"))
        if access != "rw-p" or "[v" in line:
            continue
        for at in range(start, end, 1 << 20):
            size = min(1 << 20, end - at)
            try:
                # Not from the memory itself: the end of the heap may have gone since.
                data = os.pread(memory, size, at)
            except OSError:
                continue
            if found := _PATTERN.search(data):
                return found[0].decode()
    for thing in gc.get_objects():
        for part in gc.get_referents(thing):
            if type(part) is str and _PATTERN.match(part.encode(errors="replace")):
                return part
    raise LookupError("not in memory")


def read_open_files():
    """Read whatever files happen to be open."""
    found = []
    for fd in range(3, 1024):
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                found.append(os.pread(fd, 100, 0).decode())
        except (OSError, UnicodeDecodeError):
            continue
    return found


def walk_from_open_directory():
    """Open a file below a directory that happens to be open."""
    for fd in range(3, 1024):
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                file = os.open("file", os.O_RDONLY, dir_fd=fd)
                return os.pread(file, 100, 0).decode()
        except OSError:
            continue
    raise LookupError("no directory is open")


def _epoll(scene: Scene):
    epoll = scene.own(select.epoll())
    read, write = os.pipe()
    scene.own_fd(read)
    scene.own_fd(write)
    epoll.register(read, select.EPOLLIN | select.EPOLLET)
    os.write(write, b"x")
    scene.notes["epoll"] = epoll
    return ()


def _share(scene: Scene):
    global shared
    shared = scene.own(mmap.mmap(-1, mmap.PAGESIZE))
    scene.notes["page"] = shared
    scene.call_later(_unshare)
    return ()


def _unshare() -> None:
    global shared
    shared = None


def _hide(scene: Scene):
    scene.notes["heap"] = _PREFIX + scene.secret
    return ()


def _open_file(scene: Scene):
    fd = scene.own_fd(os.open(scene.file("own", 0o600, private=True), os.O_RDONLY))
    os.set_inheritable(fd, True)
    return ()


def _open_directory(scene: Scene):
    scene.file("file", 0o600, private=True)
    os.set_inheritable(scene.own_fd(os.open(scene.private, os.O_RDONLY)), True)
    return ()


_word = lambda result, scene: result == scene.secret
_NOTHING = {"expect": "nothing|denied"}

ATTACKS = [
    Attack(
        "epoll", "inheritance", steal_events, _epoll,
        lambda result, scene: bool(result) and not scene.notes["epoll"].poll(0), **_NOTHING,
        off_options=lambda scene: {"pass_fds": [scene.notes["epoll"].fileno()]},
    ),
    Attack(
        "shared-page", "inheritance", write_to_shared_page, _share,
        lambda result, scene: scene.notes["page"][:8] == b"attacked",
        off_start="fork", **_NOTHING,
    ),
    Attack("environment", "inheritance", look_at_environment, succeeded=_word, **_NOTHING),
    Attack(
        "first-environment", "inheritance", look_at_first_environment, succeeded=_word, **_NOTHING
    ),
    Attack(
        "heap", "inheritance", search_heap, _hide,
        lambda result, scene: result == scene.notes["heap"], off_start="fork", **_NOTHING,
    ),
    Attack(
        "open-file", "inheritance", read_open_files, _open_file,
        lambda result, scene: bool(result) and scene.secret in result,
        off_start="fork", expect="value|denied",
    ),
    Attack(
        "open-directory", "inheritance", walk_from_open_directory, _open_directory, _word,
        off_start="fork", **_NOTHING,
    ),
]  # fmt: skip
