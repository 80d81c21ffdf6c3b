"""What a fork server's child is asked to do, to bytes and from bytes.

Plain data goes by marshal, which is built in; the call itself is a pickle, loaded only when all
else is known, so that a failure of it can be told from ours.
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
        quiet, streaming, progress: as in `Order`.
        backend: the caller's event loop, "asyncio" or "trio".
        uvloop: it is uvloop's.
        stdin: a descriptor comes along that is to become 0.
        output: two descriptors come along that are to become 1 and 2.
        numbers: what the next descriptors are to be called.
        lent: the call's buffers that are in files: which of the remaining descriptors (from 0), or
            -1 for the file beside; offset, length, and whether both sides are to see each other's
            changes.
        luggage: how many descriptors remain, for the call's objects.
        codec, result_size: as in `Order`.
        bounds: the fields of its `Bounds`, or None.
        entrances: how many descriptors come along, first of all, by which it enters control groups.
        texts: the call's texts that are in the file beside: offset and length.
        exit_timeout: as in `Order`.
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
    buffer_ref: tuple[tuple[int, int, int, bool], ...] = ()
    passed_fds: int = 0
    codec: str = "pickle"
    result_size: int | None = None
    bounds: tuple[Any, ...] | None = None
    entrances: int = 0
    beside: bool = False
    texts: tuple[tuple[int, int], ...] = ()
    exit_timeout: float = 5.0

    @property
    def descriptors(self) -> int:
        """How many descriptors come along."""
        own = self.entrances + self.in_file + self.beside + self.stdin + 2 * self.output
        return own + len(self.numbers) + self.passed_fds

    def encode(self) -> bytes:
        """Make the bytes of the request, header included."""
        body = marshal.dumps(tuple(self))
        return HEADER.pack(len(body), self.descriptors) + body

    @classmethod
    def decode(cls, body: bytes) -> Request:
        """Read the bytes behind a header."""
        return cls(*marshal.loads(body))  # noqa: S302 - it comes from this program's own parent
