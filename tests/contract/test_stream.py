"""`stream_isolated` and `report_progress` without a service."""

from __future__ import annotations

import os
import threading
import time

import anyio
import pytest

from aioisolate import (
    CallableExecutedError,
    CallableStatusUnknownError,
    IsolationError,
    Isolator,
    Reason,
    Snapshot,
    report_progress,
    run_isolated,
    stream_isolated,
)
from tests.attacks.channel import find_line, write
from tests.functions import OddError, count, slow_count
from tests.helpers import alive, until
from tests.internals import Kind, codecs, encode, plain_data, threads

pytestmark = [pytest.mark.quick, pytest.mark.dependencies, pytest.mark.part(name="servers")]


async def test_items_sync_and_async():
    async with stream_isolated(count, 500) as items:
        assert [item async for item in items] == list(range(500))
    async with stream_isolated(slow_count, 50) as items:
        assert [item async for item in items] == list(range(50))
    async with stream_isolated(lambda: ["any", "iterable"]) as items:
        assert [item async for item in items] == ["any", "iterable"]


async def test_an_exception_comes_after_the_items_before_it():
    got = []
    with pytest.raises(OddError):
        async with stream_isolated(count, 3) as items:
            async for item in items:
                got.append(item)
    assert got == [0, 1, 2]


async def test_a_crash_comes_after_the_items_before_it():
    def work():
        yield 1
        os.abort()

    got = []
    with pytest.raises(CallableStatusUnknownError) as died:
        async with stream_isolated(work) as items:
            async for item in items:
                got.append(item)
    assert (got, died.value.reason) == ([1], Reason.SIGNAL)


async def test_leaving_early_kills():
    async with stream_isolated(count, 1 << 60) as items:
        assert await anext(items) == 0
        pid = items.job.pid
        assert alive(pid)
    assert not alive(pid)
    with pytest.raises(StopAsyncIteration):
        await anext(items)


async def test_large_items_and_slow_consumers_are_bounded(tmp_path):
    path = tmp_path / "n"

    def produce():
        for i in range(1000):
            path.write_text(str(i))
            yield bytes(1_000_000)

    async with stream_isolated(produce) as items:
        assert len(await anext(items)) == 1_000_000
        before = -1
        while before != (before := int(path.read_text() or 0)):
            await anyio.sleep(0.2)
        assert before < 5
        for _ in range(20):
            assert len(await anext(items)) == 1_000_000


async def test_a_deadline_for_the_whole():
    def work():
        yield 1
        time.sleep(60)

    with pytest.raises(TimeoutError):
        async with stream_isolated(work, timeout=0.2) as items:
            async for _ in items:
                pass


async def test_an_item_that_cannot_be_pickled():
    def work():
        yield threading.Lock()

    with pytest.raises(CallableStatusUnknownError, match="could not be pickled") as caught:
        async with stream_isolated(work) as items:
            await anext(items)
    assert caught.value.reason is Reason.RESULT_ENCODING


LARGE = 200_000


def load_in(monkeypatch, codec, before):
    """Have *before* called in whatever thread an item is decoded in."""
    module = codecs if codec == "pickle" else plain_data
    real = module.load

    def load(*args, **options):
        before()
        return real(*args, **options)

    monkeypatch.setattr(module, "load", load)


@pytest.mark.parametrize("codec", ["json", "pickle"])
async def test_large_items_are_decoded_in_a_thread(codec, monkeypatch):
    def work():
        yield "x" * LARGE
        yield "x" * 1000
        yield "x" * LARGE

    names = []
    load_in(monkeypatch, codec, lambda: names.append(threading.current_thread().name))
    async with stream_isolated(work, codec=codec) as items:
        assert [len(item) async for item in items] == [LARGE, 1000, LARGE]
    # The other ones are the small item and the answer.
    assert sorted(names) == ["MainThread"] * 2 + ["aioisolate-decode"] * 2


@pytest.mark.parametrize("codec", ["json", "pickle"])
async def test_a_large_item_is_not_lost_to_a_cancellation(codec, monkeypatch):
    def work():
        for i in range(5):
            yield [i, "x" * LARGE]

    begun, go_on = threading.Event(), threading.Event()

    def hold_up():
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            assert go_on.wait(20)

    load_in(monkeypatch, codec, hold_up)
    async with stream_isolated(work, codec=codec) as items:
        for _ in range(3):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(anext, items)
                    await until(begun.is_set)
                    scope.cancel()
        go_on.set()
        assert [item[0] async for item in items] == [0, 1, 2, 3, 4]
    assert not helpers_left()


async def test_leaving_while_an_item_is_decoded(monkeypatch):
    def work():
        snapshot = Snapshot.from_bytes(b"content")
        for _ in range(3):
            yield snapshot, "x" * LARGE

    begun, go_on = threading.Event(), threading.Event()
    found = []

    def hold_up():
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            assert go_on.wait(20)

    load_in(monkeypatch, "pickle", hold_up)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group, stream_isolated(work) as items:
            group.start_soon(until_then, begun.is_set, scope.cancel)
            await anext(items)
    assert scope.cancelled_caught
    assert not alive(items.job.pid)
    # Left by somebody else than who waits.
    begun.clear()
    async with anyio.create_task_group() as group:

        async def take():
            found.append(await anext(items))

        async with stream_isolated(work) as items:
            group.start_soon(take)
            await until(begun.is_set)
        assert not alive(items.job.pid)
        assert not found
        go_on.set()
    assert [bytes(snapshot.view()) for snapshot, _ in found] == [b"content"]
    await until(lambda: not helpers_left())


