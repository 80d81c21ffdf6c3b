"""What users read: refusals, errors, log records, and how objects show themselves."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import types

import anyio
import pytest

from aioisolate import (
    CallableDidNotExecuteError,
    IsolationError,
    Isolator,
    Limits,
    Outcome,
    capture_isolated,
    isolated,
    report_progress,
    run_isolated,
    stream_isolated,
)
from tests.helpers import error_of, python, until
from tests.internals import innermost, name_of, progress

pytestmark = [pytest.mark.once, pytest.mark.one_loop]


def numbers(n):
    yield from range(n)


async def numbers_async(n):
    for i in range(n):
        yield i


class Rows:
    def __call__(self, n):
        yield from range(n)

    def items(self, n):
        yield from range(n)


class Row:
    def __init__(self, number=0):
        self.number = number


def crash(*, signal_number=signal.SIGSEGV):
    os.kill(os.getpid(), signal_number)
    signal.pause()


def wait():
    threading.Event().wait()


# Refusals


async def test_11_30_a_keyword_of_the_function_names_partial():
    async with Isolator(start="fork") as iso:
        for call in (
            lambda: run_isolated(int, "7", base=8),
            lambda: capture_isolated(int, "7", base=8),
            lambda: iso.run(int, "7", base=8),
            lambda: iso.capture(int, "7", base=8),
            lambda: iso.open_job(int, "7", base=8).__aenter__(),
        ):
            with pytest.raises(TypeError, match=r"'base' is not .* functools\.partial\(.*base="):
                await call()
        for call in (
            lambda: stream_isolated(numbers, 7, base=8),
            lambda: iso.map(int, "7", base=8),
            lambda: isolated(base=8),
        ):
            with pytest.raises(TypeError, match=r"'base' is not .* functools\.partial\(.*base="):
                call()
        assert await iso.run(functools.partial(int, base=8), "7") == 7
        with pytest.raises(TypeError, match="did you mean 'timeout'"):
            await run_isolated(int, "7", timeuot=8)
        with pytest.raises(TypeError, match=r"'queue_timeout' is .* an option of an Isolator"):
            await run_isolated(int, "7", queue_timeout=8)
        for name in ("start", "sandbox"):
            with pytest.raises(TypeError, match=f"{name} belongs to the Isolator"):
                await iso.run(int, "7", **{name: "fork"})
    with pytest.raises(ValueError, match=r"Isolator\(start='zygote'\)"):
        await run_isolated(int, "7", start="zygote")


@pytest.mark.parametrize(
    "fn",
    [
        numbers,
        numbers_async,
        functools.partial(numbers, 3),
        functools.partial(functools.partial(numbers_async), 3),
        Rows(),
        Rows().items,
        lambda n: (yield n),
    ],
    ids=lambda fn: name_of(fn),
)
async def test_11_30_a_generator_function_is_for_stream(fn):
    with pytest.raises(TypeError, match=r"is a generator function.*Isolator\.stream"):
        await run_isolated(fn, 3)
    async with Isolator(start="fork") as iso:
        with pytest.raises(TypeError, match="is a generator function"):
            await iso.run(fn, 3)
        with pytest.raises(TypeError, match="is a generator function"):
            iso.map(fn, [3])
        future = iso.executor().submit(fn, 3)
        with pytest.raises(TypeError, match="is a generator function"):
            await asyncio.wrap_future(future)


async def test_11_30_what_only_looks_like_one_runs():
    assert (await run_isolated(Row, 5)).number == 5
    error = await error_of(run_isolated(lambda: numbers(3)))
    assert "fn returned a generator (stream_isolated() and Isolator.stream()" in str(error)


async def test_11_30_what_has_been_called_already_is_told_so():
    gc.collect()
    for made, text in (
        (numbers_async(3), r"the async generator numbers_async\(\).*run_isolated\(numbers_async, "),
        (numbers(3), r"the generator numbers\(\): it has been called already"),
        (asyncio.sleep(0), r"the coroutine sleep\(\): it has been called already"),
        (int("3"), "not 3: pass the function and its arguments separately"),
        (None, "not None: pass the function"),
    ):
        for call in (run_isolated, Isolator(start="fork").run):
            with pytest.raises(TypeError, match=text):
                await call(made)
    gc.collect()  # and no warning about a coroutine that was never awaited


async def takes_anything(*args):
    raise AssertionError(args)


class AsyncCallable:
    async def __call__(self, *args):
        raise AssertionError(args)


@pytest.mark.parametrize("option", ["output", "on_progress", "on_event"])
async def test_11_30_a_callback_that_would_not_run_is_refused(option):
    for callback in (
        takes_anything,
        functools.partial(takes_anything, 1),
        AsyncCallable(),
        AsyncCallable().__call__,
        numbers,
        numbers_async,
    ):
        async with Isolator(start="fork") as iso:
            for call in (
                lambda **options: run_isolated(report_progress, 1, **options),
                lambda **options: iso.run(report_progress, 1, **options),
                lambda **options: iso.open_job(report_progress, 1, **options).__aenter__(),
            ):
                with pytest.raises(TypeError, match=f"^{option} must be a plain function.*queue"):
                    await call(**{option: callback})
    with pytest.raises(TypeError, match="output must be a plain function"):
        Isolator(output=takes_anything)


# Errors


@pytest.mark.parametrize("fn", [crash, wait])
async def test_11_30_the_first_line_of_an_error_is_a_sentence(fn):
    error = await error_of(run_isolated(fn, timeout=1 if fn is wait else None))
    first, _, rest = str(error).partition("\n")
    line = r"line \d+\)$"
    wanted = {
        crash: rf"the child was killed by SIGSEGV while fn was running; it was in crash \(.*{line}",
        wait: rf"the child was killed: it took longer than 1 s; it was in \w+ \(.*{line}",
    }
    with pytest.raises(IsolationError, match=wanted[fn]):
        raise IsolationError(first, reason=error.reason)
    assert rest == error.crash_traceback


def test_11_30_the_innermost_frame_is_that_of_the_thread_that_matters():
    stack = (
        'Thread 0x1 [other] (most recent call first):\n  File "/a b.py", line 1 in other\n\n'
        "Current thread 0x2 (most recent call first):\n"
        '  Binary file "/lib/libc.so", at +0x1\n  File "/c.py", line 22 in <module>\n'
        '  File "/d.py", line 3 in below'
    )
    assert innermost(stack) == "<module> (/c.py, line 22)"
    assert innermost(stack.partition("\n\n")[0]) == "other (/a b.py, line 1)"
    assert innermost("") == innermost("no stack") == ""
    sending = f'  File "{progress.__file__}", line 5 in send\n'
    assert innermost(sending) == ""
    assert innermost(f'{sending}  File "/d.py", line 4 in rows\n') == "rows (/d.py, line 4)"


async def test_11_30_a_preload_that_fails_says_why_first(tmp_path, monkeypatch):
    (tmp_path / "broken_preload.py").write_text("def begin():\n    raise KeyError('x')\nbegin()\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module, says in (
        ("broken_preload", "KeyError: 'x'"),
        ("no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ):
        with pytest.raises(CallableDidNotExecuteError) as info:
            async with Isolator(preload=[module]):
                pass
        assert str(info.value).startswith(f"the fork server can't be used: {says}\nTraceback")


class TwoLines:
    def __reduce__(self):
        raise ValueError("one\ntwo")


async def test_11_30_what_others_say_is_put_into_one_line():
    error = await error_of(run_isolated(TwoLines))
    assert str(error).endswith("could not be pickled: ValueError: one two")
    assert str(await error_of(run_isolated(threading.Lock))).startswith("fn returned _thread.lock")


# Log records


async def test_11_30_records_name_the_function(caplog):
    with caplog.at_level(logging.DEBUG, "aioisolate"):
        async with Isolator() as iso:
            await iso.run(functools.partial(int, base=8), "7")
            await asyncio.wrap_future(iso.executor().submit(len, "abc"))
    told = [record.getMessage() for record in caplog.records]
    for name in ("int", "len"):
        stages = [text for text in told if f" ({name}): " in text]
        assert len(stages) == 4
        assert "reaped after" in stages[-1]


@pytest.mark.parametrize("known", [True, False])
async def test_11_30_an_idle_child_that_ends_is_told_of(caplog, known):
    async with Isolator(warm=1) as iso:
        pool = iso._service._source._pool
        await until(lambda: pool._idle)
        worker = pool._idle[0]
        if not known:  # as if the server had lost its status: somebody else had collected it
            worker.status = types.SimpleNamespace(exit=None)
            worker.ended = True
            worker.on_end()
        os.kill(worker.pid, signal.SIGKILL)
        await until(lambda: caplog.records)
        how = "SIGKILL" if known else "its exit status is unknown"
        assert caplog.records[0].getMessage() == (
            f"child {worker.pid} ended while it waited for a call: {how}"
        )


def test_11_30_a_template_leaves_no_socket_unclosed():
    done = python(
        """
        import warnings
        warnings.simplefilter("always")
        import anyio
        from aioisolate import Isolator

        async def main():
            async with Isolator(start="template", warm=1) as iso:
                assert await iso.run(len, "abc") == 3

        anyio.run(main)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# How objects show themselves


