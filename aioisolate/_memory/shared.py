"""What makes arrays in shared memory; it can be imported without numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

from .optional import numpy_for

if TYPE_CHECKING:
    from .arrays import SharedArray

__all__ = ["shared_array"]


def shared_array(shape: SupportsIndex | Sequence[SupportsIndex], dtype: Any = float) -> SharedArray:
    """Make an array of zeros in memory that this process and its isolated children share.

    Handed to a child, whatever its ``start``, it is not copied; what the child writes is there, for
    all who have the array, as soon as it is written, also if the child is killed later. Isolation
    does not cover it, then. It takes memory only for the pages that are written.

    A view of it whose ``flags.writeable`` is False arrives read-only.

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
    numpy_for("shared_array")
    from .arrays import make  # noqa: PLC0415 - it imports numpy

    return make(shape, dtype)
