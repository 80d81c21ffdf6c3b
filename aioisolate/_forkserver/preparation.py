"""Prepare a fresh fork server: take over the parent's settings, and import modules.

The server is not confined. For the modules that it needs itself, it searches the standard library
before the other entries of the parent's `sys.path`. Preloaded modules are found as in the parent.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .._child.layers import ConfinementSpec
from .._os import fds, imports
from . import protocol

if TYPE_CHECKING:
    from . import module_resources

__all__ = ["library_first", "preload", "prepare"]

# The path entries of the standard library; empty in a copy, which has the parent's modules.
_library: list[str] = []


@contextlib.contextmanager
def library_first() -> Iterator[None]:
    """Make imports search the standard library first."""
    sys.path[:0] = _library
    try:
        yield
    finally:
        for entry in _library:
            sys.path.remove(entry)  # the first of several equal entries, which was inserted


def prepare(setup: protocol.Setup, fd: int) -> dict[int, str]:
    """Take over the settings of the parent; *fd* is the control socket.

    Return the preloaded module that opened each descriptor; {} if children run trusted code.
    """
    if setup.bound_early:
        del os.environ["LD_BIND_NOW"]
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    # Close descriptors that the parent made inheritable for another process.
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in fds.listed():
        if number > 2 and number not in (fd, null):
            try:
                os.close(number)
            except OSError:
                pass  # the descriptor of the listing itself
    os.close(null)
    home = getattr(sys, "_stdlib_dir", None)
    _library[:] = [entry for entry in sys.path if entry in (home, f"{home}/lib-dynload")]
    sys.path[:] = setup.path
    watch = None
    if setup.confinement is not None:
        confinement = ConfinementSpec(*setup.confinement)
        with library_first():  # before a preloaded module can change the search path
            from .._child import confine, rlimits  # noqa: F401, PLC0415 - only with a sandbox

            confine.get_ready(confinement)
            if confinement.codec != "pickle":
                from .._child import descriptors  # noqa: F401, PLC0415 - only for untrusted code
                from . import module_resources  # noqa: PLC0415 - only for untrusted code

                watch = module_resources.Watch()
    return preload(setup.preload, watch)


def preload(names: Iterable[str], watch: module_resources.Watch | None = None) -> dict[int, str]:
    """Import modules by name; return the module that opened each descriptor, as seen by *watch*."""
    for name in names:
        imports.import_whole(name)
        if watch is not None:
            watch.note(name)
    return {} if watch is None else watch.opened
