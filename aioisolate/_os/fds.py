"""Descriptors: creating them out of a child's way, and finding those that it must lose."""

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

# A child's own descriptors live at 64 and above: with standard streams closed in the parent
# a pipe would get a number from 0 to 2, and code that dups onto small numbers, as shells and
# C programs do, would cut the channel.
FLOOR = 64

# Where nothing lists descriptors: so many numbers are looked at, so many at once.
_NUMBERS_MAX = 65536
_AT_ONCE = 1024
_AT_ONCE_OF_PATHS = 64

# What a child may go on using: files, devices (terminals, /dev/urandom) and directories.
# Sockets, pipes and everything without a type (epoll, eventfd, pidfd, ...) stay the parent's.
_HARMLESS = frozenset({stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFDIR})


# What this package has open for all calls at once. A child need not look at these to know that it
# must lose them; with many calls in flight they are most of what there is.
ours: set[int] = set()

# The files of snapshots: this package's, too, but children go on using them.
kept: set[int] = set()


class Descriptors:
    """The descriptors that one owner has open; what is still in it is closed at the end."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: list[int] = []

    def own(self, fd: int) -> int:
        """Take charge of *fd* and return it."""
        self._open.append(fd)
        ours.add(fd)
        return fd

    def close(self, fd: int) -> None:
        """Close *fd* now, once; does nothing if it is not (any longer) in charge of it."""
        if fd in self._open:
            self._open.remove(fd)
            ours.discard(fd)
            os.close(fd)

    def listed(self) -> list[int]:
        """List what it is in charge of, in order."""
        return list(self._open)

    def release(self, fd: int) -> int:
        """Hand *fd* over to somebody else; it stays open."""
        self._open.remove(fd)
        ours.discard(fd)
        return fd

    def close_all(self) -> None:
        """Close whatever is left."""
        while self._open:
            fd = self._open.pop()
            ours.discard(fd)
            try:
                os.close(fd)
            except OSError:
                pass  # an error of an earlier write; the number is released all the same


def pipe(owner: Descriptors) -> tuple[int, int]:
    """Create a pipe: a non-blocking read end for here, a blocking write end for a child."""
    read, write = os.pipe()
    owner.own(read)
    owner.own(write)
    os.set_blocking(read, False)
    return read, lift(write, owner)


def channel(owner: Descriptors) -> tuple[int, int]:
    """Create a pair of connected sockets: a non-blocking one for here, a blocking one for a child.

    Sockets and no pipe, since descriptors can come through them as well.
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
    """Tell whether *fd* is an open descriptor of this process."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def is_for_reading(fd: int) -> bool:
    """Tell whether *fd* was opened for reading only."""
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def listed() -> list[int]:
    """List this process's open descriptors; one of them, the listing's own, is closed by then."""
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
    # What was opened as a mere path (O_PATH) passes for closed there. It has low numbers, mostly.
    missed = set(range(max(found, default=0) + _AT_ONCE_OF_PATHS)).difference(found)
    return sorted([*found, *filter(is_open, missed)])


def closed_numbers(first: int, count: int) -> list[int]:
    """List the numbers that no descriptor has, of *count* from *first* on.

    By what poll says of each: a list of descriptors (/proc) may be out of reach.
    """
    poll = select.poll()
    for number in range(first, first + count):
        poll.register(number, 0)
    return [number for number, event in poll.poll(0) if event & select.POLLNVAL]


def reopen(fd: int, mode: int, proc: int | None = None) -> int:
    """Open again what *fd* stands for: with an offset, flags and an owner of its own.

    Raises OSError. *proc*: a descriptor of /proc, where that is not in its place.
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
    """Pick those of *fds* that a child must lose: sockets, pipes, epolls, eventfds, pidfds...

    And *files*, devices and directories, if so; but not the files of snapshots. *foreign* gets
    those that are not this package's, with their inodes.

    Of 0, 1 and 2 those that *keep* does not name are picked whatever they are, open or not: a
    process that was started without them has something else under these numbers.
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
