"""Every wait has its deadline: faults 5 and 6 of issue 9."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from aioisolate import (
    CallableDidNotExecuteError,
    CallableStatusUnknownError,
    Isolator,
    Reason,
    run_isolated,
    stream_isolated,
)
from tests.functions import double
from tests.helpers import Stages, alive, error_of, isolator, python, until

pytestmark = pytest.mark.part(name="processes")

SERVED = [{"start": "zygote"}, {"start": "zygote", "warm": 2}]


def pool_of(iso):
    return iso._service._source._pool


def wait_for(path):
    """Tell that fn has begun, and wait until a file exists."""
    Path(f"{path} begun").touch()
    while not os.path.exists(path):
        time.sleep(0.005)
    return "seen"


def fail_after_file(path):
    wait_for(path)
    raise LookupError(path)


def crash_after_file(path):
    wait_for(path)
    os.kill(os.getpid(), signal.SIGSEGV)


# 6: the wait to begin


@contextmanager
def somebody_imports(tmp_path, monkeypatch, seconds=20):
    """Have another thread be in the middle of an import."""
    (tmp_path / "slow_module.py").write_text(
        textwrap.dedent(f"""
        import sys
        sys.modules["tests.contract.test_deadlines"].begun.set()
        sys.modules["tests.contract.test_deadlines"].go_on.wait({seconds})
        """)
    )
    monkeypatch.setitem(sys.modules, "tests.contract.test_deadlines", sys.modules[__name__])
    monkeypatch.syspath_prepend(str(tmp_path))
    begun.clear()
    go_on.clear()
    thread = threading.Thread(target=__import__, args=("slow_module",))
    thread.start()
    try:
        assert begun.wait(10)
        yield
    finally:
        go_on.set()
        thread.join()
        sys.modules.pop("slow_module", None)


begun = threading.Event()
go_on = threading.Event()


def assert_not_begun(error, reason=Reason.START_TIMEOUT):
    assert isinstance(error, CallableDidNotExecuteError)
    assert isinstance(error, TimeoutError)
    assert error.reason is reason


@pytest.mark.filterwarnings("ignore::aioisolate.ForkSafetyWarning")
async def test_9_6_the_timeout_covers_the_import_of_another_thread(tmp_path, monkeypatch):
    with somebody_imports(tmp_path, monkeypatch), anyio.fail_after(10):
        error = await error_of(run_isolated(double, 1, timeout=0.2))
        assert_not_begun(error)
        assert "within 0.2 s" in str(error)
        assert "slow_module" in str(error)
        async with Isolator("fork", timeout=0.2) as iso:
            assert_not_begun(await error_of(iso.run(double, 1)))
            assert iso.statistics().reasons == {Reason.START_TIMEOUT: 1}
        with pytest.raises(TimeoutError):
            async with stream_isolated(range, 3, timeout=0.2) as numbers:
                async for _ in numbers:
                    pass
        assert_not_begun(await error_of(run_isolated(double, 1, start_timeout=0.2)))


async def test_9_6_a_call_that_has_not_begun_and_one_that_has(start, tmp_path, monkeypatch):
    (tmp_path / "module_that_hangs.py").write_text("import time\ntime.sleep(60)\ndef fn(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    async with isolator(start) as iso:
        error = await error_of(iso.run(time.sleep, 60, timeout=0.3))
        assert isinstance(error, CallableStatusUnknownError)
        assert isinstance(error, TimeoutError)
        assert error.reason is Reason.TIMEOUT
        if start["start"] == "zygote":
            # The child imports the module of its argument before it can call fn.
            named = type("Named", (), {"__reduce__": lambda self: (__import__, (self.name,))})()
            named.name = "module_that_hangs"
            error = await error_of(iso.run(repr, named, timeout=0.3))
            assert_not_begun(error)
    assert_not_begun(await error_of(run_isolated(double, 1, timeout=0)))


async def test_9_6_the_timeout_counts_from_the_turn_on(start, tmp_path):
    name = str(tmp_path / "go on")
    stages = Stages()
    async with isolator(start, max_concurrency=1) as iso, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: iso.run(wait_for, name, on_event=stages))
        await stages.reached("started")
        results = []

        async def second():
            results.append(await iso.run(double, 3, timeout=5, queue_timeout=None))

        tasks.start_soon(second)
        await until(lambda: iso.statistics().queued)
        with anyio.fail_after(10):
            error = await error_of(iso.run(double, 1, queue_timeout=0.1))
            assert_not_begun(error, Reason.QUEUE_TIMEOUT)
            assert "0.1 s" in str(error)
            assert_not_begun(await error_of(iso.run(double, 1, queue_timeout=0)), error.reason)
        (tmp_path / "go on").touch()
    assert results == [6]


async def test_9_6_a_queue_timeout_for_all_calls(tmp_path):
    name = str(tmp_path / "go on")
    async with (
        Isolator(max_concurrency=1, queue_timeout=0.1) as iso,
        iso.open_job(wait_for, name) as job,
    ):
        await until(lambda: job.state == "running")
        assert_not_begun(await error_of(iso.run(double, 1)), Reason.QUEUE_TIMEOUT)
        future = iso.executor().submit(double, 1)
        await until(future.done)
        assert_not_begun(future.exception(), Reason.QUEUE_TIMEOUT)
        (tmp_path / "go on").touch()
        assert await job.result() == "seen"
        assert await iso.run(double, 2, queue_timeout=0) == 4


@pytest.mark.one_loop
async def test_9_6_bad_queue_timeouts():
    for bad, error in [(-1, ValueError), ("1", TypeError), (float("nan"), ValueError)]:
        with pytest.raises(error, match="queue_timeout"):
            Isolator(queue_timeout=bad)
        async with Isolator() as iso:
            with pytest.raises(error, match="queue_timeout"):
                await iso.run(double, 1, queue_timeout=bad)
    with pytest.raises(TypeError, match="queue_timeout"):
        await run_isolated(double, 1, queue_timeout=1)


# 5: a fork server that does not answer


@contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("start", SERVED, ids=["cold", "warm"])
async def test_9_5_another_server_takes_the_place_of_a_stopped_one(start, caplog):
    async with isolator(start, start_timeout=4, timeout=4) as iso:
        assert await iso.run(double, 1) == 2
        server = pool_of(iso).pid
        with stopped(server), anyio.fail_after(20):
            for number in range(6):
                assert await iso.run(double, number) == 2 * number
            if start.get("warm"):
                await until(lambda: pool_of(iso).pid not in (None, server))
            assert pool_of(iso).pid != server
            assert iso.statistics().restarts == 1
            await until(lambda: not alive(server))
    assert f"fork server {server} does not answer" in caplog.text


@pytest.mark.parametrize("start", SERVED, ids=["cold", "warm"])
@pytest.mark.parametrize("fn", [wait_for, fail_after_file, crash_after_file])
async def test_9_5_calls_of_a_retired_server_keep_their_results(start, fn, tmp_path):
    name = str(tmp_path / "go on")
    async with isolator(start, start_timeout=1) as iso, iso.open_job(fn, name) as job:
        # On a busy machine fn may not begin in time, and its call would end.
        await until(Path(f"{name} begun").exists)
        server = pool_of(iso).pid
        with stopped(server), anyio.fail_after(20):
            await until(lambda: pool_of(iso).pid not in (None, server))
            assert await iso.run(double, 1) == 2
            assert alive(server)
            assert alive(job.pid)
            (tmp_path / "go on").touch()
            if fn is wait_for:
                assert await job.result() == "seen"
            elif fn is fail_after_file:
                with pytest.raises(LookupError, match="go on"):
                    await job.result()
            else:
                error = await error_of(job.result())
                assert isinstance(error, CallableStatusUnknownError)
                assert "SIGSEGV" in error.crash_traceback or "Segmentation" in error.crash_traceback
            await until(lambda: not alive(server))


async def test_9_5_a_template_that_is_stopped_and_goes_on(loop):
    async with Isolator("template", start_timeout=4) as iso:
        assert await iso.run(double, 1) == 2
        server = pool_of(iso).pid
        with stopped(server), anyio.fail_after(20):
            error = await error_of(iso.run(double, 1))
            assert_not_begun(error)
            assert f"process {server}) does not answer" in str(error)
        with anyio.fail_after(20):
            while True:
                try:
                    assert await iso.run(double, 2) == 4
                    break
                except TimeoutError:
                    continue
        assert pool_of(iso).pid == server


async def test_9_5_cancelling_a_call_of_a_stopped_server(tmp_path):
    for start in ("zygote", "template"):
        async with Isolator(start, start_timeout=0.5) as iso:
            async with iso.open_job(wait_for, str(tmp_path / "never")) as job:
                await until(lambda job=job: job.state == "running")
                with stopped(pool_of(iso).pid), anyio.fail_after(20):
                    job.cancel()
                    error = await error_of(job.result())
                    assert error.reason is Reason.CANCELLED


async def test_9_5_closing_with_a_stopped_server(loop):
    for start in ("zygote", "template"):
        iso = await Isolator(start, warm=1).__aenter__()
        assert await iso.run(double, 1) == 2
        server = pool_of(iso).pid
        os.kill(server, signal.SIGSTOP)
        with anyio.fail_after(10):
            await iso.aclose()
        assert not alive(server)


async def test_9_5_a_server_whose_successor_hangs_in_an_import(tmp_path, monkeypatch):
    (tmp_path / "hanging_module.py").write_text(
        f"import os, time\nwhile os.path.exists({str(tmp_path / 'hang')!r}): time.sleep(0.01)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    async with Isolator(preload=["hanging_module"], start_timeout=0.5) as iso:
        assert await iso.run(double, 1) == 2
        (tmp_path / "hang").touch()
        os.kill(pool_of(iso).pid, signal.SIGKILL)
        with anyio.fail_after(10):
            await until(lambda: pool_of(iso).pid is None)
            error = await error_of(iso.run(double, 1))
        assert_not_begun(error)
        assert "is being started" in str(error)
        (tmp_path / "hang").unlink()
        await until(lambda: pool_of(iso).pid is not None)
        assert await iso.run(double, 2) == 4


@pytest.mark.one_loop
async def test_9_5_a_loop_that_was_held_up_proves_nothing():
    async with Isolator(start_timeout=0.5) as iso, iso.open_job(time.sleep, 2) as job:
        await until(lambda: job.state == "running")
        for _ in range(3):
            time.sleep(0.6)  # the event loop, too
            await anyio.sleep(0)
        assert await iso.run(double, 1) == 2
        assert iso.statistics().restarts == 0


def test_9_5_a_server_that_can_not_be_started_again(loop):
    """The interpreter has gone; when it is there again, so is the server."""
    done = python(
        f"""
        import os, signal, sys, anyio
        from aioisolate import Isolator

        async def main():
            async with Isolator(start_timeout=1) as iso:
                server = await iso.run(os.getppid)
                there, sys.executable = sys.executable, "/gone"
                os.kill(server, signal.SIGKILL)
                await anyio.sleep(0.1)
                with anyio.fail_after(20):
                    for _ in range(2):
                        try:
                            print(await iso.run(abs, -1))
                        except Exception as exc:
                            print(type(exc).__name__, exc)
                    sys.executable = there
                    while True:
                        try:
                            print(await iso.run(abs, -1))
                            break
                        except Exception:
                            pass

        anyio.run(main, backend={"trio" if loop == "trio" else "asyncio"!r})
        """
    )
    assert done.stdout.endswith("\n1\n"), done.stderr
    assert "is being started" in done.stdout or "/gone can't be executed" in done.stdout


async def test_9_5_what_a_retired_server_was_to_be_sent_names_nobody_elses_descriptors(
    tmp_path, caplog
):
    """Its socket is full, so requests wait here; when it goes on, their numbers are others'."""
    name = str(tmp_path / "go on")
    results = []
    async with Isolator(max_concurrency=500, start_timeout=60) as iso:
        pool = pool_of(iso)
        pool._forkserver._patience = 0.5
        async with anyio.create_task_group() as tasks, iso.open_job(wait_for, name) as job:
            await until(lambda: job.state == "running")
            server, forkserver = pool.pid, pool._forkserver

            async def call(number):
                results.append((number, await iso.run(abs, -number)))

            with stopped(server):
                for number in range(450):
                    tasks.start_soon(call, number)
                await until(lambda: forkserver._send_queue._messages)
                await until(lambda: pool.pid not in (None, server))
                assert not any(letter.passing for letter in forkserver._send_queue._messages)
            with anyio.fail_after(60):
                while len(results) < 450:
                    await anyio.sleep(0.01)
            (tmp_path / "go on").touch()
            assert await job.result() == "seen"
    assert sorted(results) == [(number, number) for number in range(450)]


