"""Hostile bytes for all that reads the channel: errors of the documented kinds, and nothing worse.

``AIOISOLATE_FUZZ=long`` tries for minutes; scripts/fuzz_channel.py does so guided by coverage.
"""

from __future__ import annotations

import os

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import channel_checks as checks
from tests.channel_checks import NONCE, TYPES
from tests.internals import HEADER, Kind, Payload, Region, Request, encode, safe_text

pytestmark = pytest.mark.once

LONG = os.environ.get("AIOISOLATE_FUZZ") == "long"
fuzz = settings(max_examples=20_000 if LONG else 150)
steps = st.integers(1, 40)


@st.composite
def mutated(draw, valid):
    """Take something valid, then change, cut out, insert or repeat some of it."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.integers(at, min(len(data), at + 12)))
        match draw(st.sampled_from(["change", "cut", "insert", "repeat"])):
            case "change":
                data[at:end] = draw(st.binary(min_size=end - at, max_size=end - at))
            case "cut":
                del data[at:end]
            case "insert":
                data[at:at] = draw(st.binary(max_size=12))
            case "repeat":
                data[at:end] = data[at:end] * draw(st.integers(2, 70))
    return bytes(data)


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=40)
    | st.binary(max_size=300)
    | st.datetimes(timezones=st.timezones() if LONG else st.none()),
    lambda inner: (
        st.lists(inner, max_size=20)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 1 << 63), inner, max_size=20)
    ),
    max_leaves=40,
) | st.fixed_dictionaries(
    {"rows": st.lists(st.fixed_dictionaries({"name": st.text(max_size=5)}), max_size=3)},
    optional={"kind": st.sampled_from(["a", "b", 3, None]), "counts": st.just({"a": 1.0})},
)
regions = st.lists(
    st.builds(Region, st.integers(0, 99), st.integers(0, 99), st.integers(0, 3)), max_size=3
).map(tuple)
exceptions = st.builds(
    lambda text: safe_text.dump_exception(ValueError(text)), st.text(max_size=200)
)
reports = st.builds(
    safe_text.dump_progress,
    st.integers() | st.floats(),
    st.none() | st.integers() | st.floats(),
    st.text(max_size=30),
)
bodies = (
    st.binary(max_size=60)
    | exceptions
    | reports
    | st.builds(lambda stream, table: Payload((stream,), table).encode(), st.binary(), regions)
)
frame_bytes = st.lists(st.tuples(st.sampled_from(Kind), bodies, st.integers(0, 4)), max_size=5).map(
    lambda frames: b"".join(encode(NONCE, *frame) for frame in frames)
)
conversations = frame_bytes.map(lambda data: encode(NONCE, Kind.STARTED) + data)


@given(mutated(frame_bytes), steps, st.sampled_from([None, 0, 50]))
@fuzz
def test_frames(data, step, limit):
    checks.check_frames(data, step, limit)


@given(conversations | mutated(conversations), steps, st.integers(0, 60), st.booleans())
@fuzz
def test_conversations(data, step, fds, plain_only):
    checks.check_conversation(data, step, list(range(fds)), plain_only=plain_only)


@given(mutated(bodies), st.sampled_from([Kind.VALUE, Kind.RAISED]), steps)
@fuzz
def test_answers(data, kind, step):
    checks.check_answer(kind, checks.pieces_of(data, step))


@given(mutated(exceptions | reports))
@fuzz
def test_words(data):
    checks.check_exception(data)
    checks.check_progress(data)


@given(mutated(plain_values.map(msgspec.msgpack.encode)), st.sampled_from(TYPES))
@fuzz
def test_msgpack(data, result_type):
    checks.check_plain("msgspec", data, result_type)


@given(mutated(plain_values.map(msgspec.json.encode)), st.sampled_from(TYPES))
@fuzz
def test_json(data, result_type):
    checks.check_plain("json", data, result_type)


@given(mutated(plain_values.map(msgspec.json.encode)))
@fuzz
def test_json_of_the_standard_library(data):
    with without_msgspec():
        checks.check_plain("json", data)


def without_msgspec():
    from unittest import mock

    from tests.internals import plain_data

    return mock.patch.object(plain_data, "_module", return_value=None)


@given(st.binary(max_size=500))
@fuzz
def test_bytes_that_choose_the_check(data):
    checks.check_all(data)


@given(st.binary(max_size=40), st.lists(st.integers(0, 1000), max_size=4).map(tuple))
@fuzz
def test_requests_come_back_as_they_were(call, numbers):
    # Only the own parent writes them, so it is enough that nothing is lost.
    request = Request(NONCE, call, numbers=numbers, passed_fds=2)
    assert Request.decode(request.encode()[HEADER.size :]) == request
