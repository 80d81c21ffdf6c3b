"""Fork servers: what they inherit, what they refuse, how they die and are replaced."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
import textwrap
import threading
import time

import anyio
import pytest

from aioisolate import (
    CallableDidNotExecuteError,
    CallableStatusUnknownError,
    IsolationError,
    Isolator,
    Reason,
    report_progress,
)
from tests.functions import double
from tests.helpers import Stages, alive, python, until

pytestmark = [pytest.mark.dependencies, pytest.mark.part(name="servers")]


def pool_of(iso):
    return iso._service._source._pool


# What a fresh interpreter is like


def flags_but_for_the_path():
    """Return what it was started with; a fork server is always started with -P."""
    names = sys.flags.__match_args__
    return dict(zip(names, sys.flags, strict=True)) | {"safe_path": True}


async def test_a_fresh_interpreter_like_this_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIOISOLATE_TEST", "here")

    def look():
        return (
            os.getcwd(),
            os.environ.get("AIOISOLATE_TEST"),
            sys.executable,
            sys.path,
            flags_but_for_the_path(),
        )

    async with Isolator() as iso:
        cwd, variable, executable, path, flags = await iso.run(look)
        assert (cwd, variable, executable, flags) == (
            str(tmp_path),
            "here",
            sys.executable,
            flags_but_for_the_path(),
        )
        assert path == [entry or str(tmp_path) for entry in sys.path]
        assert "LD_BIND_NOW" not in await iso.run(lambda: dict(os.environ))
    async with Isolator(env={**os.environ, "AIOISOLATE_TEST": "chosen"}) as iso:
        assert (await iso.run(look))[1] == "chosen"


async def test_none_of_the_parents_memory_and_no_thread():
    async with Isolator() as iso:

        def look():
            loaded = {"asyncio", "anyio", "pytest"} & set(sys.modules)
            return loaded, len(os.listdir("/proc/self/task"))

        assert await iso.run(look) == (set(), 1)


async def test_the_parents_descriptors_do_not_get_there():
    """Hazards 8 and 11, for a server: not even those that are marked as inheritable."""
    read, write = os.pipe()
    os.set_inheritable(read, True)
    try:
        async with Isolator(warm=3) as iso:

            def look():
                found = []
                for name in os.listdir("/proc/self/fd"):
                    try:
                        found.append(os.readlink(f"/proc/self/fd/{name}"))
                    except OSError:
                        pass
                return found

            # Its channel; what else there is leads to /dev/null or is the scratch file.
            assert sum(target.startswith("socket:") for target in await iso.run(look)) == 1
            assert not [t for t in await iso.run(look) if t.startswith(("pipe:", "anon_inode"))]
    finally:
        os.close(read)
        os.close(write)


async def test_preload(tmp_path, monkeypatch):
    (tmp_path / "preloaded_module.py").write_text("import os\nPID = os.getpid()\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def look():
        import preloaded_module

        return preloaded_module.PID, os.getppid()

    async with Isolator(preload=["preloaded_module"]) as iso:
        pid, parent = await iso.run(look)
        assert pid == parent == pool_of(iso).pid
    async with Isolator() as iso:
        pid, parent = await iso.run(look)
        assert pid != parent


async def test_what_to_preload_is_logged(caplog):
    caplog.set_level(logging.DEBUG, "aioisolate.zygote")
    async with Isolator() as iso:
        for _ in range(2):
            assert await iso.run(double, 2) == 4
    told = [r.getMessage() for r in caplog.records if "preload" in r.getMessage()]
    assert told == ["each child imports tests.functions for itself: name it in preload"]


@pytest.mark.parametrize(
    ("source", "text"),
    [(None, "No module named"), ("raise ValueError('broken module')", "broken module")],
)
async def test_a_preload_that_fails(tmp_path, monkeypatch, source, text):
    if source:
        (tmp_path / "failing_module.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CallableDidNotExecuteError, match=text) as failed:
        async with Isolator(preload=["failing_module"]):
            pass
    assert failed.value.reason is Reason.CHILD_SETUP
    assert "Traceback" in failed.value.crash_traceback


async def test_a_preload_that_starts_a_thread_or_keeps_a_descriptor(tmp_path, monkeypatch):
    """Hazard 15: the server looks at the kernel's list, native threads included."""
    (tmp_path / "threading_module.py").write_text(
        textwrap.dedent("""
        import threading, time
        threading.Thread(target=time.sleep, args=(60,), name="lazybones", daemon=True).start()
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CallableDidNotExecuteError, match="has 2 threads"):
        async with Isolator(preload=["threading_module"]):
            pass


async def test_a_server_that_becomes_unfit_says_so(tmp_path, monkeypatch):
    async with Isolator() as iso:
        assert await iso.run(abs, -1) == 1
        # As if a preloaded module had opened it behind our back.
        (tmp_path / "late_module.py").write_text("import os\nFD = os.open('/dev/zero', 0)\n")
        pool_of(iso)._forkserver._send("import", "late_module")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert await iso.run(abs, -1) == 1


async def test_what_cannot_be_pickled_or_unpickled(tmp_path, monkeypatch):
    lock = threading.Lock()
    async with Isolator(warm=1) as iso:
        with pytest.raises(CallableDidNotExecuteError, match="could not be pickled") as refused:
            await iso.run(lambda: lock)
        assert refused.value.reason is Reason.ARGUMENT_ENCODING
        (tmp_path / "vanishing_module.py").write_text("def work(): return 1\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        import vanishing_module

        with pytest.raises(CallableDidNotExecuteError, match="vanishing_module") as refused:
            await iso.run(vanishing_module.work)
        assert refused.value.reason is Reason.ARGUMENT_DECODING
        assert await iso.run(abs, -1) == 1


def test_functions_of_main():
    result = python("""
        import asyncio
        from aioisolate import Isolator

        class Box:
            def __init__(self, x):
                self.x = x

        def work(x):
            return Box(x)

        class Oops(Exception):
            pass

        def fail():
            raise Oops("oops")

        async def main():
            async with Isolator() as iso:
                box = await iso.run(work, 3)
                print(type(box) is Box, box.x)
                try:
                    await iso.run(fail)
                except Oops as exc:
                    print(exc)

        if __name__ == "__main__":
            asyncio.run(main())
    """)
    assert result.stdout == "True 3\noops\n", result.stderr


async def test_what_cannot_be_sent():
    """A child that waits for a call that never comes would be waited for in turn."""
    fds = [os.dup(2) for _ in range(300)]  # more than one message carries
    try:
        async with Isolator(warm=1) as iso:
            with pytest.raises(CallableDidNotExecuteError, match="could not be sent") as refused:
                await iso.run(abs, -1, pass_fds=fds, start_timeout=None)
            assert refused.value.reason is Reason.ARGUMENT_ENCODING
            assert await iso.run(abs, -1, pass_fds=fds[:3]) == 1
    finally:
        for fd in fds:
            os.close(fd)


async def test_what_cannot_be_pickled_for_a_template():
    async with Isolator("template") as iso:
        with pytest.raises(CallableDidNotExecuteError, match="could not be pickled") as refused:
            await iso.run(abs, threading.Lock())
        assert refused.value.reason is Reason.ARGUMENT_ENCODING


@pytest.mark.asyncio
async def test_torch_after_a_parallel_region_here():
    """Hazard 15: a fork of this process would wait for threads of libgomp's that it has not."""
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def work():
        import torch

        return float(torch.ones(600, 600).mm(torch.ones(600, 600)).sum())

    assert torch.get_num_threads() >= 1
    here = work()
    torch.arange(1 << 22, dtype=torch.float32).mul_(2).sum()  # many threads, if there are CPUs
    async with Isolator(preload=["torch"], warm=1) as iso:
        assert await iso.run(work, timeout=60) == here
        assert await iso.run(work, timeout=60) == here


# Templates


async def test_a_template_is_a_snapshot():
    state = {"x": 1}
    lock = threading.Lock()

    def look():
        return state["x"], lock.locked()

    async with Isolator("template") as iso:
        state["x"] = 2
        with lock:
            assert await iso.run(look) == (1, False)
            # What did not exist then travels, as it is now.
            assert await iso.run(lambda x: x + state["x"], 1) == 3


def existing():
    return "as it is now"


async def test_a_template_finds_frozen_functions(monkeypatch):
    before = existing
    gc.collect()
    gc.freeze()
    try:
        async with Isolator("template") as iso:
            monkeypatch.setattr(sys.modules[__name__], "existing", None)
            # By name it would not be found here, where it has another value by now.
            assert await iso.run(before) == "as it is now"
    finally:
        gc.unfreeze()
        gc.collect()
        gc.freeze()


async def test_a_template_that_dies_says_so():
    async with Isolator("template", warm=1) as iso:
        assert await iso.run(abs, -1) == 1
        os.kill(pool_of(iso).pid, signal.SIGKILL)
        with pytest.raises(CallableDidNotExecuteError, match=r"killed|SIGKILL|died"):
            for _ in range(100):
                await iso.run(abs, -1)
                await anyio.sleep(0.01)


# Warm children


async def test_warm_children_are_there_before_and_used_once():
    async with Isolator(warm=2) as iso:
        pool = pool_of(iso)
        await until(lambda: pool.idle == 2)
        waiting = [worker.pid for worker in pool._idle]
        assert await iso.run(os.getpid) == waiting[0]
        assert await iso.run(os.getpid) == waiting[1]
        await until(lambda: pool.idle == 2)
        assert not set(waiting) & {worker.pid for worker in pool._idle}
        assert iso.statistics().idle == 2


async def test_children_forked_in_a_rush_are_let_go(monkeypatch):
    from tests.internals import pool as module

    monkeypatch.setattr(module, "_IDLE_PATIENCE", 0.05)
    async with Isolator(warm=1, max_concurrency=8) as iso:
        with anyio.move_on_after(0.01):
            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(iso.run, abs, 1)
        pool = pool_of(iso)
        await until(lambda: pool.idle <= 1 and len(pool._forkserver.workers) <= 1)


async def test_a_warm_child_that_died_is_never_handed_out():
    async with Isolator(warm=2) as iso:
        pool = pool_of(iso)
        await until(lambda: pool.idle == 2)
        for worker in list(pool._idle):
            os.kill(worker.pid, signal.SIGKILL)
        # At once, before anybody can have noticed; and later.
        assert await iso.run(abs, -1) == 1
        assert await iso.run(abs, -1) == 1
        await until(lambda: pool.idle == 2 and not any(w.ended for w in pool._idle))


# Its death


async def test_a_server_that_dies_is_replaced():
    """Hazard 40: running calls end with a typed error, queued ones go on."""
    async with Isolator(warm=1, max_concurrency=2) as iso:
        stages, errors, values = Stages(), [], []

        async def running():
            try:
                await iso.run(time.sleep, 60, on_event=stages)
            except IsolationError as exc:
                errors.append(exc)

        async def queued():
            values.append(await iso.run(double, 4))

        async with anyio.create_task_group() as group:
            group.start_soon(running)
            pid = await stages.reached("started")
            server = pool_of(iso).pid
            os.kill(server, signal.SIGSTOP)  # so that the next one has to wait
            while pool_of(iso).idle:
                pool_of(iso).let_go(pool_of(iso)._idle.popleft())
            group.start_soon(queued)
            await anyio.sleep(0.05)
            os.kill(server, signal.SIGKILL)
        assert not alive(pid)
        (error,) = errors
        assert isinstance(error, CallableStatusUnknownError)
        assert error.reason is Reason.SERVER_DIED
        assert values == [8]
        assert pool_of(iso).pid != server
        assert iso.statistics().restarts == 1


async def test_grandchildren_die_with_the_server():
    def work():
        import subprocess

        process = subprocess.Popen(["sleep", "60"])
        report_progress(process.pid)
        time.sleep(60)

    async with Isolator() as iso:
        seen = []

        def kill_server(progress):
            seen.append(progress.done)
            os.kill(pool_of(iso).pid, signal.SIGKILL)

        with pytest.raises(CallableStatusUnknownError):
            await iso.run(work, on_progress=kill_server)
        await until(lambda: not alive(seen[0]))


async def test_a_server_that_dies_again_and_again_says_why(tmp_path, monkeypatch):
    module = tmp_path / "fickle_module.py"
    module.write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    async with Isolator(preload=["fickle_module"]) as iso:
        assert await iso.run(abs, -1) == 1
        module.write_text("raise RuntimeError('no longer')")
        os.kill(pool_of(iso).pid, signal.SIGKILL)
        with pytest.raises(CallableDidNotExecuteError, match="no longer"):
            for _ in range(100):
                await iso.run(abs, -1)
                await anyio.sleep(0.01)
        module.write_text("")
        with anyio.fail_after(20):
            while True:
                try:
                    assert await iso.run(abs, -1) == 1
                    break
                except CallableDidNotExecuteError:
                    await anyio.sleep(0.05)


async def test_results_that_had_come_when_the_server_died_count():
    async with Isolator(max_concurrency=4) as iso:
        for _ in range(5):
            server = pool_of(iso).pid

            def kill_it():
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(60)

            with pytest.raises(CallableStatusUnknownError) as died:
                await iso.run(kill_it)
            assert died.value.reason is Reason.SERVER_DIED
            assert await iso.run(double, 3) == 6
            assert pool_of(iso).pid != server


def test_orphans_of_a_dead_server_are_collected_by_a_subreaper():
    """Hazard 36: as pid 1 of a container this process inherits them."""
    result = python("""
        import asyncio, ctypes, os, signal
        from aioisolate import Isolator

        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER

        def children():
            with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
                return file.read().split()

        async def main():
            async with Isolator(warm=3) as iso:
                server = await iso.run(os.getppid)
                os.kill(server, signal.SIGKILL)
                await asyncio.sleep(0.3)
                assert await iso.run(abs, -1) == 1
                assert str(server) not in children()
                assert len(children()) == 1, children()
            print(children())

        asyncio.run(main())
    """)
    assert result.stdout == "[]\n", result.stderr


async def test_children_that_die_while_they_wait_are_no_fork_bomb(monkeypatch, caplog):
    from tests.internals import pool as module

    monkeypatch.setattr(module, "_IDLE_DEATHS_MAX", 3)
    async with Isolator(warm=1) as iso:
        pool = pool_of(iso)
        killed = set()
        with anyio.fail_after(20):
            while "fork" not in caplog.text or "none is forked ahead" not in caplog.text:
                for worker in list(pool._idle):
                    if worker.pid not in killed:
                        killed.add(worker.pid)
                        os.kill(worker.pid, signal.SIGKILL)
                await anyio.sleep(0.005)
        assert len(killed) == 4
        assert await iso.run(abs, -1) == 1
        await until(lambda: pool.idle == 1)


# Hazards of forking a process with threads


def test_threads_with_locks_are_no_danger():
    """Hazards 14 and 15: the parent's threads hold every lock there is; calls go on."""
    result = python("""
        import asyncio, io, sys, threading, time
        from aioisolate import Isolator

        def hold(lock):
            with lock:
                time.sleep(60)

        async def main():
            import logging
            logging.getLogger().addHandler(handler := logging.StreamHandler())
            for lock in (handler.lock, threading.Lock()):
                threading.Thread(target=hold, args=(lock,), daemon=True).start()
            await asyncio.sleep(0.05)
            async with Isolator() as iso:
                print(sum([await iso.run(abs, -1) for _ in range(20)]))

        asyncio.run(main())
        import os; sys.stdout.flush(); os._exit(0)
    """)
    assert result.stdout == "20\n", result.stderr


def test_numpy_in_the_zygote_and_a_parallel_region():
    result = python("""
        import asyncio
        from aioisolate import Isolator
        import numpy as np

        def work(n):
            a = np.random.rand(n, n)
            return float((a @ np.linalg.inv(a)).trace())

        def draw():
            return np.random.randint(1 << 30)

        async def main():
            work(300)  # the parent's own pool of threads
            async with Isolator(preload=["numpy"]) as iso:
                for _ in range(3):
                    print(round(await iso.run(work, 300)))
                seeds = {await iso.run(draw) for _ in range(8)}
                print(len(seeds))

        asyncio.run(main())
    """)
    assert result.stdout.split() == ["300", "300", "300", "8"], result.stderr


async def test_the_loop_is_not_stalled_by_the_parents_size():
    """Hazard 41: the parent is not forked; each page of it would have to be faulted in anew."""
    pages = 10_000
    ballast = bytearray(pages << 12)
    ballast[::4096] = b"x" * pages
    async with Isolator(warm=1) as iso:
        for _ in range(5):
            await iso.run(abs, -1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        ballast[::4096] = b"y" * pages
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < pages // 2


# Where there are no pidfds


async def test_without_pidfds(monkeypatch, tmp_path):
    (tmp_path / "without_pidfds.py").write_text(
        "import os\nif hasattr(os, 'pidfd_open'): del os.pidfd_open\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    async with Isolator(preload=["without_pidfds"], warm=1) as iso:
        assert await iso.run(double, 2) == 4
        assert (await iso.capture(os.abort)).exit == -signal.SIGABRT
        stages = Stages()
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: iso.run(time.sleep, 60, on_event=stages))
            pid = await stages.reached("started")
            assert pool_of(iso)._forkserver.workers[pid].pidfd == -1
            group.cancel_scope.cancel()
        assert not alive(pid)
        outcome = await iso.capture(time.sleep, 60, timeout=0.1)
        assert isinstance(outcome.error, TimeoutError)
