"""Growing arrays of numbers."""

from __future__ import annotations

import array
import copy
import gc
import io
import itertools
import math
import operator
import pickle
import sys
from collections.abc import MutableSequence
from types import GenericAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aioisolate import PagedArray, page_size, run_isolated
from tests.helpers import leaves_nothing, resident
from tests.internals import mappings as seam

pytestmark = pytest.mark.part(name="memory")

PAGE = page_size()
CODES = "bBhHiIlLqQfd"
NO_BUFFER = (ValueError, SystemError)


@pytest.fixture(params=[PagedArray, array.array], ids=["ours", "array.array"])
def kind(request):
    """Ours, and the one that it takes after: what is said of it is true of both."""
    return request.param


def extremes(code):
    if code in "fd":
        return [0.0, -1.5, math.inf]
    bits = 8 * array.array(code).itemsize
    if code.isupper():
        return [0, 1, 2**bits - 1]
    return [0, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1]


def setters(numbers):
    return [
        numbers.append,
        lambda number: numbers.insert(0, number),
        lambda number: numbers.__setitem__(0, number),
        lambda number: numbers.extend([number]),
    ]


@pytest.mark.parametrize("code", CODES)
def test_every_type(code, kind):
    numbers = kind(code, extremes(code))
    assert numbers.typecode == code
    assert numbers.itemsize == array.array(code).itemsize
    numbers.append(extremes(code)[1])
    numbers.extend(extremes(code))
    numbers.insert(1, 7)
    wanted = [*extremes(code)[:1], 7, *extremes(code)[1:], extremes(code)[1], *extremes(code)]
    assert numbers.tolist() == list(numbers) == wanted
    assert numbers.tobytes() == array.array(code, wanted).tobytes()
    with memoryview(numbers) as view:
        assert (view.format, view.itemsize, view.tolist()) == (code, numbers.itemsize, wanted)
    assert np.asarray(numbers).dtype == np.dtype(code)
    other = kind(code)
    other.frombytes(numbers.tobytes())
    assert other == numbers
    if code not in "fd":
        for wrong in (extremes(code)[1] - 1 if code.islower() else -1, extremes(code)[2] + 1):
            for fail in (*setters(numbers), lambda number: kind(code, [number])):
                with pytest.raises(OverflowError):
                    fail(wrong)
    for wrong in ("1", None, b"1", [], *([1.5] if code not in "fd" else [])):
        for fail in setters(numbers):
            with pytest.raises(TypeError):
                fail(wrong)
    assert numbers.tolist() == wanted