async def test_9_5_an_import_takes_its_time(tmp_path, monkeypatch):
    """A server that imports what its children turned out to need is not stuck."""
    (tmp_path / "slow_learned.py").write_text("import time\ntime.sleep(2.5)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    async with Isolator(start_timeout=10) as iso:
        pool_of(iso)._forkserver._patience = 0.4
        server = pool_of(iso).pid
        pool_of(iso).learn("slow_learned")
        with anyio.fail_after(20):
            assert await iso.run(double, 1) == 2
        assert pool_of(iso).pid == server
        assert iso.statistics().restarts == 0


async def test_9_5_closing_twice_at_once(start, tmp_path):
    name = str(tmp_path / "never")
    iso = await Isolator(**start).__aenter__()
    server = None if start["start"] == "fork" else pool_of(iso).pid
    async with anyio.create_task_group() as tasks:
        errors = []

        async def call():
            errors.append(await error_of(iso.run(wait_for, name)))

        tasks.start_soon(call)
        await until(lambda: iso.jobs() and iso.jobs()[0].state == "running")
        tasks.start_soon(iso.aclose)
        await until(lambda: iso._service.state == "closing")
        with anyio.fail_after(20):
            await iso.aclose(cancel=True)
        assert iso._service.state == "closed"
        assert server is None or not alive(server)
    assert errors[0].reason is Reason.CLOSED


@pytest.mark.asyncio
async def test_9_5_closing_that_is_cancelled_natively():
    """Which no scope of anyio's holds up."""
    iso = await Isolator(warm=1).__aenter__()
    server = pool_of(iso).pid
    os.kill(server, signal.SIGSTOP)
    closing = asyncio.ensure_future(iso.aclose())
    await asyncio.sleep(0.2)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not alive(server)
    assert iso._service.state == "closed"
