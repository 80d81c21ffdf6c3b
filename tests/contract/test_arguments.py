"""Large arguments, and such as take long to pickle: the event loop goes on meanwhile."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import signal
import sys
import threading
import types
from pickle import PicklingError

import anyio
import pytest

from aioisolate import (
    CallableDidNotExecuteError,
    Isolator,
    Reason,
    Sandbox,
    run_isolated,
)
from tests.argument_functions import (
    Gate,
    Ident,
    are_one,
    growth,
    holds_itself,
    items,
    module_of,
    own_memory,
    raise_thing,
    same,
    thing,
    things,
    total,
)
from tests.helpers import error_of, gap_while, until, wait_until
from tests.internals import (
    CallOptions,
    ChangedError,
    ForkedChild,
    LargeCallFiles,
    TooMuch,
    calls,
    codecs,
    copied,
    make_plan,
    out_of_band,
    pickle_cost,
    platform_features,
    running_backend,
    threads,
)

pytestmark = pytest.mark.part(name="functions")

np = pytest.importorskip("numpy")

STARTS = ["zygote", "template"]
PAYLOADS = "tests.argument_functions"


def encoders():
    return [one for one in threading.enumerate() if one.name.startswith("aioisolate-")]


@contextlib.asynccontextmanager
async def isolator(start="zygote", **options):
    async with Isolator(start, **options) as iso:
        yield iso
    assert not encoders()


# In a thread


@pytest.mark.parametrize("start", STARTS)
async def test_11_6_the_loop_runs_while_an_argument_is_pickled(start):
    gate = Gate()
    async with isolator(start) as iso, anyio.create_task_group() as tasks:

        async def go_on():
            await until(gate.reached.is_set)  # the loop runs, while the pickling waits for it
            gate.opened.set()

        tasks.start_soon(go_on)
        assert await iso.run(same, gate) == 7
        assert gate.thread != threading.get_ident()


async def by_run(iso, fn, value):
    return await iso.run(same, value)


async def by_capture(iso, fn, value):
    return (await iso.capture(fn, value)).value


async def by_map(iso, fn, value):
    [found] = [result async for result in iso.map(fn, [value])]
    return found


async def by_stream(iso, fn, value):
    async with iso.stream(items, value) as stream:
        [found] = [item async for item in stream]
        return found


async def by_job(iso, fn, value):
    async with iso.open_job(fn, value) as job:
        return await job.result()


async def by_executor(iso, fn, value):
    future = iso.executor().submit(fn, value)
    await until(future.done)
    return future.result()


WAYS = [by_run, by_capture, by_map, by_stream, by_job, by_executor]


@pytest.mark.one_loop
@pytest.mark.parametrize("way", WAYS)
async def test_11_6_every_way_to_call_pickles_large_arguments_in_a_thread(way):
    async with isolator() as iso:
        for more in ([], [{"a": str(number)} for number in range(20_000)]):
            ident = Ident()
            value = await way(iso, same, [ident, more])
            assert value == [7, more]
            assert ident.thread not in (0, threading.get_ident())


@pytest.mark.one_loop
async def test_11_6_functions_that_travel_by_value_are_pickled_in_a_thread():
    ident, rows = Ident(), [str(number) for number in range(50_000)]
    table = np.arange(100_000)
    async with isolator() as iso:
        assert await iso.run(lambda: (ident, len(rows), int(table.sum()))) == (
            7,
            50_000,
            4_999_950_000,
        )
    assert ident.thread not in (0, threading.get_ident())


@pytest.mark.one_loop
async def test_11_6_so_are_the_arguments_of_a_sandboxed_child():
    ident, big = Ident(), np.ones(300_000)
    async with isolator(sandbox=Sandbox.untrusted(), codec="json", preload=[PAYLOADS]) as iso:
        assert await iso.run(total, (str(ident.number), "ä" * 2_000_000)) == [2, 2_000_001]
        assert await iso.run(len, big) == 300_000
        assert await iso.run(same, ident) == 7
    assert ident.thread not in (0, threading.get_ident())


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.one_loop
async def test_11_6_what_is_little_is_pickled_at_once(start, monkeypatch):
    async with isolator(start, warm=1) as iso:
        if start == "template":
            await iso.run(abs, -1)  # imports cloudpickle
        started = []
        monkeypatch.setattr(threads, "Helper", lambda *args: started.append(args))
        little = {"rows": [{"a": number} for number in range(500)], "bytes": b"x" * 300_000}
        assert await iso.run(len, little) == 2
        assert not started


@pytest.mark.parametrize(
    "make",
    [
        lambda: ["x"] * 100_000,
        lambda: b"x" * 2_000_000,
        lambda: bytearray(2_000_000),
        lambda: "x" * 2_000_000,
        lambda: [[["é" * 400_000]]],
        lambda: np.zeros(300_000),
        lambda: np.zeros((2000, 300))[:, ::2],
        lambda: array.array("d", bytes(2_000_000)),
        Ident,
    ],
)
def test_11_6_what_is_much_is_not_even_begun(make):
    with pytest.raises(TooMuch):
        calls.dump_at_once(len, (make(),), None, lambda _: False)


@pytest.mark.one_loop
async def test_11_6_the_loop_is_not_held_up(loop):
    rows = [{"a": number, "b": str(number)} for number in range(50_000)]
    big = np.ones(12_500_000)[::2], bytes(50_000_000), "ä" * 25_000_000
    async with isolator() as iso:
        gap, found = await gap_while(lambda: iso.run(total, (rows, *big)))
        assert found == (4, 50_000 + 6_250_000 + 50_000_000 + 25_000_000)
    assert gap < 0.25  # 20 ms on a machine of its own; without the thread half a second or more


# What arrives


def large_values():
    base = np.arange(200_000, dtype="f8").reshape(200, 1000)
    frozen = base.copy()
    frozen.flags.writeable = False
    shared = bytes(1_500_000)
    deep = [[["padding"] * 70, {"text": "é" * 9_000_000}], [["padding"] * 30_000]]
    return {
        "c": base,
        "fortran": base.T,
        "strided": base[:, ::2],
        "negative": base[::-1],
        "read-only": frozen,
        "subclass": np.zeros(100_000, dtype=[("a", "i4"), ("b", "f8")]).view(np.recarray),
        "records": np.zeros(100_000, dtype=[("a", "i4"), ("b", "f8")])[::2],
        "objects": np.array([{"a": 1}, None] * 60_000, dtype=object).reshape(2, -1),
        "objects, fortran": np.array([[1], "x"] * 60_000, dtype=object).reshape(2, -1).T,
        "bytes": shared,
        "bytearray": bytearray(shared),
        "array": array.array("i", range(300_000)),
        "ascii": "x" * 600_000,
        "text": "é\N{SNOWMAN}\ud800" * 150_000,
        "same text twice": ["ü" * 500_000] * 2,
        "deep": deep,
        "ascii, deep": [["padding"] * 30_000, {"text": "x" * 9_000_000}],
        "dicts": [{"a": number, "b": str(number)} for number in range(10_000)],
        "mixed": {"k": [base, {"b": shared, "t": "ä" * 300_000}], "s": {1, 2}},
    }


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("start", "by_value"), [("zygote", False), ("zygote", True), ("template", False)]
)
async def test_11_6_large_arguments_arrive_as_they_are(start, by_value):
    async with isolator(start) as iso:
        for name, value in large_values().items():
            call = (lambda value: value) if by_value else same
            found = await iso.run(call, value)
            assert type(found) is type(value), name
            if isinstance(value, np.ndarray):
                assert found.dtype == value.dtype, name
                assert np.array_equal(found, value), name
                fortran = "f_contiguous" if value.flags.f_contiguous else "c_contiguous"
                assert getattr(found.flags, fortran)
            elif name == "mixed":
                assert np.array_equal(found["k"][0], value["k"][0])
                assert found["k"][1] == value["k"][1]
            else:
                assert found == value, name


@pytest.mark.one_loop
async def test_11_6_what_is_one_object_arrives_as_one():
    for one in ("ä" * 500_000, np.ones(300_000), [str(number) for number in range(50_000)]):
        async with isolator() as iso:
            assert await iso.run(are_one, one, one)


@pytest.mark.one_loop
@pytest.mark.skipif(sys.platform != "linux", reason="smaps_rollup is Linux's")
async def test_11_6_an_array_is_not_copied_in_the_child():
    """It is in the file that it was written to, and what the child writes stays the child's."""
    table = np.full(4_000_000, 3, dtype="f8")
    frozen = table.view()
    frozen.flags.writeable = False
    async with isolator(preload=["numpy", PAYLOADS]) as iso:
        await iso.run(growth, 0, table)
        before = await iso.run(own_memory)
        for value, writable in ((table, True), (frozen, False), (table[::2], True)):
            grown, first, written = await iso.run(growth, before, value)
            assert (first, written) == (3, writable)
            assert grown < value.nbytes / 4
    assert table[0] == 3


