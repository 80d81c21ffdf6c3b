"""The event loop that runs in the parent: which library's, and whose task."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["AsyncBackend"]


class AsyncBackend(NamedTuple):
    """The event loop that was running when the process was forked, to be forgotten or imitated.

    Attributes:
        name: "asyncio" or "trio".
        loop: the asyncio loop, or None.
        task: its current task, or None.
        uvloop: the loop is uvloop's.
    """

    name: str
    loop: Any = None
    task: Any = None
    uvloop: bool = False
