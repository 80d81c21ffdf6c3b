"""Plain data: what crosses without pickle, and what hostile bytes can't do."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import math
import pickle
import subprocess
import sys
import threading
import time
import tracemalloc
import unicodedata
import uuid
from typing import Any, Literal, NamedTuple, TypedDict

import msgspec
import pytest

from aioisolate import RemoteError
from tests.helpers import ROOT
from tests.internals import (
    Conversation,
    FrameDecoder,
    Kind,
    Payload,
    ProtocolError,
    TooLarge,
    data_limits,
    encode,
    plain_data,
    safe_text,
)
from tests.unit.test_fuzz import without_msgspec

pytestmark = [pytest.mark.quick, pytest.mark.dependencies]

NONCE = b"12345678"
STD = "json by the standard library"


@pytest.fixture(params=["msgspec", "json", STD])
def codec(request):
    if request.param != STD:
        yield request.param
    else:
        with without_msgspec():
            yield "json"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


class Box(msgspec.Struct):
    name: str
    points: list[Point] = []


class Colour(enum.Enum):
    RED = "red"


class Row(TypedDict):
    name: str
    when: dt.datetime


class Pair(NamedTuple):
    a: int
    b: str


class Node(msgspec.Struct):
    next: Node | None = None


VALUE = {"a": [None, True, -5, 1 << 63, 1.5, "text \0 \x1b \u2028", {}], "b": {"": []}}


def test_plain_values(codec):
    assert plain_data.load(codec, [plain_data.dump(codec, VALUE)]) == VALUE
    data = plain_data.dump(codec, VALUE)
    assert plain_data.load(codec, [data[:3], data[3:]]) == VALUE


def test_what_becomes_something_plainer(codec):
    value = [
        (1, 2),
        {3},
        Point(1),
        Colour.RED,
        Pair(1, "b"),
        uuid.UUID(int=5),
        decimal.Decimal("1.50"),
        dt.date(2024, 2, 3),
        dt.datetime(2024, 2, 3, 4, 5),
    ]
    assert plain_data.load(codec, [plain_data.dump(codec, value)]) == [
        [1, 2],
        [3],
        {"x": 1, "y": 0.5},
        "red",
        [1, "b"],
        str(uuid.UUID(int=5)),
        "1.50",
        "2024-02-03",
        "2024-02-03T04:05:00",
    ]


def test_both_kinds_of_json_write_the_same():
    value = [
        dt.datetime(2024, 2, 3, 4, 5, tzinfo=dt.UTC),
        dt.time(1, 2),
        b"bytes",
        bytearray(b"\xff"),
        {"k": "\x1b\u2028é"},
        frozenset({1}),
        {1: 2},
        1 << 70,
    ]
    ours = plain_data.dump("json", value)
    with without_msgspec():
        theirs = plain_data.dump("json", value)
        assert plain_data.load("json", [ours]) == plain_data.load("json", [theirs])
    assert plain_data.load("json", [theirs]) == plain_data.load("json", [ours])


def test_msgpack_keeps_more():
    value = {1: b"x", 1.5: dt.datetime(2024, 1, 1, tzinfo=dt.UTC), b"k": None}
    assert plain_data.load("msgspec", [plain_data.dump("msgspec", value)]) == value
    assert math.isnan(plain_data.load("msgspec", [plain_data.dump("msgspec", math.nan)]))


class Foreign:
    pass


class Broken:
    __dataclass_fields__ = ("x",)

    @property
    def x(self):
        raise OSError("no")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (Foreign(), r"^\$ is tests.unit.test_plain.Foreign, which is not plain data"),
        ({"rows": [0, 1, {"when": Foreign()}]}, r"^\$\.rows\[2\]\.when is tests.*Foreign"),
        ({"a b": {"\x1b": 1j}}, r"^\$\['a b'\]\['.x1b'\] is complex"),
        (Point(Foreign()), r"^\$\.x is tests.*Foreign"),
        ((1, [abs]), r"^\$\[1\]\[0\] is builtin_function_or_method"),
        ({(1, Foreign()): 2}, r"^a key of \$ is tuple"),
        ([Broken()], r"\$\[0\]"),
        (["\ud800"], r"^\$\[0\] is str"),
        ([range(3)], r"^\$\[0\] is range"),
    ],
)
def test_what_is_not_plain(codec, value, match):
    with pytest.raises(TypeError, match=match):
        plain_data.dump(codec, value)


def test_what_refers_to_itself(codec):
    ring: list[Any] = []
    ring.append({"again": ring})
    with pytest.raises(TypeError, match="too deeply, or refers to itself"):
        plain_data.dump(codec, ring)


def test_numbers_that_a_codec_has_no_word_for():
    with pytest.raises(TypeError, match=r"^\$\.n is int, .*2\*\*64"):
        plain_data.dump("msgspec", {"n": 1 << 64})
    assert plain_data.load("json", [plain_data.dump("json", 1 << 64)]) == 1 << 64
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(TypeError, match=r"\$\[1\]\.x"):
            plain_data.dump("json", [None, {"x": number}])
        with without_msgspec(), pytest.raises(TypeError, match=r"\$\[1\]\.x"):
            plain_data.dump("json", [None, {"x": number}])


def test_the_child_hears_of_limits(codec):
    with pytest.raises(ValueError, match="more than 1,000,000 values"):
        plain_data.dump(codec, [0] * 1_000_001)
    assert len(plain_data.load(codec, [plain_data.dump(codec, [0] * 999_999)])) == 999_999
    with pytest.raises(ValueError, match="more than 3 values"):
        plain_data.dump(codec, [1, 2, 3], values=3)
    nested: Any = []
    for _ in range(63):
        nested = [nested]
    assert plain_data.load(codec, [plain_data.dump(codec, nested)]) == nested
    with pytest.raises(ValueError, match="deeper than 64"):
        plain_data.dump(codec, [nested])


# Types


@pytest.mark.parametrize("codec", ["msgspec", "json"])
def test_result_types(codec):
    when = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    for value, result_type in [
        (Point(1, 2.0), Point),
        (Box("b", [Point(1)]), Box),
        ({"name": "x", "when": when}, Row),
        ([1, 2], list[int]),
        ((1, "b"), tuple[int, str]),
        (Pair(1, "b"), Pair),
        ({"a", "b"}, set[str]),
        (Colour.RED, Colour),
        ({Colour.RED: 1}, dict[Colour, int]),
        ("x", int | str | None),
        (uuid.UUID(int=5), uuid.UUID),
        (decimal.Decimal("1.5"), decimal.Decimal),
        (b"bytes", bytes),
        (Node(Node()), Node),
        ("a", Literal["a", "b"]),
        ({"a": object}, None),
    ]:
        plain_data.check_result_type(codec, result_type)
        if result_type is not None:
            assert plain_data.load(codec, [plain_data.dump(codec, value)], result_type) == value


@pytest.mark.parametrize("codec", ["msgspec", "json"])
def test_what_is_of_another_type(codec):
    data = plain_data.dump(codec, {"name": "x", "points": [{"x": 1}, {"x": "no"}]})
    with pytest.raises(ValueError, match=r"Expected `int`, got `str` - at `\$\.points\[1\]\.x`"):
        plain_data.load(codec, [data], Box)
    with pytest.raises(ValueError, match="Expected"):
        plain_data.load(codec, [plain_data.dump(codec, "1")], int)
    with pytest.raises(ValueError, match=r"^Invalid enum value '.x1b'$"):
        plain_data.load(codec, [plain_data.dump(codec, "\x1b")], Colour)


class Checked(msgspec.Struct):
    x: int

    def __post_init__(self):
        raise ZeroDivisionError("mine")


def test_what_a_type_of_ones_own_raises():
    with pytest.raises(ValueError, match="mine"):
        plain_data.load("json", [b'{"x":1}'], Checked)


@pytest.mark.parametrize(
    "result_type",
    [
        set[int],
        set[Any],
        frozenset[float],
        set[tuple[str, str]],
        dict[tuple[int, int], str],
        dict[uuid.UUID, int],
        list[dict[dt.datetime, int]],
        dict[str, set[int]],
        Foreign,
        list[Foreign | None],
        list[int] | tuple[int],
        msgspec.Raw,
        msgspec.msgpack.Ext,
        3,
    ],
)
@pytest.mark.parametrize("codec", ["msgspec", "json"])
def test_types_that_are_refused(codec, result_type):
    with pytest.raises(TypeError, match="result_type can't be"):
        plain_data.check_result_type(codec, result_type)


def test_numbers_as_keys_by_type():
    plain_data.check_result_type("msgspec", dict[int, str])
    assert plain_data.load("msgspec", [plain_data.dump("msgspec", {1: "a"})], dict[int, str]) == {
        1: "a"
    }
    with pytest.raises(TypeError, match="collide"):
        plain_data.check_result_type("json", dict[int, str])


def test_without_msgspec():
    source = """
        import sys
        sys.modules["msgspec"] = None
        from tests.internals import plain_data
        print(plain_data.available("json"))
        print(plain_data.load("json", [plain_data.dump("json", [1, b"x"])]))
        for call in (
            lambda: plain_data.dump("msgspec", 1),
            lambda: plain_data.load("msgspec", [b"1"]),
            lambda: plain_data.check_result_type("msgspec", int),
            lambda: plain_data.check_result_type("json", int),
            lambda: plain_data.load("json", [b"1"], int),
        ):
            try:
                call()
            except ImportError as exc:
                assert "aioisolate[msgspec]" in str(exc)
            else:
                raise AssertionError
        plain_data.check_result_type("json", None)
    """
    from tests.helpers import python

    assert python(source, str(ROOT)).stdout.split("\n")[:2] == ["True", "[1, 'eA==']"]


def test_msgspec_is_imported_by_those_who_use_it_only():
    source = "import sys; from aioisolate._wire import plain_data, safe_text; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"msgspec", "json", "traceback", "base64"} & set(done.stdout.split())
    assert plain_data.available("msgspec")
    assert plain_data.available("json")
    for call in (plain_data.available, lambda codec: plain_data.dump(codec, 1)):
        with pytest.raises(ValueError, match="codec must be"):
            call("pickle")


# Hostile bytes


def lists(element, count):
    return b"\xdd" + count.to_bytes(4, "big") + element * count


def colliding_pairs(count):
    """Pairs of integers of one hash: the tuple's hash can be run backwards."""
    first, second, start = 11400714785074694791, 14029467366897019727, 2870177450012600261
    mask, inverse = (1 << 64) - 1, pow(14029467366897019727, -1, 1 << 64)
    found, a = [], 0
    while len(found) < count:
        a += 1
        lane = (start + a * second) & mask
        lane = ((lane << 31 | lane >> 33) & mask) * first & mask
        b = (12345 - lane) * inverse & mask
        if b < (1 << 61) - 1:
            found.append((a, b))
    return found


