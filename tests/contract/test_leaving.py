"""`map` and streams: left early, taken by several tasks, and how their generators end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import threading
import time
import weakref

import anyio
import pytest

from aioisolate import (
    CallableDidNotExecuteError,
    CallableStatusUnknownError,
    Isolator,
    Limits,
    Reason,
    run_isolated,
    stream_isolated,
)
from tests.functions import double
from tests.helpers import alive, resident, until
from tests.internals import codecs, eventloop, running_backend

pytestmark = pytest.mark.part(name="lifetime")


@pytest.fixture
def no_collection():
    """What is freed is freed because nothing refers to it any more."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Thing:
    """An item, and a result."""

    def __init__(self, number):
        self.number = number
        self.data = bytes(1000)


def things():
    return [thing for thing in gc.get_objects() if type(thing) is Thing]


def work(thing):
    if thing.number > 2:
        time.sleep(60)
    return thing


class Source:
    """Where the items come from: how many were read, and whether it has been closed."""

    def __init__(self):
        self.read = 0
        self.finished = False
        self.waits = anyio.Event()

    @property
    def closed(self):
        return self.finished or not self.read

    def sync(self):
        try:
            for self.read in range(1, 1001):
                yield Thing(self.read - 1)
        finally:
            self.finished = True

    async def waiting(self):
        """Wait for the next item for ever, after some."""
        try:
            for self.read in range(1, 5):
                yield Thing(self.read - 1)
            self.waits.set()
            await anyio.sleep_forever()
        finally:
            self.finished = True

    async def always_ready(self):
        try:
            for self.read in range(1, 1001):
                yield Thing(self.read - 1)
        finally:
            await anyio.sleep(0)
            self.finished = True


# Ways of leaving a loop over results; each is awaited.


async def by_break(results, _source):
    async for _ in results():
        break


async def by_an_exception(results, _source):
    with contextlib.suppress(ZeroDivisionError):
        async for _ in results():
            raise ZeroDivisionError


async def by_a_deadline(results, source):
    with anyio.CancelScope() as scope:
        async for _ in results():
            if source.read > 3:
                scope.cancel()
    assert scope.cancelled_caught


async def by_cancelling_while_it_waits(results, _source):
    async def consume():
        async for thing in results():
            number = thing.number
            del thing  # anyio keeps this frame, by the exception that cancels it
            if number == 2:
                waits.set()

    waits = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(consume)
        await waits.wait()
        await anyio.sleep(0)
        group.cancel_scope.cancel()


async def by_dropping(results, source):
    found = results()
    await until(lambda: source.read > 3)
    del found


async def by_dropping_at_once(results, _source):
    results()


async def by_closing_a_generator_around(results, _source):
    async def numbers():
        async for thing in results():
            yield thing.number

    async with contextlib.aclosing(numbers()) as found:
        assert await anext(found) == 0


async def by_leaving_its_context(results, source):
    async with results() as found:
        await anext(found)
    assert source.closed


