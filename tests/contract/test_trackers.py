"""What a child leaves in /dev/shm goes with it, however it ends, and who removes it goes, too."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from multiprocessing import resource_tracker, shared_memory

import anyio
import pytest

from tests import multiprocess
from tests.helpers import alive, isolator, until, wait_until
from tests.internals import resource_trackers, unfinished_work

pytestmark = [
    pytest.mark.once,
    pytest.mark.part(name="lifetime"),
    pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]


def left(names):
    return sorted(set(names) & set(os.listdir("/dev/shm")))


def processes(mark):
    """Who removes things, of those whose environment has *mark*."""
    # Other tests may run beside this one.
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return [pid for pid in pids if is_one(pid, mark)]


def is_one(pid, mark):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return mark.encode() in file.read() and resource_trackers._is_tracker(pid)
    except OSError:
        return False


@pytest.mark.one_loop
@pytest.mark.parametrize("how", ["returns", "raises", "crashes", "exits", "hangs", "cancelled"])
async def test_11_14_nothing_stays_in_shared_memory(start, how, monkeypatch):
    names, told = [], anyio.Event()
    mark = f"test_trackers {uuid.uuid4()}"
    monkeypatch.setenv("AIOISOLATE_MARK", mark)

    def note(progress):
        names.extend(progress.message.split())
        told.set()

    async with isolator(start, "tests.multiprocess", output="null") as iso:
        async with anyio.create_task_group() as group:

            async def call():
                fn_does = "hangs" if how == "cancelled" else how
                timeout = 60.0 if how != "hangs" else 1.5
                await iso.capture(multiprocess.share, fn_does, on_progress=note, timeout=timeout)

            group.start_soon(call)
            await told.wait()
            assert len(names) == 2
            if how == "cancelled":
                group.cancel_scope.cancel()
        await until(lambda: not left(names))
    await until(lambda: not processes(mark))


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("kind", "codec"), [("fork", "pickle"), ("fork", "json"), ("zygote", "pickle")]
)
async def test_11_14_what_only_poses_as_a_tracker_ends_as_well(kind, codec, monkeypatch):
    """After a moment; and at once where fn is a stranger's."""
    pids, asked = [], []
    find = resource_trackers.find
    monkeypatch.setattr(
        resource_trackers, "find", lambda pid, **more: asked.append(pid) or find(pid, **more)
    )
    async with isolator({"start": kind}, "tests.multiprocess", codec=codec) as iso:
        await iso.capture(
            multiprocess.pose_as_tracker, on_progress=lambda seen: pids.append(seen.done)
        )
        await until(lambda: not alive(int(pids[0])))
    assert not (asked and codec == "json")


@pytest.mark.one_loop
@pytest.mark.parametrize("poses", [False, True])
@pytest.mark.parametrize("kind", ["fork", "zygote"])
async def test_11_14_who_forks_on_and_on_ends_with_its_group(kind, poses):
    here, there = os.pipe()
    try:
        async with isolator({"start": kind}, "tests.multiprocess") as iso:
            outcome = await iso.capture(multiprocess.fork_on, there, poses, pass_fds=[there])
            assert outcome.exit == 3, outcome
            os.close(there)
            there = -1
            os.set_blocking(here, False)

            def nobody_has_it():
                try:
                    return os.read(here, 1) == b""
                except BlockingIOError:
                    return False

            await until(nobody_has_it)
    finally:
        for fd in (here, there):
            if fd >= 0:
                os.close(fd)


@pytest.mark.parametrize(
    ("pid", "first", "last", "is_between"),
    [
        (5, 4, 9, True),
        (4, 4, 9, False),
        (10, 4, 9, False),
        (3, 30000, 9, True),
        (31000, 30000, 9, True),
        (20000, 30000, 9, False),
    ],
)
def test_11_14_numbers_that_were_given_out_since(pid, first, last, is_between):
    assert resource_trackers._is_between(pid, first, last) is is_between


@pytest.fixture
def _no_tracker_is_left():
    yield
    resource_tracker._resource_tracker._stop()


