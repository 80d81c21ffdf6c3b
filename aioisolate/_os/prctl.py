"""The parent-death signal and the child subreaper attribute (Linux)."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

__all__ = ["is_subreaper", "set_parent_death_signal"]

_PR_SET_PDEATHSIG = 1
_PR_GET_CHILD_SUBREAPER = 37

if sys.platform == "linux":
    # Without use_errno and argtypes: both cost page faults in a fresh child, where this is called,
    # and the one call below fails for no reason but an invalid signal number.
    _prctl = ctypes.CDLL(None).prctl
    _answer = ctypes.c_int(0)
    _answer_at = ctypes.byref(_answer)

    def set_parent_death_signal(number: int) -> None:
        """Have the kernel send *number* to this process when the thread that forked it ends.

        Too late if the parent is gone by now: compare os.getppid() afterwards. Not inherited.
        """
        if _prctl(_PR_SET_PDEATHSIG, number) != 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def is_subreaper() -> bool:
        """Tell whether orphaned descendants become this process's own children."""
        _prctl(_PR_GET_CHILD_SUBREAPER, _answer_at)
        return _answer.value != 0 or os.getpid() == 1

else:

    def set_parent_death_signal(number: int) -> None:
        """Do nothing: there is no such attribute here (see docs/design.md, platforms)."""

    def is_subreaper() -> bool:
        """Tell whether orphaned descendants become this process's own children."""
        return os.getpid() == 1