WAYS = [
    by_break,
    by_an_exception,
    by_a_deadline,
    by_cancelling_while_it_waits,
    by_dropping,
    by_dropping_at_once,
    by_closing_a_generator_around,
    by_leaving_its_context,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_11_7_a_map_that_is_left_ends(way, no_collection):
    source = Source()
    async with Isolator("fork", max_concurrency=3) as iso:
        await way(lambda: iso.map(work, source.sync()), source)
        await until(lambda: source.closed and not iso.jobs(), 5)
        begun = iso.statistics().submitted
        assert begun <= 9
        assert source.read - begun <= 1
        await until(lambda: not things(), 5)
        await anyio.sleep(0.02)  # that nothing begins any more is no event
        assert iso.statistics().submitted == begun


@pytest.mark.parametrize("options", [{"capture": True}, {"ordered": False}])
@pytest.mark.parametrize("kind", ["waiting", "always_ready"])
async def test_11_7_a_source_that_is_async_is_closed(options, kind, no_collection):
    source = Source()
    async with Isolator("fork", max_concurrency=8) as iso:
        async for _ in iso.map(work, getattr(source, kind)(), **options):
            if kind == "waiting":
                await source.waits.wait()
            del _
            break
        await until(lambda: source.closed and not iso.jobs(), 5)
        await until(lambda: not things(), 5)


async def test_11_7_children_of_every_kind_end(start):
    async with Isolator(**start, max_concurrency=3) as iso:
        async for _ in iso.map(time.sleep, [0, 60, 60, 60]):
            await until(lambda: len([job for job in iso.jobs() if job.pid]) >= 2)
            pids = [job.pid for job in iso.jobs()]
            break
        await until(lambda: not iso.jobs(), 5)
        assert not any(map(alive, filter(None, pids)))


@pytest.mark.asyncio
async def test_11_7_a_cancelled_task_that_is_kept_keeps_no_map(no_collection):
    """asyncio's tasks keep the exception that cancelled them, and with it frames."""
    source = Source()
    async with Isolator("fork", max_concurrency=3) as iso:

        async def consume():
            async for _ in iso.map(work, source.sync()):
                del _

        task = asyncio.create_task(consume())
        await until(lambda: source.read > 3)
        task.cancel()
        await asyncio.wait([task])  # which, unlike awaiting it, leaves that with it
        await until(lambda: source.closed and not iso.jobs(), 5)
        await until(lambda: not things(), 5)
        assert task.cancelled()


@pytest.mark.asyncio
async def test_11_7_a_generator_around_it_that_is_dropped(no_collection):
    """asyncio closes it, by a hook."""
    source = Source()
    async with Isolator("fork", max_concurrency=3) as iso:

        async def numbers():
            async for thing in iso.map(work, source.sync()):
                yield thing.number

        async for _ in numbers():
            break
        await until(lambda: source.closed and not iso.jobs(), 5)


async def test_11_7_dropped_in_another_thread():
    source = Source()
    async with Isolator("fork", max_concurrency=3) as iso:
        holder = [iso.map(work, source.sync())]
        await until(lambda: source.read > 3)
        thread = threading.Thread(target=holder.clear)
        thread.start()
        thread.join()
        await until(lambda: source.closed and not iso.jobs(), 5)


@pytest.mark.one_loop
async def test_11_7_the_only_reference_may_be_the_waiting_one():
    async with Isolator("fork", max_concurrency=3) as iso:
        assert await anext(iso.map(double, range(20))) == 0


async def test_11_7_closing_the_isolator_wakes_who_waits_for_the_source():
    waits = anyio.Event()

    async def source():
        yield 1
        waits.set()
        await anyio.sleep_forever()

    got, raised = [], []

    async def consume():
        try:
            async for result in iso.map(double, source()):
                got.append(result)
        except CallableDidNotExecuteError as error:
            raised.append(error.reason)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group, Isolator("fork") as iso:
            group.start_soon(consume)
            await waits.wait()
            await until(lambda: got)
    assert (got, raised) == ([2], [Reason.CLOSED])


async def test_11_7_a_map_goes_no_further_than_its_isolators_life():
    async def source(more):
        for number in range(4):  # as many as may wait to be taken
            yield number
        if more:
            await anyio.sleep_forever()

    iso = Isolator("fork")
    async with iso:
        maps = [iso.map(double, source(more), concurrency=2) for more in (False, True)]
        await until(lambda: iso.statistics().outcomes.get("returned") == 8)
    async with iso:  # which is another one now
        with anyio.fail_after(20):
            assert [result async for result in maps[0]] == [0, 2, 4, 6]
            with pytest.raises(CallableDidNotExecuteError) as caught:
                async for _ in maps[1]:
                    pass
        assert caught.value.reason is Reason.CLOSED
        assert iso.statistics().submitted == 0


@pytest.mark.one_loop
async def test_11_7_one_that_waits_for_room_begins_nothing_in_another_life():
    iso = Isolator("fork")
    async with iso:
        results = iso.map(double, range(9), concurrency=1)
        await until(lambda: iso.statistics().outcomes.get("returned") == 2)
    async with iso:
        got = []
        with pytest.raises(CallableDidNotExecuteError, match="closed"):
            async for result in results:
                got.append(result)
        assert got == [0, 2]
        assert iso.statistics().submitted == 0


@pytest.mark.one_loop
async def test_11_7_a_forked_copy_has_no_part_in_it():
    async with Isolator("fork", max_concurrency=1) as iso:
        async with iso.map(time.sleep, [60]) as results:
            await until(iso.jobs)
            assert await run_isolated(results.aclose) is None
            with pytest.raises(RuntimeError, match=f"belongs to process {os.getpid()}"):
                await run_isolated(lambda: anext(results))
            assert len(iso.jobs()) == 1


@pytest.mark.parametrize("ordered", [True, False])
async def test_11_7_a_closed_map_that_is_kept_keeps_nothing(ordered, no_collection):
    source = Source()
    async with Isolator("fork", max_concurrency=2) as iso:
        async with iso.map(work, source.sync(), ordered=ordered) as results:
            await until(lambda: len(iso.jobs()) == 1 and source.read == 4)
        await until(lambda: not things(), 5)
        with pytest.raises(StopAsyncIteration):
            await anext(results)


@pytest.mark.one_loop
async def test_11_7_a_source_that_goes_on_when_it_is_cancelled():
    async def source():
        yield 0
        with contextlib.suppress(asyncio.CancelledError):
            await anyio.sleep_forever()
        yield 60

    async with Isolator("fork") as iso:
        async with iso.map(time.sleep, source()) as results:
            await anext(results)
        assert iso.statistics().submitted == 1


class OwnError(BaseException):
    """Neither an Exception nor anything that a loop knows."""


async def test_11_7_what_the_source_raises_is_freed(no_collection):
    def source():
        yield 1
        raise OwnError

    async def consume(iso):
        try:
            async for _ in iso.map(double, source()):
                pass
        except OwnError as exc:
            return weakref.ref(exc)

    async with Isolator("fork") as iso:
        error = await consume(iso)
        await until(lambda: error() is None, 5)


def test_11_7_dropped_after_the_end_of_its_loop():
    for backend in "asyncio", "trio":

        async def make():
            return eventloop.poster(running_backend())

        anyio.run(make, backend=backend)(pytest.fail)


@pytest.mark.one_loop
async def test_11_7_memory_of_consumers_that_disconnect():
    """Each leaves some 4 MB of results that it has not taken."""
    async with Isolator("fork", max_concurrency=2) as iso:

        async def consume(begun):
            async for _ in iso.map(bytes, [1 << 20] * 1000):
                await until(lambda: iso.statistics().submitted >= begun + 5)
                break

        sizes = []
        for _ in range(15):
            await consume(iso.statistics().submitted)
            await until(lambda: not iso.jobs())
            sizes.append(resident())
        assert sizes[-1] - sizes[4] < 16 << 20


# What the source raises


@pytest.mark.asyncio
async def test_11_26_a_cancelled_future_that_the_source_awaits():
    async def source():
        yield 1
        yield 2
        future = asyncio.get_running_loop().create_future()
        future.cancel("gone")
        await future

    got = []
    async with Isolator("fork") as iso, asyncio.timeout(60):
        results = iso.map(double, source())
        with pytest.raises(asyncio.CancelledError, match="gone"):
            async for result in results:
                got.append(result)
        assert got == [2, 4]
        # It is what an `await` of that future would have been: nobody has cancelled this task.
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)
        with pytest.raises(StopAsyncIteration):
            await anext(results)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, OwnError])
