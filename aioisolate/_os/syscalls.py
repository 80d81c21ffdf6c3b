"""System calls that Python has no function for, made by their number (Linux)."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys

__all__ = ["ARCHITECTURE", "machine", "syscall"]

# What the kernel calls a machine's system call interface where a filter looks at it: AUDIT_ARCH_*
# of linux/audit.h, the ELF number of the machine with the marks for 64 bits and little-endian.
ARCHITECTURE: dict[str, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


@functools.cache
def machine() -> str | None:
    """Name the machine whose numbers this process uses, or None if they aren't known here.

    A 32-bit interpreter on a 64-bit kernel has other numbers, and so is of no known kind.
    """
    name = os.uname().machine
    known = sys.platform == "linux" and ctypes.sizeof(ctypes.c_void_p) == 8
    return name if known and name in ARCHITECTURE else None


if sys.platform == "linux":
    _syscall = ctypes.CDLL(None, use_errno=True).syscall
    _syscall.restype = ctypes.c_long
    _LIMIT = 1 << 31

    def syscall(number: int, *args: object) -> int:
        """Make the system call *number* and return what it returns, or raise OSError.

        Integers are passed as 64 bits, bytes as the address of their content, and the rest as
        ctypes does it.
        """
        # ctypes passes an int as a C int, which libffi extends to a register's 64 bits; but cuts
        # off what is larger, and does not extend the seventh word, which lies on the stack.
        # (Wrapping them all would cost a fresh child 70 µs of page copies.)
        for arg in args:
            if (isinstance(arg, int) and not -_LIMIT <= arg < _LIMIT) or len(args) > 5:
                args = tuple([ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args])
                break
        result: int = _syscall(number, *args)
        if result == -1:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

else:

    def syscall(number: int, *args: object) -> int:  # noqa: ARG001 - what Linux has
        """Raise OSError: numbers are no stable interface here."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
