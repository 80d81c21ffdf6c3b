"""Access rights of memory, and advice about its use."""

from __future__ import annotations

import enum
import mmap

from .._os import mappings

__all__ = ["Access", "Advice", "page_size"]


class Access(enum.Flag):
    """Access rights of pages of memory.

    Combine them with ``|``. WRITE and EXEC together are refused where they would take effect:
    attackers exploit memory that is both writable and executable.

    Example::

        view.protect(slice(0, page_size()), Access.READ)
    """

    NONE = mappings.NONE
    READ = mappings.READ
    WRITE = mappings.WRITE
    EXEC = mappings.EXEC


class Advice(enum.Enum):
    """Advice to the kernel about the use of pages of memory, see madvise(2).

    The values are the names of the platform's constants. Not every platform has all of them.
    """

    NORMAL = "MADV_NORMAL"
    RANDOM = "MADV_RANDOM"
    SEQUENTIAL = "MADV_SEQUENTIAL"
    WILLNEED = "MADV_WILLNEED"
    HUGEPAGE = "MADV_HUGEPAGE"
    NOHUGEPAGE = "MADV_NOHUGEPAGE"
    DONTFORK = "MADV_DONTFORK"
    DOFORK = "MADV_DOFORK"
    WIPEONFORK = "MADV_WIPEONFORK"
    KEEPONFORK = "MADV_KEEPONFORK"
    DONTDUMP = "MADV_DONTDUMP"
    DODUMP = "MADV_DODUMP"
    MERGEABLE = "MADV_MERGEABLE"
    UNMERGEABLE = "MADV_UNMERGEABLE"
    COLD = "MADV_COLD"
    PAGEOUT = "MADV_PAGEOUT"

    def number(self) -> int:
        """Return the platform's number for the advice; raise NotImplementedError without one."""
        found = getattr(mmap, self.value, _NEWER.get(self.value))
        if found is None:
            raise NotImplementedError(f"there is no {self.value} on this platform")
        number: int = found
        return number


# Linux's numbers, for a Python that was built with older headers.
_NEWER = (
    {"MADV_WIPEONFORK": 18, "MADV_KEEPONFORK": 19, "MADV_COLD": 20, "MADV_PAGEOUT": 21}
    if hasattr(mmap, "MADV_DONTDUMP")
    else {}
)


def page_size() -> int:
    """Return the size of a page of memory, in bytes.

    Example::

        view.protect(slice(0, 4 * page_size()), Access.NONE)
    """
    return mappings.PAGE
