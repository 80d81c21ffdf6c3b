"""Memory that goes to children and comes back as a handle, for every way of starting a child."""

from __future__ import annotations

import asyncio
import copy
import errno
import mmap
import os
import pickle
import threading

import anyio
import numpy as np
import pytest

from aioisolate import (
    Access,
    CallableDidNotExecuteError,
    CallableExecutedError,
    CallableStatusUnknownError,
    Isolator,
    Limits,
    Reason,
    Sandbox,
    Snapshot,
    shared_array,
)
from tests import memory_functions
from tests.helpers import python, until
from tests.internals import fds
from tests.memory_functions import (
    LARGE,
    Lie,
    cost_of_touching,
    count_open,
    descriptors_of_a_child,
    each,
    fail_with,
    fill,
    fill_and_die,
    identity,
    make,
    many_snapshots,
    ones,
    open_again,
    own_memory,
    places_to_write,
    refused_exception,
    refused_item,
    refused_result,
    same,
    shrink,
    shrink_later,
    total,
    try_to_write,
    whose,
    write,
    write_to_root,
)

pytestmark = [pytest.mark.part(name="memory"), pytest.mark.one_loop]
PRELOAD = ["tests.memory_functions"]
STARTS = {
    "fork": {"start": "fork"},
    "template": {"start": "template"},
    "warm": {"start": "zygote", "warm": 1, "preload": PRELOAD},
}
MB = 1 << 20


def descriptors():
    return os.listdir("/proc/self/fd")


@pytest.fixture(params=STARTS)
def start(request):
    return STARTS[request.param]


# Snapshots and views


async def test_a_snapshot_is_not_copied(start):
    snapshot = Snapshot.from_array(np.ones(LARGE))
    async with Isolator(**start) as iso:
        assert await iso.run(whose, snapshot) == identity(snapshot._root.fd)
        assert await iso.run(cost_of_touching, snapshot) < 2 * MB
        back = await iso.run(same, snapshot)
        assert identity(back._root.fd) == identity(snapshot._root.fd)
        assert back.as_array().sum() == LARGE
        assert back.as_array().dtype == np.float64
        many = await iso.run(same, {"a": snapshot, "b": [snapshot, snapshot.view()]})
        assert len(many["a"]) == len(many["b"][1]) == LARGE * 8
        assert await iso.run(write_to_root, snapshot) == "refused"


async def test_a_snapshot_of_a_childs(start):
    async with Isolator(**start) as iso:
        made = await iso.run(make, LARGE)
        assert made.sealed
        assert (made.as_array() == 7).all()
        with pytest.raises(PermissionError):
            made.view_mut()


async def test_cancelled_while_it_is_unpickled(start):
    """The thread that does it goes on, and the descriptors are its own."""
    for event in (
        memory_functions.unpickling,
        memory_functions.may_go_on,
        memory_functions.unpickled,
    ):
        event.clear()
    threads_before = threading.active_count()
    async with Isolator(**start) as iso:
        async with anyio.create_task_group() as group:
            group.start_soon(iso.run, memory_functions.slow_to_unpickle)
            await until(memory_functions.unpickling.is_set)
            group.cancel_scope.cancel()
        memory_functions.may_go_on.set()
        await until(memory_functions.unpickled.is_set)
        await until(lambda: threading.active_count() == threads_before)


async def test_what_crosses_is_sealed():
    snapshot = Snapshot.zeroed(10)
    async with Isolator() as iso:
        with snapshot.view_mut() as view:
            view[0] = 1
            with pytest.raises(CallableDidNotExecuteError, match="close that first") as refused:
                await iso.run(same, snapshot)
            assert refused.value.reason is Reason.ARGUMENT_ENCODING
        assert not snapshot.sealed
        assert (await iso.run(same, snapshot)).view()[0] == 1
        assert snapshot.sealed


