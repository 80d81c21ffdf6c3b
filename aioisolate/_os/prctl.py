"""The parent-death signal and the child subreaper attribute (Linux)."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["is_subreaper", "set_parent_death_signal"]

_PR_SET_PDEATHSIG = 1
_PR_GET_CHILD_SUBREAPER = 37

if sys.platform == "linux":
    _prctl = ctypes.CDLL(None, use_errno=True).prctl
    _prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
    _prctl.restype = ctypes.c_int

    def set_parent_death_signal(number: int) -> None:
        """Have the kernel send *number* to this process when the thread that forked it ends.

        Too late if the parent is gone by now: compare os.getppid() afterwards. Not inherited.
        """
        if _prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def is_subreaper() -> bool:
        """Tell whether orphaned descendants become this process's own children."""
        answer = ctypes.c_int(0)
        _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.addressof(answer), 0, 0, 0)
        return answer.value != 0 or os.getpid() == 1

else:

    def set_parent_death_signal(number: int) -> None:
        """Do nothing: there is no such attribute here (see docs/design.md, platforms)."""

    def is_subreaper() -> bool:
        """Tell whether orphaned descendants become this process's own children."""
        return os.getpid() == 1
