"""Encode and decode the request to a fork server's child.

Plain data is sent by marshal, which is built in. The call itself is a pickle that is loaded last,
so that its errors can be distinguished from the library's own.
"""

from __future__ import annotations

import marshal
import struct
from typing import Any, NamedTuple

__all__ = ["HEADER", "Request"]

# The length of the body, and the number of descriptors that are sent with it.
HEADER = struct.Struct("<IH")


class Request(NamedTuple):
    """One call.

    Attributes:
        nonce: marks the frames of the answer.
        call: the pickle of the function and arguments, or its length if it is in a file.
        in_file: the pickle is in a file, the first of the descriptors after *entrances*.
        beside: large buffers and texts are in another file, the next descriptor.
        quiet, streaming, progress: see `ChildSpec`.
        backend: the caller's event loop, "asyncio" or "trio".
        uvloop: the event loop is uvloop's.
        stdin: a descriptor is passed that becomes 0.
        output: two descriptors are passed that become 1 and 2.
        numbers: the numbers that the next descriptors get.
        buffer_refs: the places of the call's buffers that are in files, each as a tuple: the index
            among the last *passed_fds* descriptors, or -1 for the file of *beside*; offset;
            length; whether both processes see each other's changes.
        passed_fds: the number of the last descriptors, those of the call's objects.
        codec, result_size: see `ChildSpec`.
        rlimits: the fields of its `RlimitSpec`, or None.
        entrances: the number of descriptors, sent first, of control groups that the child joins.
        texts: offset and length of the call's texts in the file of *beside*.
        exit_timeout: see `ChildSpec`.
    """

    nonce: bytes
    call: bytes | int
    in_file: bool = False
    quiet: bool = True
    streaming: bool = False
    progress: bool = False
    backend: str = "asyncio"
    uvloop: bool = False
    stdin: bool = False
    output: bool = False
    numbers: tuple[int, ...] = ()
    buffer_refs: tuple[tuple[int, int, int, bool], ...] = ()
    passed_fds: int = 0
    codec: str = "pickle"
    result_size: int | None = None
    rlimits: tuple[Any, ...] | None = None
    entrances: int = 0
    beside: bool = False
    texts: tuple[tuple[int, int], ...] = ()
    exit_timeout: float = 5.0

    @property
    def descriptors(self) -> int:
        """Return the number of descriptors that are passed."""
        own = self.entrances + self.in_file + self.beside + self.stdin + 2 * self.output
        return own + len(self.numbers) + self.passed_fds

    def encode(self) -> bytes:
        """Encode the request, header included."""
        body = marshal.dumps(tuple(self))
        return HEADER.pack(len(body), self.descriptors) + body

    @classmethod
    def decode(cls, body: bytes) -> Request:
        """Decode the bytes after a header."""
        return cls(*marshal.loads(body))  # noqa: S302 - it comes from this program's own parent