async def test_views_carry_their_changes(start):
    snapshot = Snapshot.from_bytes(b"first" + bytes(LARGE))
    async with Isolator(**start) as iso:
        view = snapshot.view()
        changed = await iso.run(write, view)
        assert changed[:5] == b"minet"
        assert view[:5] == b"first"
        view[0:5] = b"other"
        assert (await iso.run(same, view))[:5] == b"other"
        assert snapshot.view()[:5] == b"first"


@pytest.mark.parametrize("changed", [False, True])
async def test_11_29_views_carry_their_protection(start, changed):
    page = mmap.PAGESIZE
    view = Snapshot.zeroed(3 * page + 5).view()
    if changed:
        view[0:2] = b"ab"
    view.protect(slice(page, 2 * page), Access.READ)
    if not changed:  # what may not be read can't be copied
        view.protect(slice(2 * page, 3 * page), Access.NONE)
    async with Isolator(**start) as iso:
        wanted = [0, 2, 3] if changed else [0, 3]
        assert await iso.run(places_to_write, view, page) == wanted
        back = await iso.run(same, view)
        assert back[0:2] == (b"ab" if changed else b"\0\0")
        assert [places_to_write(there, page) for there in (back, view)] == [wanted] * 2
        back.restore()
        assert places_to_write(back, page) == [0, 1, 2, 3]


async def test_empty_ones_cross(start):
    async with Isolator(**start) as iso:
        assert len(await iso.run(same, Snapshot.zeroed(0))) == 0
        assert (await iso.run(same, Snapshot.zeroed(0).view()))[:] == b""
        assert (await iso.run(same, shared_array((0, 3)))).shape == (0, 3)


async def test_arrays_on_a_snapshot_are_not_copied(start):
    snapshot = Snapshot.from_array(np.ones(LARGE))
    array = snapshot.as_array()
    async with Isolator(**start) as iso:
        before = own_memory()
        back = await iso.run(same, array)
        part = await iso.run(same, array[1000:500_000])
        assert own_memory() - before < 2 * MB
        assert (total(back), total(part)) == (LARGE, 499_000)
        back[0] = 100  # its own
        array[0] = 5  # a change of ours travels
        assert await iso.run(total, array) == LARGE + 4
        assert snapshot.as_array()[0] == 1
        view = memoryview(np.frombuffer(snapshot.view(), "f8"))
        assert await iso.run(total, np.asarray(view)) == LARGE


async def test_an_array_while_its_snapshot_is_written_is_copied():
    snapshot = Snapshot.zeroed(MB)
    array = np.frombuffer(snapshot.view(), "u1")
    async with Isolator() as iso:
        with snapshot.view_mut() as view:
            view[0] = 9
            assert await iso.run(total, array) == 9
        assert not snapshot.sealed


async def test_an_array_on_the_writing_view_is_copied():
    snapshot = Snapshot.zeroed(MB)
    async with Isolator() as iso:
        with snapshot.view_mut() as view:
            array = np.frombuffer(view, "u1")
            array[0] = 9
            assert await iso.run(total, array) == 9
            del array
        assert not snapshot.sealed


async def test_a_forked_child_can_not_write_to_the_parents_snapshot():
    snapshot = Snapshot.zeroed(10)
    async with Isolator("fork") as iso:
        assert await iso.run(write_to_root, snapshot) == "refused"
    assert not snapshot.sealed


async def test_a_child_has_each_snapshot_open_once():
    snapshot = Snapshot.from_bytes(b"content")
    async with Isolator(preload=PRELOAD) as iso:
        assert await iso.run(count_open, snapshot) == 1


async def test_items_and_exceptions_carry_snapshots(start):
    async with Isolator(**start) as iso:
        async with iso.stream(each, 100) as items:
            found = [bytes(item.view()) async for item in items]
        assert found == [bytes([number]) * 10 for number in range(100)]
        async with iso.stream(each, 50) as items:
            await until(lambda: len(items._items) > 5)  # closed with the stream
        with pytest.raises(LookupError) as raised:
            await iso.run(fail_with, Snapshot.from_bytes(b"content"))
        assert raised.value.args[1].view()[:] == b"content"


