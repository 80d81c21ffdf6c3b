"""Functions and classes of a script, and what is said of those that can't travel."""

from __future__ import annotations

import contextvars
import functools
import io
import pickle
import threading

import pytest

from aioisolate import IsolationError, Reason
from tests.helpers import isolator, python
from tests.internals import CodePickler, unpicklable

pytestmark = pytest.mark.part(name="functions")

STARTS = """
    async def main():
        starts = {"start": "fork"}, {"start": "zygote"}, {"start": "template"}
        for start in starts:
            async with Isolator(**start) as iso:
                await check(iso)

    if __name__ == "__main__":
        asyncio.run(main())
        print("done")
"""


def run_script(source: str) -> None:
    result = python(source + STARTS)
    assert result.stdout == "done\n", result.stderr


def test_11_4_functions_that_functools_and_contextlib_have_wrapped():
    run_script("""
    import asyncio, contextlib, functools
    from aioisolate import Isolator

    @functools.lru_cache(maxsize=7)
    def fibonacci(n):
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    fibonacci.note = "mine"

    @functools.cache
    def square(n): return n * n

    @functools.singledispatch
    def show(thing): return "anything"

    @show.register
    def _(thing: int): return "a number"

    @show.register(list)
    def _(things): return [show(thing) for thing in things]

    @contextlib.contextmanager
    def opened(n): yield n + 1

    @contextlib.asynccontextmanager
    async def opened_later(n): yield n + 1

    @functools.wraps(square)
    def wrapped(n): return square(n)

    class Table:
        @functools.lru_cache
        def row(self, n): return n + 1

        @functools.cached_property
        def width(self): return 5

        @functools.singledispatchmethod
        def kind(self, thing): return "anything"

        @kind.register
        def _(self, thing: int): return "a number"

        first = functools.partialmethod(row, 0)

        @staticmethod
        @functools.cache
        def twice(n): return 2 * n

    def cached():
        # One cache: the function sees itself as it is called from here.
        info = fibonacci(20), fibonacci.cache_info()
        assert (info[0], info[1].maxsize, info[1].misses) == (6765, 7, 21), info
        assert (fibonacci.note, square.__name__, wrapped(3)) == ("mine", "square", 9)

    def dispatched():
        assert show([1, "a"]) == ["a number", "anything"]
        assert set(show.registry) == {object, int, list}
        assert show.dispatch(bool)(True) == "a number"

    async def managed():
        with opened(1) as one:
            async with opened_later(1) as other:
                return one, other

    def methods():
        table = Table()
        kinds = table.kind(1), table.kind("a")
        return table.row(1), table.first(), table.width, *kinds, Table.twice(2)

    async def check(iso):
        await iso.run(cached)
        await iso.run(dispatched)
        assert await iso.run(fibonacci, 10) == 55
        assert await iso.run(show, 1) == "a number"
        assert await iso.run(managed) == (2, 2)
        assert await iso.run(methods) == (2, 1, 5, "a number", "anything", 4)
        assert await iso.run(Table.twice, 4) == 8
        assert await iso.run(Table().row, 1) == 2
""")


def copied(thing):
    file = io.BytesIO()
    CodePickler(file, 5).dump(thing)
    return pickle.loads(file.getvalue())


@functools.cache
def known(): ...


@functools.singledispatch
def dispatched(given): ...


def test_11_4_a_name_is_enough_where_there_is_one():
    assert copied(known) is known
    assert copied(dispatched) is dispatched


def test_11_4_wrapped_functions_have_what_they_had():
    @functools.lru_cache(maxsize=5, typed=True)
    def cached(): ...

    @functools.singledispatch
    def dispatching(given): ...

    cached.note = dispatching.note = "mine"
    assert copied(cached).cache_parameters() == {"maxsize": 5, "typed": True}
    assert copied(cached).note == copied(dispatching).note == "mine"


