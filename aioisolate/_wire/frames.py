"""Frames: what travels over the channel, from bytes and to bytes.

A frame is magic, the call's nonce, a kind, the number of descriptors that travel with it, a length
and a body. The nonce tells this call's bytes from anything else that might be written to the
channel; the length is believed only as far as bytes really arrive.
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

# A pickle up to this size travels in the frame: it fits into a pipe at once, so the child need
# not wait for anyone to read. A larger one goes to the scratch file, if there is one.
INLINE_MAX = 32 * 1024
_MAX_REGIONS = 4096
_ERRNO_DIGITS = 4
_MAX_LENGTH = 1 << 40
# What is not a result is words; with a limit on results these have one of their own.
_WORDS_MAX = 128 * 1024
# Pieces shorter than this are joined: each costs memory of its own.
_JOINED_MAX = 32 * 1024


class Kind(enum.IntEnum):
    """What a frame says."""

    STARTED = 1  # fn is called next; no body
    VALUE = 2  # what fn returned, a Payload
    RAISED = 3  # what fn raised, a Payload
    LOST = 4  # fn ended; its result can't be sent: reason's name, newline, text
    FAILED = 5  # the child failed before fn: step, newline, text
    ITEM = 6  # what a generator yielded, a pickle
    PROGRESS = 7  # how far fn has got, see `inert`
    READY = 8  # the layers that the child has engaged: their names, with commas
    IMPORTED = 9  # loading the call took long: CPU and other seconds, newline, new packages, commas
    LEAVING = 10  # fn has ended, and something that it left has not: names, one a line


# What is never long, whatever a result may be.
_LONGEST = {Kind.LEAVING: _WORDS_MAX, Kind.IMPORTED: _WORDS_MAX}
_VALUE = int(Kind.VALUE)
_KINDS = {int(kind): kind for kind in Kind}


class ProtocolError(Exception):
    """The bytes on the channel are not what a child of this call writes."""


class TooLarge(ProtocolError):  # noqa: N818 - what it says is what is wrong
    """A frame announces more than is allowed.

    Attributes:
        kind: what kind of frame.
        size: how many bytes it announces.
        limit: how many are allowed.
    """

    def __init__(self, kind: Kind, size: int, limit: int) -> None:
        what = "an item that fn yielded" if kind is Kind.ITEM else f"a {kind.name} frame"
        super().__init__(f"{what} has {size:,} bytes, and may have {limit:,}")
        self.kind = kind
        self.size = size
        self.limit = limit


def encode(nonce: bytes, kind: Kind, body: bytes = b"", passed_fds: int = 0) -> bytes:
    """Make the bytes of a frame that so many descriptors travel with."""
    return _HEADER.pack(MAGIC, nonce, kind, passed_fds, len(body)) + body


def encode_failure(nonce: bytes, step: str, exc: BaseException) -> bytes:
    """Make the bytes of a FAILED frame: the step, an errno or 0, and what happened."""
    number = (exc.errno or 0) if isinstance(exc, OSError) else 0
    text = f"{step}\n{number}\n{type(exc).__name__}: {exc}"
    return encode(nonce, Kind.FAILED, text.encode(errors="replace"))


def parse_failure(text: str) -> tuple[str, int, str]:
    """Return what the text of a FAILED frame says: the step, the errno or 0, what happened."""
    step, _, rest = text.partition("\n")
    number, _, what = rest.partition("\n")
    # The child may be untrusted: a longer number is no errno, and int() of it could take long.
    is_errno = number.isascii() and number.isdigit() and len(number) <= _ERRNO_DIGITS
    return step, int(number) if is_errno else 0, what


def parse_layers(body: Sequence[bytes]) -> list[str]:
    """Return the layers that the body of a READY frame names."""
    text = b"".join(body).decode(errors="replace")
    return text.split(",") if text else []


def encode_small_value(nonce: bytes, stream: bytes) -> bytes:
    """Make the bytes of a VALUE frame whose payload is just a stream: most results are."""
    return _HEADER.pack(MAGIC, nonce, _VALUE, 0, _TABLE.size + len(stream)) + _NO_TABLE + stream


# A whole frame: its kind, its body in the pieces in which it arrived, its number of descriptors.
Frame: TypeAlias = tuple[Kind, Sequence[bytes], int]


class FrameDecoder:
    """Turns the bytes of a channel, in whatever pieces they come, into frames.

    Args:
        nonce: what its frames begin with.
        limit: how many bytes a result or an item may have, or None.
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
        """Take more bytes; yield the frames that they complete. Raises ProtocolError."""
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
                    else:  # most are whole
                        self._body.append(piece)
            if not self._missing:
                body, self._body = self._body, []
                self._kind = None
                yield kind, body, self._passed_fds

    def _add(self, piece: bytes) -> None:
        body = self._body
        # Equals with equals, as in a binary number: so a byte is copied a few times at most, and a
        # child that sends one byte at a time does not cost an object for each.
        while body and len(body[-1]) <= len(piece) < _JOINED_MAX:
            piece = body.pop() + piece
        body.append(piece)

    def _check_start(self, head: bytes) -> None:
        # A few stray bytes must not pass for a header that is merely slow.
        if not head.startswith((MAGIC + self._nonce)[: len(head)]):
            raise ProtocolError(f"the channel carries {head!r}, which is no frame")

    def _parse(self, head: bytes) -> tuple[Kind, int, int]:
        magic, nonce, number, passed_fds, length = _HEADER.unpack(head)
        if magic != MAGIC or nonce != self._nonce:
            raise ProtocolError(f"the channel carries {head!r}, which is no frame")
        kind = _KINDS.get(number)
        if kind is None:
            raise ProtocolError(f"the channel carries a frame of unknown kind {number}")
        if self._limit is not None:  # a limit of the caller's is told of as that, whatever came
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
            allowed = max(limit, _WORDS_MAX) if kind is Kind.RAISED else _WORDS_MAX
        if length > allowed:
            raise TooLarge(kind, length, allowed)


class Region(NamedTuple):
    """A part of a file that holds a buffer.

    Attributes:
        offset, length: where, in bytes.
        source: 0, the scratch file; or, from 1, one of the descriptors that came with the frame.
        shared: both sides are to see each other's changes.
    """

    offset: int
    length: int
    source: int = 0
    shared: bool = False


class Payload(NamedTuple):
    """A pickled object: its stream, and where in which file its large buffers are.

    Attributes:
        stream: the pickle in pieces; empty if it is in the scratch file.
        regions: first the stream's region if *stream_in_scratch*, then one per buffer.
        stream_in_scratch: the stream is in the first region.
    """

    stream: Sequence[bytes]
    regions: tuple[Region, ...] = ()
    stream_in_scratch: bool = False

    def encode(self) -> bytes:
        """Make the body of a frame."""
        table = b"".join(_REGION.pack(*region) for region in self.regions)
        head = _TABLE.pack(self.stream_in_scratch, len(self.regions))
        return b"".join((head, table, *self.stream))

    @classmethod
    def decode(cls, body: Sequence[bytes], *, plain: bool = False) -> Payload:
        """Read the body of a frame without joining its pieces.

        If it is to be *plain* it may be nothing but a stream.

        Raises ProtocolError.
        """
        if body and body[0].startswith(_NO_TABLE):  # just a stream, as most results are
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