async def test_no_descriptor_stays(start):
    snapshot = Snapshot.from_array(np.ones(LARGE))
    async with Isolator(**start) as iso:
        await iso.run(same, snapshot)
        before = len(descriptors())
        for _ in range(20):
            await iso.run(same, [snapshot, snapshot.as_array(), shared_array(5)])
        assert len(descriptors()) <= before + 2  # another idle child's


async def test_a_rehearsal_with_a_snapshot_leaves_nothing():
    async with Isolator(**STARTS["warm"]) as iso:
        before = await iso.run(descriptors_of_a_child)
        for _ in range(3):  # children that were forked after the first know of snapshots
            assert len(await iso.run(same, Snapshot.zeroed(1))) == 1
            await asyncio.sleep(0.1)
            assert await iso.run(descriptors_of_a_child) == before


async def test_too_many_for_one_message():
    async with Isolator() as iso:
        with pytest.raises(CallableDidNotExecuteError, match="253") as refused:
            await iso.run(len, [Snapshot.zeroed(1) for _ in range(254)])
        assert refused.value.reason is Reason.ARGUMENT_ENCODING
        assert await iso.run(len, [Snapshot.zeroed(1) for _ in range(200)]) == 200
        with pytest.raises(CallableExecutedError, match="253") as lost:
            await iso.run(many_snapshots, 254)
        assert lost.value.reason is Reason.RESULT_ENCODING
        assert len(await iso.run(many_snapshots, 200)) == 200


@pytest.mark.parametrize("fn", [refused_result, refused_exception])
async def test_descriptors_of_a_result_that_may_not_travel(start, fn):
    """Too many of the user's are on their way: that is said, and not "left no result"."""
    async with Isolator(**start) as iso:
        for options in ({}, {"on_event": lambda event: None}, {"limits": Limits(result_size=1000)}):
            with pytest.raises(CallableExecutedError, match="Too many references") as lost:
                await iso.run(fn, **options)
            assert lost.value.reason is Reason.RESULT_WRITE


async def test_descriptors_of_an_item_that_may_not_travel(start):
    found = []
    async with Isolator(**start) as iso:
        with pytest.raises(CallableStatusUnknownError, match="Snapshot, could not be sent") as lost:
            async with iso.stream(refused_item) as items:
                async for item in items:
                    found.append(item)
        assert lost.value.reason is Reason.RESULT_WRITE
    assert found == [1]


def test_no_room_for_the_descriptors_of_a_result(start):
    # In a process of its own: descriptors of other tests have high numbers.
    done = python(
        """
        import anyio, resource, sys
        from aioisolate import CallableStatusUnknownError, Isolator, Reason
        from tests.memory_functions import many_snapshots

        async def main():
            async with Isolator(**START) as iso:
                assert len(await iso.run(many_snapshots, 3)) == 3
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))
                try:
                    await iso.run(many_snapshots, 200)
                except CallableStatusUnknownError as lost:
                    assert lost.reason is Reason.CHANNEL_READ
                    assert "RLIMIT_NOFILE" in str(lost)
                    print("refused")
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                assert len(await iso.run(many_snapshots, 200)) == 200

        anyio.run(main)
        """.replace("START", repr(start))
    )
    assert done.stdout == "refused\n", done.stderr


@pytest.mark.parametrize("make_it", [lambda: Snapshot.zeroed(5), lambda: Snapshot.zeroed(5).view()])
def test_elsewhere_they_can_not_be_pickled(make_it):
    with pytest.raises(TypeError, match="only as an argument or result of an isolated function"):
        pickle.dumps(make_it())


async def test_large_results_keep_no_descriptor(start):
    async with Isolator(**start) as iso:
        kept = [await iso.run(ones, LARGE)]
        before = len(descriptors())
        kept += [await iso.run(ones, LARGE) for _ in range(10)]
        assert len(descriptors()) <= before + 2  # another idle child's
        kept[0][0] = 5
        assert [total(array) for array in kept] == [LARGE + 4, *[LARGE] * 10]


