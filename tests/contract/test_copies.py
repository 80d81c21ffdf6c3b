"""A forked copy of a process owns none of its Isolators and calls: fault 2 of issue 9."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import gc
import inspect
import multiprocessing
import os
import sys
import time

import anyio
import pytest

from aioisolate import Isolator, run_isolated, stream_isolated
from tests.functions import double
from tests.helpers import Stages, alive, fork, isolator, python, until

pytestmark = pytest.mark.part(name="processes")


def in_a_copy(work) -> int:
    """Run *work* in a bare forked copy, as os.fork leaves it; return its exit code."""
    pid = fork()
    if not pid:
        code = 99
        try:
            code = work() or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def drop(state, iso) -> None:
    state.clear()
    gc.collect()
    iso.__del__()  # as when nothing refers to it any more: the stack of the parent does here


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_9_2_an_isolator_that_a_copy_drops(start):
    async with isolator(start) as iso:
        state = [iso]
        assert await iso.run(double, 1) == 2
        assert in_a_copy(lambda: drop(state, iso)) == 0
        with anyio.fail_after(20):
            assert await iso.run(double, 2) == 4


def test_9_2_an_at_fork_hook_that_drops_it(loop):
    backend = "trio" if loop == "trio" else "asyncio"
    options = {"use_uvloop": True} if loop == "uvloop" else {}
    source = f"""
    import anyio, gc, os
    from aioisolate import Isolator, run_isolated
    from tests.functions import double

    state = {{}}
    os.register_at_fork(after_in_child=lambda: (state.clear(), gc.collect()))

    async def main():
        state["iso"] = Isolator(warm=1)
        await state["iso"].__aenter__()
        with anyio.fail_after(20):
            for number in range(3):
                assert await state["iso"].run(double, number) == 2 * number
                assert await run_isolated(double, number) == 2 * number
        await state["iso"].aclose()
        print("done")

    anyio.run(main, backend={backend!r}, backend_options={options!r})
    """
    done = python(source)
    assert done.stdout == "done\n", done.stderr
    assert not done.stderr


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_9_2_a_multiprocessing_child_that_ends(start):
    async with isolator(start) as iso:
        assert await iso.run(double, 1) == 2
        process = multiprocessing.get_context("fork").Process(target=gc.collect)
        process.start()
        process.join()
        assert process.exitcode == 0
        process.close()
        with anyio.fail_after(20):
            assert await iso.run(double, 2) == 4


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_9_2_a_copy_in_which_a_running_call_is_collected(start, tmp_path):
    """The coroutine of the call is closed there: its reader is the parent's, and its child too."""
    stages = Stages()
    async with isolator(start) as iso, anyio.create_task_group() as tasks:
        results = []

        async def call():
            results.append(await iso.run(_wait_for_file, name, on_event=stages))

        name = str(tmp_path / "go on")
        tasks.start_soon(call)
        pid = await stages.reached("started")

        def close_it():
            found = [o for o in gc.get_objects() if inspect.iscoroutine(o) and o.cr_code is code]
            assert len(found) == 1
            with contextlib.suppress(RuntimeError):  # a loop of anyio's may await something there
                found[0].close()

        code = call.__code__
        assert in_a_copy(close_it) == 0
        assert alive(pid)
        with open(name, "w"):
            pass
        with anyio.fail_after(20):
            while not results:
                await anyio.sleep(0.01)
        assert results == ["seen"]


def _wait_for_file(name):
    while not os.path.exists(name):
        time.sleep(0.005)
    return "seen"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_9_2_using_it_in_a_copy_is_a_clear_error(start):
    async with isolator(start) as iso:
        executor = iso.executor()

        async def use():
            with pytest.raises(RuntimeError, match=f"belongs to process {os.getppid()}"):
                await iso.run(double, 1)
            with pytest.raises(RuntimeError, match="forked copy"):
                executor.submit(double, 1)
            return "ok"

        assert await run_isolated(use) == "ok"
        assert await iso.run(double, 3) == 6


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.one_loop
async def test_11_29_a_copy_is_refused_whatever_it_asks_for(start):
    async with isolator(start) as iso:
        executor = iso.executor()

        async def use():
            for close in (iso.aclose, functools.partial(iso.aclose, cancel=True)):
                with pytest.raises(RuntimeError, match=f"belongs to process {os.getppid()}"):
                    await close()
            for wait in (True, False):
                with pytest.raises(RuntimeError, match="forked copy"):
                    executor.shutdown(wait)
            for refused in (
                lambda: iso.capture(double, 1),
                lambda: iso.open_job(double, 1).__aenter__(),
                lambda: iso.stream(double, 1).__aenter__(),
                iso.__aenter__,
            ):
                with pytest.raises(RuntimeError):
                    await refused()
            for refused in (lambda: iso.map(double, [1]), iso.executor):
                with pytest.raises(RuntimeError, match="forked copy"):
                    refused()
            # What a stack that is unwound would do.
            with executor:
                pass
            await iso.__aexit__(None, None, None)
            return "ok"

        assert await run_isolated(use) == "ok"
        assert await iso.run(double, 3) == 6


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_9_2_a_copy_that_leaves_the_contexts(start):
    """An exception that unwinds the stack of a bare copy does not wait there for ever."""
    async with isolator(start) as iso:
        copy = False
        try:
            async with iso.open_job(_wait_for_file, "/nonexistent") as job:
                with anyio.fail_after(20):
                    while job.pid is None:
                        await anyio.sleep(0.005)
                pid = fork()
                if not pid:
                    copy = True
                    raise ZeroDivisionError
                with anyio.fail_after(20):
                    while os.waitpid(pid, os.WNOHANG) == (0, 0):
                        await anyio.sleep(0.005)
                assert alive(job.pid)
        except ZeroDivisionError:
            pass
        finally:
            if copy:
                os._exit(0)
        with anyio.fail_after(20):
            assert await iso.run(double, 3) == 6


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.one_loop
async def test_11_29_nobody_waits_in_a_copy_for_a_future_of_the_parents():
    async with Isolator("fork") as iso:
        done = iso.executor().submit(double, 1)
        await until(done.done)
        running = iso.executor().submit(time.sleep, 60)
        await until(running.running)

        def use():
            for ask in (
                running.result,
                functools.partial(running.result, 0),
                running.exception,
                lambda: concurrent.futures.wait([running]),
                lambda: next(concurrent.futures.as_completed([running])),
            ):
                with pytest.raises(RuntimeError, match="forked copy"):
                    ask()
            return done.result()

        assert await run_isolated(use, timeout=20) == 2
        running.cancel()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.one_loop
async def test_11_29_a_stream_of_the_parents_is_refused_in_a_copy():
    async with stream_isolated(_say_and_wait) as stream:
        assert await anext(stream) == 1

        async def use():
            with pytest.raises(RuntimeError, match="forked copy"):
                await anext(stream)
            return "ok"

        assert await run_isolated(use, timeout=20) == "ok"


def _say_and_wait():
    yield 1
    _wait_for_file("/nonexistent")


async def test_9_2_one_that_was_made_before_a_fork_is_entered_after_it():
    iso = Isolator()

    async def enter():
        async with iso:
            return await iso.run(double, 4)

    assert await run_isolated(enter) == 8
