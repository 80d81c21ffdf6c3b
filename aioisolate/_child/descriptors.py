"""Replace open files that a child with untrusted code must not share with other children.

All processes that inherit an open file description share its offset, its flags and its owner, so
one call could leave data there for the next. Every file that the fork server's modules hold open is
therefore replaced by an empty file. Each child opens the empty file and the library's own /dev/null
itself.

The files are replaced, not closed: an object that is garbage-collected later closes its descriptor
number, which could then belong to another file. The empty file is read-only, so that a module that
writes to its log file gets an error.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable

from .._os import fds
from .spec import ChildSpec

__all__ = ["gaps", "reopen_or_replace", "replace_module_files"]


def replace_module_files(spec: ChildSpec, proc: int) -> None:
    """Replace the files that modules hold open, and reopen those of the library.

    *proc*: a file descriptor of /proc, or -1.
    """
    assert spec.module_fds is not None
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
    for fd in spec.module_fds:
        os.dup2(empty, fd, False)
    if spec.snapshots:
        reopen_or_replace(spec.snapshots, empty, proc)
    # Hooks that run after each fork (os.register_at_fork, pthread_atfork) may have opened files at
    # other numbers. All of these are closed: to find the open ones takes longer than the rest of
    # this function.
    for first, end in spec.gaps:
        os.closerange(first, end)


def reopen_or_replace(files: Iterable[int], empty: int, proc: int = -1) -> None:
    """Reopen files read-only, and replace by *empty* those that can't be reopened."""
    for fd in files:
        try:
            own = fds.reopen(fd, os.O_RDONLY, proc if proc >= 0 else None)
        except OSError:
            os.dup2(empty, fd, False)
        else:
            os.dup2(own, fd, False)
            os.close(own)


def gaps(known: Iterable[int]) -> list[tuple[int, int]]:
    """Return the ranges (first, end) of numbers between the *known* ones; end is exclusive."""
    pairs = itertools.pairwise(sorted(known))
    return [(lower + 1, upper) for lower, upper in pairs if upper > lower + 1]