@pytest.mark.parametrize("capture", [False, True])
async def test_11_26_whatever_the_source_raises_is_raised(error, capture):
    async def source():
        yield 0
        await anyio.sleep(0)
        raise error("odd")

    async with Isolator("fork") as iso:
        with pytest.raises(error, match="odd"):
            async for _ in iso.map(double, source(), capture=capture):
                pass
        # It is also so with a sync one, and whoever leaves before it is taken does not lose it.
        if error is KeyboardInterrupt:
            with pytest.raises(error, match="odd"):
                async with iso.map(double, interrupted()) as results:
                    await until(lambda: results._state._reader_ended.is_set())


def interrupted():
    yield 0
    raise KeyboardInterrupt("odd")


@pytest.mark.one_loop
async def test_11_26_what_ends_the_program_does_not_wait_for_children():
    async with Isolator("fork") as iso:
        with pytest.raises(KeyboardInterrupt), anyio.fail_after(10):
            async for _ in iso.map(time.sleep, sleep_and_interrupt()):
                pass
        assert not iso.jobs()


def sleep_and_interrupt():
    yield 60
    raise KeyboardInterrupt


def stop():
    raise StopAsyncIteration


async def test_11_26_the_end_of_something_else_is_no_end_of_a_map():
    """Raised as itself, each of these would have looked like the end of it all."""

    class Source:
        def __iter__(self):
            return self

        def __next__(self):
            stop()

    def items():
        yield 1
        stop()

    async with Isolator("fork") as iso:
        for results in [iso.map(lambda _: stop(), [1]), iso.map(double, Source())]:
            with pytest.raises(RuntimeError, match="StopAsyncIteration") as caught:
                await anext(results)
            assert isinstance(caught.value.__cause__, StopAsyncIteration)
        async with iso.stream(items) as stream:
            assert await anext(stream) == 1
            with pytest.raises(RuntimeError, match="StopAsyncIteration"):
                await anext(stream)


