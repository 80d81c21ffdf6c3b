"""Cancellation at every point, and every way in which a loop or a parent can end."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import time

import anyio
import pytest

from aioisolate import capture_isolated, run_isolated
from tests.helpers import ROOT, Stages, alive, python, until, wait_until
from tests.internals import Process, registry, supervision

pytestmark = [pytest.mark.dependencies, pytest.mark.part(name="calls")]


def answer():
    return 42


async def test_cancel_scope_kills_and_reaps():
    stages = Stages()

    async def call():
        await run_isolated(time.sleep, 60, on_event=stages)

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await stages.reached("started")
        group.cancel_scope.cancel()
    # Not only dead but collected, by the time that the group is left.
    assert not os.path.exists(f"/proc/{stages.pid}")
    assert stages.names == ["spawn", "started", "reaped"]


async def test_fail_after():
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.1):
            await run_isolated(time.sleep, 60)
    assert time.monotonic() - started < 20


async def test_cancelled_before_it_begins():
    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_isolated(time.sleep, 60)
    assert scope.cancelled_caught


async def test_shielded_from_cancellation():
    with anyio.CancelScope() as outer:
        with anyio.CancelScope(shield=True):
            outer.cancel()
            assert await run_isolated(answer) == 42


async def test_failure_of_a_sibling():
    stages = Stages()

    async def fail():
        await stages.reached("started")
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: run_isolated(time.sleep, 60, on_event=stages))
            group.start_soon(fail)
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)
    assert not os.path.exists(f"/proc/{stages.pid}")


async def test_the_process_group_dies_too():
    stages = Stages()
    read, write = os.pipe()

    def work():
        child = subprocess.Popen(["sleep", "60"])
        os.write(write, str(child.pid).encode())
        time.sleep(60)

    async with anyio.create_task_group() as group:
        group.start_soon(lambda: run_isolated(work, on_event=stages, pass_fds=[write]))
        await anyio.wait_readable(read)
        grandchild = int(os.read(read, 20))
        group.cancel_scope.cancel()
    os.close(read)
    os.close(write)
    await until(lambda: not alive(grandchild))


@pytest.mark.asyncio
async def test_grace_on_cancellation(tmp_path):
    stages = Stages()

    def work():
        signal.signal(signal.SIGTERM, lambda *_: (tmp_path / "cleaned").touch() or os._exit(0))
        (tmp_path / "ready").touch()
        while True:  # a signal right before one long sleep would be handled only after it
            time.sleep(0.01)

    task = asyncio.create_task(run_isolated(work, grace=20, on_event=stages))
    await stages.reached("started")
    await until((tmp_path / "ready").exists)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # impatience does not shorten the grace, and is not lost either
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tmp_path / "cleaned").exists()


@pytest.mark.asyncio
async def test_asyncio_timeout_and_task_group():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await run_isolated(time.sleep, 60)
    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(run_isolated(time.sleep, 60))
            group.create_task(run_isolated(int, "x"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(run_isolated(time.sleep, 60), 0.1)


@pytest.mark.asyncio
async def test_sweep_over_time():
    """Cancel after every delay from zero to beyond the end, once and twice."""
    for round_ in range(150):
        task = asyncio.create_task(run_isolated(answer))
        delay = round_ * 0.00004
        end = time.perf_counter() + delay
        while time.perf_counter() < end:
            await asyncio.sleep(0)
        task.cancel()
        if round_ % 2:
            await asyncio.sleep(0)
            task.cancel()
        result = await asyncio.gather(task, return_exceptions=True)
        assert result == [42] or isinstance(result[0], asyncio.CancelledError)


@pytest.mark.parametrize("stage", ["spawn", "started", "result", "reaped"])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.asyncio
async def test_cancelled_at_each_stage(stage, times):
    def cancel(event):
        if event.name == stage:
            for _ in range(times):
                task.cancel()

    task = asyncio.create_task(run_isolated(answer, on_event=cancel))
    result = (await asyncio.gather(task, return_exceptions=True))[0]
    # After the last stage there is nothing left to be cancelled.
    assert isinstance(result, asyncio.CancelledError) or (stage == "reaped" and result == 42)


@pytest.mark.asyncio
async def test_cancelled_in_the_same_tick_as_the_end():
    for _ in range(30):
        task = asyncio.create_task(run_isolated(answer, on_event=lambda _event: None))
        original = supervision.Supervision._collect

        def collect(self, task=task, original=original):
            original(self)
            task.cancel()

        supervision.Supervision._collect = collect
        try:
            await asyncio.gather(task, return_exceptions=True)
        finally:
            supervision.Supervision._collect = original


@pytest.mark.asyncio
async def test_no_other_job_is_ever_hit():
    rng = random.Random(3)

    async def steady(i):
        return await run_isolated(lambda: (time.sleep(rng.random() * 0.02), i)[1])

    async def cancelled():
        task = asyncio.create_task(run_isolated(time.sleep, 60))
        await asyncio.sleep(rng.random() * 0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for start in range(0, 60, 20):
        jobs = [steady(i) for i in range(start, start + 20)]
        results = await asyncio.gather(*jobs, *(cancelled() for _ in range(20)))
        assert results[:20] == list(range(start, start + 20))


@pytest.mark.asyncio
async def test_cancelled_while_a_large_result_is_unpickled():
    def large():
        return [str(i) for i in range(300_000)]

    task = asyncio.create_task(run_isolated(large))
    await until(lambda: task.done() or any(t.name == "aioisolate-decode" for t in threads()))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: not any(t.name == "aioisolate-decode" for t in threads()))


def threads():
    import threading

    return threading.enumerate()


# The end of loops


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_loop_closed_under_a_running_call(kind, caplog):
    """Hazard 33."""
    import uvloop

    loop = uvloop.new_event_loop() if kind == "uvloop" else asyncio.new_event_loop()
    stages = Stages()
    task = loop.create_task(run_isolated(time.sleep, 60, on_event=stages))
    loop.run_until_complete(stages.reached("started"))
    assert alive(stages.pid)
    loop.close()
    gc.collect()
    assert not os.path.exists(f"/proc/{stages.pid}")
    assert "an event loop was closed while child" in caplog.text
    assert not task.done()
    task._log_destroy_pending = False
    del task
    gc.collect()


def test_coroutine_dropped():
    loop = asyncio.new_event_loop()
    stages = Stages()
    coroutine = run_isolated(time.sleep, 60, on_event=stages)
    task = loop.create_task(coroutine)
    loop.run_until_complete(stages.reached("started"))
    coroutine.close()
    assert not os.path.exists(f"/proc/{stages.pid}")
    task._log_destroy_pending = False
    loop.close()


def test_loop_shutdown_cancels():
    stages = Stages()

    async def main():
        task = asyncio.create_task(run_isolated(time.sleep, 60, on_event=stages))
        await stages.reached("started")
        return task

    task = asyncio.run(main())
    assert task.cancelled()
    assert not os.path.exists(f"/proc/{stages.pid}")


EXITING = """
    import asyncio, os, sys, threading, time
    from aioisolate import run_isolated

    def told(event):
        if event.name == "started":
            print(event.pid, flush=True)
            {then}

    async def main():
        await run_isolated(time.sleep, 60, on_event=told)

    {run}
