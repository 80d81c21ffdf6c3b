"""Exceptions that pickle by itself would lose, in part or whole."""

from __future__ import annotations

import dataclasses
import gc
import io
import itertools
import pickle
import signal
import sys
import threading
import traceback
import weakref
from typing import ClassVar

import numpy as np
import pytest

from aioisolate import Reason, RemoteError, capture_isolated
from tests.helpers import isolator, python
from tests.internals import CodePickler, codecs, exception_text, exceptions, execution, safe_text

pytestmark = pytest.mark.part(name="functions")

HERE = __name__


async def caught(start, fn, *args):
    async with isolator(start, HERE) as iso:
        return (await iso.capture(fn, *args, timeout=60)).error


def crossed(exc):
    """Pickle an exception as a child does and load it as its parent does."""
    stream, buffers, _ = exceptions.dump(exc)
    return codecs.load([stream], buffers)


def chain_of(exc):
    found = []
    while exc is not None:
        found.append(exc)
        exc = exc.__cause__ or exc.__context__
    return found


# Deep ones


def recur(n):
    return recur(n + 1)


def raise_deep(n):
    if n:
        raise_deep(n - 1)
    raise ValueError("deep", n)


def raise_chain(length):
    error = KeyError("root")
    for n in range(length):
        error, cause = ValueError(n), error
        error.__cause__ = cause
    raise error


def raise_nested(depth):
    error = KeyError("leaf")
    for n in range(depth):
        error = ExceptionGroup(str(n), [error])
    raise error


def names_of(exc):
    return [frame.name for frame in traceback.extract_tb(exc.__traceback__)]


@pytest.mark.one_loop
async def test_11_1_deep_exceptions_arrive_as_what_they_are(start):
    async with isolator(start, HERE) as iso:
        endless = (await iso.capture(recur, 0)).error
        deep = (await iso.capture(raise_deep, 340)).error
        chain = (await iso.capture(raise_chain, 1000)).error
        group = (await iso.capture(raise_nested, 200)).error
    assert type(endless) is RecursionError
    assert "maximum recursion depth exceeded" in str(endless)
    assert (type(deep), deep.args) == (ValueError, ("deep", 0))
    for error, count in (endless, None), (deep, 341):
        names = names_of(error)
        assert len(names) == 101
        assert len(set(names[:50] + names[51:])) == 1  # the outermost and the innermost
        assert names[50].endswith(" frames left out>")
        assert count is None or names[50] == f"<{count - 100} frames left out>"
    assert "frames left out>" in "".join(traceback.format_exception(deep))

    errors = chain_of(chain)
    assert [error.args[0] for error in errors] == [*range(999, 949, -1), *range(48, -1, -1), "root"]
    assert type(errors[-1]) is KeyError
    assert errors[49].__notes__ == ["[901 exceptions that belong to this one are left out]"]

    depth = 0
    while isinstance(group, ExceptionGroup):
        (group,) = group.exceptions
        depth += 1
    assert depth == 100
    assert group.args == ("leaf",)


@pytest.mark.one_loop
async def test_11_1_deep_exceptions_in_words():
    for fn, words in (raise_deep, "deep"), (raise_chain, "999"), (raise_nested, "199 (1 sub"):
        count = {raise_deep: 340, raise_chain: 1000, raise_nested: 200}[fn]
        error = (await capture_isolated(fn, count, codec="json", timeout=60)).error
        assert isinstance(error, RemoteError)
        assert words in error.message
        assert error.type_name == ("ExceptionGroup" if fn is raise_nested else "ValueError")


def test_11_1_what_is_short_is_not_shortened():
    try:
        raise_deep(98)
    except ValueError as exc:
        assert len(names_of(crossed(exc))) == 100
    with pytest.raises(ValueError) as info:
        raise_chain(99)
    assert len(chain_of(crossed(info.value))) == 100
    assert not hasattr(chain_of(crossed(info.value))[49], "__notes__")
    several = ExceptionGroup("several", [ValueError(n) for n in range(500)])
    assert [error.args[0] for error in crossed(several).exceptions] == [*range(500)]