@pytest.mark.asyncio
async def test_11_26_somebody_cancels_all_tasks_but_this_one():
    async def source():
        yield 1
        await anyio.sleep_forever()

    async with Isolator("fork") as iso:
        results = iso.map(double, source())
        assert await anext(results) == 2
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        with pytest.raises(RuntimeError, match="the task that reads the items of a map was cancel"):
            await anext(results)


# Several tasks that take


async def take_all(results, got, ends):
    try:
        while True:
            got.append(await anext(results))
    except Exception as exc:
        ends.append(exc)


async def taken_by_three(results):
    """What three tasks get, and how it ends for each."""
    got, ends = [], []
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(take_all, results, got, ends)
    return got, ends


def pause_and_return(number):
    time.sleep(0.01)
    return number


def pause_and_fail(number):
    time.sleep(0.01)
    return 10 // (5 - number)


@pytest.mark.parametrize("ordered", [True, False])
async def test_11_27_a_map_serves_several_tasks(ordered):
    async with Isolator("fork", max_concurrency=2) as iso:
        got, ends = await taken_by_three(iso.map(pause_and_return, range(10), ordered=ordered))
        assert sorted(got) == list(range(10))
        assert [type(end) for end in ends] == [StopAsyncIteration] * 3
        got, ends = await taken_by_three(iso.map(pause_and_fail, range(10), ordered=ordered))
        assert len(got) <= 6
        # Each of them: to none it is to look as if the results were complete.
        assert [type(end) for end in ends] == [ZeroDivisionError] * 3


async def test_11_27_closing_a_map_ends_it_for_all():
    async with Isolator("fork", max_concurrency=2) as iso:
        ends = []
        async with anyio.create_task_group() as group:
            async with iso.map(time.sleep, [60] * 5) as results:
                for _ in range(3):
                    group.start_soon(take_all, results, [], ends)
                await until(lambda: len(iso.jobs()) == 2)
        assert [type(end) for end in ends] == [StopAsyncIteration] * 3


async def test_11_27_a_cancelled_one_takes_nothing_with_it():
    async with Isolator("fork", max_concurrency=2) as iso:
        results = iso.map(pause_and_return, range(20))
        got, ends = [], []
        async with anyio.create_task_group() as group:
            group.start_soon(take_all, results, got, ends)
            for _ in range(10):
                with anyio.move_on_after(0.005):
                    await take_all(results, got, ends)
        assert sorted(got) == list(range(20))


LARGE = 200_000


def pauses_and_items(size):
    for number in range(20):
        time.sleep(0.002)
        yield number, bytes(size)


@pytest.mark.parametrize("size", [1, LARGE])
async def test_11_27_a_stream_serves_several_tasks(size):
    async with stream_isolated(pauses_and_items, size) as stream:
        got, ends = await taken_by_three(stream)
    # Large ones are decoded in threads, by several tasks at a time.
    assert sorted(number for number, _ in got) == list(range(20))
    assert [type(end) for end in ends] == [StopAsyncIteration] * 3
    # What is there already is served to several as well.
    async with stream_isolated(pauses_and_items, size) as stream:
        await until(lambda: stream.job.done() or len(stream._items) > 1)
        got, ends = await taken_by_three(stream)
    assert sorted(number for number, _ in got) == list(range(20))


