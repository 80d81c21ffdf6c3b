"""What the kernel's out-of-memory killer kills, in a real control group, and what is told of it."""

from __future__ import annotations

import os

import pytest

from tests.helpers import python, wait_until
from tests.internals import Cgroup, cgroup_tree

MiB = 1 << 20


@pytest.fixture
def entrance():
    """The file that lets processes into a control group of 256 MiB."""
    if cgroup_tree.delegated().memory is None:
        pytest.skip("no groups with the controller memory can be made here")
    group = Cgroup.create(256 * MiB, None)
    try:
        if group.homes[0].version == 2:
            pytest.skip("version 2 kills all of the group")
        yield os.path.join(group.homes[0].directory, "cgroup.procs")
    finally:
        assert group.kill(5)
        assert wait_until(group.remove)


COMMON = """
    import logging, os, signal, subprocess, sys, time
    import anyio
    from aioisolate import *
    from tests import actions
    from tests.helpers import until

    logging.basicConfig(format="%(name)s: %(message)s", level="WARNING")
    BOMB = "x = b'x' * (400 << 20)"

    def prefer(pid, score):
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write(str(score))

    def explode():
        done = subprocess.run([sys.executable, "-c", BOMB])
        assert done.returncode == -signal.SIGKILL

    async def told(call):
        try:
            await call
        except IsolationError as error:
            print(type(error).__name__, error.reason.name, str(error).partition("\\n")[0])

    open(sys.argv[1], "w").write(str(os.getpid()))
"""


def test_a_fork_server_and_innocent_calls(entrance):
    """Each with a limit that it keeps to: they die with their server, which is chosen first."""
    source = (
        COMMON
        + """
    async def main():
        async with Isolator(start="zygote", preload=["tests.actions"],
                            limits=Limits(memory="64 MiB")) as iso:
            assert await iso.run(actions.double, 4) == 8
            pool = iso._service._source._pool
            server = pool.pid
            async with anyio.create_task_group() as group:
                running = []
                for _ in range(2):
                    stages = []
                    running.append(stages)
                    call = iso.run(time.sleep, 60, on_event=stages.append)
                    group.start_soon(told, call)
                await until(lambda: all(
                    any(event.name == "started" for event in stages) for stages in running
                ))
                prefer(server, 1000)
                await anyio.to_thread.run_sync(explode)
            await until(lambda: pool.pid not in (0, server))
            print(await iso.run(actions.double, 5))

    anyio.run(main)
    """
    )
    done = python(source, entrance)
    assert done.returncode == 0, done.stderr
    killer = "the memory limit of this container (its cgroup)"
    told = (
        "CallableStatusUnknownError SERVER_DIED the child was killed while fn was running: "
        f"its fork server died (it was killed by {killer})"
    )
    assert done.stdout.split("\n") == [told, told, "10", ""]
    assert f"the fork server died (it was killed by {killer}); starting another" in done.stderr


@pytest.mark.parametrize("limited", [True, False])
def test_an_innocent_call(entrance, limited):
    """It is killed itself, for what somebody else has taken."""
    source = (
        COMMON
        + """
    async def main():
        limits = Limits(memory="64 MiB") if sys.argv[2] == "True" else Limits(cpu_time=60)
        async with Isolator(start="fork", limits=limits) as iso:
            stages = []
            async with anyio.create_task_group() as group:
                group.start_soon(told, iso.run(time.sleep, 60, on_event=stages.append))
                await until(lambda: any(event.name == "started" for event in stages))
                prefer(stages[0].pid, 1000)  # as it does itself where it can
                await anyio.to_thread.run_sync(explode)
            print(await iso.run(abs, -5))

    anyio.run(main)
    """
    )
    done = python(source, entrance, str(limited))
    assert done.returncode == 0, done.stderr
    told, *rest = done.stdout.split("\n")
    assert rest == ["5", ""]
    if limited:
        assert told.startswith("CallableStatusUnknownError SIGNAL ")
        assert "none of its processes had exceeded the limit of 67108864 bytes" in told
    else:  # what the container may have is all that there is to explain it
        assert told.startswith("MemoryLimitError MEMORY_LIMIT ")
    assert "the memory limit of this container (its cgroup)" in told
