"""Count the processes and threads of this process's user, as the kernel does (Linux).

No system call returns this number. But clone checks RLIMIT_NPROC (EAGAIN) before the address to
which it writes the new process's pidfd (EFAULT). With an invalid address it never creates a
process, and each attempt costs a few microseconds.
"""

from __future__ import annotations

import errno
import resource
from typing import Any

from . import syscalls
from .syscalls import syscall

__all__ = ["CLONE_FLAGS", "NOWHERE", "count_tasks", "is_counted"]

_CLONE = {"x86_64": 56, "aarch64": 220}
# CLONE_PIDFD, CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND, and SIGCHLD: clone copies nothing.
CLONE_FLAGS = 0x1000 | 0x100 | 0x200 | 0x400 | 0x800 | 17
# An address that no process can write to.
NOWHERE = -8
_COUNT_MAX = 1 << 22
_resource: Any = resource


def _is_refused() -> bool:
    """Return whether RLIMIT_NPROC forbids another process."""
    number = _CLONE.get(syscalls.machine() or "")
    if number is None:
        raise OSError(errno.ENOSYS, "no system call numbers are known for this machine")
    try:
        syscall(number, CLONE_FLAGS, 0, NOWHERE, 0, 0)
    except OSError as exc:
        if exc.errno == errno.EAGAIN:
            return True
        if exc.errno == errno.EFAULT:
            return False
        raise
    raise OSError(
        errno.EINVAL, "clone created a process despite an invalid address"
    )  # never, see NOWHERE


def count_tasks() -> int:
    """Return the number of processes and threads that count towards RLIMIT_NPROC.

    Changes the soft limit temporarily. Raises OSError if the limit does not apply to this process,
    or if the number can't be found.
    """
    which = _resource.RLIMIT_NPROC
    soft, hard = resource.getrlimit(which)
    most = _COUNT_MAX if hard == resource.RLIM_INFINITY else hard

    def refused(limit: int) -> bool:
        resource.setrlimit(which, (min(limit, most), hard))
        return _is_refused()

    try:
        if not refused(0):
            raise OSError(errno.ENOTSUP, "processes of this user are not counted")
        # Refused with a limit of `low`, not refused with one of `high`.
        low, high = 0, 1
        while refused(high):
            if high >= most:
                return most
            low, high = high, min(2 * high, most)
        while high - low > 1:
            middle = (low + high) // 2
            if refused(middle):
                low = middle
            else:
                high = middle
        return low
    finally:
        resource.setrlimit(which, (soft, hard))


def is_counted() -> bool:
    """Return whether RLIMIT_NPROC applies to this process."""
    try:
        count_tasks()
    except OSError:
        return False
    return True
