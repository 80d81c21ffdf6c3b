"""The executor: CPython's own tests of executors, and what goes beyond them."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
import time
import unittest
import weakref
from pickle import PicklingError

import anyio
import pytest

from aioisolate import (
    CallableDidNotExecuteError,
    CallableExecutedError,
    CallableStatusUnknownError,
    Isolator,
    Reason,
)
from tests.functions import crash, divide_12, double
from tests.helpers import alive, until, wait_until

pytestmark = pytest.mark.part(name="servers")


@contextlib.contextmanager
def executor_beside(**options):
    """An executor whose event loop runs in another thread."""
    ready, done = threading.Event(), threading.Event()
    box = []

    async def main():
        async with Isolator("zygote", warm=2, max_concurrency=5, **options) as iso:
            box.append(iso.executor())
            ready.set()
            while not done.is_set():
                await anyio.sleep(0.01)

    thread = threading.Thread(target=lambda: anyio.run(main))
    thread.start()
    try:
        assert ready.wait(20)
        yield box[0]
    finally:
        done.set()
        thread.join()


# CPython's


def suites():
    """The test classes of CPython that fit any executor of processes."""
    name = "test.test_concurrent_futures"
    try:
        if sys.version_info >= (3, 12):
            found = [
                importlib.import_module(f"{name}.executor").ExecutorTest,
                importlib.import_module(f"{name}.test_wait").WaitTests,
                importlib.import_module(f"{name}.test_as_completed").AsCompletedTests,
            ]
        else:
            module = importlib.import_module(name)
            found = [module.ExecutorTest, module.WaitTests, module.AsCompletedTests]
    except ImportError:
        return []
    return found


# Constructor arguments of the stdlib's own executors.
NOT_OURS = {"test_max_workers_negative"}


def cases():
    for suite in suites():
        for name in dir(suite):
            if name.startswith("test_") and name not in NOT_OURS:
                yield pytest.param(suite, name, id=f"{suite.__name__}-{name}")


@pytest.mark.parametrize(("suite", "name"), list(cases()))
def test_cpythons(suite, name):
    with executor_beside() as executor:

        class Case(suite, unittest.TestCase):
            worker_count = 5

            def setUp(self):
                super().setUp()
                self.executor = executor
                self.executor_type = type(executor)

        result = unittest.TestResult()
        Case(name).run(result)
        for _, text in result.errors + result.failures:
            pytest.fail(text)
        if result.skipped:
            pytest.skip(result.skipped[0][1])


def test_cpythons_are_there():
    if not suites():
        pytest.skip("this Python comes without its own tests")
    assert len(list(cases())) > 15


# CPython's, of what once made its pools hang. What they expect of a pool is mostly that it is
# broken from then on; here one call is, and the table says how.

DEADLOCKS = {
    "test_error_at_task_pickle": (CallableDidNotExecuteError, Reason.ARGUMENT_ENCODING),
    "test_exit_at_task_unpickle": (CallableDidNotExecuteError, Reason.ARGUMENT_DECODING),
    "test_error_at_task_unpickle": (CallableDidNotExecuteError, Reason.ARGUMENT_DECODING),
    "test_crash_at_task_unpickle": (CallableDidNotExecuteError, Reason.CHILD_SETUP),
    "test_crash_during_func_exec_on_worker": (CallableStatusUnknownError, Reason.SIGNAL),
    "test_exit_during_func_exec_on_worker": (CallableStatusUnknownError, Reason.EXIT),
    "test_error_during_func_exec_on_worker": (RuntimeError, None),
    "test_crash_during_result_pickle_on_worker": (CallableStatusUnknownError, Reason.SIGNAL),
    "test_exit_during_result_pickle_on_worker": (CallableExecutedError, Reason.RESULT_ENCODING),
    "test_error_during_result_pickle_on_worker": (CallableExecutedError, Reason.RESULT_ENCODING),
    "test_error_during_result_unpickle_in_result_handler": (
        CallableExecutedError,
        Reason.RESULT_DECODING,
    ),
    "test_exit_during_result_unpickle_in_result_handler": (
        CallableExecutedError,
        Reason.RESULT_DECODING,
    ),
}
DEADLOCKS_NOT_OURS = {
    "test_shutdown_deadlock": "expects BrokenProcessPool: test_a_crash_after_the_shutdown",
    "test_shutdown_deadlock_pickle": "joins the stdlib's manager thread: likewise",
    "test_crash_big_data": "expects BrokenProcessPool: test_crashes_with_much_data",
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": "of the stdlib's wake-up pipe",
}


def deadlock_suite():
    name = "test.test_concurrent_futures"
    if sys.version_info >= (3, 12):
        name += ".test_deadlock"
    return pytest.importorskip(name, exc_type=ImportError).ExecutorDeadlockTest


@pytest.mark.parametrize("name", DEADLOCKS)
def test_cpythons_deadlocks(name):
    suite = deadlock_suite()
    kind, reason = DEADLOCKS[name]
    seen = []

    class Case(suite, unittest.TestCase):
        def _check_crash(self, error, func, *args, ignore_stderr=False):
            del error, ignore_stderr
            with executor_beside() as executor:
                futures = [executor.submit(func, *args) for _ in range(2)]
                seen.extend(future.exception(timeout=60) for future in futures)
                assert list(executor.map(double, range(3), timeout=60)) == [0, 2, 4]

    result = unittest.TestResult()
    Case(name).run(result)
    for _, text in result.errors + result.failures:
        pytest.fail(text)
    assert [(type(error), getattr(error, "reason", None)) for error in seen] == [(kind, reason)] * 2


def test_cpythons_deadlocks_are_all_thought_of():
    found = {name for name in dir(deadlock_suite()) if name.startswith("test_")}
    assert found <= {*DEADLOCKS, *DEADLOCKS_NOT_OURS}


class Poisoned:
    """Raises something when it is pickled."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


