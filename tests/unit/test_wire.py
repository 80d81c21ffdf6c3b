"""The protocol, without any process: bytes in, frames out."""

from __future__ import annotations

import enum
import io
import pickle
import random
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.internals import (
    Conversation,
    FrameDecoder,
    Kind,
    Payload,
    ProtocolError,
    Region,
    State,
    codecs,
    encode,
    encode_small_value,
    safe_text,
    shared_classes,
)

pytestmark = [pytest.mark.quick, pytest.mark.dependencies]

NONCE = b"12345678"
bodies = st.binary(max_size=300)
frames = st.lists(
    st.tuples(
        st.sampled_from([kind for kind in Kind if kind is not Kind.STARTED]),
        bodies,
        st.integers(0, 255),
    )
    | st.just((Kind.STARTED, b"", 0)),
    max_size=5,
)


def joined(decoded):
    return [(kind, b"".join(body), passed_fds) for kind, body, passed_fds in decoded]


# Frames


@given(frames, st.randoms(use_true_random=False))
def test_frames_in_any_pieces(sent, rng):
    data = b"".join(encode(NONCE, *frame) for frame in sent)
    decoder = FrameDecoder(NONCE)
    received = []
    while data:
        size = rng.randint(1, 40)
        received += decoder.feed(data[:size])
        data = data[size:]
    assert joined(received) == sent


@pytest.mark.parametrize("step", [1, 21, 22, 23, 1000])
def test_frames_in_equal_pieces(step):
    sent = [(Kind.STARTED, b"", 0), (Kind.VALUE, b"x" * 50, 3), (Kind.RAISED, b"", 0)]
    data = b"".join(encode(NONCE, *frame) for frame in sent)
    decoder = FrameDecoder(NONCE)
    received = []
    for i in range(0, len(data), step):
        received += decoder.feed(data[i : i + step])
    assert joined(received) == sent


def test_the_short_way_makes_the_same_bytes():
    assert encode_small_value(NONCE, b"abc") == encode(
        NONCE, Kind.VALUE, Payload((b"abc",)).encode()
    )


def header(magic=b"\x89iso", nonce=NONCE, kind=2, length=0, passed_fds=0):
    return struct.pack("<4s8sBBQ", magic, nonce, kind, passed_fds, length)


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"\x89isO",
        b"garbage that is longer than a header",
        header(magic=b"\x89ISO"),
        header(nonce=b"87654321"),
        header(kind=0),
        header(kind=99),
        header(length=1 << 50),
        header(length=(1 << 64) - 1),
        header(kind=int(Kind.STARTED), length=1),
        header(kind=int(Kind.STARTED), passed_fds=1),
    ],
)
def test_what_is_no_frame(data):
    with pytest.raises(ProtocolError):
        list(FrameDecoder(NONCE).feed(data))


@pytest.mark.parametrize("kind", [Kind.LEAVING, Kind.IMPORTED])
def test_11_11_names_are_short_without_a_limit_of_the_result(kind):
    head = encode(NONCE, kind, bytes(128 * 1024))
    assert len(list(FrameDecoder(NONCE).feed(head))) == 1
    with pytest.raises(ProtocolError, match=kind.name):
        list(FrameDecoder(NONCE).feed(encode(NONCE, kind, bytes(128 * 1024 + 1))))


def test_a_truncated_frame_is_just_not_there():
    data = encode(NONCE, Kind.VALUE, b"abcdef")
    for end in range(len(data)):
        assert list(FrameDecoder(NONCE).feed(data[:end])) == []


def test_nothing_is_allocated_on_a_lengths_word():
    decoder = FrameDecoder(NONCE)
    tracemalloc.start()
    try:
        list(decoder.feed(header(length=1 << 39)))
        list(decoder.feed(b"x" * 1000))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=200))
@settings(max_examples=500)
def test_fuzz_of_the_decoder(data):
    decoder = FrameDecoder(NONCE)
    for prefix in (b"", header()[: random.Random(len(data)).randint(0, 22)]):
        try:
            for _, body, _ in decoder.feed(prefix + data):
                Payload.decode(body)
        except ProtocolError:
            return


@given(st.binary(max_size=100), st.integers(1, 30))
@settings(max_examples=500)
def test_fuzz_of_payloads(data, step):
    pieces = [data[i : i + step] for i in range(0, len(data), step)]
    try:
        payload = Payload.decode(pieces)
    except ProtocolError:
        return
    assert payload.encode() == data