@pytest.mark.one_loop
@pytest.mark.usefixtures("_no_tracker_is_left")
@pytest.mark.parametrize("how", ["returns", "hangs", "unlinks", "imports"])
async def test_11_14_memory_of_the_parents_stays(start, how, capfd):
    """A child that attaches to it does not take it along, nor does it have to say so."""
    if how == "imports" and start["start"] != "zygote":
        pytest.skip("a copy has the modules of the parent")
    modules = ["tests.multiprocess"] if how != "imports" else []
    memory = shared_memory.SharedMemory(create=True, size=16)
    try:
        async with isolator(start, *modules) as iso:
            timeout = 0.5 if how == "hangs" else 20.0
            await iso.capture(multiprocess.attach, memory.name, how, timeout=timeout)
        assert bytes(memory.buf[:1]) == b"1"
        assert os.path.exists(f"/dev/shm/{memory.name}") == (how != "unlinks")
    finally:
        memory.close()
        if how != "unlinks":
            memory.unlink()
        else:
            resource_tracker.unregister(memory._name, "shared_memory")
    assert "Error" not in capfd.readouterr().err


@pytest.mark.one_loop
async def test_11_14_the_tracker_of_a_fork_server_is_not_its_childrens(monkeypatch):
    """It would end with the server only; and a call that leaves nothing must not look at it."""
    heard, names = [], []
    monkeypatch.setattr(
        unfinished_work.UnfinishedWork, "add", lambda self, body: heard.append(body)
    )
    async with isolator({"start": "zygote"}, "tests.shared_memory_on_import") as iso:
        assert await iso.run(abs, -1) == 1
        assert heard == []

        def note(progress):
            names.extend(progress.message.split())

        await iso.capture(multiprocess.share, "crashes", on_progress=note)
        assert len(names) == 2
        await until(lambda: not left(names))


@pytest.mark.one_loop
@pytest.mark.parametrize("kind", ["fork", "zygote"])
async def test_11_14_what_forks_all_the_time_ends_as_well(kind):
    """The group of a child that has a tracker is not killed by its number, but one by one."""
    async with isolator({"start": kind}, "tests.multiprocess") as iso:
        error = (await iso.capture(multiprocess.spread, 6, timeout=0.6)).error
        assert isinstance(error, TimeoutError)

        def rest():
            return [
                pid
                for pid in resource_trackers._members(error.pid, all_numbers=True)
                if not resource_trackers._is_tracker(pid)
            ]

        await until(lambda: not any(rest() for _ in range(20)), 5)
        await until(lambda: not resource_trackers.find(error.pid)[0])


def test_11_14_a_tracker_in_the_middle_of_execve_is_spared(monkeypatch):
    """Its parent goes on before it has a command line; seen under load only."""
    process = subprocess.Popen(["sleep", "300"], process_group=0)
    reads = []
    command_line = resource_trackers._command_line

    def has_none_yet(pid):
        reads.append(pid)
        return b"" if len(reads) < count else command_line(pid)

    try:
        wait_until(lambda: command_line(process.pid))
        monkeypatch.setattr(resource_trackers, "_command_line", has_none_yet)
        count = 3
        assert not resource_trackers._is_tracker(process.pid, time.monotonic() + 60)
        assert len(reads) == count
        reads.clear()
        count = 1000
        assert resource_trackers._is_tracker(process.pid, time.monotonic())
    finally:
        process.kill()
        process.wait()


def test_11_14_a_tracker_has_more_time_while_it_runs(monkeypatch):
    """Under load the start of its interpreter alone takes seconds."""
    runs = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    sleeps = subprocess.Popen(["sleep", "300"])
    try:
        wait_until(lambda: not resource_trackers._is_running(sleeps.pid))
        wait_until(lambda: resource_trackers._is_running(runs.pid))
        runner, sleeper = (
            resource_trackers.SparedTracker(runs.pid),
            resource_trackers.SparedTracker(sleeps.pid),
        )
        assert not runner.is_late()
        assert not sleeper.is_late()
        monkeypatch.setattr(resource_trackers, "PATIENCE", -1)
        assert sleeper.is_late()
        wait_until(lambda: not runner.is_late())
        monkeypatch.setattr(resource_trackers, "_PATIENCE_MAX", -1)
        assert runner.is_late()
    finally:
        for process in (runs, sleeps):
            process.kill()
            process.wait()