def test_making_one(kind):
    assert kind("i").tolist() == []
    assert kind("i", (1, 2)).tolist() == [1, 2]
    assert kind("i", iter(range(3))).tolist() == [0, 1, 2]
    assert kind("i", b"\1\0\0\0").tolist() == [1]
    assert kind("i", bytearray(b"\1\0\0\0")).tolist() == [1]
    assert kind("d", array.array("i", [1, 2])).tolist() == [1.0, 2.0]
    assert kind("q", np.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert kind("d", np.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert kind("h", np.arange(10, dtype="h")[::3]).tolist() == [0, 3, 6, 9]
    with pytest.raises(TypeError):
        kind("i", "text")
    with pytest.raises(TypeError):
        kind("i", 5)
    with pytest.raises(TypeError):
        kind("i", ["a"])
    with pytest.raises(ValueError, match="not a multiple of item"):
        kind("i", b"abc")
    with pytest.raises(TypeError):
        kind("i", [[1, 2]])
    with pytest.raises(TypeError):
        kind(5)
    for wrong in ("x", "é"):
        with pytest.raises(ValueError, match="typecode"):
            kind(wrong)
    with pytest.raises((ValueError, TypeError)):
        kind("ii")


@pytest.mark.parametrize("code", ["u", "w", "", "?"])
def test_it_is_for_numbers(code):
    with pytest.raises(ValueError, match="not a numeric typecode"):
        PagedArray(code)


def test_indexing(kind):
    numbers = kind("i", range(10))
    assert (numbers[0], numbers[-1], numbers[np.int64(3)]) == (0, 9, 3)
    numbers[-1] = 99
    assert numbers[9] == 99
    assert len(numbers) == 10
    assert 99 in numbers
    assert 9 not in numbers
    for wrong in (10, -11):
        with pytest.raises(IndexError, match="array index out of range"):
            numbers[wrong]
        with pytest.raises(IndexError, match="array assignment index out of range"):
            numbers[wrong] = 1
        with pytest.raises(IndexError, match="array assignment index out of range"):
            del numbers[wrong]
    for wrong in ("a", 1.5, None):
        with pytest.raises(TypeError):
            numbers[wrong]
        with pytest.raises(TypeError):
            numbers[wrong] = 1
        with pytest.raises(TypeError):
            del numbers[wrong]


SLICES = [
    slice(*part)
    for part in itertools.product([None, 0, 3, -3, 50], [None, 0, 3, 5, -3, 50], [None, 1, 2, -1])
]


def test_slices(kind):
    for key in SLICES:
        numbers, model = kind("i", range(10)), list(range(10))
        found = numbers[key]
        assert isinstance(found, array.array)
        assert found.tolist() == model[key]
        count = len(model[key])
        numbers[key] = array.array("i", range(100, 100 + count))
        model[key] = range(100, 100 + count)
        assert numbers.tolist() == model
        numbers[key] = kind("i", range(count))
        model[key] = range(count)
        assert numbers.tolist() == model
        if key.step in (None, 1):
            for length in (0, 1, 5, 30):
                numbers[key] = array.array("i", range(length))
                model[key] = range(length)
                assert numbers.tolist() == model
        elif count != 7:
            with pytest.raises(ValueError, match=f"of size 7 to extended slice of size {count}"):
                numbers[key] = array.array("i", range(7))
        del numbers[key]
        del model[key]
        assert numbers.tolist() == model
    numbers[1:1] = numbers
    with pytest.raises(TypeError, match="can only assign"):
        numbers[:] = [1, 2]
    with pytest.raises(TypeError):
        numbers[:] = array.array("h", [1])


def test_itself_in_a_slice(kind):
    numbers = kind("i", [1, 2, 3])
    numbers[1:2] = numbers
    assert numbers.tolist() == [1, 1, 2, 3, 3]
    numbers[::-1] = numbers
    assert numbers[0] in (1, 3)
    numbers.extend(numbers)
    numbers += numbers
    assert len(numbers) == 20
    assert numbers[:5] == numbers[15:]


def test_inserting_and_removing(kind):
    numbers, model = kind("h", range(5)), list(range(5))
    for at in (0, 2, -1, 100, -100, 7):
        numbers.insert(at, 50 + at % 7)
        model.insert(at, 50 + at % 7)
        assert numbers.tolist() == model
    for at in (-1, 0, 3):
        assert numbers.pop(at) == model.pop(at)
    assert numbers.pop() == model.pop()
    assert numbers.tolist() == model
    with pytest.raises(IndexError, match="pop index out of range"):
        numbers.pop(100)
    numbers.remove(model[2])
    model.remove(model[2])
    numbers.reverse()
    assert numbers.tolist() == model[::-1]
    with pytest.raises(ValueError, match="not in"):
        numbers.remove(-1)
    while len(numbers):
        numbers.pop()
    with pytest.raises(IndexError, match="pop from empty array"):
        numbers.pop()
    numbers.reverse()


def test_finding(kind):
    numbers = kind("d", [1, 2, 3, 2, 1, math.nan] * 6000)
    assert numbers.index(2) == 1
    assert numbers.index(2, 2) == 3
    assert numbers.index(1, -3) == 35998
    assert numbers.index(3, 30000, 30003) == 30002
    for start, stop in ((3, 8), (0, 0), (36000, 40000), (-2, -1)):
        with pytest.raises(ValueError):
            numbers.index(3, start, stop)
    assert numbers.count(2) == 12000
    assert numbers.count(1.0) == 12000
    assert numbers.count(math.nan) == 0
    assert numbers.count("a") == 0
    with pytest.raises(ValueError):
        numbers.index("a")


def test_equality(kind):
    numbers = kind("i", [1, 2, 3])
    assert numbers == kind("i", [1, 2, 3])
    assert numbers == array.array("i", [1, 2, 3])
    assert numbers == kind("d", [1, 2, 3])
    assert numbers != kind("i", [1, 2])
    assert numbers != kind("i", [1, 2, 4])
    assert numbers != [1, 2, 3]
    assert kind("d", [math.nan]) != kind("d", [math.nan])
    assert kind("b") == kind("d")
    with pytest.raises(TypeError, match="unhashable"):
        hash(numbers)


def test_adding_arrays(kind):
    numbers = kind("i", [1])
    numbers += kind("i", [2])
    numbers += array.array("i", [3])
    assert numbers.tolist() == [1, 2, 3]
    for wrong in ([4], b"1234", array.array("h", [4]), kind("q", [4])):
        with pytest.raises(TypeError, match="can only extend"):
            numbers += wrong
    for wrong in (array.array("h", [4]), kind("q", [4])):
        with pytest.raises(TypeError, match="can only extend"):
            numbers.extend(wrong)
    numbers.extend(b"1")
    assert numbers.tolist() == [1, 2, 3, 49]


def test_extending_is_all_or_nothing():
    numbers = PagedArray("b", [1])

    def broken():
        yield from itertools.repeat(5, 100_000)
        raise KeyError

    for wrong in ([1, 2, 300], broken(), itertools.chain([1] * 50_000, "a")):
        with pytest.raises((OverflowError, KeyError, TypeError)):
            numbers.extend(wrong)
        assert numbers.tolist() == [1]
    numbers.extend(itertools.repeat(3, 100_000))
    assert len(numbers) == 100_001


def test_bytes(kind):
    numbers = kind("i")
    numbers.frombytes(memoryview(np.arange(3, dtype="i4")).cast("B"))
    assert numbers.tolist() == [0, 1, 2]
    numbers.frombytes(b"")
    with pytest.raises(ValueError, match="bytes length not a multiple of item size"):
        numbers.frombytes(b"12345")
    with pytest.raises(TypeError):
        numbers.frombytes("1234")
    assert len(numbers) == 3


def test_iterating_sees_what_happens_meanwhile(kind):
    numbers = kind("q", range(2000))
    for at, number in enumerate(numbers):
        if at + 1 < len(numbers):
            numbers[at + 1] += number
    assert numbers.tolist() == list(itertools.accumulate(range(2000)))
    numbers = kind("q", [1])
    for number in numbers:
        if number < 1000:
            numbers.append(number + 1)
    assert numbers.tolist() == list(range(1, 1001))
    seen = []
    for number in numbers:
        seen.append(number)
        numbers.pop()
    assert seen == list(range(1, 501))
    numbers = kind("q", range(1000))
    with memoryview(numbers) as view:
        for at, number in enumerate(numbers):
            assert number == (at if at < 10 else -1)
            if at == 9:
                view[10:] = array.array("q", [-1] * 990)


def test_a_view_taken_while_iterating():
    numbers = PagedArray("q", range(1000))
    found = []
    for number in numbers:
        found.append(number)
        if number == 5:
            np.asarray(numbers)[6] = -6
    assert found[6] == -6


# Memory


def test_growing_keeps_the_numbers_and_copies_nothing(monkeypatch):
    numbers = PagedArray("q")
    assert numbers.capacity == 0
    made = []
    reserve = seam.reserve
    monkeypatch.setattr(seam, "reserve", lambda size: made.append(size) or reserve(size))
    capacities = set()
    for i in range(100_000):
        numbers.append(i)
        assert numbers.capacity > i
        capacities.add(numbers.capacity)
    assert numbers.tolist() == list(range(100_000))
    assert len(made) == 1
    assert len(capacities) < 8  # it doubles


def test_reserving():
    numbers = PagedArray("i", [1, 2])
    numbers.reserve(1_000_000)
    capacity = numbers.capacity
    assert 1_000_000 <= capacity <= 1_000_000 + PAGE
    before = numbers._area
    numbers.reserve(5)
    with pytest.raises(ValueError, match="at least 0, not -1"):
        numbers.reserve(-1)
    numbers.extend(range(999_998))
    assert (numbers.capacity, len(numbers)) == (capacity, 1_000_000)
    assert numbers._area is before
    for wrong in (1 << 58, 1 << 70):
        with pytest.raises(MemoryError, match=r"\d+ bytes of memory can't be mapped"):
            numbers.reserve(wrong)
    with pytest.raises(TypeError):
        numbers.reserve("5")
    assert numbers[-1] == 999_997


def test_when_twice_as_much_does_not_fit_it_is_as_much_as_needed(monkeypatch):
    numbers = PagedArray("b", bytes(16 * PAGE))
    real = seam.resize

    def resize(area, size):
        if size > 17 * PAGE:
            raise MemoryError(size)
        return real(area, size)

    monkeypatch.setattr(seam, "resize", resize)
    numbers.append(1)
    assert numbers.capacity == 17 * PAGE
    with pytest.raises(MemoryError):
        numbers.extend(bytes(PAGE))
    assert len(numbers) == 16 * PAGE + 1
    numbers.extend(bytes(PAGE - 1))
    assert numbers[16 * PAGE] == 1


def test_clearing_with_and_without_giving_memory_back():
    numbers = PagedArray("d")
    numbers.frombytes(b"\1" * (64 << 20))
    full, capacity = resident(), numbers.capacity
    numbers.clear()
    assert (len(numbers), numbers.capacity) == (0, capacity)
    assert full - resident() < 8 << 20
    numbers.extend([1.0, 2.0])
    numbers.clear_decommit()
    assert (len(numbers), numbers.capacity, numbers.tolist()) == (0, capacity, [])
    assert full - resident() > 60 << 20
    numbers.extend([3.0])
    assert numbers.tolist() == [3.0]
    PagedArray("d").clear_decommit()


@pytest.mark.parametrize("use", [memoryview, np.asarray, lambda a: np.frombuffer(a, "i")[1:]])
@pytest.mark.parametrize("content", [range(5), ()], ids=["some", "none"])
def test_what_is_used_keeps_its_length(use, content, kind):
    if not content and use not in (memoryview, np.asarray):
        pytest.skip("np.frombuffer takes no empty buffers")
    numbers = kind("i", content)
    view = use(numbers)
    changes = [
        lambda: numbers.append(1),
        lambda: numbers.extend([1]),
        lambda: numbers.extend(array.array("i", [1])),
        lambda: numbers.frombytes(b"1234"),
        lambda: numbers.insert(0, 1),
        lambda: numbers.__iadd__(array.array("i", [1])),
        lambda: numbers.__setitem__(slice(0, 0), array.array("i", [1])),
    ]
    if content:
        changes += [
            numbers.pop,
            lambda: numbers.pop(0),
            lambda: numbers.remove(1),
            lambda: numbers.__delitem__(0),
            lambda: numbers.__delitem__(slice(0, 2)),
            lambda: numbers.__delitem__(slice(None, None, 2)),
        ]
        if kind is PagedArray:
            changes += [
                numbers.clear,
                numbers.clear_decommit,
                numbers.close,
                lambda: numbers.reserve(1_000_000),
            ]
    if content or kind is array.array:
        for change in changes:
            with pytest.raises(BufferError, match="cannot resize an array that is exporting"):
                change()
    assert numbers.tolist() == list(content)
    if content:
        numbers[2] = 77
        assert 77 in view
        view[-1] = 78
        assert numbers[4] == 78
        numbers.reverse()
        assert 78 in numbers[:1]
    del view
    gc.collect()
    numbers.append(6)
    numbers.pop()
    assert len(numbers) == len(content)


def test_there_is_no_copy():
    numbers = PagedArray("d", [1, 2, 3])
    array = np.frombuffer(numbers)
    assert array.__array_interface__["data"][0] == seam.address_of(numbers)
    array *= 2
    assert numbers.tolist() == [2, 4, 6]
    with memoryview(numbers) as view:
        assert (view.shape, view.readonly, view.nbytes) == ((3,), False, 24)


def test_what_is_made_of_it_keeps_it():
    array = np.frombuffer(PagedArray("d", range(100_000)))
    gc.collect()
    assert array.sum() == sum(range(100_000))


def test_where_the_kernel_moves_no_pages(monkeypatch):
    monkeypatch.setattr(seam.sys, "platform", "darwin")
    numbers = PagedArray("q", range(100_000))
    numbers.append(5)
    assert numbers.tolist() == [*range(100_000), 5]
    with memoryview(numbers), pytest.raises(BufferError):
        numbers.append(1)
    numbers.clear_decommit()
    numbers.extend([1])
    assert numbers.tolist() == [1]
    assert np.frombuffer(numbers._area, "q")[1:].sum() == 0


def test_closing():
    with PagedArray("i", [1, 2]) as numbers:
        view = memoryview(numbers)
        with pytest.raises(BufferError):
            numbers.close()
        view.release()
        assert repr(numbers) == "<PagedArray 'i' of 2 items>"
    assert numbers.closed
    assert repr(numbers) == "<PagedArray 'i' of 0 items closed>"
    numbers.close()
    assert (len(numbers), numbers.capacity) == (0, 0)
    for use in (
        lambda: numbers[0],
        lambda: numbers[:],
        lambda: numbers.__setitem__(0, 1),
        lambda: numbers.__setitem__(slice(0, 0), array.array("i")),
        lambda: numbers.__delitem__(0),
        lambda: numbers.__delitem__(slice(0, 1)),
        lambda: numbers.append(1),
        lambda: numbers.extend([1]),
        lambda: numbers.extend(array.array("i", [1])),
        lambda: numbers.frombytes(b"1234"),
        lambda: numbers.insert(0, 1),
        lambda: list(numbers),
        lambda: numbers.index(1),
        lambda: numbers.count(1),
        lambda: 1 in numbers,
        lambda: numbers == array.array("i"),
        lambda: array.array("i") == numbers,
        lambda: numbers.reserve(0),
        numbers.pop,
        numbers.reverse,
        numbers.clear,
        numbers.clear_decommit,
        numbers.tolist,
        numbers.tobytes,
        numbers.__enter__,
    ):
        with pytest.raises(ValueError, match="the array is closed"):
            use()
    with pytest.raises(NO_BUFFER):
        memoryview(numbers)


class Special(PagedArray):
    pass


def test_copies():
    numbers = Special("h", range(5))
    for make in (pickle.dumps, copy.copy, copy.deepcopy):
        other = make(numbers)
        if isinstance(other, bytes):
            other = pickle.loads(other)
        assert type(other) is Special
        assert other == numbers
        other[0] = 9
        assert numbers[0] == 0
    assert pickle.loads(pickle.dumps(PagedArray("d"))).tolist() == []


async def test_to_a_child_and_back():
    numbers = PagedArray("d", range(1000))

    def work():
        numbers.append(5.0)
        return numbers

    result = await run_isolated(work)
    assert len(numbers) == 1000
    assert result.tolist() == [*range(1000), 5.0]


# The whole of array.array


class FailsAt:
    """A file that can't be read, or not as a file should."""

    def __init__(self, answer):
        self.answer = answer

    def read(self, _):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def written(numbers):
    file = io.BytesIO()
    numbers.tofile(file)
    return file.getvalue()


def after(change):
    """Return what becomes of the numbers, and what comes back."""

    def do(kind):
        numbers = kind("h", [3, 1, 2, 1])
        found = change(numbers)
        return numbers.tolist(), found.tolist() if hasattr(found, "tolist") else found

    return do


def h(*numbers):
    return array.array("h", numbers)


# What each is to do as array.array does it: functions of a kind.
INTERFACE = {
    "typecode": [lambda kind: [kind(code).typecode for code in CODES]],
    "itemsize": [lambda kind: [kind(code).itemsize for code in CODES]],
    "append": [after(lambda a: a.append(5)), after(lambda a: a.append(1 << 20))],
    "buffer_info": [lambda kind: kind("h", range(5)).buffer_info()[1]],
    "byteswap": [
        *[lambda kind, c=c: (a := kind(c, [1, 2, 3]), a.byteswap(), a.tobytes()) for c in CODES],
        lambda kind: (a := kind("i", range(50_000)), a.byteswap(), a.tobytes()),
    ],
    "clear": [after(lambda a: a.clear() if hasattr(a, "clear") else a.__delitem__(slice(None)))],
    "count": [after(lambda a: a.count(1)), after(lambda a: a.count("x"))],
    "extend": [
        *[after(lambda a, more=more: a.extend(more)) for more in ([], [7, 8], h(), h(7), "x", 5)],
        *[after(lambda a, more=more: a.extend(iter(more))) for more in ([7], (7, "x"), range(3))],
        after(lambda a: a.extend(a)),
        after(lambda a: a.extend(array.array("i", [7]))),
    ],
    "frombytes": [after(lambda a: a.frombytes(b"1234")), after(lambda a: a.frombytes(b"123"))],
    "fromfile": [
        *[after(lambda a, n=n: a.fromfile(io.BytesIO(b"123456"), n)) for n in (0, 2, 3, -1, "1")],
        after(lambda a: a.fromfile(io.BytesIO(b"123456"), 4)),  # too few
        after(lambda a: a.fromfile(io.BytesIO(b"12345"), 3)),  # a half one
        after(lambda a: a.fromfile(io.BytesIO(b"12" * 50_000), 49_999)),
        after(lambda a: a.fromfile(io.BytesIO(b"12" * 50_000), 50_001)),
        after(lambda a: a.fromfile(FailsAt("text"), 3)),
        after(lambda a: a.fromfile(FailsAt(OSError(5, "broken")), 3)),
        after(lambda a: a.fromfile(5, 3)),
    ],
    "fromlist": [
        *[after(lambda a, m=more: a.fromlist(m)) for more in ([], [7, 8], [7, "x"], [1 << 20])],
        *[after(lambda a, m=more: a.fromlist(m)) for more in ((7,), h(7), range(2), None)],
    ],
    "fromunicode": [after(lambda a: a.fromunicode("text")), after(lambda a: a.fromunicode(5))],
    "index": [
        *[after(lambda a, k=k: a.index(*k)) for k in ((1,), (1, 2), (1, 2, 3), (9,), (1, -1))],
        after(lambda a: a.index("x")),
    ],
    "insert": [after(lambda a, at=at: a.insert(at, 5)) for at in (0, 2, -1, 99, -99, "x", 1.5)],
    "pop": [*[after(lambda a, at=at: a.pop(at)) for at in (0, 2, -1, 99, "x")], after(h().pop)],
    "remove": [after(lambda a: a.remove(1)), after(lambda a: a.remove(9))],
    "reverse": [after(lambda a: a.reverse())],
    "tobytes": [after(lambda a: a.tobytes())],
    "tofile": [after(written), lambda kind: written(kind("i", range(50_000)))],
    "tolist": [after(lambda a: a.tolist())],
    "tounicode": [after(lambda a: a.tounicode())],
    "__add__": [
        after(lambda a: a + h(7)),
        after(lambda a: a + a),
        lambda kind: (kind("h", [1]) + kind("h", [2])).tolist(),
        lambda kind: (h(1) + kind("h", [2])).tolist(),
        lambda kind: kind("h", [1]) + kind("i", [2]),
        after(lambda a: operator.add(a, [7])),
        after(lambda a: operator.add([7], a)),
        after(lambda a: (a + np.array([1, 1, 1, 1])).tolist()),
    ],
    "__iadd__": [after(lambda a: a.__iadd__(h(7))), after(lambda a: a.__iadd__([7]))],
    "__mul__": [
        *[after(lambda a, n=n: a * n) for n in (0, 1, 3, -2, True, np.int64(2), 1.5, "x", 1 << 70)],
        lambda kind: (kind("h") * 5).tolist(),
        lambda kind: kind("h", [1]) * kind("h", [2]),
        lambda kind: (kind("h", [1]) * np.array([2, 3])).tolist(),
    ],
    "__rmul__": [after(lambda a, n=n: n * a) for n in (0, 1, 3, -2, 1.5)],
    "__imul__": [
        *[after(lambda a, n=n: operator.imul(a, n)) for n in (0, 1, 2, 7, -2, 1.5, "x", 1 << 70)],
        lambda kind: operator.imul(kind("h"), 1000).tolist(),
    ],
    **{
        f"__{name}__": [
            *[
                lambda kind, one=one, other=other, name=name: getattr(operator, name)(
                    kind("h", one), kind("h", other)
                )
                for one, other in itertools.product([(), (1,), (1, 2), (2,), (1, 2, 3)], repeat=2)
            ],
            lambda kind, name=name: getattr(operator, name)(kind("h", [1]), h(1, 0)),
            lambda kind, name=name: getattr(operator, name)(h(1, 0), kind("h", [1])),
            lambda kind, name=name: getattr(operator, name)(kind("d", [1.5]), kind("h", [1])),
            lambda kind, name=name: getattr(operator, name)(
                kind("d", [0, math.nan]), kind("d", [0, math.nan, 1])
            ),
            lambda kind, name=name: getattr(operator, name)(
                kind("i", [*range(50_000), 1]), kind("i", [*range(50_000), 2])
            ),
            lambda kind, name=name: getattr(operator, name)(kind("h", [1]), [1]),
        ]
        for name in ("lt", "le", "gt", "ge", "eq", "ne")
    },
    "__hash__": [after(hash)],
    "__len__": [after(len)],
    "__iter__": [after(lambda a: list(iter(a)) + list(reversed(a)))],
    "__contains__": [after(lambda a: (1 in a, 9 in a, "x" in a, 1.0 in a))],
    "__getitem__": [after(lambda a, k=k: a[k]) for k in (0, -1, 4, -5, "x", slice(1, 3), slice(9))],
    "__setitem__": [
        *[after(lambda a, k=k: a.__setitem__(k, 7)) for k in (0, -1, 4, -5, "x", slice(1, 3))],
        *[after(lambda a, v=v: a.__setitem__(slice(1, 3), v)) for v in (h(), h(7), h(7, 8, 9))],
    ],
    "__delitem__": [after(lambda a, k=k: a.__delitem__(k)) for k in (0, -1, 4, slice(1, 3))],
    "__copy__": [after(lambda a: a.__copy__()), after(copy.copy)],
    "__deepcopy__": [after(lambda a: a.__deepcopy__({})), after(copy.deepcopy)],
    "__reduce_ex__": [after(lambda a, p=p: pickle.loads(pickle.dumps(a, p))) for p in range(2, 6)],
    "__sizeof__": [lambda kind: sys.getsizeof(kind("d", range(50_000))) > 400_000],
    "__class_getitem__": [lambda kind: GenericAlias(kind, int).__args__],
    "__buffer__": [after(lambda a: bytes(memoryview(a)))],
    "__release_buffer__": [after(lambda a: memoryview(a).release())],
}


# What every object has; what of that is array.array's own is above.
NO_METHODS = {*dir(object), "__module__"} - {*INTERFACE}


@pytest.mark.parametrize("name", sorted({*dir(array.array), *INTERFACE} - NO_METHODS))
def test_11_29_it_does_what_array_array_does(name):
    if hasattr(array.array, name):
        assert hasattr(PagedArray, name)
    for do in INTERFACE[name]:  # what is not there: what is new in array.array
        try:
            wanted = do(array.array)
        except Exception as error:
            with pytest.raises(type(error)):
                do(PagedArray)
        else:
            assert do(PagedArray) == wanted


def test_11_29_what_operators_make_is_one_of_ours():
    numbers = PagedArray("h", [1, 2])
    for made in (numbers + numbers, numbers + h(3), h(3) + numbers, numbers * 2, 2 * numbers):
        assert type(made) is PagedArray
        assert made.typecode == "h"
    assert isinstance(numbers, MutableSequence)
    match numbers:
        case [1, *rest]:
            assert rest == [2]
        case _:
            pytest.fail("it is no sequence")
    assert PagedArray[int].__origin__ is PagedArray
    assert numbers.buffer_info() == (seam.address_of(numbers), 2)


def test_11_29_an_index_error_names_the_index():
    numbers = PagedArray("h", range(10))
    for use in (numbers.__getitem__, numbers.__delitem__, numbers.pop):
        with pytest.raises(IndexError, match=r"out of range: -11, of 10 items$"):
            use(-11)


def test_11_29_what_keeps_the_length_is_allowed_while_it_is_used(kind):
    numbers = kind("h", [1, 2, 3])
    with memoryview(numbers) as view:
        numbers.extend([])
        numbers.extend(iter(()))
        numbers.extend(h())
        numbers.frombytes(b"")
        numbers.fromlist([])
        numbers += h()
        numbers *= 1
        if kind is PagedArray:  # array.array refuses it
            numbers[1:1] = h()
        numbers[1:2] = h(7)
        numbers.byteswap()
        numbers.byteswap()
        assert view.tolist() == [1, 7, 3]
        for change in (lambda: numbers.__imul__(2), lambda: numbers.fromlist([1])):
            with pytest.raises(BufferError):
                change()
    assert numbers.tolist() == [1, 7, 3]


def test_11_29_a_closed_one_refuses_that_too():
    numbers = PagedArray("h", [1])
    numbers.close()
    for use in (
        lambda: numbers + h(1),
        lambda: h(1) + numbers,
        lambda: numbers * 2,
        lambda: numbers.__imul__(1),
        lambda: numbers < h(1),
        lambda: numbers.extend([]),
        lambda: numbers.extend(iter(())),
        lambda: numbers.frombytes(b""),
        lambda: numbers.fromlist([]),
        lambda: numbers.tofile(io.BytesIO()),
        numbers.byteswap,
        numbers.buffer_info,
        numbers.__copy__,
    ):
        with pytest.raises(ValueError, match="the array is closed"):
            use()


def test_11_29_what_a_subclass_adds_is_copied():
    numbers = Special("h", [1, 2])
    numbers.unit = ["mm"]
    for make in (lambda a: pickle.loads(pickle.dumps(a)), copy.copy, copy.deepcopy):
        other = make(numbers)
        assert (type(other), other.tolist(), other.unit) == (Special, [1, 2], ["mm"])
        assert (other.unit is numbers.unit) == (make is copy.copy)


# A model


class Model(RuleBasedStateMachine):
    """Against array.array and list."""

    code = "h"
    numbers = st.integers(-5, 5) | st.integers(-(2**15), 2**15 - 1)
    places = st.integers(-12, 12)
    slices = st.slices(12)

    def __init__(self):
        super().__init__()
        self.ours, self.theirs, self.list = PagedArray(self.code), array.array(self.code), []

    def both(self, action, on_list=None):
        """Do it to all; it succeeds or fails in the same way."""
        try:
            wanted = action(self.theirs)
        except Exception as error:
            with pytest.raises(type(error)) as info:
                action(self.ours)
            assert isinstance(info.value, type(error))
        else:
            assert action(self.ours) == wanted
            (on_list or action)(self.list)

    @rule(number=numbers)
    def append(self, number):
        self.both(lambda a: a.append(number))

    @rule(number=st.one_of(st.integers(), st.floats(), st.none(), st.text(max_size=1)))
    def append_anything(self, number):
        self.both(lambda a: a.append(number))

    @rule(some=st.lists(numbers, max_size=9))
    def extend(self, some):
        self.both(lambda a: a.extend(some))

    @rule(some=st.lists(numbers, max_size=9))
    def add(self, some):
        self.both(lambda a: a.__iadd__(array.array(self.code, some)) and None)

    @rule(at=places, number=numbers)
    def insert(self, at, number):
        self.both(lambda a: a.insert(at, number))

    @rule(at=places)
    def pop(self, at):
        self.both(lambda a: a.pop(at))

    @rule(number=numbers)
    def remove(self, number):
        self.both(lambda a: a.remove(number))

    @rule(number=numbers)
    def find(self, number):
        self.both(lambda a: a.index(number))
        self.both(lambda a: a.count(number))
        self.both(lambda a: number in a)

    @rule(at=places, number=numbers)
    def set(self, at, number):
        self.both(lambda a: a.__setitem__(at, number))

    @rule(at=places)
    def delete(self, at):
        self.both(lambda a: a.__delitem__(at))

    @rule(some=st.lists(numbers, max_size=9), first=st.booleans())
    def joined(self, some, first):
        more = array.array(self.code, some)
        self.both(
            lambda a: (a + more if first else more + a).tolist(),
            lambda a: a + some,
        )

    @rule(times=st.integers(-1, 3))
    def repeat(self, times):
        self.both(lambda a: list(a * times) == list(times * a))
        if len(self.list) < 200:
            self.both(lambda a: operator.imul(a, times) and None)

    @rule(some=st.lists(numbers, max_size=9))
    def compare(self, some):
        other = array.array(self.code, some)
        for how in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne):
            self.both(lambda a, how=how: how(a, other), lambda a: None)
            self.both(lambda a, how=how: how(other, a), lambda a: None)

    @rule(some=st.lists(st.one_of(numbers, st.none()), max_size=9))
    def from_list(self, some):
        self.both(lambda a: a.fromlist(some), lambda a: a.extend(some))

    @rule(some=st.lists(numbers, max_size=9), times=st.integers(0, 10))
    def through_a_file(self, some, times):
        data = array.array(self.code, some).tobytes()
        self.both(
            lambda a: a.fromfile(io.BytesIO(data), times),
            lambda a: a.extend(some[:times]),
        ) if times <= len(some) else None
        self.both(written, lambda a: None)

    @rule()
    def swap_bytes(self):
        self.both(lambda a: a.byteswap(), lambda a: None)
        self.list[:] = self.theirs.tolist()

    @rule(way=st.sampled_from([copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))]))
    def go_on_with_a_copy(self, way):
        before, self.ours = self.ours, way(self.ours)
        before.close()

    @rule(key=slices)
    def get_slice(self, key):
        self.both(lambda a: a[key])

    @rule(key=slices, some=st.lists(numbers, max_size=9))
    def set_slice(self, key, some):
        self.both(
            lambda a: a.__setitem__(key, array.array(self.code, some)),
            # array.array deletes what is replaced by nothing.
            lambda a: a.__setitem__(key, some) if some else a.__delitem__(key),
        )

    @rule(key=slices)
    def delete_slice(self, key):
        self.both(lambda a: a.__delitem__(key))

    @rule()
    def reverse(self):
        self.both(lambda a: a.reverse())

    @rule(count=st.integers(0, 100_000))
    def reserve(self, count):
        self.ours.reserve(count)
        assert self.ours.capacity >= count

    @rule(decommit=st.booleans())
    def clear(self, decommit):
        capacity = self.ours.capacity
        if decommit:
            self.ours.clear_decommit()
        else:
            self.ours.clear()
        assert self.ours.capacity == capacity
        del self.theirs[:], self.list[:]

    @rule(number=numbers)
    def lend(self, number):
        view = np.asarray(self.ours)
        for some in (self.ours, self.theirs):
            if len(some):
                some[-1] = number
        if self.list:
            self.list[-1] = number
            with pytest.raises(BufferError):
                self.ours.append(1)
        assert view.tolist() == self.list

    @invariant()
    def alike(self):
        assert len(self.ours) == len(self.list)
        assert self.ours == self.theirs
        assert self.ours.tolist() == list(self.ours) == self.list
        assert self.ours.tobytes() == self.theirs.tobytes()

    def teardown(self):
        self.ours.close()


TestPagedArrays = Model.TestCase
TestPagedArrays.settings = settings(
    max_examples=30,
    stateful_step_count=25,
    suppress_health_check=list(HealthCheck),
)


def test_arrays_leave_nothing():
    def work():
        numbers = PagedArray("d", range(100))
        view = np.asarray(numbers)
        with pytest.raises(BufferError):
            numbers.append(1)
        del view
        numbers.reserve(1_000_000)
        numbers[500:] = numbers
        with pytest.raises(MemoryError):
            numbers.reserve(1 << 60)
        numbers.clear_decommit()
        for _ in numbers:
            break

    leaves_nothing(work)