async def test_11_30_objects_show_what_they_are_about():
    iso = Isolator(start="fork")
    assert repr(iso) == "<Isolator start='fork': new>"
    async with iso:
        executor = iso.executor()
        assert repr(executor) == "<Executor: 0 calls not done>"
        assert repr(iso.stream(numbers, 3)) == "<Stream: not entered>"
        async with iso.open_job(wait) as job:
            assert re.fullmatch(rf"<Job {job.id} of wait: queued for \d+\.\d s>", repr(job))
            await until(lambda: job.pid)
            wanted = rf"<Job {job.id} of wait: running for \d+\.\d s in process {job.pid}>"
            assert re.fullmatch(wanted, repr(job))
            assert repr(iso) == "<Isolator start='fork': open, 1 running, 0 queued, 0 idle>"
        assert repr(job) == f"<Job {job.id} of wait: done, with {type(job.error).__name__}>"
        async with iso.stream(numbers, 3) as stream:
            assert [number async for number in stream] == [0, 1, 2]
            assert f"<Stream of <Job {stream.job.id} of numbers: done>" in repr(stream)
        results = iso.map(abs, [-1, -2])
        assert repr(results).startswith("<Results: ")
        assert [result async for result in results] == [1, 2]
        executor.shutdown()
        assert repr(executor) == "<Executor shut down: 0 calls not done>"
    assert repr(iso) == "<Isolator start='fork': closed, 0 running, 0 queued, 0 idle>"


