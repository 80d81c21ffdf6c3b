"""What fn leaves behind becomes nobody's zombie: fault 3 of issue 9.

The programs are children that are subreapers, as pid 1 of a container is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from aioisolate import run_isolated
from tests.conftest import LOOPS
from tests.helpers import alive, forked, isolator, python, until

pytestmark = [
    pytest.mark.part(name="processes"),
    pytest.mark.skipif(sys.platform != "linux", reason="subreapers are Linux's"),
]

PROGRAM = """
import ctypes, gc, json, os, signal, subprocess, sys, time
import anyio
from aioisolate import Isolator, run_isolated

ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
start, loop = json.loads(sys.argv[1])

def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]

def zombies():
    found = []
    for pid in children():
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                found.append(pid)
    return found

async def until(condition):
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.005)

def leave_sleepers():
    for _ in range(3):
        subprocess.Popen(["sleep", "60"])
    return os.getpid()

def leave_a_job():
    # In a process group of its own, as a shell with job control does.
    return subprocess.Popen(["sleep", "60"], process_group=0).pid

def leave_a_daemon():
    return subprocess.Popen(["sleep", "0.5"], start_new_session=True).pid

def crash():
    leave_sleepers()
    os.kill(os.getpid(), signal.SIGSEGV)

%s

backend, options = loop
anyio.run(main, backend=backend, backend_options=options)
"""


def subreaper(source, start, loop):
    """Run *source*, which defines main(), in a process that is a subreaper."""
    import json

    result = python(PROGRAM % source, json.dumps([start, LOOPS[loop]]))
    assert result.stdout == "done\n", result.stderr
    return result.stderr


def test_9_3_no_zombie_is_left_by_a_call(start, loop):
    subreaper(
        """
async def main():
    async with Isolator(**start) as iso:
        for fn in (leave_sleepers, crash, leave_sleepers):
            try:
                await iso.run(fn)
            except Exception:
                pass
            await until(lambda: not zombies())
        for _ in range(3):
            with anyio.move_on_after(0.2):
                await iso.run(lambda: (leave_sleepers(), time.sleep(60)))
            await until(lambda: not zombies())
    assert not children(), children()
    print("done")
        """,
        start,
        loop,
    )


def test_9_3_a_job_of_a_shell_and_a_daemon(start, loop):
    subreaper(
        """
async def main():
    async with Isolator(**start) as iso:
        job = await iso.run(leave_a_job)
        if start["start"] == "fork":
            assert not os.path.exists(f"/proc/{job}")
        daemon = await iso.run(leave_a_daemon)
        with open(f"/proc/{daemon}/stat") as file:
            parent = int(file.read().rpartition(")")[2].split()[1])
        if start["start"] == "fork":
            # Documented: whoever detaches itself from the call is this process's own child now.
            assert parent == os.getpid()
            os.waitpid(daemon, 0)
        else:
            assert parent != os.getpid()
            await until(lambda: not os.path.exists(f"/proc/{daemon}"))  # collected, not a zombie
            os.kill(job, signal.SIGKILL)
            await until(lambda: not os.path.exists(f"/proc/{job}"))
    assert not children(), children()
    print("done")
        """,
        start,
        loop,
    )


def test_9_3_no_zombie_is_left_by_a_server_that_is_killed_or_dropped(start, loop):
    if start["start"] == "fork":
        pytest.skip("there is no server")
    subreaper(
        """
async def main():
    async with Isolator(**start) as iso:
        async with anyio.create_task_group() as tasks:
            async def call():
                try:
                    await iso.run(lambda: (leave_sleepers(), time.sleep(60)))
                except Exception as exc:
                    assert "server died" in str(exc), exc
            tasks.start_soon(call)
            server, = children()
            await until(lambda: iso.jobs() and iso.jobs()[0].state == "running")
            await anyio.sleep(0.3)
            os.kill(server, signal.SIGKILL)
        await until(lambda: not zombies())
        assert len(children()) <= 1, children()
    assert not children(), children()
    iso = await Isolator(**start).__aenter__()
    await iso.run(leave_sleepers)
    import warnings
    warnings.simplefilter("ignore")
    del iso
    gc.collect()
    await until(lambda: not children())
    print("done")
        """,
        start,
        loop,
    )


def test_9_3_children_that_a_dead_server_has_not_told_of(loop):
    """It is killed at a random moment while it forks."""
    subreaper(
        """
