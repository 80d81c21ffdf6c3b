"""The scratch file of a call: anonymous memory that parent and child both have open."""

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

# Not every platform has what is used of these; `sealable` is asked first.
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
    """Tell whether a scratch file can be sealed here, so that large results can go through it.

    It is tried out once in a process, and its forked children, which may not do so, know it then.
    """
    global _sealable
    if not hasattr(os, "memfd_create"):
        return False
    if _sealable is None:
        try:
            os.close(_memfd())
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
                return True  # for want of a descriptor, say
            _sealable = False  # forbidden by a filter
        else:
            _sealable = True
    return _sealable


def create(owner: Descriptors) -> int:
    """Open a scratch file: a sealable memfd, or an unlinked temporary file where there is none."""
    if not sealable():
        import tempfile  # noqa: PLC0415 - takes long to import, and only other systems need it

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
    """Forbid every later change of the file, by anyone."""
    fcntl.fcntl(fd, _fcntl.F_ADD_SEALS, _SEALS)


def is_sealed(fd: int) -> bool:
    """Tell whether nobody can change the file any more, its length included."""
    return sealable() and _seals(fd) & _SEALS == _SEALS


def fix_size(fd: int) -> None:
    """Forbid every later change of the file's length, by anyone, if that is possible here."""
    if sealable():
        fcntl.fcntl(fd, _fcntl.F_ADD_SEALS, _SIZE_SEALS)


def has_fixed_size(fd: int) -> bool:
    """Tell whether nobody can change the file's length any more."""
    return sealable() and _seals(fd) & _SIZE_SEALS == _SIZE_SEALS


def bar_reopening(fd: int) -> None:
    """Forbid everybody but root to open the file again for writing, through /proc.

    Its owner may allow it again by chmod, which a sandbox forbids.
    """
    try:
        os.fchmod(fd, 0o444)
    except OSError:
        pass  # a filter of somebody else's forbids chmod; descriptors for reading hold without it


def mark(fd: int, at: int) -> None:
    """Leave a mark on the file, which nobody can take back: a seal (against shrinking).

    Where there are no seals it is a byte of the file, the one *at* that place.
    """
    if sealable():
        fcntl.fcntl(fd, _fcntl.F_ADD_SEALS, _MARK)
    else:
        os.pwrite(fd, b"\1", at)


def is_marked(fd: int, at: int) -> bool:
    """Tell whether somebody has left a mark on the file."""
    if sealable():
        return bool(_seals(fd) & _MARK)
    return os.pread(fd, 1, at) == b"\1"


def _seals(fd: int) -> int:
    """Return the seals of a file; none if it is of a kind that has none."""
    try:
        return fcntl.fcntl(fd, _fcntl.F_GET_SEALS)
    except OSError:
        return 0
