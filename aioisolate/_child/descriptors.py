"""What a child of a fork server must not share with its siblings, where fn is a stranger's.

An open file has one offset, one set of flags and one owner for all who have inherited it: what one
call leaves there the next one finds. So whatever the modules of the server hold open is replaced by
an empty file, and even that, and the library's own /dev/null, are opened by each child anew.

Replaced and not closed: an object that is collected later closes its number, whoever has it then.
For reading only: a module that writes to what it takes for its log is to hear of it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable

from .._os import fds
from .spec import ChildSpec

__all__ = ["gaps", "renew", "replace_strangers"]


def replace_strangers(spec: ChildSpec, proc: int) -> None:
    """Replace what modules hold open, and open anew what belongs to the library.

    *proc*: a descriptor of /proc, or -1.
    """
    assert spec.strangers is not None
    null, empty = spec.null, spec.empty
    if spec.dev >= 0:
        own = os.open("null", os.O_RDWR | os.O_CLOEXEC, dir_fd=spec.dev)
        os.dup2(own, null, False)
        os.close(own)
        own = os.open("null", os.O_RDONLY | os.O_CLOEXEC, dir_fd=spec.dev)
        os.dup2(own, empty, False)
        os.close(own)
        os.close(spec.dev)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for fd in spec.strangers:
        os.dup2(empty, fd, False)
    if spec.snapshots:
        renew(spec.snapshots, empty, proc)
    # What functions have opened that run after each fork (os.register_at_fork, and C's). Closed,
    # since to find out which of the numbers are open takes longer than all else here.
    for first, end in spec.gaps:
        os.closerange(first, end)


def renew(files: Iterable[int], empty: int, proc: int = -1) -> None:
    """Open files anew, to be read only; where that can't be, *empty* takes their place."""
    for fd in files:
        try:
            own = fds.reopen(fd, os.O_RDONLY, proc if proc >= 0 else None)
        except OSError:
            os.dup2(empty, fd, False)
        else:
            os.dup2(own, fd, False)
            os.close(own)


def gaps(known: Iterable[int]) -> list[tuple[int, int]]:
    """Return the ranges of numbers between the *known* ones; the end of each is a known one."""
    there = sorted(known)
    return [(one + 1, other) for one, other in itertools.pairwise(there) if other > one + 1]