def test_11_1_chains_through_attributes_and_arguments():
    error = ValueError("innermost")
    for n in range(2000):
        error, inner = (ValueError(n), error) if n % 2 else (ValueError(n, error), error)
        error.inner = inner
    copy = crossed(error)
    count = 0
    while hasattr(copy, "inner"):
        assert len(copy.args) == 1 or copy.args[1] is copy.inner
        copy = copy.inner
        count += 1
    assert (count, copy.args) == (2000, ("innermost",))


def test_11_1_circles():
    first, second = ValueError("first"), ValueError("second")
    first.other, second.other = second, first
    first.__cause__ = second
    second.__context__ = first
    copy = crossed(first)
    assert copy.other.other is copy
    assert copy.__cause__ is copy.other
    assert copy.__cause__.__context__ is copy
    itself = ValueError()
    itself.args = (itself, "text")
    copy = crossed(itself)
    assert copy.args[1] == "text"
    assert "ValueError" in copy.args[0]
    assert "contains itself" in copy.__notes__[0]


# What plain pickle keeps, and more


class Slotted(Exception):
    __slots__ = ("__hidden", "code", "unset")

    def __init__(self, text, code):
        super().__init__(text)
        self.code = code
        self.__hidden = [code]

    def __str__(self):
        return f"{self.args[0]}: {self.code}{self.__hidden}"


@dataclasses.dataclass(slots=True)
class SlottedData(Exception):
    code: int
    where: str | None = None


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Own(OSError):
    def __init__(self, number, text):
        super().__init__(text)
        self.errno = number  # in no dict, and not among the arguments


class Gone(FileNotFoundError):
    def __init__(self, *, path):
        super().__init__(2, "gone", path)


class Unread(ImportError):
    def __init__(self, which):
        super().__init__(f"can't import {which}", name=which, path="/there")


class Counted(Exception):
    """What plain pickle keeps is kept by its constructor only."""

    registry: ClassVar = weakref.WeakKeyDictionary()

    def __init__(self, text):
        super().__init__(text)
        self.registry[self] = text.upper()

    def __str__(self):
        return self.registry[self]


class Sealed(Counted):
    """Only its constructor registers it, and it refuses what pickle does afterwards."""

    def __init__(self, text, *more):
        super().__init__(text)
        self.args = (text, *more)
        self.__dict__["code"] = 3

    def __setattr__(self, name, value):
        if name == "code":
            raise AttributeError("it is sealed")
        super().__setattr__(name, value)


