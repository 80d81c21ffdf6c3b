"""Children of a thread that ends: they live as long as the process, and no longer."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import functools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import pytest

from aioisolate import CallEvent, Isolator, Sandbox, run_isolated
from tests.helpers import ROOT, alive, fork, forked, wait_until
from tests.internals import Descriptors, alive_pipe, is_open, registry

hazard = pytest.mark.hazard
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:forking while:aioisolate.ForkSafetyWarning"),
]


class Loop:
    """An event loop that runs now in this thread, now in that."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.loop.close()

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    def run_in_thread(self, coroutine):
        """Run it in a thread that has ended afterwards."""
        results: list = []
        thread = threading.Thread(target=lambda: results.append(self.run(coroutine)))
        thread.start()
        thread.join()
        # Its parent-death signal comes when the kernel is through with it.
        wait_until(lambda: not os.path.exists(f"/proc/self/task/{thread.native_id}"))
        return results[0]


async def begin(call, *args):
    """Begin a call, and come back once it runs."""
    running = asyncio.Event()

    def note(what: CallEvent) -> None:
        if what.name == "started":
            running.set()

    task = asyncio.ensure_future(call(*args, on_event=note))
    await running.wait()
    return task


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.005)
    return "done"


@hazard(35)
def test_11_10_a_child_outlives_the_thread_that_forked_it(tmp_path):
    with Loop() as loop:
        task = loop.run_in_thread(begin(run_isolated, wait_for, tmp_path / "go"))
        (tmp_path / "go").touch()
        assert loop.run(task) == "done"


@hazard(35)
def test_11_10_an_isolator_outlives_the_thread_that_entered_it(tmp_path, start):
    async def enter():
        iso = await Isolator(**start).__aenter__()
        return iso, await begin(iso.run, wait_for, tmp_path / "go")

    async def leave(iso, task):
        (tmp_path / "go").touch()
        assert await task == "done"
        assert await iso.run(abs, -1) == 1
        assert iso.statistics().restarts == 0
        await iso.aclose()

    with Loop() as loop:
        loop.run(leave(*loop.run_in_thread(enter())))


@hazard(35)
@pytest.mark.filterwarnings("ignore::aioisolate.SandboxWarning")
def test_11_10_so_do_those_in_sandboxes():
    boxes = [
        Sandbox.crash_guard(missing="warn"),
        Sandbox(missing="warn"),  # as root: another user
        Sandbox(subprocesses=True, missing="warn"),  # with an init, in namespaces
    ]
    read, write = os.pipe()

    async def enter():
        isos = [Isolator(start, sandbox=boxes[2]) for start in ("zygote", "template")]
        for iso in isos:
            await iso.__aenter__()
        calls = [iso.run for iso in isos]
        calls += [functools.partial(run_isolated, sandbox=box) for box in boxes]
        calls = [functools.partial(call, pass_fds=[read]) for call in calls]
        return isos, await asyncio.gather(*[begin(call, os.read, read, 1) for call in calls])

    async def leave(isos, tasks):
        os.write(write, b"x" * 5)
        assert await asyncio.gather(*tasks) == [b"x"] * 5
        for iso in isos:
            await iso.aclose()

    with Loop() as loop:
        loop.run(leave(*loop.run_in_thread(enter())))
    os.close(read)
    os.close(write)


def test_11_10_a_child_has_what_belongs_to_the_thread_that_calls():
    local = threading.local()

    async def call():
        local.value = "mine"
        return await run_isolated(lambda: local.value)

    with Loop() as loop:
        assert loop.run_in_thread(call()) == "mine"


