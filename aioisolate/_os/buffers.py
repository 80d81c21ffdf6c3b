"""The buffer protocol for classes written in Python (PEP 688), on Python 3.11 as well."""

from __future__ import annotations

import ctypes
import sys
from typing import Any, TypeVar

__all__ = ["WRITABLE", "exports_buffer"]

# PyBUF_WRITABLE: the consumer wants to write.
WRITABLE = 1

T = TypeVar("T", bound=type)

if sys.version_info >= (3, 12):

    def exports_buffer(cls: T) -> T:
        """Make *cls* support the buffer protocol.

        *cls* defines ``__buffer__(flags)``, and ``__release_buffer__(view)`` because numpy keeps a
        reference to the exporter only if that exists.
        """
        return cls

else:
    # A class's bf_getbuffer slot may redirect the request to another object ("Python/C API, Buffer
    # Protocol, re-exporting"). This slot calls __buffer__ and forwards the request to the returned
    # memoryview, which also counts the exports. Python 3.12 does the same in C. The layout below
    # is that of 3.11, which will not change.
    _GetBuffer = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p, ctypes.c_int)
    _get_buffer = _GetBuffer(("PyObject_GetBuffer", ctypes.pythonapi))
    _ReleaseBuffer = ctypes.PYFUNCTYPE(None, ctypes.py_object, ctypes.c_void_p)
    _TP_AS_BUFFER = 160 if ctypes.sizeof(ctypes.c_void_p) == 8 else 80

    @_GetBuffer  # type: ignore[untyped-decorator]
    def _slot(exporter: Any, view: Any, flags: int) -> int:
        try:
            result: int = _get_buffer(exporter.__buffer__(flags), view, flags)
        except BaseException:  # noqa: BLE001 - a ctypes callback cannot propagate it
            # The caller gets a SystemError: 3.11 allows no other exception here.
            return -1
        return result

    @_ReleaseBuffer  # type: ignore[untyped-decorator]
    def _release_slot(exporter: Any, view: Any) -> None:
        """Do nothing; never called, since another object exports. numpy checks for the slot."""

    def exports_buffer(cls: T) -> T:
        """Make *cls*, which defines ``__buffer__(flags)``, support the buffer protocol.

        An exception of ``__buffer__`` becomes a SystemError without a message.
        """
        table = ctypes.c_void_p.from_address(id(cls) + _TP_AS_BUFFER)
        slots = (ctypes.c_void_p * 2).from_address(table.value or 0)
        slots[0] = ctypes.cast(_slot, ctypes.c_void_p).value
        slots[1] = ctypes.cast(_release_slot, ctypes.c_void_p).value
        return cls