class Stateful(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()
        self.where = "there"

    def __getstate__(self):
        return {"where": self.where}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.lock = threading.Lock()


class Explodes(Exception):
    def __reduce__(self):
        return sys.exit, (5,)


class Mute(Exception):
    def __str__(self):
        raise ZeroDivisionError

    def __reduce__(self):
        raise TypeError("no")


class Ticking(Exception):
    ticks = itertools.count()

    def __str__(self):
        return f"tick {next(self.ticks)}"


class Changed(Exception):
    def __reduce__(self):
        return Changed, ("something else",)


class Claimed(Exception):
    __module__ = "builtins"

    def __init__(self, text, *, code):
        super().__init__(text)
        self.code = code


class Thing:
    """Its repr tells its address."""


MAKERS = [
    lambda: Slotted("slots", 1),
    lambda: SlottedData(1),
    lambda: Frozen(2),
    lambda: Own(5, "text"),
    lambda: Gone(path="/x"),
    lambda: Unread("this"),
    lambda: Counted("text"),
    lambda: Explodes("x"),
    lambda: Mute("x", 1),
    lambda: Changed("what it was"),
    lambda: Claimed("text", code=4),
    lambda: OSError(2, "No such file", "one", None, "other"),
    lambda: BlockingIOError(11, "again", 5),
    lambda: SyntaxError("bad", ("file", 1, 2, "text\n", 1, 3)),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"),
    lambda: ImportError("text", name="name", path="path"),
]


def raise_made(number):
    error = MAKERS[number]()
    raise error


def raise_claimed():
    raise Claimed("text", code=3)


def slots_of(exc):
    names = ("errno", "strerror", "filename", "filename2", "name", "path", "code", "where", "msg")
    return {name: getattr(exc, name, None) for name in names}


def told(say, exc):
    try:
        return say(exc)
    except ZeroDivisionError:
        return "broken"


@pytest.mark.one_loop
async def test_11_2_what_pickle_keeps_is_kept(start):
    async with isolator(start, HERE) as iso:
        for number, make in enumerate(MAKERS):
            original = make()
            error = (await iso.capture(raise_made, number)).error
            assert type(error) is type(original)
            assert error.args == original.args
            assert error.__dict__ == original.__dict__
            assert slots_of(error) == slots_of(original)
            assert told(str, error) == told(str, original)
            assert told(repr, error) == told(repr, original)
            assert not hasattr(error, "unset")  # a slot that nothing is in


def raise_attrs():
    attrs = pytest.importorskip("attrs")

    @attrs.define
    class Defined(Exception):
        code: int
        where: str = "here"

    raise Defined(3)


def test_11_2_attrs():
    with pytest.raises(Exception, match="3") as info:
        raise_attrs()
    copy = crossed(info.value)
    assert (type(copy), copy.code, copy.where) == (type(info.value), 3, "here")
    assert repr(copy) == repr(info.value)


def raise_pydantic():
    pydantic = pytest.importorskip("pydantic")
    pydantic.TypeAdapter(int).validate_python("x")


def test_11_2_a_class_of_c_that_only_its_constructor_makes():
    with pytest.raises(ValueError) as info:
        raise_pydantic()
    copy = crossed(info.value)
    assert type(copy) is type(info.value)
    assert str(copy) == str(info.value)


def test_11_2_what_only_a_constructor_makes():
    copy = crossed(Sealed("text", threading.Lock()))
    assert type(copy) is Sealed
    assert str(copy) == "TEXT"
    assert copy.code == 3
    assert "_thread.lock" in copy.args[1]


def test_11_2_the_object_without_an_attribute_stays_where_it_is():
    with pytest.raises(AttributeError) as info:
        threading.Lock().nothing  # noqa: B018
    copy = crossed(info.value)
    assert copy.name == "nothing"
    assert copy.obj is None
    assert not hasattr(copy, "__notes__")


def test_11_2_state_that_its_class_gives_and_takes():
    copy = crossed(Stateful("text"))
    assert copy.where == "there"
    assert copy.lock.acquire(blocking=False)
    assert not hasattr(copy, "__notes__")


def test_11_2_what_can_not_be_pickled_costs_only_itself():
    class Held(Exception):
        lock = threading.Lock()

    lock = threading.Lock()
    error = ValueError("text", lock, {"deep": [lock, 1]})
    error.code = 7
    error.lock = lock
    error.nested = {"lock": (lock, "kept")}
    error.iterator = (n for n in ())
    error.add_note("mine")
    error.__cause__ = Held("cause", lock)
    error.__context__ = OSError(5, "text", lock)
    copy = crossed(error)
    assert type(copy) is ValueError
    assert copy.args[0] == "text"
    assert isinstance(copy.args[1], str)
    assert repr(copy) == repr(error)
    assert str(copy) == str(error)
    assert copy.args[2]["deep"][1] == 1
    assert copy.code == 7
    assert copy.lock == repr(lock)
    assert copy.nested == {"lock": (repr(lock), "kept")}
    assert copy.__notes__[0] == "mine"
    words = "[as text only, since it could not be pickled: _thread.lock: cannot pickle"
    assert copy.__notes__[1].startswith(words)
    assert type(copy.__cause__) is Held
    assert copy.__cause__.args == ("cause", repr(lock))
    assert copy.__context__.filename == repr(lock)
    again = pickle.loads(pickle.dumps(copy))
    assert repr(again) == repr(copy)


def raise_from_unpicklable():
    error = ValueError("from", threading.Lock())
    error.file = sys.stdout
    raise KeyError("bad xml") from error


@pytest.mark.one_loop
async def test_11_2_a_cause_that_can_not_be_pickled(start):
    error = await caught(start, raise_from_unpicklable)
    assert (type(error), error.args) == (KeyError, ("bad xml",))
    assert type(error.__cause__) is ValueError
    assert error.__cause__.args[0] == "from"
    assert "_thread.lock" in error.__cause__.args[1]
    assert "TextIOWrapper" in error.__cause__.file
    assert names_of(error.__cause__) == []


class LoadsNever:
    def __reduce__(self):
        return int, ("no number",)


def test_11_2_what_can_not_be_loaded_costs_only_itself():
    error = ValueError("text", LoadsNever(), 3)
    error.attribute = LoadsNever()
    error.deep = deep = []
    for _ in range(5000):
        deep.append(deep := [])
    copy = crossed(error)
    assert copy.args[::2] == ("text", 3)
    assert "LoadsNever" in copy.args[1]
    assert isinstance(copy.attribute, str)
    assert isinstance(copy.deep, (str, list))  # pickle of 3.15 knows no limit


def test_11_2_a_traceback_in_an_attribute(monkeypatch):
    try:
        raise_deep(300)
    except ValueError as exc:
        error = KeyError("holds", exc.__traceback__)
    with monkeypatch.context() as patch:
        patch.setattr("tblib.Traceback", None)  # out of a confined child's reach
        stream, *_ = exceptions.dump(error)
    copy = codecs.load([stream])
    assert len(traceback.extract_tb(copy.args[1])) == 101
    assert not hasattr(copy, "__notes__")


def test_11_2_addresses_and_time_are_no_difference():
    thing = Thing()
    copy = crossed(Slotted(thing, {Thing(): 1}))
    assert type(copy.args[0]) is Thing
    assert type(crossed(Ticking("x"))) is Ticking
    assert crossed(ValueError(np.ones(300_000))).args[0].flags.writeable


class Lost(ValueError):
    """Nothing brings back what it says: not even its base has it."""

    known: ClassVar = weakref.WeakKeyDictionary()

    def __new__(cls, *args, token=None):
        if token is None:
            raise TypeError("only we make it")
        return super().__new__(cls, *args)

    def __init__(self, *args, token):
        super().__init__(*args)
        self.known[self] = token

    def __str__(self):
        return f"token {self.known[self]}"


class Base(LookupError):
    pass


class Derived(Base):
    def __str__(self):
        return f"it is {self.args[0].value}"


class Opaque:
    value = 3

    def __reduce__(self):
        raise TypeError("opaque")


@pytest.mark.one_loop
async def test_11_2_the_nearest_base_says_what_it_was(start):
    def fail():
        raise Lost("x", token=9)

    error = await caught({"start": "fork"} if start["start"] == "fork" else start, fail)
    assert type(error) is ValueError
    assert str(error) == "token 9"
    assert f"{HERE}.Lost" in error.__notes__[0]
    assert "nearest base class" in error.__notes__[0]


def test_11_2_the_nearest_base_is_not_only_a_builtin_one():
    copy = crossed(Derived(Opaque()))
    assert type(copy) is Base
    assert str(copy) == "it is 3"
    assert any(f"{HERE}.Derived" in note for note in copy.__notes__)


class Hanging(Exception):
    def __repr__(self):
        while True:
            pass


def test_11_2_the_comparison_does_not_hang_and_leaves_alarms_alone(monkeypatch):
    monkeypatch.setattr(exception_text, "_PATIENCE", 0.1)
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    signal.setitimer(signal.ITIMER_REAL, 30)
    try:
        copy = crossed(Hanging("x"))
        assert type(copy) is Hanging
        assert not rung
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 25
        signal.raise_signal(signal.SIGALRM)
        assert rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Stubborn:
    caught = 0

    def __repr__(self):
        while True:
            try:
                while True:
                    pass
            except BaseException:
                Stubborn.caught += 1
                if Stubborn.caught == 2:
                    raise


def test_11_2_an_alarm_comes_again_and_leaves_nothing(monkeypatch):
    monkeypatch.setattr(exception_text, "_PATIENCE", 0.05)
    before = signal.getsignal(signal.SIGALRM)
    others = signal.setitimer(signal.ITIMER_REAL, 0)  # pytest-timeout's
    try:
        text = exception_text.ExceptionText().convert(repr, Stubborn())
        assert text == "<its __repr__ took too long>"
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *others)
    assert signal.getsignal(signal.SIGALRM) is before