async def main():
    async with Isolator(warm=6) as iso:
        for round in range(12):
            await until(lambda: iso._service._source._pool.pid)
            server = iso._service._source._pool.pid
            async with anyio.create_task_group() as tasks:
                async def call():
                    try:
                        await iso.run(abs, -1)
                    except Exception:
                        pass
                for _ in range(6):
                    tasks.start_soon(call)
                await anyio.sleep(0.001 * round)
                try:
                    os.kill(server, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # the one before, which is just being replaced
        await until(lambda: not zombies())
    assert not children(), children()
    print("done")
        """,
        {},
        loop,
    )


def test_9_3_no_zombie_is_left_by_a_server_that_is_stuck(start, loop):
    if start["start"] == "fork":
        pytest.skip("there is no server")
    subreaper(
        """
async def main():
    iso = await Isolator(**start).__aenter__()
    async with anyio.create_task_group() as tasks:
        async def call():
            try:
                await iso.run(lambda: (leave_sleepers(), time.sleep(60)))
            except Exception as exc:
                assert "closed" in str(exc) or "observed" in str(exc), exc
        tasks.start_soon(call)
        await until(lambda: iso.jobs() and iso.jobs()[0].state == "running")
        await anyio.sleep(0.3)
        server, = children()
        os.kill(server, signal.SIGSTOP)
        with anyio.fail_after(20):
            await iso.aclose(cancel=True)
    assert not children(), children()
    print("done")
        """,
        start,
        loop,
    )


def test_9_3_a_subreaper_whose_children_somebody_else_collects(start, loop):
    """With SIGCHLD ignored the kernel does, at any moment."""
    if start["start"] == "fork":
        pytest.skip("there is no server")
    subreaper(
        """
async def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    async with Isolator(**start) as iso:
        for _ in range(5):
            reasons = []
            async with anyio.create_task_group() as tasks:
                async def call():
                    try:
                        await iso.run(lambda: (leave_sleepers(), time.sleep(60)))
                    except Exception as exc:
                        reasons.append(exc.reason.name)
                for _ in range(2):
                    tasks.start_soon(call)
                await until(lambda: [j.state for j in iso.jobs()] == ["running"] * 2)
                await anyio.sleep(0.1)
                with anyio.fail_after(5):
                    os.kill(iso._service._source._pool.pid, signal.SIGKILL)
                    while len(reasons) < 2:
                        await anyio.sleep(0.005)
            assert reasons == ["SERVER_DIED"] * 2, reasons
            if start["start"] == "template":
                break
            await until(lambda: iso._service._source._pool.pid)
    await until(lambda: not children())
    print("done")
        """,
        {**start, "max_concurrency": 2},
        loop,
    )


@pytest.mark.one_loop
def test_9_3_an_interrupted_call_leaves_no_zombie(loop):
    subreaper(
        """
async def main():
    def interrupt(event):
        if event.name == "started":
            raise KeyboardInterrupt
    try:
        await run_isolated(lambda: (leave_sleepers(), time.sleep(60)), on_event=interrupt)
    except BaseException as exc:
        assert isinstance(exc, KeyboardInterrupt), exc
    await until(lambda: not zombies())
    assert not children(), children()
    print("done")
        """,
        {},
        loop,
    )


async def test_9_3_children_of_the_user_are_left_alone(start):
    """Those of this process that have ended are for whoever started them to collect."""
    ended = subprocess.Popen(["true"])
    async with isolator(start) as iso:
        assert await iso.run(lambda: subprocess.Popen(["sleep", "60"]).pid)
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert await iso.run(abs, -1) == 1
    await run_isolated(abs, -1)
    assert ended.wait() == 0


async def test_9_3_nothing_is_left_running(start):
    async with isolator(start) as iso:
        pid = await iso.run(lambda: subprocess.Popen(["sleep", "60"]).pid)
        await until(lambda: not alive(pid))


async def test_9_3_sigchld_is_fns_own(start):
    """A fork server handles it; its children do not."""

    def look():
        return signal.getsignal(signal.SIGCHLD), signal.set_wakeup_fd(-1)

    async with isolator(start) as iso:
        assert await iso.run(look) == (signal.SIG_DFL, -1)


@pytest.mark.one_loop
def test_9_3_many_orphans_do_not_keep_a_server_from_its_work(loop):
    """They are collected some at a time, and what the parent wants is looked at in between."""

    def serve():
        from tests.internals import Reaper

        reaper = Reaper()
        read, write = os.pipe()
        reaper.watch(read)
        for _ in range(300):
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.write(write, b"fork")
        turns = 0
        try:
            while True:
                readable, ended = reaper.wait(read)
                assert readable
                assert not ended
                turns += 1
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return turns

    assert forked(serve) == (3, 0)
