"""Calling machine code that lies in memory of ours."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["function_at", "publish_code"]


def function_at(address: int, restype: Any, argtypes: Sequence[Any]) -> Callable[..., Any]:
    """Return what calls the C function at *address*; the types are those of `ctypes`.

    Raises TypeError if they are none.
    """
    return ctypes.CFUNCTYPE(restype, *argtypes)(address)


def _find_flush() -> Any:
    """Find what makes newly written code visible to the processor, where that is needed.

    x86 sees to it by itself; on others a C compiler's or the system's library has it.
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
        return None  # the kernel does it when pages become executable for the first time
    flush.restype = None
    flush.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return flush


_flush = _find_flush()


def publish_code(address: int, size: int) -> None:
    """Let the processor forget what it knows of code that was at *address* before."""
    if _flush is not None:
        # One wants the size, the other the end.
        _flush(address, size if sys.platform == "darwin" else address + size)
