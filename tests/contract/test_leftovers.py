"""What fn leaves unfinished comes to its end, as at the end of a program, before the answer."""

from __future__ import annotations

import atexit
import multiprocessing.util
import os
import sys
import tempfile
import threading
import time
import weakref

import anyio
import pytest

from aioisolate import Isolator, capture_isolated, run_isolated, stream_isolated
from tests import unfinished
from tests.helpers import alive, isolator, until
from tests.internals import execution, forked, unfinished_work

pytestmark = [
    pytest.mark.part(name="lifetime"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _as_if_nothing_had_been_logged():
    unfinished_work._logged.clear()
    unfinished_work._logged_untrusted.clear()


def warnings_in(caplog):
    return [line for line in caplog.messages if "did not end in time" in line]


@pytest.mark.one_loop
async def test_11_11_a_file_of_a_frame_is_written_out_before_the_error(start, tmp_path):
    async with isolator(start, "tests.unfinished") as iso:
        for fn in (unfinished.fail, unfinished.fail_with_a_cycle):
            path = tmp_path / fn.__name__
            with pytest.raises(LookupError):
                await iso.run(fn, path)
            assert path.read_text() == "written"


@pytest.mark.one_loop
async def test_11_11_frames_of_the_parent_are_left_alone():
    """What comes from there with an exception must not be finalized in the child."""
    finalized = []

    class Holder:
        def __del__(self):
            finalized.append(os.getpid())
            os.write(1, b"finalized")

    def raise_holding():
        holder = Holder()
        raise ValueError(holder.__class__)

    stored = []
    try:
        raise_holding()
    except ValueError as error:
        stored.append(error)

    def raise_again():
        raise stored[0]

    async with isolator({"start": "fork"}) as iso:
        outcome = await iso.capture(raise_again, output="capture")
        assert isinstance(outcome.error, ValueError)
        assert outcome.stdout == ""
    stored.clear()


IN_ORDER = [
    "exit function 2",
    "exit function 1",
    "finalizer",
    "finalizer of multiprocessing",
]


@pytest.mark.one_loop
@pytest.mark.parametrize("fn", [unfinished.leave_everything, unfinished.leave_and_fail])
async def test_11_11_everything_ends_before_the_answer(start, fn, tmp_path, monkeypatch):
    """Threads and processes first, then exit functions, then finalizers; none of the parent's."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # pytest has its own
    kept = unfinished.Thing()
    atexit.register(unfinished.never)
    finalizer = weakref.finalize(kept, unfinished.never, "a finalizer")
    multiprocessing_one = multiprocessing.util.Finalize(None, unfinished.never, exitpriority=1)
    try:
        async with isolator(start, "tests.unfinished") as iso:
            outcome = await iso.capture(fn, tmp_path, output="capture", timeout=20)
    finally:
        atexit.unregister(unfinished.never)
        finalizer.detach()
        multiprocessing_one.cancel()
    if fn is unfinished.leave_everything:
        assert outcome.unwrap() == "value"
    else:
        assert outcome.error.args == ("value",)
    assert outcome.exit == 0
    lines = outcome.stdout.splitlines()
    assert sorted(lines[:2]) == ["process", "thread"]
    assert lines[2:] == IN_ORDER
    assert "Exception ignored in atexit callback" in outcome.stderr
    assert "ZeroDivisionError" in outcome.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.one_loop
async def test_11_11_the_answer_comes_after_all_of_it(start, tmp_path):
    async with isolator(start, "tests.unfinished") as iso:
        await iso.run(unfinished.write_late, tmp_path / "late")
        assert (tmp_path / "late").read_text() == "written"


@pytest.mark.one_loop
async def test_11_11_processes_of_the_parent_are_left_alone(tmp_path):
    """Multiprocessing ends those that are daemons, at the end of whoever runs its exit function."""
    process = multiprocessing.get_context("fork").Process(
        target=time.sleep, args=(60,), daemon=True
    )
    process.start()
    try:
        async with Isolator("fork") as iso:
            outcome = await iso.capture(unfinished.leave_everything, tmp_path, output="capture")
        assert outcome.unwrap() == "value"
        assert "finalizer of multiprocessing" in outcome.stdout
        assert process.is_alive()
    finally:
        process.kill()
        process.join()
        process.close()


@pytest.mark.one_loop
async def test_11_11_a_call_that_leaves_nothing_waits_for_nothing(monkeypatch):
    """Its child is left to its server as soon as it has answered."""
    seen = []
    monkeypatch.setattr(unfinished_work.UnfinishedWork, "add", lambda self, body: seen.append(body))
    async with Isolator(preload=["tests.unfinished"], warm=1) as iso:
        assert await iso.run(abs, -1) == 1
        assert (await iso.capture(unfinished.leave_thread, "daemon", 60.0, True)).error is None
    assert await run_isolated(abs, -1) == 1
    assert seen == []


async def test_11_11_threads_that_do_not_end_are_named_once(start, caplog, tmp_path):
    name = f"sleeper of {start} {time.monotonic()}"
    async with isolator(start, "tests.unfinished", exit_timeout=0.05) as iso:
        for _ in range(2):
            pid = await iso.run(unfinished.leave_thread, name)
            assert not alive(pid)
        with pytest.raises(LookupError, match="value"):
            await iso.run(unfinished.leave_and_fail, tmp_path, exit_timeout=5)
    assert len(warnings_in(caplog)) == 1
    assert f"thread {name}" in caplog.text


@pytest.mark.one_loop
async def test_11_11_a_stranger_does_not_fill_the_log(caplog):
    """Names that are new for each call are logged a few times only, and do nothing there."""
    async with isolator(
        {"start": "zygote"}, "tests.unfinished", codec="json", exit_timeout=0.01
    ) as iso:
        for number in range(20):
            await iso.run(unfinished.leave_thread, f"{number} \x1b[2J\r\u202eforged")
    found = warnings_in(caplog)
    assert len(found) == 16
    assert all(text.isprintable() for text in found)
    # What is trusted is told of all the same.
    async with isolator({"start": "zygote"}, "tests.unfinished", exit_timeout=0.01) as iso:
        await iso.run(unfinished.leave_thread, "trusted")
    assert "thread trusted" in caplog.text


@pytest.mark.one_loop
async def test_11_11_the_deadline_ends_the_waiting(start, caplog):
    """Fn has returned, so its value is the answer."""
    async with isolator(start, "tests.unfinished") as iso:
        begun = time.monotonic()
        pid = await iso.run(unfinished.leave_thread, "late", timeout=1)
        assert time.monotonic() - begun < 4
        await until(lambda: not alive(pid))
    assert "thread late" in caplog.text


@pytest.mark.one_loop
async def test_11_11_processes_are_waited_for_likewise(caplog):
    async with Isolator("fork", exit_timeout=0.05) as iso:
        await iso.run(unfinished.leave_process, "worker")
    assert "process worker" in caplog.text


@pytest.mark.one_loop
@pytest.mark.parametrize("kind", ["fork", "zygote"])
async def test_11_11_pools_that_are_idle_end(kind, caplog):
    async with isolator({"start": kind}, "tests.unfinished", exit_timeout=20) as iso:
        assert await iso.run(unfinished.leave_pools, timeout=20) == [1, 2]
    assert warnings_in(caplog) == []


@pytest.mark.one_loop
@pytest.mark.parametrize("name", ["hangs", "crashes", "exits", "raises"])
async def test_11_11_whatever_an_exit_function_does_the_value_stays(name, caplog):
    async with Isolator("fork", exit_timeout=0) as iso:
        outcome = await iso.capture(unfinished.leave_exit_function, name, output="capture")
    assert outcome.unwrap() == name
    assert outcome.stdout == ("first raises\n" if name == "raises" else "")
    assert ("its exit functions" in caplog.text) == (name == "hangs")


@pytest.mark.one_loop
async def test_11_11_reports_of_a_thread_that_was_left_arrive(start):
    seen = []
    async with isolator(start, "tests.unfinished") as iso:
        assert await iso.run(unfinished.report_on, on_progress=seen.append, timeout=20) == "value"
    assert [progress.done for progress in seen] == list(range(300))


async def test_11_11_streams_and_coroutines():
    lines = []

    def note(stream, line):
        lines.append(line)

    async with stream_isolated(unfinished.count, output=note) as items:
        assert [item async for item in items] == [1, 2]
    assert await run_isolated(unfinished.wait, output=note) == "value"
    assert lines == ["exit function"] * 2


@pytest.mark.one_loop
async def test_11_11_the_answer_survives_modules_that_fn_has_replaced():
    async with Isolator("fork") as iso:
        outcome = await iso.capture(unfinished.replace_modules, output="capture")
    assert outcome.unwrap() == "value"
    assert outcome.stdout == "exit function\n"


async def test_11_11_cancelled_while_a_thread_is_waited_for():
    answered = anyio.Event()

    def note(event):
        if event.name == "result":
            answered.set()

    async with anyio.create_task_group() as group:

        async def call():
            await run_isolated(unfinished.leave_thread, "cancelled", on_event=note)

        group.start_soon(call)
        await answered.wait()
        group.cancel_scope.cancel()


@pytest.mark.one_loop
@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), True, None, "5"])
async def test_11_11_exit_timeout_is_a_number_of_seconds(bad):
    for call in (
        lambda: run_isolated(abs, 1, exit_timeout=bad),
        lambda: Isolator(exit_timeout=bad),
        lambda: stream_isolated(unfinished.count, exit_timeout=bad),
    ):
        with pytest.raises((TypeError, ValueError), match="exit_timeout"):
            await call()


@pytest.mark.one_loop
async def test_11_11_what_the_parent_makes_just_before_the_fork_is_the_parents(monkeypatch):
    """A directory that another task or thread makes while a call is prepared is not fn's."""
    made = []
    launch = forked.ForkedChild.launch

    def make_and_launch(child):
        made.append(tempfile.TemporaryDirectory())
        return launch(child)

    monkeypatch.setattr(forked.ForkedChild, "launch", make_and_launch)
    outcome = await capture_isolated(unfinished.leave_print, output="capture")
    assert outcome.stdout == "ran\n"
    with made[0] as path:
        assert os.path.isdir(path)


@pytest.mark.one_loop
async def test_11_11_threads_of_the_parent_cost_nothing(monkeypatch):
    """Python counts them in a child, too; a call that leaves nothing must not look for its own."""
    monkeypatch.setattr(execution.finalization, "unfinished_work", lambda **_: print("looked"))
    monkeypatch.delitem(sys.modules, "multiprocessing.util")
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="aioisolate-test")
    thread.start()
    try:
        assert (await capture_isolated(abs, -1, output="capture")).stdout == ""
        outcome = await capture_isolated(unfinished.leave_thread, "x", 0.0, output="capture")
        assert outcome.stdout in ("", "looked\n")  # it may have ended by then
    finally:
        end.set()
        thread.join()


@pytest.mark.one_loop
async def test_11_11_exit_functions_run_whatever_a_thread_does(caplog):
    """A class of threads has its own `join`, which takes no timeout; the timeout is a long one."""
    outcome = await capture_isolated(unfinished.leave_joiner, output="capture", exit_timeout=1e15)
    assert (outcome.unwrap(), outcome.stderr) == ("value", "")
    assert outcome.stdout == "thread\nexit function\n"
    assert warnings_in(caplog) == []


@pytest.mark.one_loop
async def test_11_11_what_the_parent_has_threading_call_is_the_parents():
    """`threading` has exit functions of its own, those of concurrent.futures among them."""
    calls = threading._threading_atexits
    threading._register_atexit(print, "the parent's")
    try:
        outcome = await capture_isolated(
            unfinished.leave_threading_exit, output="capture", timeout=20
        )
    finally:
        del calls[-1]
    assert outcome.stdout == "fn's\n"


@pytest.mark.one_loop
async def test_11_11_a_copy_that_an_exit_function_makes_does_not_speak_for_the_call(monkeypatch):
    heard = []
    monkeypatch.setattr(
        unfinished_work.UnfinishedWork, "add", lambda self, body: heard.append(body)
    )
    outcome = await capture_isolated(unfinished.leave_fork, output="capture")
    assert outcome.stdout == "ended\nended\n"
    assert len(heard) == 2


@pytest.mark.one_loop
async def test_11_11_nothing_is_printed_if_fn_has_closed_the_channel():
    outcome = await capture_isolated(unfinished.close_all, output="capture")
    assert "no result" in str(outcome.error)
    assert (outcome.stdout, outcome.stderr) == ("ended\n", "")