def test_11_4_structs_of_msgspec():
    pytest.importorskip("msgspec")
    run_script("""
    import asyncio
    from typing import Annotated, ClassVar
    import msgspec
    from aioisolate import Isolator

    class Point(msgspec.Struct, frozen=True, order=True, tag="point", rename="camel"):
        x_axis: int
        y_axis: "Annotated[int, msgspec.Meta(ge=0)]" = 2
        tags: list = msgspec.field(default_factory=list)
        next: "Point | None" = None
        unit: ClassVar[str] = "mm"

        def __post_init__(self):
            assert self.x_axis != 13

        @property
        def size(self): return self.x_axis + self.y_axis + Point(0, 0).x_axis

    class Named(Point, kw_only=True):
        name: str = "n"

    class Tree(msgspec.Struct):
        leaves: "list[Leaf]"
        root: "Point | None" = None

    class Rooted(msgspec.Struct):
        root: "Anchor"

    class Anchor(msgspec.Struct, rename="camel", tag="point"):
        x_axis: int

    class Leaf(msgspec.Struct):
        tree: "Tree | None" = None

    def make():
        point = Point(1, tags=["a"])
        assert (point.size, point.unit, hash(Point(1, tags=()))) is not None
        text = msgspec.json.encode(point)
        assert b'"xAxis":1' in text and b'"type":"point"' in text, text
        plain = text.replace(b',"next":null', b"")
        assert msgspec.json.decode(msgspec.json.encode(Named(1, name="m"))) ["name"] == "m"
        for wrong in (lambda: Point(13), lambda: setattr(point, "x_axis", 2)):
            try:
                wrong()
            except (AssertionError, AttributeError):
                continue
            raise ValueError("it is not as it was")
        assert msgspec.json.decode(b'{"root":{"type":"point","xAxis":3},"leaves":[]}', type=Rooted)
        assert Tree([Leaf()]).leaves[0].tree is None
        return [point, Point(0), Named(4, name="four")]

    async def check(iso):
        point, origin, named = await iso.run(make)
        assert (type(point), type(named)) == (Point, Named)
        assert (point.tags, point.y_axis, origin < point) == (["a"], 2, True)
        assert named == Named(4, name="four")
        assert await iso.run(lambda given: given.size, point) == 3
""")


def test_11_4_structs_that_lead_to_themselves():
    pytest.importorskip("msgspec")
    run_script("""
    import asyncio, copy
    from typing import Generic, TypeVar
    import msgspec
    from aioisolate import Isolator

    T = TypeVar("T")

    class Chain(msgspec.Struct):
        next: "Chain | None" = None

    class Hen(msgspec.Struct):
        egg: "Egg | None" = None

    class Egg(msgspec.Struct):
        hen: "list[Hen]"

    class Node(msgspec.Struct, Generic[T]):
        value: T
        nodes: "list[Node[T]]" = []

    class Box(msgspec.Struct, Generic[T]):
        value: T
        owner: "Owner | None" = None

    class Owner(msgspec.Struct):
        box: "Box[int] | None" = None

    def read():
        return (
            msgspec.json.decode(b'{"next": {"next": null}}', type=Chain),
            msgspec.json.decode(b'{"egg": {"hen": [{}]}}', type=Hen),
            msgspec.json.decode(b'{"value": 1, "nodes": [{"value": 2}]}', type=Node[int]),
            msgspec.json.decode(b'{"box": {"value": 1, "owner": {}}}', type=Owner),
        )

    async def check(iso):
        before = dict(Chain.__annotations__)
        for _ in range(2):
            assert await iso.run(read) == read()
        assert await iso.run(copy.copy, Hen(Egg([]))) == Hen(Egg([]))
        assert Chain.__annotations__ == before
""")


def test_11_4_classes_with_slots():
    run_script("""
    import asyncio, dataclasses, typing
    from aioisolate import Isolator

    @dataclasses.dataclass(slots=True)
    class Data:
        code: int

    class Slotted:
        __slots__ = ("__hidden", "shown")

        def __init__(self):
            self.__hidden, self.shown = 1, 2

        def both(self): return self.__hidden, self.shown

    class Pair(typing.NamedTuple):
        first: int
        second: int = 2

    class Broken(Exception):
        __slots__ = ("code",)

        def __init__(self, code):
            super().__init__("broken")
            self.code = code

    def make():
        assert not hasattr(Data(1), "__dict__")
        return Data(1), Slotted(), Pair(1)

    def fail():
        raise Broken(7)

    async def check(iso):
        data, slotted, pair = await iso.run(make)
        assert (type(pair), pair) == (Pair, (1, 2))
        assert (type(data), data) == (Data, Data(1))
        assert (type(slotted), slotted.both()) == (Slotted, (1, 2))
        error = (await iso.capture(fail)).error
        assert (type(error), error.code) == (Broken, 7)
""")


# What can't be pickled

lock = threading.Lock()
request = contextvars.ContextVar("request_id")
settings = {"debug": True, "database": {"connection": lock}}


