"""A short-lived helper thread whose end can be awaited as a readable descriptor."""

from __future__ import annotations

import _thread
import errno
import os
import threading
from collections.abc import Callable

from .fds import Descriptors

__all__ = ["others", "start"]

# How these threads are told from the user's own: they hold no lock that a child could need.
_PREFIX = "aioisolate-"


def start(name: str, work: Callable[[], object], owner: Descriptors) -> int:
    """Run *work* in a daemon thread; return a descriptor that is at its end when it is done.

    *work* must not raise. Raises OSError if no thread can be started. The descriptor belongs to *owner*.
    """
    read, write = os.pipe()
    owner.own(read)
    os.set_blocking(read, False)

    def run() -> None:
        try:
            work()
        finally:
            os.close(write)

    try:
        threading.Thread(target=run, name=_PREFIX + name, daemon=True).start()
    except RuntimeError as exc:  # "can't start new thread": the system has said EAGAIN
        os.close(write)
        raise OSError(errno.EAGAIN, str(exc)) from exc
    return read


def others() -> list[str]:
    """Name the Python threads of this process besides this one and the helpers."""
    if not _thread._count():  # no thread but the main one: the common case, for next to nothing
        return []
    me = threading.current_thread()
    return [
        thread.name
        for thread in threading.enumerate()
        if thread is not me and not thread.name.startswith(_PREFIX)
    ]