# Shared arrays


async def test_a_shared_array_is_one_memory(start):
    array = shared_array((1000, 100), "i4")
    assert not array.any()
    async with Isolator(**start) as iso:
        await iso.run(fill, array, 3)
        assert (array == 3).all()
        await iso.run(fill, array[::2, 5:7], 4)
        assert array.sum() == 301_000
        await iso.run(fill, array.T[::-1, 3], 5)
        assert (array[3] == 5).all()
        await iso.run(fill, np.asarray(array), 9)  # a plain array on the same memory
        assert (array == 9).all()
        back = await iso.run(same, array[10:20])
        back[...] = 1
        assert (array[10:20] == 1).all()
        assert array[20, 0] == 9
        # What is computed from it is no part of it.
        await iso.run(fill, array * 2, 0)
        assert array[20, 0] == 9
        small = shared_array(3)
        await iso.run(fill, small, 2)
        assert list(small) == [2, 2, 2]


async def test_what_a_killed_child_wrote_is_there(start):
    array = shared_array(10)
    async with Isolator(**start) as iso:
        with pytest.raises(CallableStatusUnknownError):
            await iso.run(fill_and_die, array)
    assert (array == 3).all()


def read_only_views(array):
    """Read-only arrays on a shared one of two dimensions, in numpy's own ways."""
    plain = np.asarray(array).view()
    frozen = array.view()
    for one in (plain, frozen):
        one.flags.writeable = False
    return [
        frozen,
        frozen[...],
        frozen[1:, ::2].T,
        plain,
        np.broadcast_to(array, (2, *array.shape), subok=True),
        np.lib.stride_tricks.sliding_window_view(array, 2, axis=0, subok=True),
        array.diagonal(),
    ]


@pytest.mark.parametrize("rows", [3, 30_000])  # in the pickle, and beside it
async def test_11_25_what_is_read_only_can_not_be_written_by_a_child(start, rows):
    array = shared_array((rows, 3))
    views = read_only_views(array)
    async with Isolator(**start) as iso:
        # A direct fork has this very array: who means to write to it, can.
        by_chance = start["start"] == "fork"
        assert await iso.run(try_to_write, views, by_chance) == [[]] * len(views)
        assert not array.any()
        # What comes back is read-only as well, and shows the same memory.
        back = await iso.run(same, views)
        assert try_to_write(back) == [[]] * len(views)
        # The same memory, once to be written and once not.
        both = await iso.run(same, [array, views[0]])
        both[0][2, 1] = 5
        assert [one[2, 1] for one in (array, views[0], both[1], back[0], back[4][1])] == [5] * 5
        with pytest.raises(ValueError, match="read-only"):
            both[1][2, 1] = 6


async def test_11_25_it_stays_read_only_from_process_to_process():
    array = shared_array(5)
    frozen = array[...]
    frozen.flags.writeable = False
    async with Isolator(start="template") as iso:
        back = frozen
        for _ in range(3):
            back = await iso.run(same, back)
        assert (await iso.run(try_to_write, [back, np.asarray(back)])) == [[], []]
        array[...] = 2
        assert list(back) == [2] * 5


async def test_11_25_without_proc_the_flag_travels_all_the_same(monkeypatch):
    def refused(*_):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(fds, "reopen", refused)
    array = shared_array(5)
    frozen = array[...]
    frozen.flags.writeable = False
    async with Isolator(start="zygote", preload=PRELOAD) as iso:
        ((*allowed,),) = await iso.run(try_to_write, [frozen])
        assert not {"_by_assignment", "_by_its_flag"} & {*allowed}
        await iso.run(fill, array, 3)
    assert list(array[1:]) == [3] * 4