def test_11_2_where_there_are_no_alarms(monkeypatch):
    said = []
    thread = threading.Thread(
        target=lambda: said.append(exception_text.ExceptionText().convert(str, Thing))
    )
    thread.start()
    thread.join()

    def refuse(*_):
        raise PermissionError(1, "not here")

    before = signal.getsignal(signal.SIGALRM)
    monkeypatch.setattr(signal, "setitimer", refuse)
    said.append(exception_text.ExceptionText().convert(str, Thing))
    assert said == [str(Thing)] * 2
    assert signal.getsignal(signal.SIGALRM) is before


def test_11_2_nothing_but_str_and_repr_is_called():
    calls = []

    class Watched(Exception):
        def __init__(self, text):
            calls.append("init")
            super().__init__(text)

        def __eq__(self, other):
            calls.append("eq")
            return True

        def __hash__(self):
            calls.append("hash")
            return 1

        def __bool__(self):
            calls.append("bool")
            return False

        def __len__(self):
            calls.append("len")
            return 0

        def __getattribute__(self, name):
            if not name.startswith("__"):
                calls.append(name)
            return super().__getattribute__(name)

    error = Watched("x")
    calls.clear()
    copy = crossed(error)
    assert type(copy) is Watched
    assert set(calls) <= {"args"}


