"""Attributes of a process that prctl(2) has: how it dies, what it may become (Linux)."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

__all__ = [
    "is_dumpable",
    "is_filtered",
    "is_subreaper",
    "set_dumpable",
    "set_no_new_privs",
    "set_parent_death_signal",
    "set_subreaper",
]

_PR_SET_PDEATHSIG = 1
_PR_GET_DUMPABLE = 3
_PR_GET_SECCOMP = 21
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_PR_SET_NO_NEW_PRIVS = 38

if sys.platform == "linux":
    # Without use_errno and argtypes: both cost page faults in a fresh child, where this is called,
    # and each of the calls below has but one reason to fail.
    _prctl = ctypes.CDLL(None).prctl
    _answer = ctypes.c_int(0)
    _answer_at = ctypes.byref(_answer)

    def set_parent_death_signal(number: int) -> None:
        """Have the kernel send *number* to this process when the thread that forked it ends.

        The main thread ends with its process; for others see `alive_pipe`. Too late if the parent
        is gone by now: compare os.getppid() afterwards. Not inherited.
        """
        if _prctl(_PR_SET_PDEATHSIG, number) != 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def set_dumpable(flag: bool) -> None:
        """Let other processes of the same user look into this one, or not, root excepted.

        Off, it leaves no core file, and its /proc entries belong to root. Inherited by a fork.
        """
        if _prctl(_PR_SET_DUMPABLE, int(flag), 0, 0, 0) != 0:  # only a seccomp filter refuses it
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def is_dumpable() -> bool:
        """Tell whether this process may look into itself; after os.setuid(), say, it may not."""
        return bool(_prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 1)

    def is_filtered() -> bool:
        """Tell whether there is a filter on this process's system calls."""
        return bool(_prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) == 2)

    def set_no_new_privs() -> None:
        """Give up, for good, all rights that programs with set-user-ID would bring. Inherited."""
        if _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:  # Linux before 3.5
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def set_subreaper() -> None:
        """Have orphaned descendants become this process's own children. Not inherited by a fork."""
        if _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:  # Linux before 3.4
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def is_subreaper() -> bool:
        """Tell whether orphaned descendants become this process's own children."""
        _prctl(_PR_GET_CHILD_SUBREAPER, _answer_at)
        return _answer.value != 0 or os.getpid() == 1

else:

    def set_parent_death_signal(number: int) -> None:
        """Do nothing: there is no such attribute here (see docs/design.md, platforms)."""

    def set_dumpable(flag: bool) -> None:  # noqa: ARG001 - what Linux has
        """Raise OSError: there is no such attribute here."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def is_dumpable() -> bool:
        """Tell whether this process may look into itself: there is no such attribute here."""
        return True

    def is_filtered() -> bool:
        """Tell whether there is a filter on this process's system calls: there are none here."""
        return False

    def set_no_new_privs() -> None:
        """Raise OSError: there is no such attribute here."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def set_subreaper() -> None:
        """Do nothing: there is no such attribute here; the system collects orphans."""

    def is_subreaper() -> bool:
        """Tell whether orphaned descendants become this process's own children."""
        return os.getpid() == 1
