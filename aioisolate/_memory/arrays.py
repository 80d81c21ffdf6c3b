"""Arrays in shared memory."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np

from .._os import memfd
from .._wire import fd_passing
from . import file_mappings
from .access import Access
from .backing_file import BackingFile
from .region import FREE
from .snapshot import View

__all__ = ["SharedArray", "make"]


class SharedArray(np.ndarray[Any, Any]):
    """A numpy array in memory that this process and its isolated children share.

    `aioisolate.shared_array` creates it. Its views (slices, reshaped, transposed) share the memory,
    too; results of computations are ordinary arrays. An array that is read-only in this process is
    also read-only in the process that receives it, and can't be made writable there.
    """

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> Any:
        bundle = fd_passing.bundle()
        if bundle is not None and self.size:
            low, high = _bounds(self)
            place = file_mappings.at(low, high - low)
            if place is not None and place.use is file_mappings.Use.SHARED:
                address, read_only = self.__array_interface__["data"]
                offset = place.offset + address - place.address
                root = place.root.reader() if read_only else place.root
                index = bundle.add(root.fd, root)
                return _reopen, (
                    index,
                    root.length,
                    offset,
                    self.dtype,
                    self.shape,
                    self.strides,
                    read_only,
                )
        return self.view(np.ndarray).__reduce_ex__(protocol)


def make(shape: SupportsIndex | Sequence[SupportsIndex], dtype: Any) -> SharedArray:
    """Create a shared array filled with zeros; see `shared_array`."""
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"an array of Python objects ({kind}) can't be shared")
    sizes = _sizes(shape)
    length = kind.itemsize
    for size in sizes:
        if size < 0:
            raise ValueError(f"an array can't have a negative dimension: {sizes}")
        length *= size
    if not length:
        return np.zeros(sizes, kind).view(SharedArray)
    root = BackingFile.create(length)
    memfd.fix_size(root.fd)
    memfd.bar_reopening(root.fd)
    return _map(root, 0, kind, sizes, None)


def _sizes(shape: Any) -> tuple[int, ...]:
    """Return a shape, given as an integer (numpy's included) or several. Raises TypeError."""
    try:
        return (operator.index(shape),)
    except TypeError:  # an array has __index__, too, and raises unless it is a single integer
        return tuple(operator.index(size) for size in shape)


def _bounds(array: SharedArray) -> tuple[int, int]:
    """Return the address of an array's first byte, and the address after its last byte."""
    low = high = array.__array_interface__["data"][0]
    for size, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (size - 1) * stride
        else:
            high += (size - 1) * stride
    return low, high + array.itemsize


def _map(
    root: BackingFile,
    offset: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    *,
    read_only: bool = False,
) -> SharedArray:
    """Return an array in the memory of *root*."""
    # np.ndarray(buffer=) keeps a reference to a buffer only if the buffer is an array.
    view = View(root, shared=True, access=Access.READ if read_only else FREE)
    memory = np.frombuffer(memoryview(view), np.uint8)
    return np.ndarray(shape, dtype, memory, offset, strides).view(SharedArray)


def _reopen(  # noqa: PLR0917 - pickle calls it with positional arguments
    index: int,
    length: int,
    offset: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    read_only: bool,
) -> SharedArray:
    root = BackingFile.adopt(fd_passing.arrived(index), length, fixed_only=True)
    return _map(root, offset, dtype, shape, strides, read_only=read_only)