def test_11_6_the_objects_of_an_array_are_listed_in_parts():
    make, args, state, _, _, fill = out_of_band.reduce_array(
        np.array([None] * 100_000, dtype=object)
    )
    assert max(map(len, state[-1])) <= 20_000
    array = make(*args)
    fill(array, state)
    assert array.shape == (100_000,)


@pytest.mark.one_loop
async def test_11_6_an_array_of_objects_may_hold_itself():
    value = np.empty(100_000, dtype=object)
    value[0] = [value]
    async with isolator() as iso:
        assert await iso.run(holds_itself, value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.zeros(300_000),
        lambda: np.zeros((300, 1000)).T,
        lambda: np.zeros((2000, 300))[:, ::2],
        lambda: np.zeros(100_000, dtype=[("a", "i4"), ("b", "f8")]).view(np.recarray),
        lambda: array.array("d", bytes(2_000_000)),
        lambda: [["é" * 2_000_000]],
        lambda: [["x"] * 30_000, ["x" * 9_000_000]],  # further down than is looked ahead
    ],
)
@pytest.mark.parametrize("by_value", [False, True])
def test_11_6_nothing_large_is_copied_into_the_pickle(make, by_value):
    """Where it would be copied with the GIL held, and again in the child."""
    large_call = LargeCallFiles()
    try:
        call = calls.dump_into(large_call, len, (make(),), None, lambda _: False, by_value=by_value)
        assert large_call.size < 200_000
        assert len(call.texts) + len([ref for ref in call.buffer_refs if ref.which == -1]) == 1
    finally:
        large_call.finish()
        large_call.drop()