def test_a_crash_after_the_shutdown():
    with executor_beside() as executor:
        future = executor.submit(crash, 0.2)
        executor.shutdown(wait=True)
        assert future.done()
        assert future.exception().reason is Reason.SIGNAL
    with executor_beside() as executor:
        future = executor.submit(id, Poisoned(ValueError("not to be pickled")))
        executor.shutdown(wait=False)
        assert future.exception(timeout=60).reason is Reason.ARGUMENT_ENCODING


def test_crashes_with_much_data():
    data = "x" * (4 << 20)
    with executor_beside() as executor:
        for future in [executor.submit(crash, 0.0, data) for _ in range(10)]:
            assert future.exception(timeout=60).reason is Reason.SIGNAL
        assert executor.submit(len, data).result(60) == len(data)


@pytest.mark.parametrize("start", ["zygote", "template"])
@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, BaseException, PicklingError])
async def test_an_argument_that_raises_when_it_is_pickled(start, kind):
    """Passed on by a background task, a SystemExit would end the event loop."""
    async with Isolator(start) as iso:
        future = iso.executor().submit(id, Poisoned(kind("not to be pickled")))
        await until(future.done)
        for error in (future.exception(), (await iso.capture(id, Poisoned(kind()))).error):
            assert type(error) is CallableDidNotExecuteError
            assert error.reason is Reason.ARGUMENT_ENCODING
            assert type(error.__cause__) is kind
        assert await iso.run(double, 2) == 4


async def test_ctrl_c_while_an_argument_is_pickled_is_the_users():
    async with Isolator() as iso:
        with pytest.raises(KeyboardInterrupt):
            await iso.run(id, Poisoned(KeyboardInterrupt()))
        assert await iso.run(double, 2) == 4


# Ours


def test_nobody_but_the_future_keeps_its_result():
    init_processes = []
    with executor_beside() as executor:
        future = executor.submit(list, "abc")

        def look(future):
            init_processes.extend(gc.get_referrers(future.result()))

        future.add_done_callback(look)
        future.result()
    assert all(owner is future or owner is vars(future) for owner in init_processes), init_processes


def test_from_another_thread():
    with executor_beside() as executor:
        assert executor.submit(double, 21).result() == 42
        assert list(executor.map(double, range(5))) == [0, 2, 4, 6, 8]
        with pytest.raises(ZeroDivisionError):
            executor.submit(divide_12, 0).result()
        with pytest.raises(CallableStatusUnknownError) as died:
            executor.submit(os.abort).result()
        assert died.value.reason is Reason.SIGNAL
        assert executor.submit(os.getpid).result() != os.getpid()
        executor.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(double, 1)


def test_a_running_call_is_killed_by_cancelling_its_future(tmp_path):
    with executor_beside() as executor:

        def work(path):
            with open(path, "w") as file:
                file.write(str(os.getpid()))
            time.sleep(60)

        path = tmp_path / "pid"
        future = executor.submit(work, str(path))
        pid = int(wait_until(lambda: path.exists() and path.read_text()))
        assert future.running()
        assert future.cancel()
        assert future.cancelled()
        wait_until(lambda: not alive(pid))
        with pytest.raises(cf.CancelledError):
            future.result()
        done = executor.submit(double, 1)
        assert done.result() == 2
        assert not done.cancel()


async def test_with_a_loop_of_any_kind():
    async with Isolator("fork", max_concurrency=2) as iso:
        executor = iso.executor()
        futures = [executor.submit(double, n) for n in range(5)]
        await until(lambda: all(future.done() for future in futures))
        assert [future.result() for future in futures] == [0, 2, 4, 6, 8]
        blocked = executor.submit(time.sleep, 60)
        with pytest.raises(RuntimeError, match="would block the event loop"):
            executor.shutdown()
        blocked.cancel()
        executor.shutdown(wait=False)


