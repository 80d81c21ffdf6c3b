"""Encode and decode the request to a fork server's child.

Plain data is sent by marshal, which is built in. The call itself is a pickle that is loaded last,
so that its errors can be distinguished from the library's own.
"""

from __future__ import annotations

import marshal
import struct
from typing import Any, NamedTuple

__all__ = ["HEADER", "Request"]

# Length of the body, and how many descriptors come with it.
HEADER = struct.Struct("<IH")


class Request(NamedTuple):
    """One call.

    Attributes:
        nonce: marks the frames of the answer.
        call: the pickled function and arguments, or their length if they are in a file.
        in_file: they are in a file, the first descriptor that comes along.
        beside: so are large buffers and texts, in a file of their own, which comes next.
        quiet, streaming, progress: see `ChildSpec`.
        backend: the caller's event loop, "asyncio" or "trio".
        uvloop: it is uvloop's.
        stdin: a descriptor is passed that becomes 0.
        output: two descriptors are passed that become 1 and 2.
        numbers: the numbers that the next descriptors get.
        buffer_refs: where the buffers of the call are that lie in files: the index of the remaining
            descriptor (from 0; -1: the file that comes with the request), offset, length, and
            whether both processes are to see changes of the other.
        passed_fds: the number of remaining descriptors, for the call's objects.
        codec, result_size: see `ChildSpec`.
        rlimits: the fields of its `RlimitSpec`, or None.
        entrances: the number of descriptors, sent first, of control groups that the child joins.
        texts: the call's texts that are in the file beside: offset and length.
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
