"""The contract of a call, the same for every way of starting a child and on every loop."""

from __future__ import annotations

import _socket
import asyncio
import contextvars
import functools
import inspect
import logging
import os
import random
import socket
import subprocess
import threading
import time
import traceback
from types import CodeType

import anyio
import numpy as np
import pytest
import trio
import uvloop

from aioisolate import (
    CallableDidNotExecuteError,
    CallableStatusUnknownError,
    Exit,
    Outcome,
    Reason,
    capture_isolated,
    isolated,
    run_isolated,
)
from tests.conftest import run_on
from tests.helpers import Stages, gap_while, python

pytestmark = [pytest.mark.quick, pytest.mark.dependencies, pytest.mark.part(name="calls")]

ambient: contextvars.ContextVar[str] = contextvars.ContextVar("ambient", default="unset")


def double(x):
    return 2 * x


class Account:
    def __init__(self, balance):
        self.balance = balance
        self.lock = threading.Lock()

    def withdraw(self, amount):
        with self.lock:
            self.balance -= amount
            return self.balance

    def __call__(self, amount):
        return self.withdraw(amount)

    @classmethod
    def named(cls):
        return cls.__name__

    @staticmethod
    def fixed():
        return "fixed"


# Every kind of function


async def test_plain_function():
    assert await run_isolated(double, 21) == 42


async def test_lambda_and_closure_over_the_unpicklable():
    lock, (left, right) = threading.Lock(), socket.socketpair()
    module = os
    with left, right:
        assert await run_isolated(lambda: (lock.locked(), left.fileno(), module.sep)) == (
            False,
            left.fileno(),
            "/",
        )


async def test_bound_method_and_callable_object():
    account = Account(100)
    assert await run_isolated(account.withdraw, 30) == 70
    assert await run_isolated(account, 1) == 99
    assert await run_isolated(Account.named) == "Account"
    assert await run_isolated(Account.fixed) == "fixed"
    assert account.balance == 100


async def test_partial_carries_keywords():
    assert await run_isolated(functools.partial(int, base=2), "101") == 5


async def test_builtin():
    assert await run_isolated(sum, [1, 2, 3]) == 6


async def test_parameters_named_like_ours():
    def function(fn, self):
        return fn, self

    assert await run_isolated(function, 1, 2) == (1, 2)
    assert await isolated(function)(fn=1, self=2) == (1, 2)


async def test_mutations_never_come_back():
    items = [1, 2, 3]

    def mutate():
        items.clear()
        os.environ["AIOISOLATE_TEST"] = "child"
        os.chdir("/")
        return items

    before = os.getcwd()
    assert await run_isolated(mutate) == []
    assert items == [1, 2, 3]
    assert "AIOISOLATE_TEST" not in os.environ
    assert os.getcwd() == before


async def test_context_variables_are_seen():
    ambient.set("here")
    assert await run_isolated(ambient.get) == "here"

    async def set_it():
        assert ambient.get() == "here"
        ambient.set("there")
        return ambient.get()

    assert await run_isolated(set_it) == "there"
    assert ambient.get() == "here"


async def test_open_files_stay_usable(tmp_path):
    with open(tmp_path / "file", "w+") as file:

        def write():
            file.write("from the child")
            file.flush()

        await run_isolated(write)
        assert (tmp_path / "file").read_text() == "from the child"


async def test_sockets_only_if_passed():
    left, right = socket.socketpair()
    with left, right:
        with pytest.raises(OSError, match="Socket operation on non-socket"):
            await run_isolated(left.send, b"x")
        await run_isolated(left.send, b"x", pass_fds=[left.fileno()])
        assert right.recv(1) == b"x"


# async def


async def test_async_function_in_a_fresh_loop():
    async def work(x):
        await anyio.sleep(0.001)
        return x + 1

    assert await run_isolated(work, 1) == 2
    assert await run_isolated(functools.partial(work, x=1)) == 2
    assert await run_isolated(lambda: work(1)) == 2