# A class that claims to be somewhere else


@pytest.mark.one_loop
async def test_11_3_a_class_that_claims_to_be_builtin(start):
    async with isolator(start, HERE, "pytest") as iso:
        error = (await iso.capture(raise_claimed)).error
        assert type(error) is Claimed
        assert (error.args, error.code) == (("text",), 3)

        error = (await iso.capture(pytest.skip, "later")).error.__cause__
        assert type(error) is pytest.skip.Exception
        assert error.msg == "later"

        source = """if True:
            class Skipped(Exception):
                def __init__(self, text, *, code):
                    super().__init__(text)
                    self.code = code
            raise Skipped("exec'ed", code=5)
        """
        error = (await iso.capture(exec, source, {"__name__": "builtins"})).error
        assert (type(error).__name__, error.args, error.code) == ("Skipped", ("exec'ed",), 5)
        assert type(error).__mro__[1] is Exception


def test_11_3_a_result_of_such_a_class():
    file = io.BytesIO()
    CodePickler(file).dump(Claimed)
    assert b"builtins" not in file.getvalue()
    assert pickle.loads(file.getvalue()) is Claimed


# Classes that make something else of what every exception has


class OfArguments(Exception):
    args = None  # as a dataclass's field may be

    def __str__(self):
        return "of arguments"


class Alone(Exception):
    @property
    def __cause__(self):
        raise RuntimeError("there is nothing here")


class Final(BaseException):
    args = None


class OfGroup(ExceptionGroup):
    message = None

    @property
    def exceptions(self):
        raise RuntimeError("there is nothing here")


class Unheard(Exception):
    __traceback__ = __context__ = __suppress_context__ = "words"


OVERLAID = [
    OfArguments("overlaid"),
    Alone("overlaid"),
    OfGroup("overlaid", [KeyError("inside")]),
    Unheard("overlaid"),
]


def raise_overlaid(number):
    raise OVERLAID[number]


@pytest.mark.one_loop
async def test_11_2_names_of_every_exception_that_a_class_uses_otherwise():
    part = safe_text.part
    for number, given in enumerate(OVERLAID):
        raised = await caught({"start": "fork"}, raise_overlaid, number)
        assert type(raised) is type(given)
        if type(given) is OfGroup:
            (member,) = BaseExceptionGroup.__dict__["exceptions"].__get__(raised)
            assert repr(member) == "KeyError('inside')"
        else:
            assert part(raised, "args") == ("overlaid",)
        frames = traceback.extract_tb(part(raised, "__traceback__"))
        assert frames[-1].name == "raise_overlaid"


@pytest.mark.one_loop
async def test_11_2_arguments_of_a_base_exception_that_are_something_else():
    def work():
        raise Final("overlaid")

    lost = await caught({"start": "fork"}, work)
    assert lost.reason is Reason.BASE_EXCEPTION
    assert "Final('overlaid')" in str(lost)


class Refuses(type):
    def __getattribute__(cls, name):
        raise RuntimeError(name)


@pytest.mark.one_loop
async def test_11_2_a_metaclass_that_refuses_everything():
    def work():
        class Refused(Exception, metaclass=Refuses):
            pass

        raise Refused("of a metaclass")

    lost = await caught({"start": "fork"}, work)
    assert lost.reason is Reason.RESULT_ENCODING
    assert "Refused: of a metaclass" in str(lost)
