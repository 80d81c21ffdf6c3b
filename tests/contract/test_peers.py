"""Scenarios that the tests of related libraries have and the others here do not.

In our own words, after anyio's tests of `to_process` (output that floods, a main module that can't
be found), trio-parallel's (Ctrl-C in a worker, scripts without a guard, one after the other in
several loops and several at once) and pebble's (frozen exceptions, exceptions as results, SIGTERM
ignored, pools inside a worker, a callback that fails, closing while much data is on its way).
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time

import anyio
import pytest

from aioisolate import CallableExecutedError, IsolationError, Isolator, Reason
from tests.conftest import LOOPS, STARTS, run_on
from tests.functions import double
from tests.helpers import alive, python, until, wait_until

pytestmark = pytest.mark.once

# anyio


@pytest.mark.parametrize("output", ["null", "capture", lambda *_: None])
async def test_a_flood_of_output(start, output):
    def flood():
        for stream in (sys.stdout, sys.stderr):
            stream.write("x" * (1 << 20) + "\n")
        os.write(2, b"y" * (1 << 20))
        return "done"

    async with Isolator(**start, output=output) as iso:
        with anyio.fail_after(60):
            assert await iso.run(flood) == "done"


async def test_a_main_module_that_cannot_be_found(start, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "gone" / "__main__.py"))
    async with Isolator(**start) as iso:
        assert await iso.run(double, 2) == 4


# trio-parallel


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
async def test_a_signal_that_the_child_sends_itself_stays_there(start, number):
    async with Isolator(**start) as iso:
        with pytest.raises(IsolationError) as ended:
            await iso.run(signal.raise_signal, number)
        assert ended.value.exit == -number
        assert await iso.run(double, 2) == 4


@pytest.mark.parametrize("kind", ["zygote", "template"])
def test_a_script_without_a_guard(tmp_path, kind):
    """Nothing imports it a second time."""
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio\n"
        "from aioisolate import Isolator\n"
        "print('once')\n"
        "def work(x): return 2 * x\n"
        "async def main():\n"
        f"    async with Isolator({kind!r}) as iso:\n"
        "        print(await iso.run(work, 21))\n"
        "asyncio.run(main())\n"
    )
    result = python("import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')", script)
    assert result.stdout == "once\n42\n", result.stderr


async def calls(options, count):
    async with Isolator(**options, max_concurrency=2) as iso:
        for i in range(count):
            assert await iso.run(double, i) == 2 * i
        return await iso.run(os.getpid)


def test_one_loop_after_the_other(start):
    pids = {run_on(loop, calls, start, 2) for loop in LOOPS for _ in range(2)}
    assert len(pids) == 2 * len(LOOPS)


@pytest.mark.parametrize("options", [STARTS["zygote"], STARTS["warm"]], ids=["zygote", "warm"])
def test_loops_in_several_threads_at_once(options):
    found = []
    threads = [
        threading.Thread(target=lambda loop=loop: found.append(run_on(loop, calls, options, 10)))
        for loop in LOOPS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(found)) == len(LOOPS)


# pebble


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


def raise_frozen():
    raise FrozenError(3)


async def test_frozen_exceptions_and_exceptions_as_results(start):
    async with Isolator(**start) as iso:
        outcome = await iso.capture(raise_frozen)
        assert outcome.error == FrozenError(3)
        result = await iso.run(KeyboardInterrupt, "a value like any other")
        assert type(result) is KeyboardInterrupt
        with pytest.raises(CallableExecutedError) as lost:
            await iso.run(threading.Lock)
        assert lost.value.reason is Reason.RESULT_ENCODING


async def test_a_deadline_for_a_child_that_ignores_sigterm(start):
    def stubborn():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)

    async with Isolator(**start) as iso:
        began = time.monotonic()
        outcome = await iso.capture(stubborn, timeout=0.3, grace=0.2)
        assert isinstance(outcome.error, TimeoutError)
        assert outcome.exit == -signal.SIGKILL
        assert time.monotonic() - began < 20


async def test_pools_of_processes_inside_a_child(start):
    def pools():
        import concurrent.futures
        import multiprocessing

        context = multiprocessing.get_context("fork")
        with context.Pool(1) as pool:
            first = pool.apply(abs, (-1,))
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
            return first, executor.submit(abs, -2).result()

    async with Isolator(**start) as iso:
        assert await iso.run(pools, timeout=60) == (1, 2)


async def test_a_callback_that_fails_does_not_stop_the_executor(start, caplog):
    async with Isolator(**start) as iso:
        future = iso.executor().submit(double, 1)
        future.add_done_callback(lambda _: 1 / 0)
        after = iso.executor().submit(double, 2)
        await until(lambda: future.done() and after.done())
        assert (future.result(), after.result()) == (2, 4)
    assert "exception calling callback" in caplog.text


async def test_closing_while_much_data_is_on_its_way(start):
    data = bytes(64 << 20)
    async with Isolator(**start) as iso:
        async with iso.open_job(bytes.upper, data) as job:
            await until(lambda: job.pid)
            await iso.aclose(cancel=True)
            assert job.done()
        await until(lambda: not alive(job.pid))


async def test_nothing_to_map(start):
    async with Isolator(**start) as iso:
        assert [x async for x in iso.map(double, [])] == []


async def test_a_map_goes_on_after_errors_and_deadlines(start):
    async with Isolator(**start) as iso:
        results = iso.map(time.sleep, [0, "a", 60, 0], capture=True, timeout=1.0)
        kinds = [type(outcome.error).__mro__ async for outcome in results]
    assert [TypeError in kinds[1], TimeoutError in kinds[2]] == [True, True]
    assert kinds[0] == kinds[3] == (type(None), object)
