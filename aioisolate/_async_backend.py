"""A description of the parent's event loop: its library, and the current task."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["AsyncBackend"]


class AsyncBackend(NamedTuple):
    """The event loop that was running when the process was forked.

    A child resets the libraries that still refer to this loop, and runs an async function in a new
    loop of the same kind.

    Attributes:
        name: "asyncio" or "trio".
        loop: the asyncio loop, or None.
        task: the current task of the loop, or None.
        uvloop: whether the loop is one of uvloop.
    """

    name: str
    loop: Any = None
    task: Any = None
    uvloop: bool = False
