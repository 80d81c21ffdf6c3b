"""Decoding in steps: it gives what decoding at once gives, and no step is long."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import statistics
import time
import uuid
from typing import Annotated, Any, Generic, Literal, NamedTuple, Required, TypedDict, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioisolate import run_isolated
from tests.helpers import gap_while
from tests.internals import (
    INLINE_MAX,
    cutting,
    data_limits,
    incremental,
    long_text,
    pieces,
    plain_data,
    shapes,
)
from tests.unit.test_fuzz import without_msgspec

pytestmark = pytest.mark.once

MODULES = {"json": msgspec.json, "msgspec": msgspec.msgpack}
M = 1 << 24

texts = st.sampled_from(["", "a", "b", 'x"', "\\", "[,{", "]}:", "é", "\U0001f600", "a" * 50])
leaves = st.one_of(
    *(st.none(), st.booleans(), texts, st.integers(-(1 << 63), (1 << 64) - 1)),
    *(st.floats(allow_nan=False, allow_infinity=False), st.just(1e300), st.just(5e-324)),
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(texts, inner, max_size=6),
    max_leaves=40,
)
windows = st.sampled_from([1, 2, 5, 10, 30, 100])
# Where a byte of the data is replaced by what, or what is put in.
changes = st.lists(
    st.tuples(
        st.integers(0, 1 << 30),
        st.sampled_from([*(bytes([b]) for b in b',[]{}":0 \\n\x81\x91\xa1\xc1\xdd\xff'), b""]),
        st.booleans(),
    ),
    max_size=2,
)


def changed(data, changes):
    for where, what, insert in changes:
        at = where % (len(data) + 1)
        data = data[:at] + what + data[at + (not insert) :]
    return data


def outcome(call, *args):
    try:
        return True, repr(call(*args))
    except ValueError:
        return False, ""


def check(codec, data):
    (data_limits.check_json if codec == "json" else data_limits.check_msgpack)(data)


def cut(codec, data, window):
    if codec == "json":
        data_limits.check_json(data)
        return cutting.cut_json(data, window)
    return incremental._cut_msgpack(data, 1_000_000, window)


def in_steps(codec, data, window, decode):
    part = cut(codec, data, window)
    form = pieces.Json() if codec == "json" else pieces.MessagePack()
    return decode(data) if part is None else pieces.build(form, data, part, decode)


def at_once(codec, data, decode):
    check(codec, data)
    return decode(data)


def encoded(codec, value, spaces, ascii_only):
    if codec == "msgspec":
        return msgspec.msgpack.encode(value)
    indent = 1 if spaces else None
    return json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()


@pytest.mark.parametrize("codec", ["json", "msgspec"])
@given(values, windows, changes, st.booleans(), st.booleans())
def test_steps_give_the_same(codec, value, window, how, spaces, ascii_only):
    data = changed(encoded(codec, value, spaces, ascii_only), how)
    decode = MODULES[codec].decode
    expected = outcome(at_once, codec, data, decode)
    assert outcome(in_steps, codec, data, window, decode) == expected
    if not how:
        assert expected[0]


@given(values, windows, changes, st.booleans(), st.booleans())
def test_steps_of_the_standard_library_give_the_same(value, window, how, spaces, ascii_only):
    data = changed(encoded("json", value, spaces, ascii_only), how)
    decode = incremental.Standard().whole
    assert outcome(in_steps, "json", data, window, decode) == outcome(at_once, "json", data, decode)


@pytest.mark.parametrize(
    "data",
    [
        *(b"[1,,2]", b"[,1]", b"[1,]", b"[[1],]", b"[[1] 2]", b"[[1][2]]", b"[1 2]", b"[", b"[1"),
        *(b'{"a":1,}', b'{"a":[1],}', b'{"a" [1]}', b'{"a":1 [1]}', b"{[1]:2}", b'{"a":1}}'),
        *(b"[1}", b"[[1]}", b"[[1],[2]", b'["a', b'["a\\', b"[] x", b"[[[1]]] ,", b'[1,"a" [2]]'),
        *(b'{"a":[1]"b":2}', b'{"a":{"b":[1]},"a":2}', b"[ ]", b"[ [ ] , [ ] ]", b"{ }", b"[,]"),
        *(b'{"a":null,"b":[1]}', b'{"a":1,"a":[2],"a":3}', b'{"\\u0061":[1],"a":2}', b"[[1],null"),
    ],
)
@pytest.mark.parametrize("window", [1, 3, 8])
def test_what_is_not_quite_json(data, window):
    decode = msgspec.json.decode
    expected = outcome(at_once, "json", data, decode)
    assert outcome(in_steps, "json", data, window, decode) == expected


units = ["a", "é", "\U0001f600", "\\n", "\\u00e9", "\\ud83d\\ude00", '\\"', "\\\\", "\\ud83d", ":"]


@given(
    st.lists(st.sampled_from(units), max_size=20).map("".join),
    st.sampled_from([1, 2, 5, 8, 13, 20]),
    st.sampled_from(["{}", "[{}]", '{{"k" : {} }}', "{{{}:1}}", "[{},{}]", "{}{}", " {} "]),
    changes,
)
def test_long_texts_in_steps(text, step, form, how):
    data = changed(form.replace("{}", f'"{text}"').replace("{{", "{").encode(), how)
    data = data.replace(b"}}", b"}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(long_text, "LONG_TEXT", 8)
        patched.setattr(long_text, "_STEP", step)
        found = outcome(long_text.decode_around, data, msgspec.json.decode)
    assert found == outcome(msgspec.json.decode, data)


# As types


class Colour(enum.Enum):
    RED = "a"
    BLUE = "b"


class Point(msgspec.Struct):
    x: int
    y: float = 0.5
    tags: list[str] = []


class Renamed(msgspec.Struct, rename="camel", kw_only=True, forbid_unknown_fields=True):
    a_point: Point
    many_points: list[Point] = msgspec.field(default_factory=list)
    opt: dict[str, int] | None = None


class Rows(msgspec.Struct, tag=True):
    rows: list[int]


class Named(msgspec.Struct, tag="zz"):
    rows: dict[str, Rows]


class Row(msgspec.Struct, array_like=True, tag=True):
    a: int
    b: list[str]
    c: int = 3


class Other(msgspec.Struct, array_like=True, tag=True):
    a: str


@dataclasses.dataclass
class Data:
    a: int
    b: list[float] = dataclasses.field(default_factory=list)
    c: Data | None = None

    def __post_init__(self):
        self.after = 1

    def __repr__(self):
        return f"Data({self.a}, {self.b}, {self.c}, {self.after})"


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: str
    b: tuple[int, ...] = ()


class Typed(TypedDict, total=False):
    a: Required[int]
    b: list[int]


class Pair(NamedTuple):
    a: int
    b: list[str] = []  # noqa: RUF012 - msgspec copies it


T = TypeVar("T")


class Box(msgspec.Struct, Generic[T]):
    items: list[T]
    one: T | None = None


class Node(msgspec.Struct):
    next: Node | None = None
    kids: list[Node] = []


SAMPLES = [
    (list[int], [1, 2, 3]),
    (dict[str, list[int]], {"a": [1, 2], "b\\": [], 'x"': [3]}),
    (Point, Point(1, 1.5, ["a", "b"])),
    (Renamed, Renamed(a_point=Point(1), many_points=[Point(2, 0.5, ["x"])], opt={"a": 1})),
    (Rows | Named | None, Rows([1, 2, 3])),
    (Rows | Named | None, Named({"a": Rows([1]), "b": Rows([])})),
    (Row, Row(1, ["a", "b"], 5)),
    (Row | Other, Row(1, ["a", "b"], 5)),
    (Data, Data(1, [1.5, 2.5], Data(2))),
    (Frozen, Frozen("s", (1, 2, 3))),
    (Typed, {"a": 1, "b": [1, 2]}),
    (Pair, Pair(1, ["a", "b"])),
    (Box[int], Box([1, 2], 5)),
    (Node, Node(Node(Node(), [Node(), Node(Node())]), [Node()])),
    (tuple[int, list[str], dict[str, Any]], (1, ["a"], {"a": [1, {"b": 2}]})),
    (list[dict[str, Any]], [{"a": [1, {"b": 2}]}] * 3),
    (set[str], {"a", "b", "c"}),
    (frozenset[Colour], {Colour.RED}),
    (list[decimal.Decimal | None], [None, decimal.Decimal("1.50")]),
    (list[dt.datetime], [dt.datetime(2024, 1, 1)] * 3),
    (Annotated[list[Annotated[int, msgspec.Meta(ge=2)]], msgspec.Meta(max_length=3)], [2, 3, 4]),
    (dict[Colour, list[bytes]], {Colour.RED: [b"x"], Colour.BLUE: []}),
    (dict[str, uuid.UUID], {"a": uuid.UUID(int=5), "b": uuid.UUID(int=6)}),
    (list[int] | dict[str, Point] | str, {"a": Point(1)}),
    (list[Literal["a", "b", 1]], ["a", "b", 1]),
]


@pytest.mark.parametrize("codec", ["json", "msgspec"])
@given(st.sampled_from(SAMPLES), st.sampled_from(SAMPLES), windows, changes, st.booleans())
def test_steps_give_the_same_as_types(codec, of, other, window, how, mixed):
    result_type, value = of[0], (other if mixed else of)[1]
    data = changed(MODULES[codec].encode(value), how)
    typed = incremental._Typed(codec, result_type)

    def steps(data):
        part = cut(codec, data, window)
        return typed.whole(data) if part is None else typed.build(data, part)

    def whole(data):
        check(codec, data)
        return MODULES[codec].decode(data, type=result_type)

    expected, found = outcome(whole, data), outcome(steps, data)
    if expected[0] and not found[0] and how:
        return  # the name of a field that is not there may be no text, where it is passed over
    if isinstance(value, set) and not how and not mixed:
        assert expected[0] is found[0]
    else:
        assert found == expected


@pytest.mark.parametrize("codec", ["json", "msgspec"])
@pytest.mark.parametrize(
    ("result_type", "value", "match"),
    [
        (
            list[Point],
            [{"x": 1}] * 9 + [{"x": "no"}],
            r"Expected `int`, got `str` - at `\$\[9\]\.x",
        ),
        (dict[str, list[int]], {"a": [1] * 5 + ["x"]}, r"Expected `int`.* - at `\$\[...\]\[5\]"),
        (Renamed, {"aPoint": {"x": 1}, "manyPoints": [{}]}, r"field `x` - at `\$.manyPoints\[0\]"),
        (Renamed, {"aPoint": {"x": 1}, "more": [1, 2, 3]}, "unknown field `more`"),
        (Renamed, {"opt": {"a": 1}}, "missing required field `aPoint`"),
        (
            list[Rows | Named],
            [{"rows": [1], "type": "none"}],
            r"Invalid value .none. - at `\$\[0\]",
        ),
        (list[list[int]], [[1], {"a": [1, 2]}], r"Expected `array`, got `object` - at `\$\[1\]`"),
        (tuple[int, list[int]], [1, [2, 3], [4]], "length 2"),
        (Annotated[list[int], msgspec.Meta(max_length=3)], [1] * 5, "length <= 3"),
    ],
)
def test_where_it_is_of_another_type(codec, result_type, value, match, monkeypatch):
    monkeypatch.setattr(incremental, "_SMALL", 1)
    monkeypatch.setattr(incremental, "WINDOW", 1)
    monkeypatch.setattr(incremental, "max", lambda *_: 1, raising=False)
    typed = incremental._Typed(codec, result_type)
    data = MODULES[codec].encode(value)
    part = typed.cut(data, 1_000_000)
    assert part is not None
    with pytest.raises(ValueError, match=match):
        typed.build(data, part)


# How much is done in one step


def row(token, count=None):
    count = min(count or (M - 2) // (len(token) + 1), 990_000)
    return b"[" + b",".join([token] * count) + b"]"


def packed(token, count):
    return b"\xdd" + count.to_bytes(4, "big") + token * count


WORST = {
    "subnormals": ("json", row(b"1e-320"), None),
    "large numbers": ("json", row(b"1e300"), None),
    "17 digits": ("json", row(b"1.7976931348623157e308"), None),
    "4,000 digits": ("json", row(b"1" * 4000), None),
    "lists": ("json", row(b"[]", 290_000), None),
    "lists in dicts": ("json", row(b'{"a":[]}', 140_000), None),
    "deep rows": ("json", row(b"[" * 60 + b"]" * 60, 4800), None),
    "keys": ("json", b"{" + b",".join(b'"%d":1' % i for i in range(400_000)) + b"}", None),
    "a dict in dicts": ("json", b'{"a":' * 50 + row(b'{"k":1}', 140_000) + b"}" * 50, None),
    "texts of brackets": ("json", row(b'"[{,\\"]"'), None),
    "packed lists": ("msgspec", packed(b"\x90", 290_000), None),
    "packed numbers": ("msgspec", packed(b"\1", 990_000), None),
    "timestamps": ("msgspec", packed(b"\xd6\xff\0\0\0\0", 990_000), None),
    "numbers as Decimal": ("json", row(b"1"), list[decimal.Decimal]),
    "numbers as float": ("json", row(b"1e300", 20_000), list[float]),
    "objects": ("json", row(b'{"x":1}', 140_000), list[Point]),
    "a tuple": ("json", b"[1," + row(b"2", 900_000) + b"]", tuple[int, list[int]]),
    "fields": ("json", b'{"items":' + row(b"2", 900_000) + b"}", Box[int]),
    "a set": ("msgspec", packed(b"\xa3abc", 900_000), set[str]),
}


@pytest.mark.parametrize("name", WORST)
def test_no_step_is_large(name, monkeypatch):
    codec, data, result_type = WORST[name]
    most = 128 * 1024 + 64 * 1024
    seen = []
    if result_type is None:
        how = incremental.steps(codec, None)
        real = MODULES[codec].decode
        numbers = getattr(how, "_decode_numbers", None)

        def noting(data, decode=real):
            seen.append(len(data))
            return decode(data)

        if codec == "json":
            monkeypatch.setattr(how, "_decode", noting)
            monkeypatch.setattr(how, "_decode_numbers", lambda data: noting(data, numbers))
        else:
            monkeypatch.setattr(how, "whole", noting)
    else:
        make = shapes.Shapes.decoder

        def decoder(self, key, node):
            decode = make(self, key, node)

            def noting(data):
                seen.append(len(data))
                return decode(data)

            return noting

        monkeypatch.setattr(shapes.Shapes, "decoder", decoder)
        if b"e300" in data:
            most = 2 * cutting.COSTLY_WINDOW
    value = plain_data.load(codec, [data], result_type)
    assert value
    assert len(seen) >= len(data) // most
    assert max(seen) <= most
    # All of it was decoded, and only once.
    assert sum(seen) <= 1.1 * len(data) + 10_000


def test_what_makes_more_of_it_is_decoded_in_smaller_steps():
    fields = [(f"f{i}", list, msgspec.field(default_factory=list)) for i in range(100)]
    big = msgspec.defstruct("Big", fields)
    typed = incremental.steps("json", list[big])
    assert typed.factor > 100
    part = typed.cut(row(b"{}", 2900), 1_000_000)
    assert max(run.end - run.start for run in part.parts) < 2048
    with pytest.raises(ValueError, match="more than 2,970 lists and dicts"):
        plain_data.load("json", [row(b"{}", 4000)], list[big])


def test_how_many_lists_there_may_be():
    """A garbage collection looks at all of them while everybody waits."""
    most = data_limits.CONTAINERS_MAX
    for codec, data in (("json", row(b"[]", most)), ("msgspec", packed(b"\x90", most))):
        with pytest.raises(ValueError, match="more than 300,000 lists and dicts"):
            plain_data.load(codec, [data])
    assert len(plain_data.load("json", [row(b"[]", most - 1)])) == most - 1
    assert len(plain_data.load("msgspec", [packed(b"\x90", most - 1)])) == most - 1


@pytest.mark.parametrize("result_type", [decimal.Decimal, Colour, list[decimal.Decimal], uuid.UUID])
def test_a_text_that_is_too_long_for_its_type(result_type):
    text = b'"' + b"1" * (2 << 20) + b'"'
    data = b"[" + text + b"]" if result_type == list[decimal.Decimal] else text
    with pytest.raises(ValueError, match="too long for its type"):
        plain_data.load("json", [data], result_type)
    assert plain_data.load("json", [text], str) == "1" * (2 << 20)


def test_what_is_decoded_on_the_event_loop():
    """Little of what takes long, and much of what does not."""
    assert plain_data.effort("json", [row(b"1", 50_000)]) <= INLINE_MAX
    assert plain_data.effort("json", [row(b"1e300", 300)]) <= INLINE_MAX  # 5 ms
    assert plain_data.effort("json", [row(b"1e300", 2000)]) > INLINE_MAX
    assert plain_data.effort("msgspec", [packed(b"\x90", 100_000)]) > INLINE_MAX
    assert plain_data.effort("json", [row(b"1", 50_000)], list[decimal.Decimal]) > INLINE_MAX
    with without_msgspec():
        assert plain_data.effort("json", [row(b"1", 50_000)]) > INLINE_MAX


def test_what_is_large_is_not_looked_through_on_the_event_loop(monkeypatch):
    def never(_):
        raise AssertionError("this takes long")

    monkeypatch.setattr(incremental, "is_costly", never)
    assert plain_data.effort("json", [b"[" + b"e" * INLINE_MAX + b"]"]) > INLINE_MAX
    with pytest.raises(AssertionError):
        plain_data.effort("json", [b"[" + b"e" * (INLINE_MAX - 2) + b"]"])
    assert cutting.WINDOW >= INLINE_MAX


def test_numbers_are_what_they_were():
    tokens = [b"1e300", b"5e-324", b"1e-320", b"-0e5", b"1E+2", b"1.7976931348623157e308", b"2e0"]
    data = row(b",".join(tokens), 2000)
    expected = msgspec.json.decode(data)
    assert list(map(repr, plain_data.load("json", [data]))) == list(map(repr, expected))
    for bad in (b"1e999", b"-1e400", b"1e", b"1e+", b"01e5", b".5e1"):
        with pytest.raises(ValueError, match=r"range|malformed"):
            plain_data.load("json", [row(bad, 1000)])


# The event loop


def subnormals():
    return [1e-320] * 999_000


def large_numbers():
    return [1e300] * 999_000


def lists():
    return [[] for _ in range(290_000)]


def small_subnormals():
    return [1e300] * 20_000


def one_long_text():
    return ["e" * (15 << 20)]


@pytest.mark.parametrize("fn", [subnormals, large_numbers, lists, small_subnormals, one_long_text])
@pytest.mark.parametrize("codec", ["json", "msgspec"])
@pytest.mark.skipif(not hasattr(time, "thread_time"), reason="no clock of a thread")
def test_the_event_loop_gets_its_turn(fn, codec):
    """It took 7 to 15 seconds; now 50 ms at most, on a machine that has nothing else to do."""
    import asyncio

    async def main():
        gap, value = await gap_while(lambda: run_isolated(fn, codec=codec))
        assert len(value) == len(fn())
        return gap

    gaps = [asyncio.run(main()) for _ in range(3)]
    assert statistics.median(gaps) < 0.4
