"""Arrays in shared memory."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.lib.array_utils import byte_bounds

from .._os import memfd
from .._wire import handles
from . import places
from .access import Access
from .area import FREE
from .root import Root
from .snapshot import View

__all__ = ["SharedArray", "shared_array"]


class SharedArray(np.ndarray[Any, Any]):
    """A numpy array in memory that this process and its isolated children share.

    Made by `shared_array`. Views of it (slices, reshaped, transposed) share as well; what is
    computed from it is an array like any other. One that is read-only here arrives so in another
    process, where it can't be made writable.
    """

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> Any:
        packing = handles.packing()
        if packing is not None and self.size:
            low, high = byte_bounds(self)
            place = places.at(low, high - low)
            if place is not None and place.use is places.Use.SHARED:
                address, read_only = self.__array_interface__["data"]
                offset = place.offset + address - place.address
                root = place.root.reader() if read_only else place.root
                index = packing.add(root.fd, root)
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


def shared_array(shape: int | Sequence[int], dtype: Any = float) -> SharedArray:
    """Make an array of zeros in memory that this process and its isolated children share.

    Handed to a child, whatever its ``start``, it is not copied; what the child writes is there, for
    all who have the array, as soon as it is written, also if the child is killed later. Isolation
    does not cover it, then. It takes memory only for the pages that are written.

    Args:
        shape: as for `numpy.zeros`.
        dtype: the data type, as for `numpy.zeros`; no Python objects.

    Returns:
        A numpy array.

    Raises:
        ValueError, TypeError: there can be no such array.
        MemoryError, OSError: it does not fit; the text names the size.
        ImportError: numpy is not installed.

    Example::

        out = shared_array((1080, 1920, 3), "u1")
        await run_isolated(render, scene, out)  # fills it
        show(out)
    """
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"an array of Python objects ({kind}) can't be shared")
    dims = (shape,) if isinstance(shape, int) else shape
    sizes = tuple(operator.index(size) for size in dims)
    length = kind.itemsize
    for size in sizes:
        if size < 0:
            raise ValueError(f"an array can't have a negative dimension: {sizes}")
        length *= size
    if not length:
        return np.zeros(sizes, kind).view(SharedArray)
    root = Root.create(length)
    memfd.fix_size(root.fd)
    memfd.bar_reopening(root.fd)
    return _on(root, 0, kind, sizes, None)


def _on(
    root: Root,
    offset: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    *,
    read_only: bool = False,
) -> SharedArray:
    # np.ndarray(buffer=) does not hold on to what it is given, unless that is an array.
    view = View(root, shared=True, access=Access.READ if read_only else FREE)
    memory = np.frombuffer(memoryview(view), np.uint8)
    return np.ndarray(shape, dtype, memory, offset, strides).view(SharedArray)


def _reopen(  # noqa: PLR0917 - as pickle calls it
    index: int,
    length: int,
    offset: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    read_only: bool,
) -> SharedArray:
    root = Root.adopt(handles.arrived(index), length, fixed_only=True)
    return _on(root, offset, dtype, shape, strides, read_only=read_only)