def test_11_6_an_array_that_is_large_is_not_reduced_at_once():
    assert pickle_cost.may_take_long(array.array("d", bytes(2_000_000)))
    assert pickle_cost.may_take_long(np.zeros((2000, 300))[:, ::2])
    assert not pickle_cost.may_take_long(array.array("d", bytes(2000)))
    assert not pickle_cost.may_take_long(np.zeros(20))


# What changes meanwhile


async def error_when_changed(make, change):
    gate = Gate()
    value = make(gate)
    async with isolator() as iso, anyio.create_task_group() as tasks:

        async def interfere():
            await until(gate.reached.is_set)
            change(value)
            gate.opened.set()

        tasks.start_soon(interfere)
        return await error_of(iso.run(same, value))


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda gate: {"gate": gate, "b": 1}, lambda value: value.update(c=2)),
        (lambda gate: [gate, *range(5000)], lambda value: value.append(1)),
        (lambda gate: {"list": [0, gate] * 1000}, lambda value: value["list"].clear()),
    ],
)
async def test_11_6_an_argument_that_changes_meanwhile_is_an_error(make, change):
    error = await error_when_changed(make, change)
    assert type(error) is CallableDidNotExecuteError
    assert error.reason is Reason.ARGUMENT_ENCODING
    assert "was changed while it was pickled" in str(error)
    assert isinstance(error.__cause__, ChangedError)
    assert error.transient


class Meddler:
    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        self.value[len(self.value)] = None
        return int, ()


def filled(large_call, value, *, by_value):
    try:
        return calls.dump_into(large_call, len, (value,), None, lambda _: False, by_value=by_value)
    finally:
        large_call.finish()
        large_call.drop()


