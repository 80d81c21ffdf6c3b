"""What a fork server and its parent say to each other: records of plain data, by marshal.

    to the server     setup, fork(number, ahead of need, note its pid), kill(pid, signal, group),
                      import(module), ping
    from the server   ready(modules, layers engaged, random generators that its modules hold,
                      encodings of output and error),
                      child(number, pid, index of its pidfd), ended(pid, status, user, system, rss),
                      refused(number, errno, text), unfit(number, text), failed(text, errno),
                      imported, pong, strange(what it runs, traceback), see `launch`;
                      held(list of (descriptor, what it is, by which module or None)): what modules
                      have open and its children get an empty file for, before `ready` or `imported`

With each `fork` come the child's channel and its scratch file, with each `child` its pidfd, if it
has one: the first of a message has index 0, and -1 is none, or one that could not be passed. Each
`fork` is answered by `child`, `refused` or `unfit`, with its number, and each `ping` by `pong`.
"""

from __future__ import annotations

import marshal
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["PROTOCOL", "Inbox", "ReceivedFds", "Setup", "encode"]

# To be raised with every change to what the two processes, or the parent and a child, say to each
# other: a fresh fork server runs the files on disk, which may have been changed under the parent.
PROTOCOL = 3

_LENGTH = struct.Struct("<I")


class Setup(NamedTuple):
    """What a fresh fork server must know before it can begin.

    Attributes:
        parent_pid: whose server it is.
        path: its `sys.path`.
        preload: what to import.
        bound_early: LD_BIND_NOW was set for it alone, not for what it starts.
        policy: the fields of a `Policy`, or None.
        tied: an `alive_pipe` kills it with its parent, and no parent-death signal.
    """

    parent_pid: int
    path: list[str]
    preload: tuple[str, ...]
    bound_early: bool
    policy: tuple[Any, ...] | None = None
    tied: bool = False


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


class ReceivedFds:
    """The descriptors that have come, as they came: those of each message for itself.

    A process that may have no more descriptors gets the first ones of a message, or none. What is
    missing must not be made good for by the next message's.
    """

    def __init__(self) -> None:
        self._waiting: list[list[int]] = []

    def put(self, fds: list[int], cut: bool) -> None:
        """Take a message's, of which some may be missing."""
        if fds or cut:
            self._waiting.append(fds)

    def next(self) -> list[int]:
        """Hand out the oldest message's."""
        return self._waiting.pop(0)

    def all(self) -> list[int]:
        """List what has not been handed out."""
        return [fd for fds in self._waiting for fd in fds]
