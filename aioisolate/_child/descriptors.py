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


def replace_strangers(order: Order, proc: int) -> None:
    """Replace what modules hold open, and open anew what belongs to the library.

    *proc*: a descriptor of /proc, or -1.
    """
    assert order.strangers is not None
    null, empty = order.null, order.empty
    for fd, mode in ((null, os.O_RDWR), (empty, os.O_RDONLY)):
        try:
            _renew(fd, mode, proc)
        except OSError:
            pass  # no /proc: its flags are shared
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    fds.replace(order.strangers, empty)
    renew(order.snapshots, empty, proc)
    if proc >= 0:
        fds.replace(_opened_by_hooks(order, proc), empty)


def _renew(fd: int, mode: int, proc: int) -> None:
    own = fds.reopen(fd, mode, proc if proc >= 0 else None)
    os.dup2(own, fd, False)
    os.close(own)


def renew(files: list[int], empty: int, proc: int = -1) -> None:
    """Open files anew, to be read only; where that can't be, *empty* takes their place."""
    for fd in files:
        try:
            _renew(fd, os.O_RDONLY, proc)
        except OSError:
            os.dup2(empty, fd, False)


def _opened_by_hooks(order: Order, proc: int) -> list[int]:
    """List what functions have opened that run after each fork (os.register_at_fork and C's).

    If such a function has closed what its module had open, that has been replaced, and is open.
    """
    # Linux 6.2 and later tell how many there are, which costs a third.
    if order.count and os.stat("self/fd", dir_fd=proc).st_size == order.count:
        return []
    directory = os.open("self/fd", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        there = {int(name) for name in os.listdir(directory)}
    finally:
        os.close(directory)
    # The listing had a descriptor of its own, whose number is free again.
    return [fd for fd in there - order.known - {directory} if fds.is_open(fd)]
