"""What a fork server and its parent say to each other: records of plain data, by marshal.

    to the server     setup, fork(ahead of need), kill(pid, signal, group), import(module)
    from the server   ready(modules), child(pid, has a pidfd),
                      ended(pid, status, user, system, rss),
                      refused(errno, text), unfit(text), failed(text)

With each `fork` come the child's channel and its scratch file, with each `child` its pidfd if it
has one. Each `fork` is answered, in order, by `child`, `refused` or `unfit`.
"""

from __future__ import annotations

import marshal
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["Inbox", "Setup", "encode"]

_LENGTH = struct.Struct("<I")


class Setup(NamedTuple):
    """What a fresh fork server must know before it can begin.

    Attributes:
        parent_pid: whose server it is.
        cwd: its working directory.
        path: its `sys.path`.
        preload: what to import.
        bound_early: LD_BIND_NOW was set for it alone, not for what it starts.
    """

    parent_pid: int
    cwd: str
    path: list[str]
    preload: tuple[str, ...]
    bound_early: bool


def encode(*records: tuple[Any, ...]) -> bytes:
    """Make the bytes of records."""
    body = marshal.dumps(list(records))
    return _LENGTH.pack(len(body)) + body


class Inbox:
    """Turns bytes, in whatever pieces they come, into records."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> Iterator[tuple[Any, ...]]:
        """Take more bytes; yield the records that they complete."""
        self._data += data
        while len(self._data) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._data)[0]
            if len(self._data) < end:
                return
            body, self._data = self._data[_LENGTH.size : end], self._data[end:]
            yield from marshal.loads(body)  # noqa: S302 - both sides are this program