async def test_11_27_the_end_waits_for_an_item_that_another_task_may_give_back(monkeypatch):
    def hold_up(*args, **options):
        if threading.current_thread() is not threading.main_thread():
            assert go_on.wait(20)
        return real(*args, **options)

    go_on, real = threading.Event(), codecs.load
    monkeypatch.setattr(codecs, "load", hold_up)
    got, ends = [], []
    async with stream_isolated(lambda: [bytes(LARGE)]) as stream:
        await until(stream.job.done)
        async with anyio.create_task_group() as others, anyio.create_task_group() as group:
            group.start_soon(take_all, stream, got, ends)
            await until(lambda: stream._decoding)
            others.start_soon(take_all, stream, got, ends)
            await anyio.wait_all_tasks_blocked()
            assert not ends
            group.cancel_scope.cancel()
            go_on.set()
    assert got == [bytes(LARGE)]
    assert len(ends) == 1


@pytest.mark.parametrize("size", [1, LARGE])
async def test_11_27_the_error_of_a_stream_comes_to_all(size):
    def raises():
        yield bytes(size)
        raise ZeroDivisionError

    def spoils():
        yield bytes(size)
        yield Spoilt(), bytes(size)
        time.sleep(60)

    for work, error in (raises, ZeroDivisionError), (spoils, CallableStatusUnknownError):
        async with stream_isolated(work) as stream:
            got, ends = await taken_by_three(stream)
        assert got == [bytes(size)]
        assert [type(end) for end in ends] == [error] * 3


class Spoilt:
    """It can't be unpickled."""

    def __reduce__(self):
        return int, ("x",)


async def test_11_27_a_cancelled_one_leaves_its_item_to_the_others():
    async with stream_isolated(pauses_and_items, LARGE) as stream:
        got, ends = [], []
        async with anyio.create_task_group() as group:
            group.start_soon(take_all, stream, got, ends)
            for _ in range(20):
                with anyio.move_on_after(0.001):
                    await take_all(stream, got, ends)
    assert sorted(number for number, _ in got) == list(range(20))


# How a generator ends in the child


class Diary:
    """Where a child notes what its generator comes to."""

    def __init__(self, path):
        self.path = path

    def __call__(self, word):
        with open(self.path, "a") as file:
            file.write(f"{word} ")

    def read(self):
        try:
            with open(self.path) as file:
                return file.read().split()
        except FileNotFoundError:
            return []


@pytest.fixture
def diary(tmp_path):
    return Diary(str(tmp_path / "diary"))


def endless(diary):
    """Yield more than fits into the channel, so that it waits while it sends."""
    try:
        while True:
            diary("sends")
            yield bytes(2_000_000)
    finally:
        diary("ends")


def running(diary):
    try:
        yield 1
        diary("runs")
        time.sleep(60)
    finally:
        diary("ends")


def delegating(diary):
    yield from running(diary)


def nested(diary):
    return map(bytes, map(int, running_numbers(diary)))


def running_numbers(diary):
    try:
        while True:
            diary("runs")
            yield 2_000_000
    finally:
        diary("ends")


held = []


def state_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def kept(diary):
    """Return one that is not freed with the call's frame."""
    held.append(endless(diary))
    return held[-1]


async def endless_async(diary):
    try:
        while True:
            diary("sends")
            yield bytes(2_000_000)
    finally:
        await anyio.sleep(0.01)
        diary("ends")


async def waiting_async(diary):
    try:
        yield 1
        diary("waits")
        await anyio.sleep_forever()
    finally:
        diary("ends")


WORKS = endless, waiting_async, endless_async, running, delegating, nested, kept


@pytest.mark.parametrize("kind", ["fork", "zygote"])
async def test_11_28_a_generator_is_closed_within_grace(kind, diary):
    async with Isolator(kind) as iso:
        for work in WORKS if kind == "fork" else WORKS[:2]:
            diary(work.__name__)
            async with iso.stream(work, diary, grace=20) as stream:
                await anext(stream)
                await until(lambda: diary.read()[-1] in ("sends", "runs", "waits"))
            assert diary.read()[-1] == "ends"
            assert stream.job.error.reason is Reason.CANCELLED
            assert stream.job.error.exit == -signal.SIGTERM
            assert not iso.jobs()


