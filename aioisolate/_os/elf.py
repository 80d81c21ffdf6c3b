"""Which shared libraries a program or library needs, and where the dynamic linker finds them."""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Finder", "Needs", "needs"]

_HEADER = struct.Struct("=16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("=IIQQQQQQ")
_ENTRY = struct.Struct("=qQ")
_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3
_NEEDED, _STRINGS, _SIZE, _RPATH, _RUNPATH = 1, 5, 10, 15, 29
_LARGEST = 1 << 20  # of a table that makes sense

_CACHE = "/etc/ld.so.cache"
_MAGIC = b"glibc-ld.so.cache1.1"
_CACHE_HEADER = struct.Struct("=20sII20x")
_CACHE_ENTRY = struct.Struct("=iIIIQ")


class Needs(NamedTuple):
    """What is written in a file about others.

    Attributes:
        names: the libraries that it needs.
        paths: where to look for them first; ``$ORIGIN`` is its own directory.
        linker: the program that loads it, "" for a library.
    """

    names: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    linker: str = ""


def needs(path: str) -> Needs:
    """Read what *path* needs; nothing if it is no ELF file of this machine's kind."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return Needs()
    try:
        return _read(fd, path)
    except (OSError, struct.error, ValueError, OverflowError):
        return Needs()
    finally:
        os.close(fd)


def _read(fd: int, path: str) -> Needs:
    head = os.pread(fd, 4096, 0)
    if head[:6] != b"\x7fELF\x02\x01":  # of 64 bits, little endian
        return Needs()
    found = _HEADER.unpack_from(head)
    at, size, count = found[5], found[9], found[10]
    if size < _SEGMENT.size or size * count > _LARGEST:
        return Needs()
    table = os.pread(fd, size * count, at)
    segments = [_SEGMENT.unpack_from(table, size * number) for number in range(count)]
    linker, dynamic = "", b""
    for kind, _, offset, _, _, length, _, _ in segments:
        if length <= _LARGEST:
            if kind == _INTERPRETER:
                linker = os.fsdecode(os.pread(fd, length, offset).rstrip(b"\0"))
            elif kind == _DYNAMIC:
                dynamic = os.pread(fd, length, offset)
    entries = [
        entry for entry in _ENTRY.iter_unpack(dynamic[: len(dynamic) // 16 * 16]) if entry[0]
    ]
    values = dict(entries)
    strings = _strings(fd, values.get(_STRINGS, -1), values.get(_SIZE, 0), segments)

    def text(place: int) -> str:
        return os.fsdecode(strings[place : strings.index(b"\0", place)])

    place = values.get(_RUNPATH, values.get(_RPATH))
    paths = "" if place is None else text(place)
    origin = os.path.dirname(os.path.realpath(path)) if "$" in paths else ""
    return Needs(
        tuple(text(value) for tag, value in entries if tag == _NEEDED),
        tuple(
            part.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)
            for part in paths.split(":")
            if part
        ),
        linker,
    )


def _strings(fd: int, address: int, size: int, segments: list[tuple[int, ...]]) -> bytes:
    """Read the text that a file's entries are about; b"" if it has none."""
    for kind, _, offset, start, _, length, _, _ in segments:
        if kind == _LOAD and start <= address < start + length and size <= 16 * _LARGEST:
            return os.pread(fd, size, offset + address - start)
    return b""


class Finder:
    """Finds libraries by name as the dynamic linker does."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        """Prepare; *more* are directories to look into before the system's.

        Here and in files, relative directories are left out: they depend on the current one.
        """
        multiarch = f"{platform.machine()}-linux-gnu"
        self._first = [path for path in more if os.path.isabs(path)]
        self._cache = _read_cache()
        self._last = [
            f"{top}{part}"
            for part in (f"/lib/{multiarch}", "/lib64", "/lib")
            for top in ("", "/usr", "/usr/local")
        ]

    def find(self, name: str, paths: Iterable[str] = ()) -> str | None:
        """Return the path of a library, or None."""
        if "/" in name:
            return name if os.path.isabs(name) and os.path.exists(name) else None
        for directory in (*filter(os.path.isabs, paths), *self._first):
            if os.path.exists(path := os.path.join(directory, name)):
                return path
        for cached in self._cache.get(name, ()):
            if os.path.exists(cached):
                return cached
        for directory in self._last:
            if os.path.exists(path := os.path.join(directory, name)):
                return path
        return None

    def closure(self, files: Iterable[str], names: Iterable[str] = ()) -> list[str]:
        """Return all libraries that *files* and the libraries called *names* need, those included.

        Without *files* themselves. What can't be found is left out.
        """
        found: dict[str, None] = {}
        done: set[str] = set()
        todo: list[tuple[str, tuple[str, ...]]] = [(path, ()) for path in files]
        for name in names:
            if (path := self.find(name)) is not None and path not in found:
                found[path] = None
                todo.append((path, ()))
        while todo:
            path, inherited = todo.pop()
            if path in done:
                continue
            done.add(path)
            what = needs(path)
            paths = (*what.paths, *inherited)
            if what.linker and os.path.exists(what.linker):
                found[what.linker] = None
            for name in what.names:
                library = self.find(name, paths)
                if library is not None:
                    # All that the linker might choose by what the processor can do.
                    for each in (library, *self._cache.get(name, ())):
                        if os.path.exists(each):
                            found[os.path.normpath(each)] = None
                            todo.append((os.path.normpath(each), paths))
        return list(found)


def _read_cache() -> dict[str, list[str]]:
    """Read the linker's own list, which the C library glibc has: where libraries of a name are."""
    try:
        with open(_CACHE, "rb") as file:
            data = file.read()
    except OSError:
        return {}
    at = data.find(_MAGIC)
    if at < 0:
        return {}
    found: dict[str, list[str]] = {}
    try:
        data = data[at:]
        _, count, _ = _CACHE_HEADER.unpack_from(data)
        for number in range(count):
            _, key, value, _, _ = _CACHE_ENTRY.unpack_from(
                data, _CACHE_HEADER.size + number * _CACHE_ENTRY.size
            )
            name = os.fsdecode(data[key : data.index(b"\0", key)])
            path = os.fsdecode(data[value : data.index(b"\0", value)])
            if _is_native(path):  # the first is the one that is preferred
                found.setdefault(name, []).append(path)
    except (struct.error, ValueError):
        pass
    return found


def _is_native(path: str) -> bool:
    return not path.startswith(("/lib32/", "/usr/lib32/", "/libx32/", "/usr/libx32/")) and (
        "/i386-linux-gnu/" not in path
    )
