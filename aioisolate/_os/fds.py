"""Create file descriptors with high numbers, and find those that a child must lose."""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import stat
from collections.abc import Collection, Iterable

from .fds_after_fork import inode_of
from .unpatched import select

__all__ = [
    "Descriptors",
    "channel",
    "closed_numbers",
    "duplicate",
    "is_for_reading",
    "is_open",
    "kept",
    "lift",
    "lift_above",
    "listed",
    "ours",
    "pipe",
    "reopen",
    "severable",
]

# The library's descriptors in a child have numbers of at least 64: if the parent's standard streams
# are closed, a pipe would get a number from 0 to 2, and code that dups onto small numbers, as
# shells and C programs do, would close the channel.
FLOOR = 64

# Where no directory lists descriptors: how many numbers are checked, and how many at once.
_NUMBERS_MAX = 65536
_AT_ONCE = 1024
_AT_ONCE_OF_PATHS = 64

# A child may use inherited files, devices (terminals, /dev/urandom) and directories. It may not use
# sockets, pipes, and descriptors without a file type (epoll, eventfd, pidfd, ...).
_HARMLESS = frozenset({stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFDIR})


# This package's open descriptors, of all running calls. A child must lose all of them, and needs no
# fstat for these. With many running calls they are the majority.
ours: set[int] = set()

# Descriptors of snapshot files: this package's, too, but children may use them.
kept: set[int] = set()


class Descriptors:
    """The open descriptors of one owner; `close_all` closes those that are left."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: list[int] = []

    def own(self, fd: int) -> int:
        """Add *fd* and return it."""
        self._open.append(fd)
        ours.add(fd)
        return fd

    def close(self, fd: int) -> None:
        """Close *fd* now; do nothing if this owner does not have it (any longer)."""
        if fd in self._open:
            self._open.remove(fd)
            ours.discard(fd)
            os.close(fd)

    def listed(self) -> list[int]:
        """Return the descriptors in the order in which they were added."""
        return list(self._open)

    def release(self, fd: int) -> int:
        """Remove *fd* without closing it, and return it: the caller owns it now."""
        self._open.remove(fd)
        ours.discard(fd)
        return fd

    def close_all(self) -> None:
        """Close all descriptors that are left."""
        while self._open:
            fd = self._open.pop()
            ours.discard(fd)
            try:
                os.close(fd)
            except OSError:
                pass  # an error of an earlier write; the number is released anyway


def pipe(owner: Descriptors) -> tuple[int, int]:
    """Create a pipe: a non-blocking read end for this process, a blocking write end for a child."""
    read, write = os.pipe()
    owner.own(read)
    owner.own(write)
    os.set_blocking(read, False)
    return read, lift(write, owner)


def channel(owner: Descriptors) -> tuple[int, int]:
    """Create a socket pair: a non-blocking end for this process, a blocking one for a child.

    Unlike a pipe, sockets can also pass descriptors.
    """
    here, there = _socket.socketpair()
    ours_, theirs = owner.own(here.detach()), owner.own(there.detach())
    os.set_blocking(ours_, False)
    return ours_, lift(theirs, owner)


def lift(fd: int, owner: Descriptors) -> int:
    """Move *fd* out of the low numbers; the moved descriptor is closed on exec."""
    lifted = owner.own(duplicate(fd))
    owner.close(fd)
    return lifted


def duplicate(fd: int) -> int:
    """Duplicate *fd* above the low numbers; the duplicate is closed on exec."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FLOOR)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # EINVAL: RLIMIT_NOFILE is below the floor
            raise
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def lift_above(fd: int, floor: int, owner: Descriptors) -> int:
    """Move *fd* to a number above *floor*."""
    lifted = owner.own(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor + 1))
    os.close(fd)
    return lifted


def is_open(fd: int) -> bool:
    """Return whether *fd* is an open descriptor of this process."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def is_for_reading(fd: int) -> bool:
    """Return whether *fd* was opened for reading only."""
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def listed() -> list[int]:
    """Return this process's open descriptors, including that of the listing, now closed."""
    for directory in ("/proc/self/fd", "/dev/fd"):
        try:
            return [int(name) for name in os.listdir(directory)]
        except FileNotFoundError:
            continue
    limit = os.sysconf("SC_OPEN_MAX")
    end = min(limit if limit > 0 else 1024, _NUMBERS_MAX)
    found = []
    for first in range(0, end, _AT_ONCE):
        count = min(_AT_ONCE, end - first)  # poll takes no more than the limit
        closed = set(closed_numbers(first, count))
        found += [fd for fd in range(first, first + count) if fd not in closed]
    # poll reports O_PATH descriptors as closed. They mostly have low numbers.
    missed = set(range(max(found, default=0) + _AT_ONCE_OF_PATHS)).difference(found)
    return sorted([*found, *filter(is_open, missed)])


def closed_numbers(first: int, count: int) -> list[int]:
    """Return those of *count* numbers from *first* on that are not open descriptors.

    Uses poll, since /proc may not be accessible.
    """
    poll = select.poll()
    for number in range(first, first + count):
        poll.register(number, 0)
    return [number for number, event in poll.poll(0) if event & select.POLLNVAL]


def reopen(fd: int, mode: int, proc: int | None = None) -> int:
    """Open the file of *fd* again, with a separate offset, flags and owner.

    *proc* is a descriptor of procfs, needed where it is not mounted at /proc. Raises OSError.
    """
    path = f"/proc/self/fd/{fd}" if proc is None else f"self/fd/{fd}"
    return os.open(path, mode | os.O_CLOEXEC, dir_fd=proc)


def severable(
    fds: Iterable[int],
    keep: Collection[int],
    *,
    files: bool = False,
    foreign: dict[int, int] | None = None,
) -> list[int]:
    """Return those of *fds* that a child must lose: sockets, pipes, epolls, eventfds, pidfds...

    If *files* is true, also files, devices and directories, except the files of snapshots.
    *foreign* receives the descriptors that are not this package's, with their inodes.

    The result includes those of 0, 1 and 2 that are not in *keep*, open or not: in a process that
    was started without them, these numbers can be any file.
    """
    found = []
    streams = set()
    for fd in fds:
        if fd in keep:
            if fd <= 2:
                streams.add(fd)
        elif fd in ours:
            found.append(fd)
        elif fd > 2:
            try:
                status = os.fstat(fd)
            except OSError:
                continue
            if stat.S_IFMT(status.st_mode) not in _HARMLESS or (files and fd not in kept):
                found.append(fd)
                if foreign is not None:
                    foreign[fd] = inode_of(status)
    if len(streams) < 3:
        found += {0, 1, 2} - streams
    return found