@pytest.mark.parametrize("by_value", [False, True])
def test_11_6_what_changes_is_not_taken_for_what_cannot_be_pickled(by_value):
    value = {}
    value |= {"first": Meddler(value), "second": 2}
    with pytest.raises(ChangedError, match="dictionary changed size"):
        filled(LargeCallFiles(), value, by_value=by_value)


def test_11_6_a_long_text_beside_what_cannot_be_pickled():
    value = [["x"] * 30_000, ["x" * 9_000_000], threading.Lock()]
    with pytest.raises(PicklingError, match=r"argument 1: TypeError: .*lock"):
        filled(LargeCallFiles(), value, by_value=True)


def test_11_6_so_is_one_of_a_function_that_travels_by_value():
    """Its pickler names the part that can't be pickled: here what goes on changing."""

    class Changing(dict):
        def items(self):
            yield from super().items()
            raise RuntimeError("dictionary changed size during iteration")

    large_call = LargeCallFiles()
    with pytest.raises(ChangedError, match="changed size"):
        calls.dump_into(large_call, lambda value: value, (Changing(a=1),), None, lambda _: False)
    large_call.finish()
    large_call.drop()


@pytest.mark.parametrize("make", [bytearray, lambda data: array.array("d", data)])
def test_11_6_so_is_one_that_is_resized(make):
    what = make(bytes(8_000_000))
    pieces = copied(what)
    next(pieces)
    what += what[:8]  # whoever does that is not hindered
    with pytest.raises(ChangedError, match="the size of a"):
        list(pieces)


# What ends meanwhile


async def ended_while_pickling(end, timeout=None):
    gate = Gate()
    async with isolator() as iso:
        async with iso.open_job(same, [b"x" * 2_000_000, gate], timeout=timeout) as job:
            await until(gate.reached.is_set)
            assert job.state == "queued"
            await end(iso, job)
            await job.wait()
        assert encoders()  # nobody waited for it
        gate.opened.set()
        await until(lambda: not encoders())
        if end.__name__ != "close":
            assert await iso.run(same, 1) == 1
        return job.error  # what is left open fails each test


async def test_11_6_a_job_is_cancelled_while_its_argument_is_pickled():
    async def end(iso, job):
        job.cancel()

    error = await ended_while_pickling(end)
    assert type(error) is CallableDidNotExecuteError
    assert error.reason is Reason.CANCELLED


@pytest.mark.one_loop
async def test_11_6_an_isolator_is_closed_while_an_argument_is_pickled():
    async def close(iso, job):
        await iso.aclose(cancel=True)

    error = await ended_while_pickling(close)
    assert error.reason is Reason.CLOSED


@pytest.mark.one_loop
async def test_11_6_the_time_that_pickling_takes_is_the_calls():
    async def end(iso, job):
        """Wait for the timeout."""

    error = await ended_while_pickling(end, timeout=0.2)
    assert error.reason is Reason.START_TIMEOUT
    assert "its arguments were still being pickled" in str(error)


async def test_11_6_a_call_is_cancelled_while_its_argument_is_pickled():
    gate = Gate()
    async with Isolator() as iso, anyio.create_task_group() as tasks:
        tasks.start_soon(iso.run, same, [b"x" * 2_000_000, gate])
        await until(gate.reached.is_set)
        tasks.cancel_scope.cancel()
        gate.opened.set()
    await until(lambda: not encoders())


def test_11_6_a_parcel_that_nobody_wants_is_closed_once():
    before = set(os.listdir("/proc/self/fd"))
    for first, second in (("drop", "finish"), ("finish", "drop")):
        large_call = LargeCallFiles()
        large_call.write(bytes(100_000))
        large_call.add_text("text")
        getattr(large_call, first)()
        getattr(large_call, second)()
        assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(TooMuch):
        large_call.write(b"more")


