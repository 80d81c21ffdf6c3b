"""What the Rust crate mem-isolate promises, as specifications; and its faults, absent."""

from __future__ import annotations

import ctypes
import os
import signal
import time

import anyio
import pytest

from aioisolate import (
    CallableDidNotExecuteError,
    CallableStatusUnknownError,
    capture_isolated,
    run_isolated,
)
from tests.helpers import Stages, until


def memory(name):
    with open("/proc/self/smaps_rollup") as file:
        fields = {line.split(":")[0]: line for line in file}
    return int(fields[name].split()[1]) * 1024


async def test_a_leak_is_not_seen_by_the_parent():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p

    def leak():
        # What the child has to itself: malloc may well hand out pages that the parent has freed,
        # which count as resident already, and become the child's own only when written to.
        before = memory("Private_Dirty")
        ctypes.memset(libc.malloc(ctypes.c_size_t(50 << 20)), 1, 50 << 20)
        return memory("Private_Dirty") - before

    await run_isolated(leak)
    before = memory("Rss")
    for _ in range(5):
        assert await run_isolated(leak) > 40 << 20
    assert memory("Rss") - before < 4 << 20


async def test_unit_and_strings_of_430_kb():
    assert await run_isolated(lambda: None) is None
    text = "word " * 86_000
    assert await run_isolated(lambda: text) == text


async def test_a_closure_that_mutates_and_one_that_is_used_up():
    counter = 0

    def count():
        nonlocal counter
        counter += 1
        return counter

    once = iter([1])
    assert [await run_isolated(count) for _ in range(3)] == [1, 1, 1]
    assert counter == 0
    assert [await run_isolated(next, once) for _ in range(2)] == [1, 1]


def test_signals_that_interrupt_system_calls():
    """EINTR at every step of a call."""

    async def calls():
        return [await run_isolated(lambda i=i: (time.sleep(0.005), i)[1]) for i in range(30)]

    hits = []
    before = signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        results = anyio.run(calls)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert results == list(range(30))
    assert hits


async def test_suspension_and_continuation():
    stages, results = Stages(), []

    async def call():
        results.append(await run_isolated(lambda: time.sleep(0.05) or "done", on_event=stages))

    def state():
        with open(f"/proc/{stages.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        os.kill(await stages.reached("started"), signal.SIGSTOP)
        await until(lambda: state() == "T")
        assert not results  # a stop is no end
        os.kill(stages.pid, signal.SIGCONT)
    assert results == ["done"]


async def test_exit_codes_are_never_messages():
    """There, exit(3) by the callable reads as "safe to retry"."""
    for code in range(1, 10):
        error = (await capture_isolated(os._exit, code)).error
        assert isinstance(error, CallableStatusUnknownError)
        assert not isinstance(error, CallableDidNotExecuteError)


async def test_a_panic_stays_in_the_child():
    with pytest.raises(ZeroDivisionError):
        await run_isolated(lambda: 1 // 0)
    assert await run_isolated(lambda: "next") == "next"
