"""The C library's buffer of standard output, which os._exit does not flush."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["flush", "pending", "purge"]

_libc = ctypes.CDLL(None)

if sys.platform == "linux" and hasattr(_libc, "__fpending"):
    _stdout = ctypes.c_void_p.in_dll(_libc, "stdout")
    _libc.__fpending.argtypes = [ctypes.c_void_p]
    _libc.__fpending.restype = ctypes.c_size_t
    _libc.__fpurge.argtypes = [ctypes.c_void_p]
    _libc.__fpurge.restype = None
    _libc.fflush.argtypes = [ctypes.c_void_p]

    def pending() -> bool:
        """Return whether the buffer holds output of C code that is not yet written."""
        return bool(_libc.__fpending(_stdout))

    def purge() -> None:
        """Discard the buffer: the parent has the same content and will write it."""
        _libc.__fpurge(_stdout)

    def flush() -> None:
        """Write the buffer to standard output."""
        _libc.fflush(_stdout)

else:
    # No fflush(NULL): it would write the parent's part of every other open FILE a second time.
    # Other C libraries have no common symbol for `stdout`.

    def pending() -> bool:
        """Return whether the buffer holds output of C code that is not yet written."""
        return False

    def purge() -> None:
        """Do nothing: this C library has no portable way."""

    def flush() -> None:
        """Do nothing: this C library has no portable way."""
