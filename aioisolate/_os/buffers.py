"""The buffer protocol for classes written in Python (PEP 688), on Python 3.11 as well."""

from __future__ import annotations

import ctypes
import sys
from typing import Any, TypeVar

__all__ = ["WRITABLE", "exports_buffer"]

# PyBUF_WRITABLE: whoever asks wants to write.
WRITABLE = 1

T = TypeVar("T", bound=type)

if sys.version_info >= (3, 12):

    def exports_buffer(cls: T) -> T:
        """Let *cls* be used wherever a buffer is.

        It defines ``__buffer__(flags)`` and, since numpy holds on to its memory only then,
        ``__release_buffer__(view)``.
        """
        return cls

else:
    # The slot of a class is asked for a buffer and may redirect the request to another object
    # ("Python/C API, Buffer Protocol, re-exporting"); so the slot calls __buffer__ and passes the
    # request on to the memoryview that comes back, which also counts as long as it is in use.
    # This is what 3.12 does in C. The layout below is that of 3.11, which will not change.
    _GetBuffer = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p, ctypes.c_int)
    _get_buffer = _GetBuffer(("PyObject_GetBuffer", ctypes.pythonapi))
    _ReleaseBuffer = ctypes.PYFUNCTYPE(None, ctypes.py_object, ctypes.c_void_p)
    _TP_AS_BUFFER = 160 if ctypes.sizeof(ctypes.c_void_p) == 8 else 80

    @_GetBuffer  # type: ignore[untyped-decorator]
    def _slot(exporter: Any, view: Any, flags: int) -> int:
        try:
            result: int = _get_buffer(exporter.__buffer__(flags), view, flags)
        except BaseException:  # noqa: BLE001 - there is no way to hand it on from here
            # The caller gets a SystemError, which is all that 3.11 lets us raise.
            return -1
        return result

    @_ReleaseBuffer  # type: ignore[untyped-decorator]
    def _release_slot(exporter: Any, view: Any) -> None:
        """Never called, since another object exports; but numpy looks whether it is there."""

    def exports_buffer(cls: T) -> T:
        """Let *cls*, which defines ``__buffer__(flags)``, be used wherever a buffer is.

        What its ``__buffer__`` raises becomes a SystemError without a text.
        """
        table = ctypes.c_void_p.from_address(id(cls) + _TP_AS_BUFFER)
        slots = (ctypes.c_void_p * 2).from_address(table.value or 0)
        slots[0] = ctypes.cast(_slot, ctypes.c_void_p).value
        slots[1] = ctypes.cast(_release_slot, ctypes.c_void_p).value
        return cls
