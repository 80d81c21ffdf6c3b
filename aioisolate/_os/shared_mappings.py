"""The shared mappings of this process: memory that other processes may share."""

from __future__ import annotations

import os
from typing import NamedTuple

__all__ = ["SharedMapping", "shared", "unmap_io_uring_rings"]


class SharedMapping(NamedTuple):
    """A part of the address space.

    Attributes:
        address, size: its address, and its size in bytes.
        name: the path of the file, or the kernel's name for it.
    """

    address: int
    size: int
    name: str


def shared(proc: int | None = None) -> list[SharedMapping]:
    """Return the shared mappings that are writable, or that this process can make writable.

    A read-only mapping is included if its file was opened for writing: mprotect can make it
    writable. If the file was opened for reading, or is sealed, the kernel refuses mprotect. Only an
    attempt tells the two apart everywhere (/proc/self/smaps does, too, but not every kernel has
    it); the protection is restored.

    *proc* is a descriptor of procfs, needed where it is not mounted at /proc. Without procfs the
    result is empty.
    """
    return [
        mapping
        for mapping, rights in _all_shared(proc)
        if rights[1:2] == b"w" or _can_be_written(mapping, rights)
    ]


def unmap_io_uring_rings(proc: int | None = None) -> None:
    """Unmap the io_uring rings of the parent's event loop, in a forked copy of the parent.

    A process that writes to a ring submits operations to the kernel on behalf of the parent. Zeros
    replace the rings, since the copy of the loop still has their addresses. Raises OSError.
    """
    for mapping, _ in _all_shared(proc):
        if mapping.name == "anon_inode:[io_uring]":
            from . import mappings  # noqa: PLC0415 - rarely needed

            mappings.map_empty(mapping.address, mapping.size)


def _all_shared(proc: int | None) -> list[tuple[SharedMapping, bytes]]:
    path = "/proc/self/maps" if proc is None else "self/maps"
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc), "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        fields = line.split(None, 5)
        rights = fields[1]
        if rights[3:] != b"s":
            continue
        start, end = (int(part, 16) for part in fields[0].split(b"-"))
        name = os.fsdecode(fields[5]) if len(fields) > 5 else "no name"
        found.append((SharedMapping(start, end - start, name), rights))
    return found


def _can_be_written(mapping: SharedMapping, rights: bytes) -> bool:
    from . import mappings  # noqa: PLC0415 - rarely needed

    address, size, _ = mapping
    parts = (mappings.READ, mappings.WRITE, mappings.EXEC)
    now = sum(part for part, letter in zip(parts, rights, strict=False) if letter != ord("-"))
    try:
        mappings.protect(address, size, now | mappings.WRITE)
    except OSError:
        return False
    mappings.protect(address, size, now)
    return True