"""


@pytest.mark.parametrize("then", ["sys.exit(3)", "os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_the_parent_ends(then):
    """Hazard 35: in an orderly way, in a hurry, or killed."""
    result = python(EXITING.format(then=then, run="asyncio.run(main())"), stdin=subprocess.DEVNULL)
    assert result.returncode in (3, -9)
    pid = int(result.stdout)
    wait_until(lambda: not alive(pid))


def test_the_interpreter_exits_beside_a_loop_in_a_daemon_thread():
    # Without the parent-death signal, as on other systems: what is left is the exit handler.
    run = """
    from tests.internals import bootstrap
    bootstrap.set_parent_death_signal = lambda number: None
    read, write = os.pipe()
    def run():
        try:
            asyncio.run(main())
        except Exception:
            pass  # Python itself may abort if a daemon thread prints while it ends

    threading.Thread(target=run, daemon=True).start()
    os.read(read, 1)
    """
    source = EXITING.format(then="os.write(write, b'x')", run=run)
    result = python(source, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    assert not alive(int(result.stdout))


def test_parent_killed_at_random_times():
    """Hazard 35: whatever the parent was doing, none of its children survives it."""
    source = f"""
import asyncio, os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from aioisolate import run_isolated
async def one():
    while True:
        await run_isolated(time.sleep, 0.01)
async def main():
    print("ready", flush=True)
    await asyncio.gather(*(one() for _ in range(4)))
asyncio.run(main())
"""
    rng = random.Random(5)
    marker = f"aioisolate-test-{os.getpid()}"
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", source, marker], stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            time.sleep(rng.random() * 0.05)
            process.kill()
    wait_until(lambda: not find(marker), 5)


def find(marker):
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if marker.encode() in file.read() and alive(int(name)):
                    found.append(int(name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


# Children that do not die


@pytest.mark.asyncio
async def test_an_unkillable_child(monkeypatch, caplog):
    """Hazard 37: as if the child was stuck in the kernel, where SIGKILL waits, too."""
    monkeypatch.setattr(supervision, "_KILL_PATIENCE", 0.1)
    stages = Stages()
    with monkeypatch.context() as patch:
        patch.setattr(Process, "signal", lambda *_: None)
        patch.setattr(Process, "signal_group", lambda *_: None)
        outcome = await capture_isolated(time.sleep, 60, timeout=0.1, on_event=stages)
    error = outcome.error
    assert error.reason.name == "WAIT"
    assert "still being watched" in str(error)
    assert "was killed and has not ended" in caplog.text
    os.kill(stages.pid, signal.SIGKILL)
    # The watch goes on, and collects it when it does end.
    await until(lambda: not os.path.exists(f"/proc/{stages.pid}"))
    await until(lambda: not any(t.name == "aioisolate-watch" for t in threads()))


def test_nothing_is_registered_any_more():
    assert not registry._live