def helpers_left():
    return [thread for thread in threading.enumerate() if thread.name == "aioisolate-decode"]


async def until_then(condition, then):
    await until(condition)
    then()


BAD = {
    "small": b"nonsense",
    "large": b"[" + b"1," * LARGE,
    "deep": b"[" * 1000 + b"]" * 1000,
    "text": b'"\x1b[2J' + b"\xff" * 100 + b'"',
    "of another type": b'{"a":"\x1b[2J"}',
}


@pytest.mark.parametrize("how", BAD)
@pytest.mark.parametrize("ends", [False, True])
async def test_a_bad_item_is_a_typed_error(how, ends):
    def work():
        yield 1
        line = find_line()
        write(line.channel, encode(line.nonce, Kind.ITEM, BAD[how]))
        yield 2
        if not ends:
            time.sleep(60)

    got = []
    async with stream_isolated(work, codec="json", result_type=int) as items:
        if ends:
            await until(lambda: items.job.done())
        with pytest.raises(IsolationError) as caught:
            async for item in items:
                got.append(item)
        error = caught.value
        assert not alive(error.pid)
        assert items.job.done()
        with pytest.raises(StopAsyncIteration):
            await anext(items)
    assert got == [1]
    assert type(error) is (CallableExecutedError if ends else CallableStatusUnknownError)
    assert error.reason is Reason.RESULT_DECODING
    assert error.pid == items.job.pid
    assert error.exit == (0 if ends else -9)
    assert "an item that fn yielded" in str(error)
    assert "\x1b" not in str(error)
    assert len(str(error)) < 1000
    assert items.job.error is error


async def test_a_bad_item_ends_a_warm_childs_job(start):
    options = {} if start["start"] == "template" else {"codec": "json"}
    async with Isolator(**start, **options) as iso:
        async with iso.stream(count_text, 1 << 60, result_type=int if options else None) as items:
            if options:
                error = await decoding_error(items)
                assert not alive(error.pid)
                assert iso.statistics().reasons == {Reason.RESULT_DECODING: 1}
        assert iso.statistics().running == 0


def count_text(n):
    yield from map(str, range(n))


async def decoding_error(items):
    with pytest.raises(CallableStatusUnknownError) as caught:
        await anext(items)
    assert caught.value.reason is Reason.RESULT_DECODING
    return caught.value


class Explodes:
    def __reduce__(self):
        return explode, ()


def explode():
    raise SystemExit(5)


@pytest.mark.parametrize("size", [1, LARGE])
async def test_an_item_that_cannot_be_unpickled(size):
    def work():
        yield [Explodes(), bytes(size)]
        time.sleep(60)

    async with stream_isolated(work) as items:
        error = await decoding_error(items)
    assert type(error.__cause__) is SystemExit
    assert not alive(error.pid)


async def test_an_item_that_there_is_no_thread_for(monkeypatch):
    def helper(*args):
        raise OSError(11, "no threads")

    def work():
        yield Snapshot.from_bytes(b"content"), bytes(LARGE)
        time.sleep(60)

    async with stream_isolated(work) as items:
        monkeypatch.setattr(threads, "Helper", helper)
        error = await decoding_error(items)
        monkeypatch.undo()
    assert "no threads" in str(error)


async def test_misuse():
    with pytest.raises(TypeError, match="expected a function"):
        stream_isolated(3)
    with pytest.raises(TypeError, match="nonsense"):
        stream_isolated(count, nonsense=3)
    items = stream_isolated(count, 3)
    with pytest.raises(RuntimeError, match="inside `async with`"):
        await anext(items)
    with pytest.raises(TypeError):
        async with stream_isolated(abs, -1) as items:
            await anext(items)
    async with stream_isolated(count, 1) as items:
        with pytest.raises(RuntimeError, match="entered once"):
            async with items:
                pass


async def test_progress_from_threads_beside_a_stream():
    """Frames of several threads are not mixed up."""

    def work():
        def tell():
            for i in range(200):
                report_progress(i, 200, "x" * 1000)

        threads = [threading.Thread(target=tell) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            yield bytes(200_000)
        for thread in threads:
            thread.join()

    seen = []
    async with stream_isolated(work, on_progress=seen.append) as items:
        assert sum([len(item) async for item in items]) == 4_000_000
    assert len(seen) == 600


async def test_progress_outside_a_child_and_unasked():
    report_progress(1)
    assert await run_isolated(lambda: report_progress(1, 2, "x")) is None
    with pytest.raises(TypeError, match="done must be a number"):
        report_progress("1")
    with pytest.raises(TypeError, match="message must be a string"):
        report_progress(1, 2, 3)
    with pytest.raises(TypeError, match="on_progress must be callable"):
        await run_isolated(abs, 1, on_progress=3)


async def test_a_grandchild_does_not_report():
    def work():
        if os.fork() == 0:
            report_progress(99)
            os._exit(0)
        os.wait()
        report_progress(1)

    seen = []
    await run_isolated(work, on_progress=seen.append)
    assert [progress.done for progress in seen] == [1]


async def test_what_on_progress_raises_ends_the_call():
    pids = []

    def work():
        report_progress(os.getpid())
        time.sleep(60)

    def note(progress):
        pids.append(progress.done)
        raise OddError("odd", code=1)

    with pytest.raises(OddError):
        await run_isolated(work, on_progress=note)
    await until(lambda: not alive(pids[0]))
