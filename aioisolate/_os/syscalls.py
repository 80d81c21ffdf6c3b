"""System calls without a Python function, made by their number (Linux)."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys

__all__ = ["ARCHITECTURE", "machine", "syscall"]

# The system call interface of a machine, as a seccomp filter sees it: AUDIT_ARCH_* of
# linux/audit.h, the ELF machine number with the flags for 64 bits and little-endian.
ARCHITECTURE: dict[str, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


@functools.cache
def machine() -> str | None:
    """Return the machine whose system call numbers this process uses, or None if unknown.

    A 32-bit interpreter on a 64-bit kernel has other numbers, so its machine is unknown.
    """
    name = os.uname().machine
    known = sys.platform == "linux" and ctypes.sizeof(ctypes.c_void_p) == 8
    return name if known and name in ARCHITECTURE else None


if sys.platform == "linux":
    _syscall = ctypes.CDLL(None, use_errno=True).syscall
    _syscall.restype = ctypes.c_long
    _LIMIT = 1 << 31

    def syscall(number: int, *args: object) -> int:
        """Make the system call *number* and return its result, or raise OSError.

        Integers are passed as 64 bits, bytes as the address of their content, and other objects as
        ctypes passes them.
        """
        # ctypes passes an int as a C int, which libffi extends to a register's 64 bits. It
        # truncates larger values, and does not extend the seventh word, which is on the stack.
        # (Wrapping all arguments would cost a new child 70 µs of page copies.)
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

    def syscall(number: int, *args: object) -> int:  # noqa: ARG001 - the signature on Linux
        """Raise OSError: system call numbers are not a stable interface here."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
