"""The records that a fork server and its parent exchange: plain data, encoded by marshal.

    to the server     setup, fork(number, ahead of need, note its pid), kill(pid, signal, group),
                      import(module), ping
    from the server   ready(modules, engaged layers, random generators of its modules, encodings of
                      standard output and error),
                      child(number, pid, index of its pidfd), ended(pid, status, user, system, rss),
                      refused(number, errno, text), unfit(number, text), failed(text, errno),
                      imported, pong, strange(versions, traceback), see `launch`;
                      held(list of (descriptor, description, module that opened it or None)): the
                      descriptors of modules that an empty file replaces in children; it precedes
                      `ready` or `imported`

With each `fork`, the descriptors of the child's channel and scratch file are sent, and with each
`child` its pidfd: index 0 is the first one of a message, and -1 means that there is none, or none
that could be passed. The server answers each `fork` by `child`, `refused` or `unfit`, with its
number, and each `ping` by `pong`.
"""

from __future__ import annotations

import marshal
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["PROTOCOL", "Inbox", "ReceivedFds", "Setup", "encode"]

# Raise this with every change to the messages between parent and fork server, or parent and
# child: a fresh fork server runs the files on disk, which may have changed since its parent began.
PROTOCOL = 3

_LENGTH = struct.Struct("<I")


class Setup(NamedTuple):
    """The data that a fresh fork server needs before it can begin.

    Attributes:
        parent_pid: the process that started the server.
        path: the `sys.path` of that process.
        preload: the names of the modules to import.
        bound_early: LD_BIND_NOW was set for the server alone, not for its children's programs.
        confinement: the fields of a `ConfinementSpec`, or None.
        tied: an `alive_pipe` kills the server with its parent, not a parent-death signal.
    """

    parent_pid: int
    path: list[str]
    preload: tuple[str, ...]
    bound_early: bool
    confinement: tuple[Any, ...] | None = None
    tied: bool = False


def encode(*records: tuple[Any, ...]) -> bytes:
    """Encode records as bytes."""
    body = marshal.dumps(list(records))
    return _LENGTH.pack(len(body)) + body


class Inbox:
    """Decodes records from bytes that arrive in pieces of any size."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> Iterator[tuple[Any, ...]]:
        """Add bytes; yield the records that they complete."""
        self._data += data
        while len(self._data) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._data)[0]
            if len(self._data) < end:
                return
            body, self._data = self._data[_LENGTH.size : end], self._data[end:]
            yield from marshal.loads(body)  # noqa: S302 - both sides are this program


class ReceivedFds:
    """The descriptors that arrived, kept apart by message.

    A process at its limit of descriptors gets only the first ones of a message, or none. The next
    message's descriptors must not take the place of the missing ones.
    """

    def __init__(self) -> None:
        self._waiting: list[list[int]] = []

    def put(self, fds: list[int], cut: bool) -> None:
        """Add the descriptors of a message, of which some may be missing."""
        if fds or cut:
            self._waiting.append(fds)

    def next(self) -> list[int]:
        """Return the descriptors of the oldest message, and remove them."""
        return self._waiting.pop(0)

    def all(self) -> list[int]:
        """Return the descriptors that `next` has not returned."""
        return [fd for fds in self._waiting for fd in fds]