M = 1 << 24
HOSTILE_MSGPACK = {
    "empty lists": (lists(b"\x90", M), "lists and dicts"),
    "empty dicts": (lists(b"\x80", M), "lists and dicts"),
    "empty bytes": (lists(b"\xc4\0", M // 2), "values"),
    "numbers": (lists(b"\1", M), "values"),
    "dicts of one": (lists(b"\x81\xa1a\xc0", M // 4), "lists and dicts"),
    "100,000 levels": (b"\x91" * 100_000 + b"\x90", "deeper"),
    "16 million levels": (b"\x91" * M, "deeper"),
    "levels of dicts": (b"\x81\xa0" * 100_000 + b"\x90", "deeper"),
    "colliding pairs": (msgspec.msgpack.encode(dict.fromkeys(colliding_pairs(5000))), "neither"),
    "a list as a key": (b"\x81\x90\0", "neither"),
    "a timestamp as a key": (b"\x81\xd6\xff\0\0\0\0\0", "neither"),
    "many numbers as keys": (msgspec.msgpack.encode(dict.fromkeys(range(1001))), "1,001 keys"),
    "an extension": (b"\xd4\5x", "unknown type"),
    "a timestamp of no length": (b"\xc7\0\xff", "unknown type"),
    "an announced list": (b"\xdd\xff\xff\xff\xff", "too early"),
    "an announced dict": (b"\xdf\xff\xff\xff\xff", "too early"),
    "an announced text": (b"\xdb\xff\xff\xff\xff", "truncated"),
    "the unused code": (b"\xc1", "unknown type"),
    "nothing": (b"", "too early"),
    "two values": (b"\1\1", "trailing"),
    "bad text": (b"\xa1\xff", "utf-8"),
}
HOSTILE_JSON = {
    "empty lists": (b"[" + b"[]," * (M // 3) + b"0]", "values"),
    "numbers": (b"[" + b"0," * (M // 2) + b"0]", "values"),
    "quotes": (b"[" * 70 + b'"' * M, "more texts than values"),
    "open text": (b"[" * 70 + b'"' + b'\\"' * (M // 2), "deeper"),
    "100,000 levels": (b"[" * 100_000 + b"]" * 100_000, "deeper"),
    "100,000 levels of dicts": (b'{"":' * 100_000 + b"0" + b"}" * 100_000, "deeper"),
    "100,000 opened": (b"[" * 100_000, "deeper"),
    "levels behind a text": (b'["\\"[",' + b"[" * 64 + b"]" * 64 + b"]", "deeper"),
    "a million digits": (b"1" * 1_000_000, "range|digits"),
    "a large exponent": (b"1e999", "range"),
    "NaN": (b"[NaN]", "malformed|not JSON"),
    "half a pair": (b'"\\ud800"', "truncated|surrogates"),
    "UTF-16": ("[1]".encode("utf-16"), "malformed|utf-8"),
    "two values": (b"1 1", "trailing|Extra"),
    "nothing": (b"", "truncated|Expecting"),
}


def refuse_promptly(codec, data, match):
    began = time.monotonic()
    with pytest.raises(ValueError, match=match):
        plain_data.load(codec, [data])
    assert time.monotonic() - began < 10  # on a busy machine; alone, 1 s at most


@pytest.mark.hazard(25)
@pytest.mark.parametrize("name", HOSTILE_MSGPACK)
def test_hostile_msgpack(name):
    refuse_promptly("msgspec", *HOSTILE_MSGPACK[name])


@pytest.mark.hazard(25)
@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_json(name):
    refuse_promptly("json", *HOSTILE_JSON[name])
    with without_msgspec():
        refuse_promptly("json", *HOSTILE_JSON[name])


def test_what_only_looks_hostile():
    assert plain_data.load("msgspec", [plain_data.dump("msgspec", b"\x91" * M)]) == b"\x91" * M
    for text in ("[" * M, '\\"' * 1_100_000, '"' * 1000, "[{" * 100 + "\\"):
        assert plain_data.load("json", [plain_data.dump("json", [text])]) == [text]
    rows = [[1, -1, 1.5, None, True, 300, 70_000, 1 << 40, -300, -70_000, -1 << 40] * 20] * 50
    assert plain_data.load("msgspec", [plain_data.dump("msgspec", rows)]) == rows
    many = {str(i): i for i in range(100_000)}
    assert plain_data.load("msgspec", [plain_data.dump("msgspec", many)]) == many


def test_the_deepest_value_can_be_used_in_a_small_thread():
    data = b"\x91" * 63 + b"\x90"
    failures = []

    def use():
        try:
            value, other = plain_data.load("msgspec", [data]), plain_data.load("msgspec", [data])
            assert value == other
            assert pickle.loads(pickle.dumps(value)) == value
            assert repr(value).count("[") == 64
        except BaseException as exc:
            failures.append(exc)

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert not failures


def test_memory_of_the_worst_that_is_accepted():
    # Measured: 72 bytes for each value, and four for each byte of text.
    count, others = (
        data_limits.CONTAINERS_MAX - 1,
        data_limits.VALUES_MAX - data_limits.CONTAINERS_MAX,
    )
    data = b"\xdd" + (count + others).to_bytes(4, "big") + b"\x80" * count
    data += (b"\xcb" + b"x" * 8) * others
    data_limits.check_msgpack(data)
    tracemalloc.start()
    try:
        value = msgspec.msgpack.decode(data)
        assert len(value) == count + others
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


# Exceptions in words


def raised(exc):
    try:
        raise exc
    except BaseException as caught:
        return caught


def remote(exc):
    return safe_text.load_exception([safe_text.dump_exception(exc)])


def test_an_exception_in_words():
    error = remote(raised(ValueError("what\tit\nsays")))
    assert (error.type_name, error.message) == ("ValueError", r"what\tit\nsays")
    assert str(error) == r"ValueError: what\tit\nsays"
    assert error.traceback.startswith("| Traceback (most recent call last)")
    assert all(line.startswith("| ") for line in error.traceback.split("\n"))
    assert error.traceback.endswith("| ValueError: what\tit\n| says")
    assert "in raised" in error.traceback
    assert str(remote(KeyError())) == "KeyError"
    assert remote(Foreigner("x")).type_name == "tests.unit.test_plain.Foreigner"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is RemoteError
    assert (again.type_name, again.message, again.traceback) == error.args


class Foreigner(Exception):
    pass


class Worse(Exception):
    def __str__(self):
        raise SystemExit("no")

    __repr__ = __str__


class Text(str):
    __slots__ = ()

    def __len__(self):
        raise SystemExit("no")

    __getitem__ = encode = __str__ = __len__


class Sly(Exception):
    def __str__(self):
        return Text("sly")


def masked():
    class Meta(type):
        def __getattribute__(cls, name):
            raise SystemExit("no")

    class Masked(Exception, metaclass=Meta):
        __module__ = 5

    return Masked("x")


def test_exceptions_that_resist():
    error = remote(raised(Worse()))
    assert error.message == "<its __str__ raised SystemExit>"
    assert error.type_name.endswith("Worse")
    assert remote(raised(Sly())).message == "sly"
    assert remote(raised(masked())).type_name.endswith("Masked")
    assert remote(raised(type("a\n\x1b", (Exception,), {})("x"))).type_name.endswith(r"a\n\x1b")
    assert remote(raised(type("", (Exception,), {"__module__": "builtins"})())).type_name == "?"
    assert remote(raised(ValueError("\ud800"))).message == r"\ud800"


def test_endless_messages_lose_their_middle():
    for text in ("x" * 20_000_000, "é" * 10_000, "\U0001f600" * 20_000, "\ud800" * 10_000):
        exc = raised(ValueError("BEGIN" + text + "END"))
        data = safe_text.dump_exception(exc)
        assert len(data) < 64 * 1024
        error = safe_text.load_exception([data])
        assert error.message.startswith("BEGIN")
        assert error.message.endswith("END")
        assert f"of {len(text) + 8:,} characters, the middle is left out" in error.message


def test_endless_recursion():
    def endless():
        endless()

    try:
        endless()
    except RecursionError as exc:
        assert remote(exc).type_name == "RecursionError"


def test_text_that_acts():
    text = "\x1b[31m\r\b\x7f\x9b\x85\u202e\u2066\u2028\u2029\u200f\ufeff\U000e0041\0"
    message = remote(ValueError(text)).message
    assert message == (
        r"\x1b[31m\r\x08\x7f\x9b\x85\u202e\u2066\u2028\u2029\u200f\ufeff\U000e0041\x00"
    )
    assert safe_text.escape("plain é 漢 🙂 \n\t") == "plain é 漢 🙂 \n\t"
    assert safe_text.escape("a\nb", line=True) == r"a\nb"


UNSEEN = (
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b\u180e\u180f\u2060\u2064\u3164\ufe00\ufe0f"
    "\uffa0\ufff0\ufff9\ufffe\ufdd0\U00013430\U0001bca0\U0001d173\U000e0001\U000e0100\U000e01ef"
    "\U000e0fff"
)


def test_characters_that_are_not_seen():
    for char in UNSEEN:
        assert safe_text.escape(f"a{char}b") == f"a{ascii(char)[1:-1]}b"
        assert safe_text.escape(f"\u6f22{char}\u6f22") != f"\u6f22{char}\u6f22"
    # What Python's own tables say, of whatever version, but for marks that are seen.
    seen = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        if unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp", "Cs"} and code not in seen:
            assert safe_text.escape(char, line=True).isascii()
            assert safe_text.escape(char, line=True) != char
        elif char.isprintable() and unicodedata.category(char)[0] in "LNPZ":
            fillers = "\u115f\u1160\u3164\uffa0"
            assert (safe_text.escape(char, line=True) == char) is (char not in fillers)


def test_joiners_stay_where_they_join():
    farsi, family = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "👩\u200d👧"
    for text in (farsi, family, "\u0915\u094d\u200d\u0937"):
        assert safe_text.escape(text) == text
    assert safe_text.escape("pass\u200dword\u200c") == r"pass\u200dword\u200c"
    assert safe_text.escape("👩\u200d") == "👩\\u200d"
    assert safe_text.escape("👩\u200d\u200d👧").count("\\u200d") >= 1


def test_lines_that_pass_for_nothing_else():
    text = "one\n\r2\x1b\n\u2028three\n"
    assert safe_text.quote(text, 1000) == "| one\n| \\r2\\x1b\n| \\u2028three\n|"
    assert safe_text.quote("", 1000) == ""
    assert safe_text.tame(text, 1000) == r"one\n\r2\x1b\n\u2028three\n"
    assert len(safe_text.quote("\n" * 100_000, 1000)) < 1100
    error = safe_text.load_exception(
        [safe_text.dump_exception(type("E\nx", (Exception,), {})("a\nb"))]
    )
    for line in (str(error), error.type_name, error.message, repr(error)):
        assert "\n" not in line


GOOD = safe_text.dump_exception(ValueError("x"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1\0",
        GOOD[:-1],
        GOOD + b"x",
        b"\0\0" + b"\0\0" * 2,
        b"\1\0\1\0\0\0" + b"a\xff",
        b"\1\0" + (17_000).to_bytes(2, "little") + b"\0\0" + b"a" * 17_001,
        b"x" * 100_000,
        pickle.dumps(ValueError("x")),
    ],
)
def test_forged_exceptions(data):
    with pytest.raises(ProtocolError):
        safe_text.load_exception([data])


# Progress


def test_progress_in_words():
    for done, total, message in [
        (1, 2, "m"),
        (1.5, None, ""),
        (1, 2.5, "x" * 32768),
        (-(1 << 63), (1 << 63) - 1, "é\n"),
        (0.0, 1, ""),
        (1.5, 2.5, ""),
        (3, None, ""),
    ]:
        report = safe_text.load_progress([safe_text.dump_progress(done, total, message)])
        assert report == (done, total, message)
        assert [*map(type, report)] == [type(done), type(total), str]
    assert safe_text.load_progress([safe_text.dump_progress(1 << 70, -(10**400), "")]) == (
        float(1 << 70),
        -math.inf,
        "",
    )
    assert safe_text.load_progress([safe_text.dump_progress(10**400, None, "")])[0] == math.inf
    data = safe_text.dump_progress(1, 2, "\x1b" + "x" * 1_000_000)
    assert len(data) < 33_000
    assert safe_text.load_progress([data])[2].startswith("\x1b")
    assert safe_text.load_progress([data], escaped=True)[2].startswith(r"\x1b")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"qq",
        b"nn" + bytes(16),
        b"qn" + bytes(15),
        b"qn" + bytes(16) + b"\xff",
        b"qn" + bytes(16) + b"x" * 32769,
        pickle.dumps((1, 2, "x"), 5),
    ],
)
def test_forged_progress(data):
    with pytest.raises(ProtocolError):
        safe_text.load_progress([data])
    conversation = Conversation(NONCE)
    conversation.receive(encode(NONCE, Kind.STARTED))
    with pytest.raises(ProtocolError):
        conversation.receive(encode(NONCE, Kind.PROGRESS, data) + encode(NONCE, Kind.VALUE))
    assert conversation.answer is None


# Limits of frames


def head(kind, length):
    return encode(NONCE, kind)[:-8] + length.to_bytes(8, "little")


def test_a_frame_that_announces_too_much():
    for kind, limit in [(Kind.VALUE, 103), (Kind.ITEM, 100), (Kind.RAISED, 128 * 1024)]:
        with pytest.raises(
            TooLarge, match=f"{limit + 1:,} bytes; the limit is {limit:,}"
        ) as caught:
            list(FrameDecoder(NONCE, 100).feed(head(kind, limit + 1)))
        assert (caught.value.size, caught.value.limit) == (limit + 1, limit)
        assert list(FrameDecoder(NONCE, 100).feed(head(kind, limit))) == []
        list(FrameDecoder(NONCE).feed(head(kind, 1 << 30)))
    conversation = Conversation(NONCE, 100)
    conversation.receive(encode(NONCE, Kind.STARTED))
    for _ in range(10):
        assert len(conversation.receive(encode(NONCE, Kind.ITEM, b"x" * 100))) == 1
    with pytest.raises(TooLarge):
        conversation.receive(encode(NONCE, Kind.ITEM, b"x" * 101))
    conversation = Conversation(NONCE, 100)
    payload = Payload((b"x" * 100,)).encode()
    conversation.receive(encode(NONCE, Kind.STARTED) + encode(NONCE, Kind.VALUE, payload))
    assert conversation.answer is not None


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_small_pieces_are_joined(step):
    size = 300 * 1000 if step > 1 else 100 * 1000
    data = encode(NONCE, Kind.VALUE, bytes(range(250)) * (size // 250))
    decoder = FrameDecoder(NONCE)
    tracemalloc.start()
    try:
        frames = []
        for at in range(0, len(data), step):
            frames += decoder.feed(data[at : at + step])
        assert tracemalloc.get_traced_memory()[1] < 2 * size
    finally:
        tracemalloc.stop()
    ((_, body, _),) = frames
    assert b"".join(body) == data[22:]
    assert len(body) < 50


def test_large_pieces_are_not_copied():
    decoder = FrameDecoder(NONCE)
    piece = b"x" * 65536
    frames = list(decoder.feed(encode(NONCE, Kind.VALUE, piece * 3)[:22]))
    for _ in range(3):
        frames += decoder.feed(piece)
    assert all(part is piece for part in frames[0][1])


def test_plain_results_have_no_buffers():
    from tests.internals import Region

    assert Payload.decode([b"\0\0\0abc"], plain=True).stream == (b"abc",)
    assert b"".join(Payload.decode([b"\0", b"\0\0abc"], plain=True).stream) == b"abc"
    for payload in (
        Payload((b"",), (Region(0, 1),)),
        Payload((b"",), (Region(0, 1, 1),)),
        Payload((), (Region(0, 1),), True),
    ):
        Payload.decode([payload.encode()])
        with pytest.raises(ProtocolError, match="plain data"):
            Payload.decode([payload.encode()], plain=True)


def test_plain_conversations_have_no_descriptors():
    conversation = Conversation(NONCE, plain=True)
    conversation.receive(encode(NONCE, Kind.STARTED))
    with pytest.raises(ProtocolError, match="descriptors"):
        conversation.receive(encode(NONCE, Kind.VALUE, b"", 1), [5])
    with pytest.raises(ProtocolError, match="descriptors"):
        Conversation(NONCE, plain=True).receive(encode(NONCE, Kind.STARTED), [5])