# Payloads

regions = st.lists(
    st.tuples(
        st.integers(0, 1 << 60),
        st.integers(0, 1 << 60),
        st.sampled_from([(0, False), (1, False), (255, True)]),
    ).map(lambda found: Region(*found[:2], *found[2])),
    max_size=5,
).map(tuple)


@given(st.binary(max_size=100), regions, st.integers(1, 50))
def test_payloads(stream, table, step):
    body = Payload((stream,), table).encode()
    payload = Payload.decode([body[i : i + step] for i in range(0, len(body), step)])
    assert b"".join(payload.stream) == stream
    assert payload.regions == table


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        struct.pack("<BH", 2, 0),
        struct.pack("<BH", 1, 0),
        struct.pack("<BH", 0, 1),
        struct.pack("<BH", 0, 65535),
        struct.pack("<BHQQBB", 1, 1, 0, 0, 0, 0) + b"a second stream",
        struct.pack("<BHQQBB", 1, 1, 0, 0, 1, 0),
        struct.pack("<BHQQBB", 0, 1, 0, 0, 0, 1),
        struct.pack("<BHQQBB", 0, 1, 0, 0, 1, 2),
    ],
)
def test_damaged_payloads(body):
    with pytest.raises(ProtocolError):
        Payload.decode([body])


# The order of frames

ALLOWED = {
    (State.UNPROVEN, Kind.READY): State.BORN,
    (State.UNPROVEN, Kind.FAILED): State.DONE,
    (State.BORN, Kind.STARTED): State.RUNNING,
    (State.BORN, Kind.FAILED): State.DONE,
    (State.BORN, Kind.IMPORTED): State.BORN,
    (State.RUNNING, Kind.VALUE): State.DONE,
    (State.RUNNING, Kind.RAISED): State.DONE,
    (State.RUNNING, Kind.LOST): State.DONE,
    (State.RUNNING, Kind.ITEM): State.RUNNING,
    (State.RUNNING, Kind.PROGRESS): State.RUNNING,
    (State.RUNNING, Kind.LEAVING): State.LEAVING,
    (State.LEAVING, Kind.PROGRESS): State.LEAVING,
    (State.LEAVING, Kind.VALUE): State.ENDING,
    (State.LEAVING, Kind.RAISED): State.ENDING,
    (State.LEAVING, Kind.LOST): State.ENDING,
    (State.ENDING, Kind.PROGRESS): State.ENDING,
    (State.ENDING, Kind.LEAVING): State.DONE,
}


_BETWEEN = (Kind.ITEM, Kind.PROGRESS, Kind.READY, Kind.LEAVING)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("state", State)
def test_every_frame_in_every_state(state, kind):
    conversation = Conversation(NONCE, confined=state is State.UNPROVEN)
    lead = {
        State.RUNNING: [Kind.STARTED],
        State.LEAVING: [Kind.STARTED, Kind.LEAVING],
        State.ENDING: [Kind.STARTED, Kind.LEAVING, Kind.VALUE],
        State.DONE: [Kind.FAILED],
    }.get(state, [])
    body = safe_text.dump_progress(1, None, "") if kind is Kind.PROGRESS else b""
    for earlier in lead:
        conversation.receive(encode(NONCE, earlier))
    assert conversation.state is state
    before = conversation.answer
    if state is State.DONE:  # nothing counts any more
        conversation.receive(encode(NONCE, kind, body))
        conversation.receive(b"garbage")
        assert conversation.answer is before
    elif (state, kind) in ALLOWED:
        between = conversation.receive(encode(NONCE, kind, body))
        assert [frame[0] for frame in between] == [kind] * (kind in _BETWEEN)
        assert conversation.state is ALLOWED[state, kind]
        assert conversation.started is (kind not in (Kind.FAILED, Kind.READY, Kind.IMPORTED))
        answered = conversation.state in (State.ENDING, State.DONE)
        assert (conversation.answer is not None) is answered
    else:
        with pytest.raises(ProtocolError, match=kind.name):
            conversation.receive(encode(NONCE, kind))


@pytest.mark.parametrize("kind", [Kind.ITEM, Kind.PROGRESS])
def test_what_nobody_has_asked_for(kind):
    conversation = Conversation(NONCE, unasked=frozenset({kind}))
    conversation.receive(encode(NONCE, Kind.STARTED))
    with pytest.raises(ProtocolError, match=kind.name):
        conversation.receive(encode(NONCE, kind, safe_text.dump_progress(1, None, "")))


