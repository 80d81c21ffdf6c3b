"""What a fork server and its parent say to each other: records of plain data, by marshal.

    to the server     setup, fork(count), kill(pid, signal, group), import(module)
    from the server   ready(modules), child(pid, has a pidfd),
                      ended(pid, status, user, system, rss),
                      refused(errno, text), unfit(text), failed(text)

With each `child` come its channel, its scratch file and, if it has one, its pidfd.
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
    """

    parent_pid: int
    cwd: str
    path: list[str]
    preload: tuple[str, ...]


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