class Holder:
    __slots__ = ("lock",)

    def __init__(self):
        self.lock = lock


class State:
    def __init__(self):
        self.guard = lock

    def work(self): ...


def functions():
    """Return functions that travel by value: they have names here only, and no module."""
    inside = threading.Lock()

    def work():
        return lock

    def outer():
        return work()

    def with_request():
        return request.get()

    def with_settings():
        return settings

    def with_variable():
        return inside

    def with_default(given=inside): ...

    @functools.cache
    def cached():
        return lock

    def with_cached():
        return cached()

    return {
        "global 'lock' of work: TypeError: cannot pickle": (work,),
        "global 'lock' of variable 'work' of outer:": (outer,),
        "global 'request' of with_request, the ContextVar 'request_id':": (with_request,),
        "item 'connection' of item 'database' of global 'settings' of with_sett": (with_settings,),
        "variable 'inside' of with_variable:": (with_variable,),
        "a default value of with_default:": (with_default,),
        "global 'lock' of variable 'cached' of with_cached:": (with_cached,),
    }


class Unfit:
    def __init__(self, said):
        self.said = said

    def __repr__(self):
        return self.said

    def __reduce__(self):
        raise TypeError("it does not travel")


class Looked(Unfit):
    @property
    def __dict__(self):
        raise TypeError("there is nothing here")


def things():
    class Guarded:
        guard = lock

    class Computed:
        @property
        def value(self):
            return lock

    class Still:
        @staticmethod
        def value():
            return lock

    def inner():
        return lambda: lock

    def noted(): ...

    def later():
        return missing, lock

    if lock is None:
        missing = 1

    noted.note = lock
    circle = []
    circle += (circle, lock)
    return {
        f"key {'x' * 60}...": {Unfit("x" * 61): 1},
        "key <a Unfit>": {Unfit(None): 1},
        "an element": {Unfit("")},
        "item 0": [Looked("")],
        "attribute 'guard' of its class": Guarded(),
        "global 'lock' of attribute 'value' of its class": Computed(),
        "global 'lock' of attribute 'value' of its class ": Still(),
        "global 'lock'": inner,
        "attribute 'note'": noted,
        "global 'lock' ": later,
        "item 1": circle,
    }


def test_11_4_the_part_that_is_named():
    for path, thing in things().items():
        assert unpicklable.find(CodePickler, "", thing) == path.rstrip(" ")


def test_11_4_a_search_for_the_part_does_not_take_long(monkeypatch):
    monkeypatch.setattr(unpicklable, "_PATIENCE", 0.05)
    rest = iter(range(10_000_000))

    class Long:
        def __reduce__(self):
            return list, (), None, rest

    assert not unpicklable.find(CodePickler, "", [Long(), lock])
    assert next(rest) < 9_000_000


OTHERS = {
    "argument 2: TypeError: cannot pickle '_thread.lock' object": (max, 1, lock),
    "item 0 of item 'key' of argument 1:": (len, {"key": [lock]}),
    "attribute 'lock' of argument 1:": (len, Holder()),
    "attribute 'guard' of its object of State.work:": (State().work,),
    "argument 'default' of max:": (functools.partial(max, [], default=lock),),
}


@pytest.mark.one_loop
async def test_11_4_what_can_not_be_pickled_is_named_with_its_path():
    async with isolator({"start": "zygote"}) as iso:
        for path, call in {**functions(), **OTHERS}.items():
            with pytest.raises(IsolationError) as refused:
                await iso.run(*call)
            assert refused.value.reason is Reason.ARGUMENT_ENCODING
            assert path in str(refused.value)


@pytest.mark.one_loop
async def test_11_4_a_template_has_its_functions():
    async with isolator({"start": "template"}) as iso:
        for path, call in OTHERS.items():
            with pytest.raises(IsolationError) as refused:
                await iso.run(*call)
            assert path in str(refused.value)


def bad_result():
    return {"good": 1, "bad": [threading.Lock()]}


@pytest.mark.one_loop
async def test_11_4_what_of_a_result_can_not_be_pickled(start):
    async with isolator(start, __name__) as iso:
        with pytest.raises(IsolationError) as refused:
            await iso.run(bad_result)
    assert refused.value.reason is Reason.RESULT_ENCODING
    assert "could not be pickled: item 0 of item 'bad': TypeError: cannot" in str(refused.value)
