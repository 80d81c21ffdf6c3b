"""Frames: encoding and decoding the messages of the channel.

A frame is magic, the call's nonce, a kind, the number of descriptors sent with it, a length
and a body. The nonce distinguishes this call's bytes from other data written to the channel. Memory
is allocated for bytes that have arrived, not for the announced length.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

__all__ = [
    "INLINE_MAX",
    "NONCE_SIZE",
    "Frame",
    "FrameDecoder",
    "Kind",
    "Payload",
    "ProtocolError",
    "Region",
    "TooLarge",
    "encode",
    "encode_failure",
    "encode_small_value",
    "parse_failure",
    "parse_layers",
]

MAGIC = b"\x89iso"
NONCE_SIZE = 8
_HEADER = struct.Struct("<4s8sBBQ")
_TABLE = struct.Struct("<BH")
_REGION = struct.Struct("<QQBB")
_NO_TABLE = _TABLE.pack(False, 0)

# A pickle up to this size travels in the frame: it fits into a pipe, so the child does
# not wait for a reader. A larger one goes to the scratch file, if there is one.
INLINE_MAX = 32 * 1024
_MAX_REGIONS = 4096
_ERRNO_DIGITS = 4
_MAX_LENGTH = 1 << 40
# The maximum size of frames that contain text instead of results, if results are limited.
_TEXT_MAX = 128 * 1024
# Shorter pieces are joined, because each bytes object has an overhead.
_JOINED_MAX = 32 * 1024


class Kind(enum.IntEnum):
    """The kind of a frame."""

    STARTED = 1  # fn is called next; no body
    VALUE = 2  # the value that fn returned, a Payload
    RAISED = 3  # the exception that fn raised, a Payload
    LOST = 4  # fn ended; its result can't be sent: name of the `Reason`, newline, text
    FAILED = 5  # the child failed before fn: step, newline, errno, newline, text
    ITEM = 6  # an item that a generator yielded, a pickle
    PROGRESS = 7  # a progress report, see `safe_text`
    READY = 8  # the names of the layers that the child has engaged, separated by commas
    IMPORTED = 9  # the call was slow to load: CPU and real seconds, newline, packages with commas
    LEAVING = 10  # fn has ended, and threads or processes of fn have not: their names, one a line


# Kinds that have a fixed limit, whatever the limit on results is.
_LONGEST = {Kind.LEAVING: _TEXT_MAX, Kind.IMPORTED: _TEXT_MAX}
_VALUE = int(Kind.VALUE)
_KINDS = {int(kind): kind for kind in Kind}


class ProtocolError(Exception):
    """The bytes on the channel are not what a child of this call writes."""


class TooLarge(ProtocolError):  # noqa: N818 - the name needs no suffix
    """A frame announces more bytes than allowed.

    Attributes:
        kind: the kind of the frame.
        size: the announced number of bytes.
        limit: the allowed number of bytes.
    """

    def __init__(self, kind: Kind, size: int, limit: int) -> None:
        what = "an item that fn yielded" if kind is Kind.ITEM else f"a {kind.name} frame"
        super().__init__(f"{what} has {size:,} bytes; the limit is {limit:,}")
        self.kind = kind
        self.size = size
        self.limit = limit


def encode(nonce: bytes, kind: Kind, body: bytes = b"", passed_fds: int = 0) -> bytes:
    """Encode a frame that is sent with *passed_fds* descriptors."""
    return _HEADER.pack(MAGIC, nonce, kind, passed_fds, len(body)) + body


def encode_failure(nonce: bytes, step: str, exc: BaseException) -> bytes:
    """Encode a FAILED frame: the step, an errno or 0, and the exception text."""
    number = (exc.errno or 0) if isinstance(exc, OSError) else 0
    text = f"{step}\n{number}\n{type(exc).__name__}: {exc}"
    return encode(nonce, Kind.FAILED, text.encode(errors="replace"))


def parse_failure(text: str) -> tuple[str, int, str]:
    """Split the text of a FAILED frame into the step, the errno or 0, and the exception text."""
    step, _, rest = text.partition("\n")
    number, _, message = rest.partition("\n")
    # The child may be untrusted: a longer number is no errno, and int() of it could take long.
    is_errno = number.isascii() and number.isdigit() and len(number) <= _ERRNO_DIGITS
    return step, int(number) if is_errno else 0, message


def parse_layers(body: Sequence[bytes]) -> list[str]:
    """Return the layers that the body of a READY frame names."""
    text = b"".join(body).decode(errors="replace")
    return text.split(",") if text else []


def encode_small_value(nonce: bytes, stream: bytes) -> bytes:
    """Encode a VALUE frame whose payload is only a stream, as for most results."""
    return _HEADER.pack(MAGIC, nonce, _VALUE, 0, _TABLE.size + len(stream)) + _NO_TABLE + stream


# A complete frame: its kind, its body in pieces as received, its number of descriptors.
Frame: TypeAlias = tuple[Kind, Sequence[bytes], int]


class FrameDecoder:
    """Decode the bytes of a channel, received in pieces of any size, into frames.

    Args:
        nonce: the nonce that the frames carry.
        limit: the maximum size of a result or an item in bytes, or None.
    """

    __slots__ = ("_body", "_head", "_kind", "_limit", "_missing", "_nonce", "_passed_fds")

    def __init__(self, nonce: bytes, limit: int | None = None) -> None:
        self._nonce = nonce
        self._limit = limit
        self._head = b""
        self._kind: Kind | None = None
        self._missing = 0
        self._passed_fds = 0
        self._body: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Add bytes; yield the frames that they complete. Raise ProtocolError."""
        at = 0
        while at < len(data):
            kind = self._kind
            if kind is None:
                head = self._head + data[at : at + _HEADER.size - len(self._head)]
                at += len(head) - len(self._head)
                if len(head) < _HEADER.size:
                    self._check_start(head)
                    self._head = head
                    break
                self._head = b""
                self._kind, self._passed_fds, self._missing = kind, _, _ = self._parse(head)
            if self._missing:
                piece = data[at : at + self._missing]
                at += len(piece)
                self._missing -= len(piece)
                if piece:
                    if self._body:
                        self._add(piece)
                    else:  # most bodies arrive in one piece
                        self._body.append(piece)
            if not self._missing:
                body, self._body = self._body, []
                self._kind = None
                yield kind, body, self._passed_fds

    def _add(self, piece: bytes) -> None:
        body = self._body
        # Join pieces of similar size, as in a binary counter: each byte is copied a few times at
        # most, and a child that sends single bytes does not cause an object for each byte.
        while body and len(body[-1]) <= len(piece) < _JOINED_MAX:
            piece = body.pop() + piece
        body.append(piece)

    def _check_start(self, head: bytes) -> None:
        # Stray bytes must not be mistaken for an incomplete header.
        if not head.startswith((MAGIC + self._nonce)[: len(head)]):
            raise ProtocolError(f"the channel carries {head!r}, which is not a frame")

    def _parse(self, head: bytes) -> tuple[Kind, int, int]:
        magic, nonce, number, passed_fds, length = _HEADER.unpack(head)
        if magic != MAGIC or nonce != self._nonce:
            raise ProtocolError(f"the channel carries {head!r}, which is not a frame")
        kind = _KINDS.get(number)
        if kind is None:
            raise ProtocolError(f"the channel carries a frame of unknown kind {number}")
        if self._limit is not None:  # report the caller's limit first
            self._check_length(kind, length, self._limit)
        longest = _LONGEST.get(kind, _MAX_LENGTH)
        if length > longest or ((length or passed_fds) and kind is Kind.STARTED):
            raise ProtocolError(f"the channel carries a {kind.name} frame of {length} bytes")
        return kind, passed_fds, length

    def _check_length(self, kind: Kind, length: int, limit: int) -> None:
        if kind is Kind.ITEM:
            allowed = limit
        elif kind is Kind.STARTED:
            return
        elif kind is Kind.VALUE:
            allowed = limit + _TABLE.size
        else:
            allowed = max(limit, _TEXT_MAX) if kind is Kind.RAISED else _TEXT_MAX
        if length > allowed:
            raise TooLarge(kind, length, allowed)


