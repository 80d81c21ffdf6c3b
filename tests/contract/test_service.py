"""The contract of an Isolator, the same for every way of starting a child and on every loop."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import signal
import sys
import threading
import time
import warnings

import anyio
import numpy as np
import pytest

from aioisolate import (
    CallableDidNotExecuteError,
    CallableStatusUnknownError,
    IsolationError,
    Isolator,
    Reason,
    report_progress,
)
from tests.functions import OddError, Sum, count, divide_12, double, leave, raise_odd, slow_count
from tests.helpers import Stages, alive, python, until, wait_until

pytestmark = [pytest.mark.dependencies, pytest.mark.part(name="servers")]

# The contract


async def test_every_kind_of_function_and_result(start):
    base = 5

    async def asynchronous(x):
        await anyio.sleep(0)
        return x + base

    async with Isolator(**start) as iso:
        assert await iso.run(double, 21) == 42
        assert await iso.run(lambda x: x + base, 1) == 6
        assert await iso.run(Sum(3).add, 4) == 7
        assert await iso.run(Sum(3), 4) == 12
        assert await iso.run(functools.partial(int, base=2), "101") == 5
        assert await iso.run(asynchronous, 1) == 6
        large = np.arange(300_000.0)
        assert (await iso.run(np.multiply, large, 2)).sum() == large.sum() * 2
        assert await iso.run(len, b"x" * 3_000_000) == 3_000_000
        assert await iso.run(bytes, 3_000_000) == bytes(3_000_000)
        pids = {await iso.run(os.getpid) for _ in range(5)}
        assert len(pids) == 5
        assert os.getpid() not in pids


async def test_exceptions_crashes_and_exits(start):
    async with Isolator(**start) as iso:
        with pytest.raises(OddError) as caught:
            await iso.run(raise_odd)
        assert (str(caught.value), caught.value.code) == ("odd", 7)
        assert "raise OddError" in str(caught.traceback[-1].statement)
        with pytest.raises(CallableStatusUnknownError) as died:
            await iso.run(os.abort)
        assert died.value.reason is Reason.SIGNAL
        assert died.value.exit == -signal.SIGABRT
        assert died.value.pid
        with pytest.raises(CallableStatusUnknownError) as left:
            await iso.run(leave, 3)
        assert (left.value.reason, left.value.exit) == (Reason.EXIT, 3)
        with pytest.raises(CallableStatusUnknownError) as left:
            await iso.run(sys.exit, 4)
        assert (left.value.reason, left.value.exit) == (Reason.EXIT, 4)
        outcome = await iso.capture(os.kill, 0, signal.SIGKILL)
        assert outcome.exit == -signal.SIGKILL
        assert outcome.usage.max_rss > 1 << 20
        assert await iso.run(double, 1) == 2


async def test_a_segfault_names_its_line(start):
    def crash():
        import ctypes

        ctypes.string_at(0)

    async with Isolator(**start) as iso:
        with pytest.raises(CallableStatusUnknownError) as died:
            await iso.run(crash)
        assert died.value.exit == -signal.SIGSEGV
        assert "in crash" in died.value.crash_traceback


async def test_deadlines_and_output(start):
    def talk():
        print("out")
        os.system("echo err >&2")

    async with Isolator(**start, output="capture") as iso:
        outcome = await iso.capture(talk)
        assert (outcome.stdout, outcome.stderr, outcome.exit) == ("out\n", "err\n", 0)
        began = time.monotonic()
        with pytest.raises(TimeoutError) as late:
            await iso.run(time.sleep, 60, timeout=0.2)
        assert late.value.reason is Reason.TIMEOUT
        assert time.monotonic() - began < 10
        lines = []
        await iso.run(talk, output=lambda stream, line: lines.append((stream, line)))
        assert sorted(lines) == [("stderr", "err"), ("stdout", "out")]
        assert await iso.run(talk, output="null") is None


async def test_events_and_progress(start):
    def work():
        report_progress(1, 2, "half")
        report_progress(2, 2)
        return "done"

    seen, stages = [], Stages()
    async with Isolator(**start) as iso:
        assert await iso.run(work, on_event=stages, on_progress=seen.append) == "done"
        assert await iso.run(work) == "done"
    assert stages.names == ["spawn", "started", "result", "reaped"]
    assert [tuple(p) for p in seen] == [(1, 2, "half"), (2, 2, "")]
    assert work() == "done"


async def test_what_a_callable_of_the_callers_raises_ends_the_call(start):
    def work():
        print(os.getpid(), flush=True)
        report_progress(os.getpid())
        time.sleep(60)

    pids = []

    def fail(what):
        pids.append(getattr(what, "pid", None) or what.done)
        raise OddError("odd", code=1)

    def fail_at(stage):
        return lambda event: fail(event) if event.name == stage else None

    def fail_on_line(_stream, line):
        pids.append(int(line))
        raise OddError("odd", code=1)

    async with Isolator(**start) as iso:
        for options in (
            {"on_progress": fail},
            {"on_event": fail_at("spawn")},
            {"on_event": fail_at("started")},
            {"output": fail_on_line},
        ):
            for call in (iso.run, iso.capture):
                with pytest.raises(OddError, match="odd"):
                    await call(work, **options)
                await until(lambda: not alive(pids[-1]))
        for stage in ("result", "reaped"):
            with pytest.raises(OddError, match="odd"):
                await iso.run(double, 2, on_event=fail_at(stage))
        async with iso.open_job(work, on_progress=fail) as job:
            with pytest.raises(OddError, match="odd"):
                await job.result()
            assert isinstance((await job.outcome()).error, OddError)
        with pytest.raises(OddError, match="odd"):
            async with iso.stream(count, 5, on_event=fail_at("started")) as items:
                [item async for item in items]
        await until(lambda: not any(map(alive, pids)))
        assert not iso.jobs()
        assert await iso.run(double, 2) == 4


async def test_cancelled_calls_leave_nothing(start):
    async with Isolator(**start) as iso:
        stages = Stages()

        async def call():
            await iso.run(time.sleep, 60, on_event=stages)

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            pid = await stages.reached("started")
            group.cancel_scope.cancel()
        assert not alive(pid)
        with anyio.move_on_after(0):
            await iso.run(time.sleep, 60)
        assert await iso.run(double, 2) == 4
        assert iso.statistics().outcomes["cancelled"] >= 1


async def test_grandchildren_die_with_their_call(start):
    async with Isolator(**start) as iso:

        def work():
            import subprocess

            return subprocess.Popen(["sleep", "60"]).pid

        pid = await iso.run(work)
        await until(lambda: not alive(pid))


async def test_streams(start):
    async with Isolator(**start) as iso:
        async with iso.stream(count, 1000) as items:
            assert [item async for item in items] == list(range(1000))
        async with iso.stream(slow_count, 100) as items:
            assert [item async for item in items] == list(range(100))
        got = []
        with pytest.raises(OddError) as caught:
            async with iso.stream(count, 3) as items:
                async for item in items:
                    got.append(item)
        assert (got, caught.value.code) == ([0, 1, 2], 3)
        async with iso.stream(count, 1 << 60) as items:
            async for item in items:
                if item == 100:
                    break
            pid = items.job.pid
        assert not alive(pid)
        with pytest.raises(TypeError):
            async with iso.stream(double, 3) as items:
                [item async for item in items]


async def test_a_slow_consumer_holds_the_child_up(start, tmp_path):
    def produce(path):
        for i in range(10_000):
            with open(path, "w") as file:
                file.write(str(i))
            yield b"x" * 10_000

    path = tmp_path / "n"
    async with Isolator(**start) as iso:
        async with iso.stream(produce, str(path)) as items:
            first = await anext(items)
            assert len(first) == 10_000
            produced = -1
            while produced != (produced := int(path.read_text() or 0)):
                await anyio.sleep(0.2)  # that nothing comes any more is no event
            # 256 KiB here, 256 KiB read at once, and what a socket or pipe holds.
            assert produced < 100
            for _ in range(200):
                await anext(items)


async def test_map(start):
    async def source():
        for i in range(10):
            yield i

    async with Isolator(**start, max_concurrency=3) as iso:
        assert [x async for x in iso.map(double, range(10))] == [2 * i for i in range(10)]
        found = [x async for x in iso.map(double, source(), ordered=False, concurrency=2)]
        assert sorted(found) == [2 * i for i in range(10)]
        outcomes = [o async for o in iso.map(divide_12, [1, 0, 2], capture=True)]
        assert [o.value for o in outcomes] == [12, None, 6]
        assert isinstance(outcomes[1].error, ZeroDivisionError)
        with pytest.raises(ZeroDivisionError):
            async for _ in iso.map(divide_12, [1, 0, 2, 3]):
                pass
        async with iso.map(time.sleep, [0, 60, 60]) as results:
            assert await anext(results) is None
        assert not iso.jobs()


async def test_map_reads_ahead_no_further_than_there_is_room():
    read = []

    def source():
        for i in range(1000):
            read.append(i)
            yield i

    async with Isolator("fork", max_concurrency=2) as iso:
        async with iso.map(double, source()) as results:
            for expected in range(5):
                assert await anext(results) == 2 * expected
                assert len(read) <= expected + 7


# Capacity


async def test_one_at_a_time_in_order_and_a_full_queue():
    order = []

    async with Isolator("fork", max_concurrency=1, max_queue=2) as iso:

        async def call(i):
            await iso.run(time.sleep, 0.05)
            order.append(i)

        async with anyio.create_task_group() as group:
            for i in range(3):
                group.start_soon(call, i)
                await until(lambda i=i: len(iso.jobs()) == i + 1)
            assert [job.state for job in iso.jobs()] == ["running", "queued", "queued"]
            with pytest.raises(CallableDidNotExecuteError, match="2 calls are waiting") as full:
                await iso.run(abs, 1)
            assert full.value.reason is Reason.QUEUE_FULL
        assert order == [0, 1, 2]
        statistics = iso.statistics()
        assert statistics.submitted == 4
        assert statistics.outcomes == {"returned": 3, "failed": 1}
        assert statistics.reasons == {Reason.QUEUE_FULL: 1}
        assert statistics.queue.max > 0.05
        assert statistics.run.calls == 3


async def test_a_limiter_of_the_callers_is_shared():
    limiter = anyio.CapacityLimiter(1)
    async with Isolator("fork", max_concurrency=limiter) as one:
        async with Isolator("fork", max_concurrency=limiter) as two:
            async with limiter:
                async with anyio.create_task_group() as group:
                    group.start_soon(one.run, abs, 1)
                    group.start_soon(two.run, abs, 1)
                    await until(lambda: limiter.statistics().tasks_waiting == 2)
                    limiter.total_tokens = 2
            assert limiter.borrowed_tokens == 0


async def test_a_queued_call_can_be_cancelled():
    async with Isolator("fork", max_concurrency=1) as iso:
        async with iso.open_job(time.sleep, 60) as running:
            await until(lambda: running.pid)
            async with iso.open_job(abs, 1) as waiting:
                await anyio.sleep(0.02)
                assert waiting.state == "queued"
                waiting.cancel()
                with pytest.raises(CallableDidNotExecuteError) as refused:
                    await waiting.result()
                assert refused.value.reason is Reason.CANCELLED
            with anyio.move_on_after(0.02):
                await iso.run(abs, 1)
            running.cancel()
            with pytest.raises(CallableStatusUnknownError) as killed:
                await running.result()
            assert killed.value.reason is Reason.CANCELLED
        assert await iso.run(abs, -1) == 1


async def test_jobs(start):
    def work():
        print("so far")
        report_progress(1, 4)
        time.sleep(60)

    async with Isolator(**start) as iso:
        async with iso.open_job(work, output="capture") as job:
            await until(lambda: job.stdout)
            await until(lambda: job.progress)
            assert iso.jobs() == [job]
            assert (job.state, job.stdout, job.stderr) == ("running", "so far\n", "")
            assert (job.progress.done, job.progress.total) == (1, 4)
            assert alive(job.pid)
            assert job.age > 0
            assert abs(job.started_at - time.time()) < 20
            assert "work" in job.name
        assert job.done()
        assert not alive(job.pid)
        async with iso.open_job(double, 4) as job:
            assert await job.result() == 8
            assert (await job.outcome()).value == 8
        assert not iso.jobs()


@pytest.mark.asyncio
async def test_whoever_cancels_all_tasks_does_not_stop_the_end():
    async with Isolator("fork") as iso:
        async with iso.open_job(time.sleep, 60) as job:  # its task has not begun yet
            (task,) = asyncio.all_tasks() - {asyncio.current_task()}
            task.cancel()
            with pytest.raises(CallableDidNotExecuteError) as refused:
                await job.result()
            assert refused.value.reason is Reason.CANCELLED
        assert not iso.jobs()


# Its life


async def test_closing_drains_or_kills(start):
    results = []

    async with Isolator(**start, max_concurrency=2) as iso:

        async def call(seconds):
            try:
                results.append(await iso.run(time.sleep, seconds))
            except IsolationError as exc:
                results.append(exc.reason)

        async with anyio.create_task_group() as group:
            group.start_soon(call, 0.1)
            await until(lambda: len(iso.jobs()) == 1)
            await iso.aclose()
            assert results == [None]
            with pytest.raises(CallableDidNotExecuteError, match="closed") as refused:
                await iso.run(abs, 1)
            assert refused.value.reason is Reason.CLOSED

    async with Isolator(**start, max_concurrency=1) as iso:
        async with anyio.create_task_group() as group:
            results.clear()
            group.start_soon(call, 60)
            group.start_soon(call, 61)
            await until(lambda: len(iso.jobs()) == 2 and iso.jobs()[0].pid)
            await iso.aclose(cancel=True)
        assert results == [Reason.CLOSED, Reason.CLOSED]


async def test_misuse_is_refused_early(start):
    iso = Isolator(**start)
    with pytest.raises(CallableDidNotExecuteError, match="not been entered"):
        await iso.run(abs, 1)
    async with iso:
        with pytest.raises(RuntimeError, match="is entered already"):
            async with iso:
                pass
        with pytest.raises(TypeError, match="expected a function"):
            await iso.run(3)
        with pytest.raises(TypeError, match="nonsense"):
            await iso.run(abs, 1, nonsense=2)
        with pytest.raises(ValueError, match="timeout"):
            await iso.run(abs, 1, timeout=-1)
        with pytest.raises(TypeError, match="iterable"):
            iso.map(abs, 3)
        with pytest.raises(TypeError, match="expected a function"):
            iso.map(3, [3])
    for options in (
        {"start": "spoon"},
        {"warm": -1},
        {"max_concurrency": 0},
        {"max_queue": -1},
        {"drain": -1},
        {"env": {"A=": "b"}},
    ):
        with pytest.raises(ValueError, match="must"):
            Isolator(**options)
    for options in (
        {"preload": "json"},
        {"preload": [3]},
        {"warm": 1.5},
        {"drain": "3"},
        {"env": {"A": 1}},
    ):
        with pytest.raises(TypeError, match="must be"):
            Isolator(**options)


def test_another_loop_is_refused():
    async def main():
        async with Isolator("fork") as iso:

            def elsewhere():
                with pytest.raises(RuntimeError, match="belongs to the event loop"):
                    asyncio.run(iso.run(abs, 1))

            await anyio.to_thread.run_sync(elsewhere)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(main())


async def test_an_exception_in_the_body_comes_out_as_itself(start):
    with pytest.raises(OddError):
        async with Isolator(**start) as iso:
            async with anyio.create_task_group() as group:
                del group
            raise OddError("odd", code=1)
    assert not iso.jobs()


@pytest.mark.parametrize("kind", ["zygote", "template"])
def test_forgetting_to_close_warns_and_leaves_no_process(kind):
    pids = []

    async def main():
        iso = Isolator(kind, warm=1)
        await iso.__aenter__()
        pids.append(await iso.run(os.getppid))
        idle = iso._service._source._pool._idle
        await until(idle.__len__)
        pids.append(idle[0].pid)
        with pytest.warns(ResourceWarning, match="was not closed"):
            del iso

    asyncio.run(main())
    for pid in pids:
        wait_until(lambda pid=pid: not alive(pid))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_when_the_process_dies_nothing_is_left(number):
    source = """
        import asyncio, os, signal, sys, time
        from aioisolate import Isolator

        signal.signal(signal.SIGINT, signal.default_int_handler)  # even if it came ignored

        async def main():
            async with Isolator(warm=2) as iso:
                async with asyncio.TaskGroup() as group:
                    group.create_task(iso.run(time.sleep, 60))
                    while not (iso.jobs() and iso.jobs()[0].pid):
                        await asyncio.sleep(0.01)
                    print(iso._service._source._pool.pid, iso.jobs()[0].pid, flush=True)
                    os.kill(os.getpid(), int(sys.argv[1]))

        asyncio.run(main())
    """
    result = python(source, str(int(number)))
    pids = [int(pid) for pid in result.stdout.split()]
    assert len(pids) == 2
    wait_until(lambda: not any(map(alive, pids)))