@pytest.mark.asyncio
async def test_11_28_what_a_coroutine_awaits_in_the_end_goes_on(diary):
    async def work():
        try:
            yield 1
            diary("waits")
            await anyio.sleep_forever()
        finally:
            await anyio.sleep(0.01)
            diary("ends")

    async with stream_isolated(work, grace=20) as stream:
        await anext(stream)
        await until(diary.read)
    assert diary.read() == ["waits", "ends"]


@pytest.mark.one_loop
async def test_11_28_a_large_item_behind_many_small_ones(diary):
    """When nobody takes them, and the job is ended, the large one must get out of the way."""

    def work():
        try:
            for _ in range(80):
                yield bytes(4000)
            diary("sends")
            yield bytes(2_000_000)
        finally:
            diary("ends")

    async with stream_isolated(work, grace=20) as stream:
        await until(diary.read)
        stream.job.cancel()
        await until(stream.job.done, 10)
    assert diary.read() == ["sends", "ends"]


@pytest.mark.one_loop
async def test_11_28_without_grace_it_is_killed_at_once(diary):
    async with stream_isolated(endless, diary) as stream:
        await anext(stream)
    assert stream.job.error.exit == -signal.SIGKILL
    assert "ends" not in diary.read()


@pytest.mark.one_loop
async def test_11_28_also_at_a_deadline_and_when_its_job_is_cancelled(diary):
    async with stream_isolated(endless, diary, grace=20, timeout=0.2) as stream:
        await anext(stream)
        await until(stream.job.done)
    assert diary.read()[-1] == "ends"
    assert stream.job.error.reason is Reason.TIMEOUT
    diary("again")
    async with stream_isolated(endless, diary, grace=20) as stream:
        await anext(stream)
        stream.job.cancel()
        with pytest.raises(CallableStatusUnknownError):
            async for _ in stream:
                pass
    assert diary.read()[-1] == "ends"


@pytest.mark.one_loop
async def test_11_28_items_of_one_that_does_not_end_are_not_kept():
    def work():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            yield bytes(1 << 20)

    async with stream_isolated(work, grace=0.3) as stream:
        await anext(stream)
        stream.job.cancel()
        await until(stream.job.done)
        assert stream._bytes < 8 << 20


@pytest.mark.one_loop
async def test_11_28_grace_is_all_that_it_has(diary):
    def stubborn():
        while True:
            try:
                yield 1
                diary("runs")
                time.sleep(60)
            except GeneratorExit:
                diary("asked")
                while True:
                    time.sleep(60)

    async with stream_isolated(stubborn, grace=0.2) as stream:
        await anext(stream)
        await until(diary.read)
    assert diary.read() == ["runs", "asked"]
    assert stream.job.error.exit == -signal.SIGKILL


def raises_in_the_end(diary):
    try:
        while True:
            yield bytes(2_000_000)
    finally:
        diary("ends")
        raise ValueError("in the end")


async def raises_in_the_end_async(diary):
    try:
        while True:
            yield bytes(2_000_000)
    finally:
        diary("ends")
        raise ValueError("in the end")


def ignores_its_end(diary):
    while True:
        try:
            yield bytes(2_000_000)
        except GeneratorExit:
            diary("ends")


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("work", "error"),
    [
        (raises_in_the_end, ValueError),
        (raises_in_the_end_async, ValueError),
        (ignores_its_end, RuntimeError),
    ],
)
async def test_11_28_what_it_raises_in_the_end_is_logged(work, error, diary, caplog):
    async with stream_isolated(work, diary, grace=20) as stream:
        await anext(stream)
    assert diary.read()[0] == "ends"
    assert type(stream.job.error) is error
    [record] = caplog.records
    assert record.getMessage() == f"{work.__name__} raised while its stream was left"
    assert record.exc_info[1] is stream.job.error


