"""Create arrays in shared memory; this module can be imported without numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

from .optional import numpy_for

if TYPE_CHECKING:
    from .arrays import SharedArray

__all__ = ["shared_array"]


def shared_array(shape: SupportsIndex | Sequence[SupportsIndex], dtype: Any = float) -> SharedArray:
    """Create an array of zeros in memory that this process and its isolated children share.

    Passing the array to a child, with any ``start``, does not copy it. All processes that have the
    array see the child's writes at once, even if the child is killed later: isolation does not
    cover the array. It takes memory only for the pages that are written to.

    A view whose ``flags.writeable`` is False is read-only in the child.

    Args:
        shape: as for `numpy.zeros`.
        dtype: the data type, as for `numpy.zeros`; no Python objects.

    Returns:
        A numpy array.

    Raises:
        ValueError, TypeError: the shape or the data type is not possible.
        MemoryError, OSError: memory is short; the message has the size.
        ImportError: numpy is not installed.

    Example::

        out = shared_array((1080, 1920, 3), "u1")
        await run_isolated(render, scene, out)  # fills it
        show(out)
    """
    numpy_for("shared_array")
    from .arrays import make  # noqa: PLC0415 - imports numpy

    return make(shape, dtype)