@pytest.mark.one_loop
async def test_11_6_a_large_call_that_gets_no_child_leaves_nothing():
    async with isolator() as iso:
        server = iso._service._source._pool.pid
        os.kill(server, signal.SIGSTOP)
        try:
            for size in (300_000, 5_000_000):  # a larger one is freed in a thread
                error = await error_of(iso.run(same, np.ones(size), timeout=0.3))
                assert error.reason is Reason.START_TIMEOUT
                assert "has not forked a child" in str(error)
        finally:
            os.kill(server, signal.SIGCONT)
    # What is left open fails each test.


# Results


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that is not imported here; it tells in which thread it was."""
    name = f"unheard_of_{os.getpid()}_{id(tmp_path)}"
    (tmp_path / f"{name}.py").write_text(
        "import threading\n"
        "thread = threading.get_ident()\n"
        "class Thing:\n    pass\n"
        "class ThingError(Exception):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def slow_module(tmp_path, monkeypatch):
    """The name of a module whose import, here, takes until a file that it makes is removed."""
    name, begun = f"slow_to_import_{os.getpid()}_{id(tmp_path)}", tmp_path / "begun"
    (tmp_path / f"{name}.py").write_text(
        "import os, time\n"
        f"begun = {str(begun)!r}\n"
        f"if os.getpid() == {os.getpid()}:\n"
        "    open(begun, 'w').close()\n"
        "    while os.path.exists(begun):\n"
        "        time.sleep(0.005)\n"
        "class Thing:\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name, begun
    begun.unlink(missing_ok=True)
    sys.modules.pop(name, None)


async def get_result(iso, name):
    return type(await iso.run(thing, name)).__name__


async def get_module(iso, name):
    return "Thing" if isinstance(await iso.run(module_of, name), types.ModuleType) else ""


async def get_item(iso, name):
    async with iso.stream(things, name) as stream:
        [found] = [type(item).__name__ async for item in stream]
        return found


async def get_exception(iso, name):
    try:
        await iso.run(raise_thing, name)
    except Exception as exc:
        return type(exc).__name__.removesuffix("Error")


@pytest.mark.one_loop
@pytest.mark.parametrize("start", ["zygote", "fork"])
@pytest.mark.parametrize("get", [get_result, get_module, get_item, get_exception])
async def test_11_6_what_a_small_result_needs_is_imported_in_a_thread(get, start, module):
    async with isolator(start) as iso:
        assert await get(iso, module) == "Thing"
        assert sys.modules[module].thread != threading.get_ident()
        assert await get(iso, module) == "Thing"


def test_11_6_what_another_thread_is_importing_is_not_waited_for(slow_module):
    name, begun = slow_module
    importing = threading.Thread(target=thing, args=(name,))
    importing.start()
    wait_until(begun.exists)
    stream = (  # what pickle makes of an instance of its class
        b"\x80\x05\x8c" + bytes([len(name)]) + name.encode() + b"\x8c\x05Thing\x93)\x81."
    )
    for data in (stream, memoryview(stream)):
        with pytest.raises(codecs.ImportNeeded):
            codecs.load_at_once([data])
    begun.unlink()
    importing.join()
    assert type(codecs.load_at_once([stream])).__name__ == "Thing"


@pytest.mark.one_loop
async def test_11_6_a_fork_waits_for_what_a_result_imports(slow_module):
    """A copy of a lock that a thread of ours holds would stay locked in the child."""
    name, begun = slow_module
    first = asyncio.ensure_future(run_isolated(thing, name))
    await until(begun.exists)
    second = asyncio.ensure_future(run_isolated(thing, name, timeout=20))
    await asyncio.sleep(0.1)
    assert not second.done()
    begun.unlink()
    found = await asyncio.gather(first, second)
    assert [type(one).__name__ for one in found] == ["Thing", "Thing"]


@pytest.mark.one_loop
async def test_11_6_a_child_that_is_forked_beside_a_thread_of_ours_looks_for_itself():
    """That thread may open a file after the look at what is open, and import a module."""
    gate = threading.Event()
    helper = threads.Helper("test", gate.wait)
    plan = make_plan(abs, (-1,), CallOptions(), platform_features.current())
    child = ForkedChild(plan, running_backend(), threads.others())
    try:
        assert child._spec.threaded
    finally:
        child.close()
        gate.set()
        helper.done()
        helper.close()
    assert not threads.has_helpers()