@pytest.mark.one_loop
async def test_11_28_a_handler_of_its_own_counts(diary):
    """It may raise while an item is being sent; then that is cut short, and the rest is silence."""

    def work():
        def handle(*_):
            diary("asked")
            raise SystemExit(3)

        signal.signal(signal.SIGTERM, handle)
        return kept(diary)

    async with stream_isolated(work, grace=20) as stream:
        await anext(stream)
        # It sleeps where it has filled the channel, and nowhere else.
        await until(lambda: len(diary.read()) >= 2 and state_of(stream.job.pid) == "S")
        os.kill(stream.job.pid, signal.SIGTERM)
        await until(lambda: diary.read()[-1] == "ends")
        with pytest.raises(CallableStatusUnknownError) as caught:
            async for item in stream:
                assert item == bytes(2_000_000)
    assert diary.read()[-2:] == ["asked", "ends"]
    assert (caught.value.reason, caught.value.exit) == (Reason.EXIT, 3)


class ReadSlowly(bytes):
    """Takes its time to be pickled, and tells when that has begun."""

    def __reduce__(self):
        held[-1]("pickles")
        time.sleep(60)
        return bytes, (b"",)


@pytest.mark.one_loop
async def test_11_28_what_a_handler_of_its_own_raises_is_no_fault_of_an_items(diary):
    def work():
        def handle(*_):
            raise SystemExit(3)

        held.append(diary)
        signal.signal(signal.SIGTERM, handle)
        yield ReadSlowly()

    async with stream_isolated(work, grace=20) as stream:
        await until(lambda: diary.read()[-1:] == ["pickles"])
        os.kill(stream.job.pid, signal.SIGTERM)
        with pytest.raises(CallableStatusUnknownError) as caught:
            await anext(stream)
    assert (caught.value.reason, caught.value.exit) == (Reason.EXIT, 3)


@pytest.mark.one_loop
async def test_11_28_a_signal_of_somebody_elses_ends_it_as_ever(diary):
    async with stream_isolated(running, diary) as stream:
        await anext(stream)
        await until(diary.read)
        os.kill(stream.job.pid, signal.SIGTERM)
        with pytest.raises(CallableStatusUnknownError) as caught:
            await anext(stream)
    assert diary.read() == ["runs", "ends"]
    assert (caught.value.reason, caught.value.exit) == (Reason.SIGNAL, -signal.SIGTERM)


@pytest.mark.one_loop
async def test_11_28_what_it_forks_ends_by_the_signal_at_once():
    def work():
        pid = os.fork()
        if not pid:
            time.sleep(60)
            os._exit(0)
        os.kill(pid, signal.SIGTERM)
        yield os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    async with stream_isolated(work, grace=1) as stream:
        assert await anext(stream) == -signal.SIGTERM


# Items that can't be sent


def unsendable(diary):
    try:
        yield 1
        yield 2
        yield {"lock": threading.Lock()}
    finally:
        diary("ends")


async def unsendable_async(diary):
    try:
        yield 1
        yield 2
        yield threading.Lock()
    finally:
        await anyio.sleep(0)
        diary("ends")


def unsendable_and_raises(diary):
    try:
        yield from unsendable(diary)
    finally:
        raise ValueError("in the end")


async def unsendable_async_and_raises(diary):
    try:
        yield 1
        yield 2
        yield threading.Lock()
    finally:
        diary("ends")
        raise ValueError("in the end")


def unsendable_nested(diary):
    return itertools.chain(unsendable(diary))


WORDS = {
    unsendable_nested: "dict, could not be pickled: item 'lock': TypeError: cannot pickle",
    unsendable_async_and_raises: "when it was closed, its generator raised ValueError: in the end)",
    unsendable: "dict, could not be pickled: item 'lock': TypeError: cannot pickle '_thread.lock",
    unsendable_async: "_thread.lock, could not be pickled: TypeError",
    unsendable_and_raises: "(and when it was closed, its generator raised ValueError: in the end)",
}


@pytest.mark.parametrize("kind", ["fork", "zygote"])
async def test_11_28_an_item_that_cannot_be_pickled(kind, diary):
    async with Isolator(kind) as iso:
        chosen = list(WORDS.items())[: 5 if kind == "fork" else 1]
        for work, words in chosen:
            got = []
            diary(work.__name__)
            async with iso.stream(work, diary) as stream:
                with pytest.raises(CallableStatusUnknownError) as caught:
                    async for item in stream:
                        got.append(item)
            assert got == [1, 2]
            assert diary.read()[-2:] == [work.__name__, "ends"]
            assert caught.value.reason is Reason.RESULT_ENCODING
            assert caught.value.exit == 0
            assert "an item that fn yielded" in str(caught.value)
            assert words in str(caught.value)
        assert iso.statistics().reasons == {Reason.RESULT_ENCODING: len(chosen)}


