"""multiprocessing within fn, and beside it; from Python 3.14 on it has a fork server by default."""

from __future__ import annotations

import json
import os
import sys

import pytest

from aioisolate import report_progress
from tests import multiprocess
from tests.helpers import alive, isolator, python, until

pytestmark = pytest.mark.part(name="start")

METHODS = ["fork", "spawn", "forkserver"]


def names():
    """What there is of multiprocessing's semaphores."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("sem.")}


@pytest.mark.one_loop
@pytest.mark.parametrize("method", METHODS)
async def test_a_pool_in_fn(start, method):
    before = names()
    async with isolator(start, "tests.multiprocess") as iso:
        numbers, pids, used = await iso.run(multiprocess.use_pool, method)
        assert numbers == [0, 1, 4]
        assert used == method
        await until(lambda: not any(map(alive, pids)))
        assert names() <= before


@pytest.mark.one_loop
@pytest.mark.parametrize("method", METHODS[1:])  # with "fork" it is gone at once
async def test_the_name_of_a_lock_goes_with_its_process(start, method):
    """Whoever would remove it elsewhere does not run here, or is killed with the rest."""
    async with isolator(start, "tests.multiprocess") as iso:
        name = await iso.run(multiprocess.hold_lock, method)
        assert name.startswith("/mp-")
        assert f"sem.{name[1:]}" not in names()
        with pytest.raises(LookupError) as raised:
            await iso.run(multiprocess.hold_lock_and_fail, method)
        assert f"sem.{raised.value.args[0][1:]}" not in names()


@pytest.mark.one_loop
async def test_the_default(start):
    async with isolator(start, "tests.multiprocess") as iso:
        _, _, used = await iso.run(multiprocess.use_pool)
    assert used == ("forkserver" if sys.version_info >= (3, 14) else "fork")


@pytest.mark.one_loop
async def test_a_process_that_fn_leaves_ends_with_it(start):
    async with isolator(start, "tests.multiprocess") as iso:
        pid = await iso.run(multiprocess.leave_process, exit_timeout=0.1)
        await until(lambda: not alive(pid))


def leave_and_tell():
    multiprocess.leave_process(report_progress)


@pytest.mark.one_loop
async def test_a_process_of_fn_ends_at_the_deadline(start):
    pids = []
    async with isolator(start, "tests.multiprocess") as iso:
        with pytest.raises(TimeoutError):
            await iso.run(
                leave_and_tell, timeout=3, on_progress=lambda seen: pids.append(int(seen.done))
            )
    assert len(pids) == 1
    await until(lambda: not alive(pids[0]))


@pytest.mark.parametrize("method", METHODS)
def test_the_parents_own_goes_on(method):
    """Neither do children use it, nor does it end with them, nor does the parent hang."""
    result = python(
        """
        import asyncio, json, multiprocessing.forkserver, os, sys
        from aioisolate import Isolator, run_isolated
        from tests import multiprocess

        async def main(method):
            answers = {}
            for start in ("fork", "template", "zygote"):
                more = {"preload": ["tests.multiprocess"]} if start == "zygote" else {}
                async with Isolator(start=start, **more) as iso:
                    answers[start] = await iso.run(multiprocess.use_pool, method, timeout=30)
            return answers

        if __name__ == "__main__":
            method = sys.argv[1]
            before = multiprocess.use_pool(method)
            answers = asyncio.run(main(method))
            answers["after"] = multiprocess.use_pool(method)
            server = multiprocessing.forkserver._forkserver._forkserver_pid or 0
            print(json.dumps([server, before, answers]))
        """,
        method,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    server, before, answers = json.loads(result.stdout)
    assert (server in before[1]) == (method == "forkserver")
    for start, (numbers, pids, used) in answers.items():
        assert numbers == [0, 1, 4], start
        assert used == method
        assert (server in pids) == (start == "after" and method == "forkserver"), start