# Begins a call of each kind in a thread, says who runs, and waits to be killed. What the system
# does not have is left out of the sandboxes.
KILLED = """
    import asyncio, os, sys, threading, time, warnings
    from aioisolate import Isolator, Sandbox, run_isolated

    warnings.simplefilter("ignore")
    GUARD = Sandbox.crash_guard(missing="warn")
    OTHER_USER = Sandbox(missing="warn")
    NAMESPACES = Sandbox(subprocesses=True, missing="warn")

    async def begin(call, sandbox=None):
        options = {} if sandbox is None else {"sandbox": sandbox}
        started = asyncio.get_running_loop().create_future()

        def note(event):
            if event.name == "started":
                started.set_result(event.pid)

        tasks.append(asyncio.ensure_future(call(time.sleep, 60, on_event=note, **options)))
        return await started

    async def main():
        async with (
            Isolator() as zygote,
            Isolator("template") as template,
            Isolator(sandbox=NAMESPACES) as confined,
            Isolator("template", sandbox=OTHER_USER) as confined_template,
        ):
            isos = [zygote, template, confined, confined_template]
            found = [begin(iso.run) for iso in isos]
            found += [begin(run_isolated, box) for box in (None, GUARD, OTHER_USER, NAMESPACES)]
            print(*await asyncio.gather(*found), flush=True)
            await asyncio.sleep(60)

    tasks = []
    threading.Thread(target=lambda: asyncio.run(main())).start()
    sys.stdin.readline()
    if os.fork() == 0:  # has what this process has, and lives on
        os.write(1, b"%d\\n" % os.getpid())  # a lock of sys.stdout may be held for ever
        time.sleep(60)
"""


@hazard(35)
def test_11_10_children_of_a_thread_die_with_the_process():
    command = [sys.executable, "-c", textwrap.dedent(KILLED)]
    pipe, env = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env) as process:
        try:
            pids = [int(pid) for pid in process.stdout.readline().split()]
            assert len(pids) == 8
            parents = {parent_of(pid) for pid in pids} - {process.pid}
            process.stdin.write("\n")
            process.stdin.flush()
            copy = int(process.stdout.readline())
            assert all(map(alive, pids))
        finally:
            process.kill()
        wait_until(lambda: not any(map(alive, {*pids, *parents})), 3)
        assert alive(copy)
        os.kill(copy, signal.SIGKILL)


def parent_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


@hazard(35)
@pytest.mark.parametrize("which", [0, 1])
def test_11_10_whichever_end_the_kernel_closes_first(which):
    """It closes the descriptors of a process that ends in no order that is promised."""
    fds = Descriptors()
    ends = alive_pipe.open_pipe(fds)
    pid = fork()
    if not pid:
        alive_pipe.tie(ends, os.getpid())
        fds.close_all()
        signal.pause()
        os._exit(0)
    try:
        wait_until(lambda: owner_of(ends[0]) == owner_of(ends[1]) == pid)
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        fds.close(ends[which])
        wait_until(lambda: not alive(pid))
    finally:
        fds.close_all()
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def owner_of(fd):
    return fcntl.fcntl(fd, fcntl.F_GETOWN)


def test_11_10_a_copy_of_the_process_has_no_end_of_such_a_pipe(tmp_path):
    """Nor has one that is forked later, and closing there what is not its own does no harm."""

    async def call():
        running = await begin(run_isolated, wait_for, tmp_path / "go")
        process = next(iter(registry._live))
        return running, process, process._ends

    def look():
        return [*map(is_open, ends)], process._fds.listed()

    with Loop() as loop:
        running, process, ends = loop.run_in_thread(call())
        assert [*map(is_open, ends)] == [True, True]
        (found, left), _ = forked(look)
        assert found == [False, False]
        assert not set(ends) & set(left)
        (tmp_path / "go").touch()
        loop.run(running)
        assert [*map(is_open, ends)] == [False, False]


def test_11_10_where_there_are_no_such_signals_the_parent_death_signal_is_left(monkeypatch):
    """A child that a thread has forked then ends with that thread."""

    def refuse(fd, what, *value):
        if what == fcntl.F_SETSIG:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return fcntl.fcntl(fd, what, *value)

    monkeypatch.setattr(
        alive_pipe, "_fcntl", SimpleNamespace(fcntl=refuse, F_SETSIG=fcntl.F_SETSIG)
    )
    with Loop() as loop:
        assert loop.run_in_thread(run_isolated(abs, -1)) == 1
