"""Files in memory (memfd_create): scratch files, snapshots, shared arrays, large calls."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from typing import Any

from .fds import Descriptors, lift

__all__ = [
    "bar_reopening",
    "create",
    "fix_size",
    "has_fixed_size",
    "is_marked",
    "is_sealed",
    "mark",
    "seal",
    "sealable",
]

# Not every platform has all of these; callers check `sealable` first.
_fcntl: Any = fcntl
_os: Any = os

_NOEXEC_SEAL = 0x8  # MFD_NOEXEC_SEAL, Linux 6.3; implies MFD_ALLOW_SEALING
_SEALS: int = (
    _fcntl.F_SEAL_SHRINK | _fcntl.F_SEAL_GROW | _fcntl.F_SEAL_WRITE | _fcntl.F_SEAL_SEAL
    if sys.platform == "linux"
    else 0
)
_SIZE_SEALS: int = _fcntl.F_SEAL_SHRINK | _fcntl.F_SEAL_GROW if sys.platform == "linux" else 0
_MARK: int = _fcntl.F_SEAL_SHRINK if sys.platform == "linux" else 0
_old_kernel = False
_sealable: bool | None = None


def sealable() -> bool:
    """Return whether this process can create and seal files in memory.

    A process tries this once; its forked children inherit the result, since they may not be allowed
    to call memfd_create.
    """
    global _sealable
    if not hasattr(os, "memfd_create"):
        return False
    if _sealable is None:
        try:
            os.close(_memfd())
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
                return True  # a temporary error, such as no free descriptor; try again next time
            _sealable = False  # forbidden by a filter
        else:
            _sealable = True
    return _sealable


def create(owner: Descriptors) -> int:
    """Open a new file: a memfd that can be sealed, or without memfds an unlinked temporary file."""
    if not sealable():
        import tempfile  # noqa: PLC0415 - slow to import, and only other systems need it

        with tempfile.TemporaryFile() as file:
            return lift(owner.own(os.dup(file.fileno())), owner)
    return lift(owner.own(_memfd()), owner)


def _memfd() -> int:
    global _old_kernel
    fd: int
    if not _old_kernel:
        try:
            fd = _os.memfd_create("aioisolate", _os.MFD_CLOEXEC | _NOEXEC_SEAL)
            return fd
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            _old_kernel = True
    fd = _os.memfd_create("aioisolate", _os.MFD_CLOEXEC | _os.MFD_ALLOW_SEALING)
    return fd


def seal(fd: int) -> None:
    """Forbid all later changes of the file to every process."""
    fcntl.fcntl(fd, _fcntl.F_ADD_SEALS, _SEALS)


def is_sealed(fd: int) -> bool:
    """Return whether no process can change the file's content or length any more."""
    return sealable() and _seals(fd) & _SEALS == _SEALS


def fix_size(fd: int) -> None:
    """Forbid later changes of the file's length to every process, if this system supports that."""
    if sealable():
        fcntl.fcntl(fd, _fcntl.F_ADD_SEALS, _SIZE_SEALS)


def has_fixed_size(fd: int) -> bool:
    """Return whether no process can change the file's length any more."""
    return sealable() and _seals(fd) & _SIZE_SEALS == _SIZE_SEALS


def bar_reopening(fd: int) -> None:
    """Forbid all users but root to reopen the file for writing through /proc.

    The file's owner may allow it again by chmod, which a sandbox forbids.
    """
    try:
        os.fchmod(fd, 0o444)
    except OSError:
        pass  # an outer filter forbids chmod; read-only descriptors stay read-only without it


def mark(fd: int, at: int) -> None:
    """Mark the file by a seal against shrinking, which no process can remove.

    Without seals, the mark is the byte at offset *at* of the file.
    """
    if sealable():
        fcntl.fcntl(fd, _fcntl.F_ADD_SEALS, _MARK)
    else:
        os.pwrite(fd, b"\1", at)


def is_marked(fd: int, at: int) -> bool:
    """Return whether a process has marked the file."""
    if sealable():
        return bool(_seals(fd) & _MARK)
    return os.pread(fd, 1, at) == b"\1"


def _seals(fd: int) -> int:
    """Return the seals of a file; 0 if its type does not support seals."""
    try:
        return fcntl.fcntl(fd, _fcntl.F_GET_SEALS)
    except OSError:
        return 0