async def test_11_25_a_sandboxed_child_can_not_open_it_again():
    array = shared_array(5)
    frozen = array[...]
    frozen.flags.writeable = False
    sandbox = Sandbox.untrusted(level="portable", read=[os.getcwd()])
    async with Isolator(sandbox=sandbox, preload=PRELOAD) as iso:
        assert await iso.run(open_again, frozen) == "EACCES"
        assert await iso.run(try_to_write, [frozen]) == [[]]


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "message"),
    [
        (3, object, TypeError, "Python objects"),
        (-1, "u1", ValueError, "negative"),
        ((2, -1), "u1", ValueError, "negative"),
        ("ab", "u1", TypeError, "integer"),
        (1.5, "u1", TypeError, "float"),
        (3, "nonsense", TypeError, "nonsense"),
        (1 << 70, "u1", OSError, str(1 << 70)),
        ((1 << 50, 1 << 9), "u1", (OSError, MemoryError), str(1 << 59)),
    ],
)
def test_arrays_that_can_not_be_shared(shape, dtype, error, message):
    with pytest.raises(error, match=message):
        shared_array(shape, dtype)


def test_11_29_a_shape_is_what_numpy_takes():
    for shape in (5, np.int64(5), np.uint8(5), (2, 3), [2, np.int16(3)], np.array([2, 3]), ()):
        assert shared_array(shape).shape == np.zeros(shape).shape
    for wrong in (5.0, np.float64(5), "5", None, [2.0], np.array([2.0])):
        with pytest.raises(TypeError):
            shared_array(wrong)


def test_a_shared_array_is_an_array():
    array = shared_array((2, 3), "f4")
    assert isinstance(array, np.ndarray)
    assert (array.shape, array.dtype) == ((2, 3), np.float32)
    assert shared_array(()).shape == ()
    again = pickle.loads(pickle.dumps(array))
    assert type(again) is np.ndarray
    twin = copy.deepcopy(array)
    twin[...] = 1
    assert not array.any()


# Buffers of other libraries


def lies_in_a_file(address):
    with open("/proc/self/maps") as file:
        for line in file:
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if start <= address < end:
                return "memfd:aioisolate" in line
    raise AssertionError(f"nothing is mapped at {address:x}")


async def test_data_frames_are_not_copied_here(start):
    pytest.importorskip("pandas")
    async with Isolator(**start) as iso:
        frame = await iso.run(memory_functions.frame, 200_000)
    for name in ("whole", "half"):
        assert lies_in_a_file(frame[name].to_numpy().ctypes.data)
    assert list(frame.loc[199_999]) == [199_999, 99_999.5]
    frame.loc[0, "half"] = 7.0
    assert frame["half"].sum() == 199_999 * 200_000 / 4 + 7


async def test_arrow_tables_are_not_copied_here(start):
    pyarrow = pytest.importorskip("pyarrow")
    before = pyarrow.total_allocated_bytes()
    async with Isolator(**start) as iso:
        table = await iso.run(memory_functions.table, 200_000)
    buffers = [b for column in table.columns for b in column.chunk(0).buffers() if b is not None]
    assert len(buffers) == 3
    assert all(lies_in_a_file(buffer.address) for buffer in buffers)
    assert pyarrow.total_allocated_bytes() == before
    assert table["text"][199_999].as_py() == "number 199999"


# Children that lie


@pytest.mark.parametrize(
    "kind", ["index", "pipe", "file", "directory", "unsealed", "short", "negative"]
)
async def test_a_child_that_lies(start, kind):
    async with Isolator(**start) as iso:
        with pytest.raises(CallableStatusUnknownError) as caught:
            await iso.run(Lie, kind)
        assert caught.value.reason is Reason.PROTOCOL
        assert await iso.run(total, np.ones(3)) == 3


async def test_what_is_sealed_can_not_be_changed_by_a_child(start):
    snapshot = Snapshot.from_bytes(b"content")
    snapshot.seal()
    async with Isolator(**start) as iso:
        assert await iso.run(shrink_later, snapshot) == ["refused"] * 3
    assert snapshot.view()[:] == b"content"


async def test_a_shared_array_can_not_be_shortened(start):
    array = shared_array(LARGE)
    async with Isolator(**start) as iso:
        assert await iso.run(shrink, array) == "refused"
    assert not array.any()