@pytest.mark.one_loop
async def test_11_28_an_item_that_is_no_plain_data_or_too_large(diary):
    async with stream_isolated(unsendable, diary, codec="json") as stream:
        with pytest.raises(CallableStatusUnknownError) as caught:
            assert [item async for item in stream]
    assert caught.value.reason is Reason.RESULT_ENCODING
    assert "could not be encoded as json" in str(caught.value)
    limits = Limits(result_size=1000)
    async with stream_isolated(endless, diary, limits=limits) as stream:
        with pytest.raises(CallableStatusUnknownError) as caught:
            await anext(stream)
    assert caught.value.reason is Reason.RESULT_TOO_LARGE
    assert diary.read() == ["ends", "sends", "ends"]


# How the source of a map ends


@pytest.mark.parametrize("kind", ["sync", "always_ready", "waiting"])
async def test_11_28_closing_a_map_waits_for_its_source(kind):
    source = Source()
    generator = getattr(source, kind)()  # kept, or it would be closed as it is freed
    async with Isolator("fork", max_concurrency=8) as iso:
        async with iso.map(work, generator) as results:
            await anext(results)
            if kind == "waiting":
                await source.waits.wait()
        assert source.finished
        assert not iso.jobs()


class Slow(Source):
    """Takes its time to close."""

    def __init__(self):
        super().__init__()
        self.closing = anyio.Event()
        self.go_on = anyio.Event()

    async def slow(self):
        try:
            while True:
                self.read += 1
                yield Thing(0)
        finally:
            self.closing.set()
            await self.go_on.wait()
            self.finished = True


async def test_11_28_closing_waits_for_a_slow_source_and_cancels_it_with_itself():
    async with Isolator("fork", max_concurrency=2) as iso:
        source = Slow()

        async def close():
            await results.aclose()
            closed.append(source.finished)

        closed = []
        async with anyio.create_task_group() as group:
            results = iso.map(work, source.slow())
            await anext(results)
            group.start_soon(close)
            await source.closing.wait()
            await until(lambda: not iso.jobs())
            await anyio.wait_all_tasks_blocked()
            assert not closed
            source.go_on.set()
        assert closed == [True]
        source = Slow()
        async with anyio.create_task_group() as group:
            results = iso.map(work, source.slow())
            await anext(results)
            group.start_soon(results.aclose)
            await source.closing.wait()
            group.cancel_scope.cancel()
        assert not source.finished


async def test_11_28_what_the_source_raises_in_the_end(caplog):
    def source():
        try:
            yield from [0, 0, 0, 1]
        finally:
            closed.append(True)
            raise ValueError("in the end")

    closed = []
    async with Isolator("fork", max_concurrency=1) as iso:
        with pytest.raises(ValueError, match="in the end"):
            async with iso.map(time.sleep, source()) as results:
                await anext(results)
        assert not caplog.records
        # Where nobody waits for it, it is logged.
        async for _ in iso.map(time.sleep, source()):
            break
        await until(lambda: len(closed) == 2 and caplog.records)
        # Of two the first one is raised.
        with pytest.raises(TypeError):
            async for _ in iso.map(len, source()):
                pass
        texts = [record.getMessage() for record in caplog.records]
        assert texts == ["the source of a map raised while it was closed"] * 2


@pytest.mark.one_loop
async def test_11_28_only_generators_are_closed(tmp_path):
    """Another iterator may be wanted further."""
    (tmp_path / "lines").write_text("0\n0\n0\n0\n")
    async with Isolator("fork", max_concurrency=1) as iso:
        with open(tmp_path / "lines") as file:
            async with iso.map(len, file) as results:
                assert await anext(results) == 2
            assert not file.closed


async def test_11_28_a_source_may_close_its_own_map():
    async def source():
        yield 1
        await results.aclose()
        ended.set()
        yield 2

    async with Isolator("fork", max_concurrency=1) as iso:
        ended = anyio.Event()
        results = iso.map(double, source())
        with anyio.fail_after(10):
            assert [result async for result in results] in ([], [2])
            await ended.wait()
