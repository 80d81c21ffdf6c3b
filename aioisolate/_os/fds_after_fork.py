"""Find the descriptors that libraries opened in a forked child, right after the fork.

Libraries open descriptors in a child before any other code runs, in functions registered with
`os.register_at_fork` or pthread_atfork. gRPC, for example, closes its epolls and eventfds and opens
new ones, which get the same numbers, so a number identifies nothing. A socket or a pipe has its own
inode. Epolls and eventfds share one; kcmp tells whether two of them are the same open file.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from collections.abc import Iterable, Mapping

from .syscalls import machine

__all__ = ["inode_of", "opened_here"]

# The system call number of kcmp, looked up before the fork.
_KCMP = {"x86_64": 312, "aarch64": 272}.get(machine() or "", -1)
if sys.platform == "linux":
    # Without errno and argument types: they would cost each child page copies.
    _syscall = ctypes.CDLL(None).syscall

    def _compare(one: int, other: int, fd: int, other_fd: int) -> int:
        """Return 0 if the descriptors are the same open file, above 0 if not, or -1 on error."""
        return _syscall(_KCMP, one, other, 0, fd, other_fd) if _KCMP >= 0 else -1

else:

    def _compare(one: int, other: int, fd: int, other_fd: int) -> int:  # noqa: ARG001 - the signature on Linux
        return -1


def inode_of(status: os.stat_result) -> int:
    """Return the inode that identifies a file, or 0 if the file shares its inode with others."""
    return status.st_ino if stat.S_IFMT(status.st_mode) else 0


def opened_here(
    fds: Iterable[int], known: Mapping[int, int] | None, parent: int, *, threaded: bool
) -> list[int]:
    """Return those of *fds* that this process, a child of *parent*, has opened since its fork.

    *known* maps the parent's descriptors before the fork to their inodes, or is None if they were
    not listed. *threaded*: other threads of the parent may have opened descriptors between that
    listing and the fork. In doubt, a descriptor counts as the parent's.
    """
    pid = os.getpid()
    found = []
    for fd in fds:
        try:
            inode = inode_of(os.fstat(fd))
        except OSError:
            continue
        # Changes that the parent makes after the fork are no evidence; an inode from before the
        # fork is.
        if inode and (known is None or inode in known.values()):
            continue
        if inode and not threaded:
            found.append(fd)
            continue
        order = _compare(parent, pid, fd, fd)
        # An error means that the parent has no such descriptor, or that kcmp is forbidden, for
        # example by Docker's seccomp filter.
        if order > 0 or (order < 0 and known is not None and fd not in known):
            found.append(fd)
    return found
