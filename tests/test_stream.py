"""`stream_isolated` and `report_progress` without a service."""

from __future__ import annotations

import os
import threading
import time

import anyio
import pytest

from aioisolate import (
    CallableStatusUnknownError,
    Reason,
    report_progress,
    run_isolated,
    stream_isolated,
)
from tests.helpers import alive, until
from tests.payloads import OddError, count, slow_count


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

    with pytest.raises(TypeError, match="an item could not be pickled"):
        async with stream_isolated(work) as items:
            await anext(items)


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
