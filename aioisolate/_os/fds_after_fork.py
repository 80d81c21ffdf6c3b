"""Which of a forked child's descriptors the child has opened itself, by a function that runs there.

Libraries open descriptors in a child before anybody else's code runs: in functions that are
registered with `os.register_at_fork` or pthread_atfork. gRPC, say, closes its epolls and eventfds,
and opens new ones, which get the same numbers. So a number tells nothing. A socket or a pipe has an
inode of its own. Epolls and eventfds share one; kcmp tells whether two are the same open file.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from collections.abc import Iterable, Mapping

from .syscalls import machine

__all__ = ["are_comparable", "inode_of", "opened_here"]

# The number of kcmp, looked up ahead of the fork.
_KCMP = {"x86_64": 312, "aarch64": 272}.get(machine() or "", -1)
if sys.platform == "linux":
    # Without errno and argument types: each child would copy pages for them.
    _syscall = ctypes.CDLL(None).syscall

    def _compare(one: int, other: int, fd: int, other_fd: int) -> int:
        """Return 0 if two processes have the same open file there, a number above if not, or -1."""
        return _syscall(_KCMP, one, other, 0, fd, other_fd) if _KCMP >= 0 else -1

else:

    def _compare(one: int, other: int, fd: int, other_fd: int) -> int:  # noqa: ARG001 - as above
        return -1


def inode_of(status: os.stat_result) -> int:
    """Return the inode that tells a file from all others, or 0: it shares one."""
    return status.st_ino if stat.S_IFMT(status.st_mode) else 0


def are_comparable() -> bool:
    """Tell whether this process may compare its descriptors with those of others of its user.

    (Docker's filter of system calls forbids that where there is no CAP_SYS_PTRACE.)
    """
    pid = os.getpid()
    read, write = os.pipe()
    try:
        return _compare(pid, pid, read, write) > 0
    finally:
        os.close(read)
        os.close(write)


def opened_here(
    fds: Iterable[int], known: Mapping[int, int] | None, parent: int, *, threaded: bool
) -> list[int]:
    """Pick those of *fds* that this process, a child of *parent*, has opened since it was forked.

    *known*: what the parent had before the fork, number to inode; None: nobody has looked.
    *threaded*: other threads of the parent may have opened some between that look and the fork.
    In doubt a descriptor is the parent's.
    """
    pid = os.getpid()
    found = []
    for fd in fds:
        try:
            inode = inode_of(os.fstat(fd))
        except OSError:
            continue
        # What the parent closes, or opens under the same number, from the fork on, is no evidence:
        # an inode of before the fork is.
        if inode and (known is None or inode in known.values()):
            continue
        if inode and not threaded:
            found.append(fd)
            continue
        order = _compare(parent, pid, fd, fd)
        # Not to be compared: the parent has none of that number, or comparing is forbidden.
        if order > 0 or (order < 0 and known is not None and fd not in known):
            found.append(fd)
    return found
