"""The C library's own buffer of standard output, which os._exit does not write out."""

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
        """Tell whether C code has printed something that is not yet written out."""
        return bool(_libc.__fpending(_stdout))

    def purge() -> None:
        """Drop what is not yet written out: it is the parent's, who will write it."""
        _libc.__fpurge(_stdout)

    def flush() -> None:
        """Write out what C code has printed."""
        _libc.fflush(_stdout)

else:
    # Only standard output: fflush(NULL) would write the parent's part of every other open
    # FILE a second time, and other C libraries have no common name for `stdout`.

    def pending() -> bool:
        """Tell whether C code has printed something that is not yet written out."""
        return False

    def purge() -> None:
        """Do nothing: this C library has no portable way."""

    def flush() -> None:
        """Do nothing: this C library has no portable way."""