class Region(NamedTuple):
    """A part of a file that holds a buffer.

    Attributes:
        offset, length: the position in the file, in bytes.
        source: 0 for the scratch file; from 1 on, a descriptor that came with the frame.
        shared: both processes see each other's changes.
    """

    offset: int
    length: int
    source: int = 0
    shared: bool = False


class Payload(NamedTuple):
    """A pickled object: its stream, and the regions of its large buffers.

    Attributes:
        stream: the pickle in pieces; empty if it is in the scratch file.
        regions: first the stream's region if *stream_in_scratch*, then one per buffer.
        stream_in_scratch: the stream is in the first region.
    """

    stream: Sequence[bytes]
    regions: tuple[Region, ...] = ()
    stream_in_scratch: bool = False

    def encode(self) -> bytes:
        """Encode the payload as the body of a frame."""
        table = b"".join(_REGION.pack(*region) for region in self.regions)
        head = _TABLE.pack(self.stream_in_scratch, len(self.regions))
        return b"".join((head, table, *self.stream))

    @classmethod
    def decode(cls, body: Sequence[bytes], *, plain: bool = False) -> Payload:
        """Decode the body of a frame without joining its pieces.

        If *plain* is true, only a stream is accepted. Raise ProtocolError for an invalid body.
        """
        if body and body[0].startswith(_NO_TABLE):  # only a stream, as for most results
            return cls((body[0][_TABLE.size :], *body[1:]))
        pieces = list(body)
        head = _take(pieces, _TABLE.size)
        if plain and head != _NO_TABLE:
            raise ProtocolError("a result that is to be plain data comes with buffers")
        in_scratch, count = _TABLE.unpack(head)
        if in_scratch > 1 or count > _MAX_REGIONS or (in_scratch and not count):
            raise ProtocolError("a result's table of buffers is damaged")
        table = _take(pieces, count * _REGION.size)
        regions = tuple(_region(*entry) for entry in _REGION.iter_unpack(table))
        if in_scratch and (any(pieces) or regions[0].source):
            raise ProtocolError("a result has two pickle streams")
        return cls(pieces, regions, bool(in_scratch))


def _region(offset: int, length: int, source: int, shared: int) -> Region:
    if shared > 1 or (shared and not source):
        raise ProtocolError("a result's table of buffers is damaged")
    return Region(offset, length, source, bool(shared))


def _take(pieces: list[bytes], size: int) -> bytes:
    """Cut the first *size* bytes off *pieces*."""
    taken = b""
    while len(taken) < size:
        if not pieces:
            raise ProtocolError("a result ends before its table of buffers does")
        piece = pieces.pop(0)
        missing = size - len(taken)
        taken += piece[:missing]
        if len(piece) > missing:
            pieces.insert(0, piece[missing:])
    return taken
