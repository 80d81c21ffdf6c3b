"""What must hold for any bytes whatever: for the tests here and for scripts/fuzz_channel.py."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypedDict

from tests.internals import (
    Conversation,
    FrameDecoder,
    Kind,
    Payload,
    ProtocolError,
    State,
    data_limits,
    encode,
    plain_data,
    safe_text,
)

NONCE = b"12345678"
LIMIT = 1 << 16
# As many as a hostile value may have in these tests, so that they are fast.
VALUES = 2000


class Row(TypedDict, total=False):
    name: str
    tags: set[str]
    next: Row | None


@dataclasses.dataclass
class Report:
    rows: list[Row]
    kind: Literal["a", "b"] | int
    counts: dict[str, float] = dataclasses.field(default_factory=dict)
    blob: bytes = b""


TYPES = [None, int, list[int], dict[str, list[float]], Report, Row, list[Report | None]]


def pieces_of(data: bytes, step: int) -> list[bytes]:
    return [data[i : i + step] for i in range(0, len(data), step)]


def check_frames(data: bytes, step: int, limit: int | None = None) -> None:
    """Whole or in pieces: the same frames, or a ProtocolError at the same place."""
    found = []
    for size in (step, len(data) or 1):
        decoder, frames = FrameDecoder(NONCE, limit), []
        try:
            for piece in pieces_of(data, size):
                for kind, body, passed_fds in decoder.feed(piece):
                    assert limit is None or sum(map(len, body)) <= max(limit + 3, 128 * 1024)
                    frames.append((kind, b"".join(body), passed_fds))
        except ProtocolError:
            frames.append(None)
        found.append(frames)
    assert found[0] == found[1]


def check_conversation(data: bytes, step: int, fds: list[int], *, plain_only: bool = False) -> None:
    """Each descriptor comes out once at most, and none is skipped."""
    conversation = Conversation(NONCE, LIMIT, plain=plain_only)
    given, got = [], []
    try:
        for number, piece in enumerate(pieces_of(data, step)):
            new = fds[number * 3 : number * 3 + 3]
            if conversation.state is not State.DONE:
                given += new
            for kind, body, passed_fds in conversation.receive(piece, new):
                assert kind in (Kind.ITEM, Kind.PROGRESS, Kind.LEAVING)
                if kind is Kind.PROGRESS:
                    safe_text.load_progress(body)
                got += passed_fds
    except ProtocolError:
        assert conversation.answer is None or conversation.state is State.ENDING
        return
    if conversation.answer is not None:
        kind, body, passed_fds = conversation.answer
        got += passed_fds
        assert conversation.state in (State.ENDING, State.DONE)
        check_answer(kind, body)
    # An answer is kept, and reports may come behind it: so not in the same order.
    assert sorted(got) == given[: len(got)]
    assert not (got and plain_only)


def check_answer(kind: Kind, body: list[bytes]) -> None:
    if kind is Kind.VALUE:
        for only in (False, True):
            try:
                payload = Payload.decode(body, plain=only)
            except ProtocolError:
                continue
            assert payload.encode() == b"".join(body)
            assert not only or (not payload.regions and not payload.stream_in_scratch)
    elif kind is Kind.RAISED:
        check_exception(b"".join(body))


def check_exception(data: bytes) -> None:
    try:
        error = safe_text.load_exception(pieces_of(data, 1000))
    except ProtocolError:
        return
    assert error.type_name
    for text in (error.type_name, error.message, error.traceback, str(error)):
        assert all(char.isprintable() or safe_text.escape(char) == char for char in text)
        assert len(text) <= 300_000
    assert "\n" not in error.type_name


def check_progress(data: bytes) -> None:
    try:
        done, total, message = safe_text.load_progress(pieces_of(data, 7), escaped=True)
    except ProtocolError:
        return
    assert type(done) in (int, float)
    assert type(total) in (int, float, type(None))
    assert "\x1b" not in message


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, [*value, *value.values()]), default=0)
    if isinstance(value, (list, tuple)):
        return 1 + max(map(depth, value), default=0)
    return 0


def count(value: object) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(count, [*value, *value.values()]))
    if isinstance(value, (list, tuple)):
        return 1 + sum(map(count, value))
    return 1


def check_plain(codec: str, data: bytes, result_type: object = None) -> None:
    """What is decoded is shallow, small, of the type that was asked for, and encodes again."""
    try:
        value = plain_data.load(codec, [data], result_type, values=VALUES)
    except ValueError as exc:
        assert len(str(exc)) < 1000
        assert str(exc) == safe_text.escape(str(exc))
        return
    repr(value)
    assert isinstance(value == [value], bool)
    again = plain_data.dump(codec, value, values=VALUES * 10)
    if result_type is None:
        assert depth(value) <= data_limits.DEPTH_MAX
        assert count(value) <= VALUES
    plain_data.load(codec, [again], result_type, values=VALUES * 10)


def check_all(data: bytes) -> None:
    """Take the first bytes as the choice of what to do with the others."""
    if len(data) < 2:
        return
    choice, step, data = data[0], data[1] % 40 + 1, data[2:]
    match choice % 8:
        case 0:
            check_frames(data, step, LIMIT if choice & 8 else None)
        case 1:
            # Cut into frames here, as no fuzzer would guess a nonce.
            check_conversation(framed(data), step, list(range(choice)), plain_only=choice > 127)
        case 2:
            check_conversation(data, step, list(range(choice)))
        case 3:
            check_exception(data)
        case 4:
            check_progress(data)
        case 5:
            check_plain("msgspec", data, TYPES[choice // 8 % len(TYPES)])
        case 6:
            check_plain("json", data, TYPES[choice // 8 % len(TYPES)])
        case 7:
            check_answer(Kind.VALUE, pieces_of(data, step))


def framed(data: bytes) -> bytes:
    """Make frames of bytes: a kind, a number of descriptors, a length, a body, and so on."""
    frames = encode(NONCE, Kind.STARTED)
    while len(data) >= 3:
        kind, passed_fds, size = data[:3]
        frames += encode(NONCE, Kind(kind % len(Kind) + 1), data[3 : 3 + size], passed_fds % 5)
        data = data[3 + size :]
    return frames + data