async def test_async_function_runs_on_the_same_kind_of_loop(loop):
    async def kind():
        if loop == "trio":
            return trio.lowlevel.current_root_task() is not None
        return type(asyncio.get_running_loop()).__module__.startswith("uvloop")

    assert await run_isolated(kind) is (loop in ("trio", "uvloop"))


@pytest.mark.parametrize("inner", ["asyncio", "uvloop", "trio", "anyio", "get_event_loop"])
async def test_any_loop_can_be_started_inside(inner):
    async def work():
        await anyio.sleep(0.001)
        return 42

    def start():
        if inner == "asyncio":
            return asyncio.run(work())
        if inner == "uvloop":
            return uvloop.run(work())
        if inner == "trio":
            return trio.run(work)
        if inner == "anyio":
            return anyio.run(work)
        fresh = asyncio.new_event_loop()
        asyncio.set_event_loop(fresh)
        try:
            return asyncio.get_event_loop().run_until_complete(work())
        finally:
            fresh.close()

    assert await run_isolated(start) == 42


async def test_subprocess_of_an_async_function():
    async def work():
        result = await anyio.run_process(["echo", "hello"])
        return result.stdout

    assert await run_isolated(work) == b"hello\n"


# Results


@pytest.mark.parametrize("size", [0, 1, 4096, 65536, 65537, 10_000_000])
async def test_bytes_of_any_size(size):
    assert await run_isolated(lambda: b"x" * size) == b"x" * size


async def test_none():
    assert await run_isolated(lambda: None) is None


@pytest.mark.parametrize("scratch", ["memfd", "file"])
async def test_100_mb(scratch, monkeypatch, loop):
    if loop != "asyncio" and scratch == "memfd":
        pytest.skip("once is enough")
    if scratch == "file":  # without memfd the result streams through the pipe
        monkeypatch.delattr(os, "memfd_create")
    result = await run_isolated(lambda: (b"ab" * 50_000_000, "end"))
    assert len(result[0]) == 100_000_000
    assert result[0][-2:] == b"ab"
    assert result[1] == "end"


async def test_arrays_come_back_writable_and_private():
    shared = np.arange(1_000_000)
    array, other = await run_isolated(lambda: (shared * 2, shared[::2].copy()))
    assert array[1] == 2
    array[1] = 7
    other += 1
    assert array.sum() == shared.sum() * 2 + 5
    assert other[0] == 1


async def test_fortran_order_and_empty_arrays():
    array, empty = await run_isolated(
        lambda: (np.asfortranarray(np.ones((600, 700))), np.zeros((0, 5)))
    )
    assert array.flags.f_contiguous
    assert array.shape == (600, 700)
    assert empty.shape == (0, 5)


@pytest.mark.asyncio
async def test_a_gigabyte_without_a_second_copy():
    def resident():
        with open("/proc/self/smaps_rollup") as file:
            fields = {line.split(":")[0]: line for line in file}
        return int(fields["Anonymous"].split()[1]) * 1024

    before = resident()
    array = await run_isolated(lambda: np.ones(1 << 27))
    assert array.nbytes == 1 << 30
    assert array[0] == array[-1] == 1.0
    # Mapped from the memfd: nothing of it is this process's own until it is written to.
    assert resident() - before < 64 << 20


async def test_what_pickle_refuses_goes_by_cloudpickle():
    class Local:
        def __init__(self, x):
            self.x = x

    function = await run_isolated(lambda: lambda y: y + 1)
    assert function(1) == 2
    thing = await run_isolated(lambda: Local(3))
    assert type(thing) is Local
    assert thing.x == 3


# Where it can be called from


async def test_nested():
    async def outer():
        return await run_isolated(double, 4) + 1

    assert await run_isolated(outer) == 9


async def test_nested_in_a_plain_function(loop):
    assert await run_isolated(lambda: run_on(loop, run_isolated, double, 4)) == 8


async def test_hundreds_at_once():
    results = {}

    async def one(i):
        results[i] = await run_isolated(double, i)

    async with anyio.create_task_group() as group:
        for i in range(200):
            group.start_soon(one, i)
    assert results == {i: 2 * i for i in range(200)}


