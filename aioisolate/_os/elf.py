"""Find the shared libraries that a program or library needs, as the dynamic linker does."""

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
_LARGEST = 1 << 20  # the largest plausible table, in bytes

_CACHE = "/etc/ld.so.cache"
_MAGIC = b"glibc-ld.so.cache1.1"
_CACHE_HEADER = struct.Struct("=20sII20x")
_CACHE_ENTRY = struct.Struct("=iIIIQ")


class Needs(NamedTuple):
    """The dependencies that an ELF file declares.

    Attributes:
        names: the libraries that the file needs.
        paths: directories to search first (RUNPATH or RPATH), with ``$ORIGIN`` replaced.
        linker: the dynamic linker that loads the file, "" for a library.
    """

    names: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    linker: str = ""


def needs(path: str) -> Needs:
    """Return the dependencies of *path*: empty if it is not a 64-bit little-endian ELF file."""
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
    if head[:6] != b"\x7fELF\x02\x01":  # 64-bit, little-endian
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
    """Read the string table that the dynamic entries refer to; b"" if there is none."""
    for kind, _, offset, start, _, length, _, _ in segments:
        if kind == _LOAD and start <= address < start + length and size <= 16 * _LARGEST:
            return os.pread(fd, size, offset + address - start)
    return b""


class Finder:
    """Finds libraries by name as the dynamic linker does."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        """Initialize; *more* are directories to search before the system's.

        Relative directories are ignored here and in files: they depend on the working directory.
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
        """Return all libraries that *files* and the libraries called *names* need, recursively.

        The result includes the libraries called *names* but not *files*. Libraries that can't be
        found are left out.
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
            needed = needs(path)
            paths = (*needed.paths, *inherited)
            if needed.linker and os.path.exists(needed.linker):
                found[needed.linker] = None
            for name in needed.names:
                library = self.find(name, paths)
                if library is not None:
                    # All variants: the linker chooses one by the processor's features.
                    for variant in (library, *self._cache.get(name, ())):
                        if os.path.exists(variant):
                            found[os.path.normpath(variant)] = None
                            todo.append((os.path.normpath(variant), paths))
        return list(found)


def _read_cache() -> dict[str, list[str]]:
    """Read glibc's cache of library paths; return the paths for each library name."""
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
            if _is_native(path):  # the preferred path comes first
                found.setdefault(name, []).append(path)
    except (struct.error, ValueError):
        pass
    return found


def _is_native(path: str) -> bool:
    return not path.startswith(("/lib32/", "/usr/lib32/", "/libx32/", "/usr/libx32/")) and (
        "/i386-linux-gnu/" not in path
    )