@pytest.mark.asyncio
async def test_run_in_executor_and_its_cancellation(tmp_path):
    loop = asyncio.get_running_loop()
    async with Isolator("fork") as iso:
        executor = iso.executor()
        assert await loop.run_in_executor(executor, double, 4) == 8
        task = loop.run_in_executor(executor, time.sleep, 60)
        await until(lambda: iso.jobs() and iso.jobs()[0].pid)
        pid = iso.jobs()[0].pid
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not alive(pid))
        await until(lambda: not iso.jobs())


async def test_what_is_submitted_after_the_end():
    async with Isolator("fork") as iso:
        executor = iso.executor()
    future = executor.submit(double, 1)
    await until(future.done)
    with pytest.raises(RuntimeError, match="closed"):
        future.result()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_one_death_does_not_break_others(number):
    with executor_beside() as executor:
        slow = executor.submit(time.sleep, 0.3)
        bad = executor.submit(os.kill, 0, number)
        assert bad.exception().exit == -number
        assert slow.result() is None


# In the thread of the event loop


def blocking_ways(executor):
    """Every way to wait, blocking, for what an executor does."""
    return [
        lambda: executor.submit(double, 1).result(),
        lambda: executor.submit(double, 1).result(timeout=60),
        lambda: executor.submit(double, 1).exception(),
        lambda: list(executor.map(len, ["a"])),
        lambda: list(executor.map(len, ["a", "b"], chunksize=2, timeout=60)),
        lambda: cf.wait([executor.submit(double, 1)]),
        lambda: cf.wait([executor.submit(double, 1)], return_when=cf.FIRST_COMPLETED),
        lambda: list(cf.as_completed([executor.submit(double, 1)])),
    ]


async def test_11_9_blocking_the_loop_that_has_to_do_the_work_is_refused():
    async with Isolator("fork") as iso:
        executor = iso.executor()
        for way in blocking_ways(executor):
            with pytest.raises(RuntimeError, match=r"asyncio\.wrap_future"):
                way()
        # Who only looks is not in the way.
        future = executor.submit(double, 4)
        with pytest.raises(cf.TimeoutError):
            future.result(timeout=0)
        assert cf.wait([future], timeout=0).not_done == {future}
        await until(future.done)
        assert future.result() == 8
        assert future.exception() is None
        assert cf.wait([future]).done == {future}
        assert list(cf.as_completed([future])) == [future]


async def test_11_9_from_another_thread():
    def use(iso):
        executor = iso.executor()
        assert executor.submit(double, 4).result() == 8
        assert list(executor.map(double, range(4), chunksize=2, timeout=60)) == [0, 2, 4, 6]
        if sys.version_info >= (3, 14):
            assert list(executor.map(double, range(4), buffersize=2)) == [0, 2, 4, 6]
        futures = [executor.submit(double, number) for number in range(3)]
        assert cf.wait(futures).not_done == set()
        assert {future.result() for future in cf.as_completed(futures)} == {0, 2, 4}
        executor.shutdown()

    async with Isolator(max_concurrency=2) as iso:
        with cf.ThreadPoolExecutor(1) as threads:
            used = threads.submit(use, iso)
            await until(used.done)
            used.result()


def test_11_9_while_the_loop_does_not_run():
    """In its thread nobody else will run it; in another one somebody may."""
    with asyncio.Runner() as runner:
        iso = Isolator()
        runner.run(iso.__aenter__())
        future = iso.executor().submit(double, 4)
        with pytest.raises(RuntimeError, match="would block"):
            future.result()
        with cf.ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(future.result)
            runner.run(until(future.done))
            assert waiting.result() == 8
        runner.run(iso.aclose())


@pytest.mark.asyncio
async def test_11_9_futures_can_be_awaited():
    async with Isolator("fork") as iso:
        assert await asyncio.wrap_future(iso.executor().submit(double, 4)) == 8


@pytest.mark.one_loop
async def test_11_9_an_executor_keeps_its_isolator():
    iso = Isolator(warm=1)
    await iso.__aenter__()
    executor, reference = iso.executor(), weakref.ref(iso)
    del iso
    gc.collect()
    future = executor.submit(double, 4)
    await until(future.done)
    assert future.result() == 8
    await reference().aclose()
    del executor, future
    gc.collect()
    assert reference() is None


@pytest.mark.one_loop
async def test_11_9_nobody_waits_for_what_will_never_begin():
    async with Isolator("fork") as iso:
        executor = iso.executor()
        future = executor.submit(double, 4)  # and the loop has no turn any more
        iso._service.kill_now()
    with pytest.raises(RuntimeError, match="is closed"):
        future.result()
    executor.shutdown()
