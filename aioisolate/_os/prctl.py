"""Process attributes of prctl(2), such as the parent-death signal and no_new_privs (Linux)."""

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
    # Without use_errno and argtypes: both cost page faults in a new child, where this is called,
    # and each of the calls below can fail for one reason only.
    _prctl = ctypes.CDLL(None).prctl
    _answer = ctypes.c_int(0)
    _answer_at = ctypes.byref(_answer)

    def set_parent_death_signal(number: int) -> None:
        """Have the kernel send *number* to this process when the thread that forked it ends.

        The main thread ends with its process; for other threads see `alive_pipe`. No signal comes
        if the parent has already ended: compare os.getppid() afterwards. Not inherited.
        """
        if _prctl(_PR_SET_PDEATHSIG, number) != 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def set_dumpable(flag: bool) -> None:
        """Set whether other processes of the same user may inspect this one; root always may.

        If *flag* is false, a crash leaves no core file, and root owns the process's files in /proc.
        Inherited by a fork.
        """
        if _prctl(_PR_SET_DUMPABLE, int(flag), 0, 0, 0) != 0:  # only a seccomp filter refuses it
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def is_dumpable() -> bool:
        """Return whether this process may inspect itself; for example, not after os.setuid()."""
        return bool(_prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 1)

    def is_filtered() -> bool:
        """Return whether this process has a seccomp filter."""
        return bool(_prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) == 2)

    def set_no_new_privs() -> None:
        """Make set-user-ID and file capabilities ineffective, irrevocably. Inherited."""
        if _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:  # Linux before 3.5
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def set_subreaper() -> None:
        """Make this process the new parent of orphaned descendants. Not inherited by a fork."""
        if _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:  # Linux before 3.4
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def is_subreaper() -> bool:
        """Return whether orphaned descendants become this process's children."""
        _prctl(_PR_GET_CHILD_SUBREAPER, _answer_at)
        return _answer.value != 0 or os.getpid() == 1

else:

    def set_parent_death_signal(number: int) -> None:
        """Do nothing: this system has no such attribute (see docs/design.md, platforms)."""

    def set_dumpable(flag: bool) -> None:  # noqa: ARG001 - the signature on Linux
        """Raise OSError: this system has no such attribute."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def is_dumpable() -> bool:
        """Return True: this system has no such attribute."""
        return True

    def is_filtered() -> bool:
        """Return False: this system has no seccomp filters."""
        return False

    def set_no_new_privs() -> None:
        """Raise OSError: this system has no such attribute."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def set_subreaper() -> None:
        """Do nothing: this system has no such attribute; init reaps orphans."""

    def is_subreaper() -> bool:
        """Return whether orphaned descendants become this process's children."""
        return os.getpid() == 1
