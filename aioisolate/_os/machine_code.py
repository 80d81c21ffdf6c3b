"""Call machine code in this process's memory."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["function_at", "publish_code"]


def function_at(address: int, restype: Any, argtypes: Sequence[Any]) -> Callable[..., Any]:
    """Return a callable for the C function at *address*; the types are `ctypes` types.

    Raises TypeError if they are not.
    """
    return ctypes.CFUNCTYPE(restype, *argtypes)(address)


def _find_flush() -> Any:
    """Return the function that makes newly written code visible to the processor, or None.

    x86 needs none; on other machines it is in the compiler's or the system's library.
    """
    if os.uname().machine.lower() in ("x86_64", "amd64", "i386", "i686"):
        return None
    name, library = (
        ("sys_icache_invalidate", None)
        if sys.platform == "darwin"
        else ("__clear_cache", "libgcc_s.so.1")
    )
    try:
        flush = getattr(ctypes.CDLL(library), name)
    except (OSError, AttributeError):
        return None  # the kernel does this when pages first become executable
    flush.restype = None
    flush.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return flush


_flush = _find_flush()


def publish_code(address: int, size: int) -> None:
    """Flush the processor's instruction cache for the memory at *address*."""
    if _flush is not None:
        # sys_icache_invalidate takes the size, __clear_cache the end.
        _flush(address, size if sys.platform == "darwin" else address + size)