def test_the_first_answer_counts():
    conversation = Conversation(NONCE)
    conversation.receive(
        encode(NONCE, Kind.STARTED)
        + encode(NONCE, Kind.VALUE, b"first")
        + encode(NONCE, Kind.RAISED, b"second")
        + b"garbage"
    )
    assert conversation.answer == (Kind.VALUE, [b"first"], [])


def test_each_frame_has_its_descriptors():
    conversation = Conversation(NONCE)
    conversation.receive(encode(NONCE, Kind.STARTED))
    first = encode(NONCE, Kind.ITEM, b"first", 2)
    assert conversation.receive(first[:9], [7, 8]) == []
    between = conversation.receive(first[9:] + encode(NONCE, Kind.ITEM, b"second"))
    assert between == [(Kind.ITEM, [b"first"], [7, 8]), (Kind.ITEM, [b"second"], [])]
    conversation.receive(encode(NONCE, Kind.VALUE, b"third", 1), [9])
    assert conversation.answer == (Kind.VALUE, [b"third"], [9])


def test_descriptors_that_do_not_fit_the_frames():
    conversation = Conversation(NONCE)
    conversation.receive(encode(NONCE, Kind.STARTED), [5])
    with pytest.raises(ProtocolError, match="it has 2, and 1 came"):
        conversation.receive(encode(NONCE, Kind.VALUE, b"", 2))
    conversation = Conversation(NONCE)
    with pytest.raises(ProtocolError, match="more descriptors"):
        conversation.receive(b"", range(254))


# Pickling

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | bodies,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values, st.integers(1, 100))
def test_values_through_pieces(value, step):
    stream, buffers, _ = codecs.dump(value)
    pieces = [stream[i : i + step] for i in range(0, len(stream), step)]
    assert codecs.load(pieces, buffers) == value


@given(
    st.lists(st.binary(max_size=50), max_size=8),
    st.lists(st.tuples(st.sampled_from(["read", "readinto", "readline"]), st.integers(0, 60))),
)
def test_the_reader_is_a_file(pieces, calls):
    ours, model = codecs.PieceReader(pieces), io.BytesIO(b"".join(pieces))
    for name, size in calls:
        if name == "readinto":
            mine, theirs = bytearray(size), bytearray(size)
            assert ours.readinto(mine) == model.readinto(theirs)
            assert mine == theirs
        elif name == "read":
            assert ours.read(size) == model.read(size)
        else:
            assert ours.readline() == model.readline()
    assert ours.read() == model.read()


def test_large_buffers_leave_the_stream():
    small, large = np.ones(100), np.ones(codecs.OUT_OF_BAND_MIN)
    stream, buffers, _ = codecs.dump([small, large, large[::2]])
    assert [view.nbytes for view in buffers] == [large.nbytes, large.nbytes // 2] or len(
        buffers
    ) == 1
    assert len(stream) < codecs.OUT_OF_BAND_MIN * 5
    again = codecs.load([stream], buffers)
    assert all((x == y).all() for x, y in zip(again, [small, large, large[::2]], strict=True))


def test_pickle_first(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("cloudpickle was asked")

    monkeypatch.setattr(shared_classes, "SharedClassPickler", refuse)
    assert codecs.load([codecs.dump({"a": 1})[0]], []) == {"a": 1}
    with pytest.raises(AssertionError):
        codecs.dump(lambda: 1)


# Classes that both sides have


def kin_round_trip(value):
    file = io.BytesIO()
    shared_classes.SharedClassPickler(file, 5).dump(value)
    return pickle.loads(file.getvalue())


def test_shared_classes_by_address_and_name():
    class Local:
        pass

    class Derived(Local):
        pass

    find = shared_classes.find_shared_class
    assert find(object, __name__, Local.__qualname__, id(Local)) is Local
    assert find(Local, __name__, Derived.__qualname__, id(Derived)) is Derived
    for wrong in (
        (object, __name__, Local.__qualname__, id(Local) + 16),
        (object, __name__, "Other", id(Local)),
        (object, "other", Local.__qualname__, id(Local)),
        (int, __name__, Local.__qualname__, id(Local)),
    ):
        with pytest.raises(LookupError):
            find(*wrong)


def test_new_classes_are_pickled_by_value():
    class Colour(enum.Enum):  # tracked by the collector, so from after the fork
        RED = 1

    twin = kin_round_trip(Colour.RED)
    assert twin.name == "RED"