@pytest.mark.filterwarnings("ignore::aioisolate.ForkSafetyWarning")
def test_in_a_loop_of_another_thread(loop):
    results = []
    thread = threading.Thread(target=lambda: results.append(run_on(loop, run_isolated, double, 2)))
    thread.start()
    thread.join()
    assert results == [4]


def test_trio_in_guest_mode():
    # In a process of its own: trio keeps the thread that waits for it, and forks would warn.
    result = python(
        """
        import asyncio, trio
        from aioisolate import run_isolated

        async def in_trio():
            await trio.sleep(0.01)
            return await run_isolated(lambda: 6)

        async def host():
            loop = asyncio.get_running_loop()
            done = loop.create_future()
            trio.lowlevel.start_guest_run(
                in_trio,
                run_sync_soon_threadsafe=loop.call_soon_threadsafe,
                done_callback=done.set_result,
            )
            return (await done).unwrap()

        print(asyncio.run(host()))
        """
    )
    assert result.stdout == "6\n", result.stderr
    assert "ForkSafetyWarning: forking while 1 other thread" in result.stderr


async def test_outside_a_loop():
    def drive():
        coroutine = run_isolated(double, 1)
        try:
            coroutine.send(None)
        except RuntimeError as exc:
            return str(exc)

    assert "inside a running asyncio or trio event loop" in await run_isolated(drive)


# Time


async def test_timeout_says_how_long_and_where():
    def stuck():
        def deep():
            time.sleep(60)

        deep()

    with pytest.raises(TimeoutError) as caught:
        await run_isolated(stuck, timeout=0.3)
    error = caught.value
    assert isinstance(error, CallableStatusUnknownError)
    assert error.reason is Reason.TIMEOUT
    assert "0.3 s" in str(error)
    inner = next(const for const in stuck.__code__.co_consts if isinstance(const, CodeType))
    line = inner.co_firstlineno + 1
    assert f'File "{__file__}", line {line} in deep' in error.crash_traceback
    assert "stuck" in error.crash_traceback
    # Nothing of the machinery, nothing of the parent's own stack.
    assert "worker.py" not in error.crash_traceback
    assert "test_timeout_says" not in error.crash_traceback
    assert error.exit == -9
    assert 0.3 <= error.usage.wall < 30


async def test_timeout_in_code_that_never_returns_to_python():
    import re

    with pytest.raises(TimeoutError) as caught:
        await run_isolated(re.match, "(a*)*b", "a" * 60, timeout=0.2)
    assert caught.value.exit.signal == 9


async def test_grace_lets_fn_clean_up(tmp_path):
    import signal

    def work():
        signal.signal(signal.SIGTERM, lambda *_: (tmp_path / "cleaned").touch() or os._exit(7))
        time.sleep(60)

    with pytest.raises(TimeoutError) as caught:
        await run_isolated(work, timeout=0.2, grace=20)
    assert caught.value.exit == 7
    assert "in work" in caught.value.crash_traceback
    assert (tmp_path / "cleaned").exists()


async def test_grace_is_not_endless():
    import signal

    def work():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)

    with pytest.raises(TimeoutError) as caught:
        await run_isolated(work, timeout=0.1, grace=0.1)
    assert caught.value.exit == -9


async def test_no_time_at_all():
    with pytest.raises(CallableDidNotExecuteError) as caught:
        await run_isolated(double, 1, timeout=0)
    assert caught.value.reason is Reason.START_TIMEOUT
    assert isinstance(caught.value, TimeoutError)


async def test_a_timeout_that_does_not_matter():
    assert await run_isolated(double, 1, timeout=60) == 2
    assert await run_isolated(double, 1, timeout=float("inf"), start_timeout=None) == 2


@pytest.mark.asyncio
async def test_the_loop_goes_on_while_fn_runs():
    # The machine itself may stop for a moment, but hardly each time.
    gaps = [(await gap_while(lambda: run_isolated(time.sleep, 0.3)))[0] for _ in range(3)]
    assert min(gaps) < 0.2


