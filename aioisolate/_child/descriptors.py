"""What a child of a fork server must not share with its siblings, where fn is a stranger's.

An open file has one offset, one set of flags and one owner for all who have inherited it: what one
call leaves there the next one finds. So whatever the modules of the server hold open is replaced by
an empty file, and even that, and the library's own /dev/null, are opened by each child anew.

Replaced and not closed: an object that is collected later closes its number, whoever has it then.
For reading only: a module that writes to what it takes for its log is to hear of it.
"""

from __future__ import annotations

import os

from .._os import fds
from .order import Order

__all__ = ["renew", "replace_strangers"]


def replace_strangers(order: Order, loose: list[int], proc: int) -> None:
    """Replace what modules hold open, and open anew what belongs to the library.

    *loose*: descriptors that no object holds, still open. *proc*: a descriptor of /proc, or -1.
    """
    assert order.strangers is not None
    shared_null, shared_empty = order.null, order.empty
    null, empty = _open(shared_null, os.O_RDWR, proc), _open(shared_empty, os.O_RDONLY, proc)
    for fd in (0, 1, 2, shared_null):
        os.dup2(null, fd, fd <= 2)
    fds.replace((shared_empty, *order.strangers), empty)
    renew(order.snapshots, empty, proc)
    if proc >= 0:
        late = _opened_by_hooks(order, {*loose, null, empty}, proc)
        if late:
            fds.replace(late, empty)
    os.close(null)
    os.close(empty)


def _open(fd: int, mode: int, proc: int) -> int:
    try:
        return fds.reopen(fd, mode, proc if proc >= 0 else None)
    except OSError:
        return os.dup(fd)  # no /proc: then its flags are shared


def renew(files: list[int], empty: int, proc: int = -1) -> None:
    """Open files anew, to be read only; where that can't be, *empty* takes their place."""
    for fd in files:
        try:
            own = fds.reopen(fd, os.O_RDONLY, proc if proc >= 0 else None)
        except OSError:
            os.dup2(empty, fd, False)
        else:
            os.dup2(own, fd, False)
            os.close(own)


def _opened_by_hooks(order: Order, known: set[int], proc: int) -> list[int]:
    """List what functions have opened that run after each fork (os.register_at_fork and C's)."""
    # Linux 6.2 and later tell how many there are, which costs a tenth.
    if order.count and os.stat("self/fd", dir_fd=proc).st_size == order.count + len(known):
        return []
    directory = os.open("self/fd", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        there = {int(name) for name in os.listdir(directory)}
    finally:
        os.close(directory)
    # The listing had a descriptor of its own, whose number is free again.
    return [fd for fd in there - known - order.known - {directory} if fds.is_open(fd)]
