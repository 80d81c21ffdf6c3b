"""Descriptors and shared memory of a fork server's modules that untrusted code could use."""

from __future__ import annotations

import _socket
import os
import stat
from collections.abc import Callable, Iterable

from .._os import fds, memfd, shared_mappings
from .._wire.safe_text import escape

__all__ = ["Watch", "describe", "is_null", "seal", "why_shared"]

_KINDS = {
    (_socket.AF_INET, _socket.SOCK_STREAM): "TCP socket",
    (_socket.AF_INET6, _socket.SOCK_STREAM): "TCP socket",
    (_socket.AF_INET, _socket.SOCK_DGRAM): "UDP socket",
    (_socket.AF_INET6, _socket.SOCK_DGRAM): "UDP socket",
    (_socket.AF_UNIX, _socket.SOCK_STREAM): "Unix socket",
    (_socket.AF_UNIX, _socket.SOCK_DGRAM): "Unix datagram socket",
}


class Watch:
    """Finds the module that opened each descriptor.

    Attributes:
        opened: the module that opened each descriptor.
    """

    def __init__(self) -> None:
        self.opened: dict[int, str] = {}
        self._before = _targets()

    def note(self, module: str) -> None:
        """Compare the open descriptors with those before *module* was imported."""
        now = _targets()
        for fd, target in now.items():
            if self._before.get(fd) != target:
                self.opened[fd] = module
        self._before = now


def _targets() -> dict[int, str]:
    """Return the target of each descriptor of this process, as far as /proc shows it."""
    found = {}
    for fd in fds.listed():
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            if fds.is_open(fd):  # otherwise the descriptor of the listing itself
                found[fd] = ""
    return found


def is_null(fd: int, null: int) -> bool:
    """Return whether a descriptor is one of /dev/null, as *null* is."""
    found = os.fstat(fd)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == os.fstat(null).st_rdev


def seal(files: Iterable[int]) -> None:
    """Seal the files of snapshots against changes, as when a snapshot is passed to a child."""
    for fd in files:
        try:
            if memfd.sealable() and not memfd.is_sealed(fd):
                memfd.seal(fd)
        except OSError:
            pass  # the file is mapped for writing, so the kernel refuses


def describe(fd: int, target: str) -> str:
    """Describe a descriptor: *target*, which is its path, or both ends of a socket."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return target or "no name"
    copy = os.dup(fd)
    try:
        sock = _socket.socket(fileno=copy)
    except OSError:  # a descriptor of a path (O_PATH) cannot be used as a socket
        os.close(copy)
        return target
    try:
        kind = _KINDS.get((sock.family, sock.type), f"socket of family {sock.family:d}")
        here, there = _name(sock.getsockname), _name(sock.getpeername)
    finally:
        sock.close()
    return " ".join(part for part in (kind, here, there and f"-> {there}") if part)


def _name(get_address: Callable[[], object]) -> str:
    try:
        address = get_address()
    except OSError:  # the socket is not connected
        return ""
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return os.fsdecode(address) if isinstance(address, bytes) else str(address)


def why_shared(found: Iterable[shared_mappings.SharedMapping], *, copied: bool) -> str:
    """Return why this process, with these mappings, cannot serve untrusted code; "" without them.

    *copied*: this process is a copy of the user's process.
    """
    sizes: dict[str, int] = {}
    for mapping in found:
        sizes[mapping.name] = sizes.get(mapping.name, 0) + mapping.size
    if not sizes:
        return ""
    named = ", ".join(f"{escape(name, line=True)} ({size} bytes)" for name, size in sizes.items())
    owner = "the process that was copied has" if copied else "preloaded modules have"
    return (
        f"{owner} mapped memory that is shared and can be written: {named}. Every "
        "call of this sandbox could change it for all others. Map it in fn, or privately: "
        "mmap.ACCESS_COPY, numpy.memmap(mode='c'); to read only, open the file for reading and "
        "use mmap.ACCESS_READ, mode='r'. Locks, values and arrays of multiprocessing are such "
        "memory, too, and so are shared_array and Snapshot.view_mut"
    )