# Outcome, events, decorator


async def test_outcome_of_a_value():
    outcome = await capture_isolated(double, 2)
    assert outcome.value == outcome.unwrap() == 4
    assert outcome.error is None
    assert outcome.exit == 0
    assert isinstance(outcome.exit, Exit)
    assert outcome.pid > 0
    assert outcome.stdout is outcome.stderr is None
    assert outcome.usage.wall > 0
    assert outcome.usage.fork > 0
    assert outcome.usage.max_rss > 1_000_000


async def test_usage_counts_cpu_time():
    def burn():
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass

    outcome = await capture_isolated(burn)
    assert outcome.usage.user + outcome.usage.system >= 0.2


async def test_outcome_of_an_exception_and_of_a_refusal(monkeypatch):
    outcome = await capture_isolated(int, "no number")
    assert isinstance(outcome.error, ValueError)
    with pytest.raises(ValueError, match="no number"):
        outcome.unwrap()
    with monkeypatch.context() as patch:
        patch.setattr(_socket, "socketpair", _raise(OSError(24, "Too many open files")))
        outcome = await capture_isolated(double, 1)
    assert outcome.error.reason is Reason.PIPE_CREATION
    assert outcome.pid is outcome.usage is outcome.exit is None


def _raise(exc):
    def fail(*_args, **_options):
        raise exc

    return fail


async def test_events_and_log_records(caplog):
    stages = Stages()
    with caplog.at_level(logging.DEBUG, "aioisolate"):
        await run_isolated(double, 1, on_event=stages)
    assert stages.names == ["spawn", "started", "result", "reaped"]
    times = [event.time for event in stages.seen]
    assert times == sorted(times)
    assert len({event.pid for event in stages.seen}) == 1
    text = caplog.text
    assert all(f"child {stages.pid} (double): {name}" in text for name in stages.names)


async def test_events_of_a_crash():
    stages = Stages()
    with pytest.raises(CallableStatusUnknownError):
        await run_isolated(os.abort, on_event=stages)
    assert stages.names == ["spawn", "started", "reaped"]


@pytest.mark.parametrize("stage", ["spawn", "started", "result", "reaped"])
async def test_an_event_callback_that_raises_ends_the_call(stage):
    def explode(event):
        if event.name == stage:
            raise ZeroDivisionError(stage)

    with pytest.raises(ZeroDivisionError, match=stage):
        await run_isolated(double, 1, on_event=explode)


async def test_decorator():
    @isolated
    def add(a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    @isolated(timeout=20)
    async def add_later(a, *, b):
        await anyio.sleep(0)
        return a + b

    assert await add(1) == 3
    assert await add(1, b=5) == 6
    assert await add_later(1, b=2) == 3
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    assert list(inspect.signature(add).parameters) == ["a", "b"]


async def test_decorated_method():
    class Thing:
        factor = 3

        @isolated
        def times(self, x):
            return self.factor * x

    assert await Thing().times(x=2) == 6
    assert await Thing().times(2) == 6


def test_decorator_refuses_bad_options_at_once():
    with pytest.raises(ValueError, match="timeout"):
        isolated(timeout=-1)
    with pytest.raises(TypeError):
        isolated(3)
    with pytest.raises(TypeError):
        isolated(no_such_option=1)


async def test_the_traceback_shows_the_lines_of_fn():
    def fails():
        raise LookupError("deep down")

    with pytest.raises(LookupError) as caught:
        await run_isolated(fails)
    text = "".join(traceback.format_exception(caught.value))
    assert 'raise LookupError("deep down")' in text
    assert "in fails" in text


async def test_children_have_random_numbers_of_their_own():
    np.random.seed(1)
    random.seed(1)
    results = [await run_isolated(lambda: (random.random(), np.random.random())) for _ in range(3)]
    assert len({x for x, _ in results}) == 3
    assert len({y for _, y in results}) == 3


async def test_programs_can_be_run_inside():
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    result = await run_isolated(run, ["echo", "hi"])
    assert result.stdout == "hi\n"