async def test_11_30_an_outcome_is_shown_in_one_line():
    outcome = await capture_isolated(lambda: "x\n" * 1_000_000, output="capture")
    shown = repr(outcome)
    assert shown.startswith(f"<Outcome of process {outcome.pid}: returned 'x\\nx")
    assert "exit code 0" in shown
    failed = repr(await capture_isolated(crash))
    assert "failed with CallableStatusUnknownError: the child was killed by SIGSEGV" in failed
    refused = repr(Outcome(error=ValueError("a" * 1000)))
    assert refused.startswith("<Outcome without a process: failed with ValueError: aaa")
    for text in (shown, failed, refused):
        assert len(text) < 300
        assert "\n" not in text

    class Broken(Exception):
        def __str__(self):
            raise RuntimeError

    assert repr(Outcome(error=Broken())) == "<Outcome without a process: failed with Broken>"
    assert repr(Outcome(value=None)) == "<Outcome without a process: returned None>"


async def test_11_30_a_memory_error_that_says_nothing_leaves_no_colon():
    def run_out(*words):
        raise MemoryError(*words)

    limits = Limits(memory="1 GiB")
    assert str(await error_of(run_isolated(run_out, limits=limits))).endswith(" bytes")
    error = await error_of(run_isolated(run_out, "no room", limits=limits))
    assert str(error).endswith(" bytes: no room")
