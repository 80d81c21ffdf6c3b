"""Descriptors run out: here, in the fork server, in its child. Hazard 31, beyond single calls."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import time

import anyio
import pytest

from aioisolate import CallableDidNotExecuteError, IsolationError, Isolator, Reason
from tests import deeds
from tests.conftest import STARTS
from tests.helpers import alive, until


@pytest.fixture(params=[name for name in STARTS if name != "fork"])
def start(request):
    return STARTS[request.param]


@contextlib.contextmanager
def room_for(count):
    """So many descriptors may be opened, wherever there is a number free, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + count + 1, hard))
    fillers = []
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(count):
            os.close(fillers.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return set(map(int, file.read().split()))


def waits(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


async def outcomes_of(iso, count):
    found = []

    async def call():
        found.append(await iso.capture(abs, -1))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(call)
    return found


def check(outcomes):
    """Each has worked, or says what is the matter; return how many have worked."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    for error in errors:
        assert type(error) is CallableDidNotExecuteError
        assert error.reason is Reason.PIPE_CREATION, error
        assert isinstance(error.__cause__, OSError)
    return len(outcomes) - len(errors)


async def works_again(iso):
    """What was refused before may arrive a moment later."""
    with anyio.fail_after(60):
        while check(await outcomes_of(iso, 8)) < 8:
            await anyio.sleep(0.01)


async def test_none_left_here(start):
    """A pidfd that there is no room for is dropped by the kernel, and must not be waited for."""
    async with Isolator(**start, max_concurrency=8) as iso:
        await works_again(iso)  # and what it needs has been imported
        for count in (0, 3, 8, 10, 12, 16, 24):
            with room_for(count):
                worked = check(await outcomes_of(iso, 8))
            if not start.get("warm"):
                assert (worked == 0) == (count < 4)
            await works_again(iso)
        assert iso.statistics().restarts == 0


async def test_each_child_is_killed_by_its_own_pidfd(start):
    """Those that were dropped are missing, and no other child's comes in their place."""
    async with Isolator(**start, max_concurrency=12) as iso, contextlib.AsyncExitStack() as stack:

        async def begin(count):
            return [
                await stack.enter_async_context(iso.open_job(time.sleep, 60)) for _ in range(count)
            ]

        with room_for(14):
            jobs = await begin(6)
            await until(lambda: all(job.pid or job.done() for job in jobs))
        jobs += await begin(4)
        await until(lambda: all(job.pid or job.done() for job in jobs))
        running = [job for job in jobs if not job.done()]
        assert len(running) > 4
        while running:
            job = running.pop(0)
            job.cancel()
            with pytest.raises(IsolationError) as ended:
                await job.result()
            assert ended.value.reason is Reason.CANCELLED
            await until(lambda pid=job.pid: not alive(pid))
            assert all(alive(other.pid) and not other.done() for other in running)


async def test_fn_leaves_none(start):
    """What puts an exception into words is imported only then, and takes a descriptor."""
    async with Isolator(**start) as iso:
        with pytest.raises(OSError, match="Too many open files") as refused:
            await iso.run(deeds.open_for_good)
        assert refused.value.errno == errno.EMFILE


async def test_none_left_in_the_server(start):
    async with Isolator(**start, max_concurrency=8) as iso:
        await works_again(iso)
        server = iso._core._source._pool.pid
        old = resource.prlimit(server, resource.RLIMIT_NOFILE)
        used = sorted(map(int, os.listdir(f"/proc/{server}/fd")))
        for limit in (3, 5, 8, 50, used[-1], *range(used[-1] + 1, used[-1] + 6)):
            resource.prlimit(server, resource.RLIMIT_NOFILE, (limit, old[1]))
            check(await outcomes_of(iso, 8))
            resource.prlimit(server, resource.RLIMIT_NOFILE, old)
            await works_again(iso)
        pool = iso._core._source._pool
        assert pool.pid == server
        assert iso.statistics().restarts == 0
        # None that it could not watch is left, be it as a zombie.
        await until(lambda: children_of(server) == set(pool._zygote.wards))


async def test_none_left_in_the_child():
    async with Isolator(warm=1) as iso:
        pool = iso._core._source._pool
        # It rehearses at first, which takes descriptors, too.
        await until(lambda: pool.idle and waits(pool._idle[0].pid))
        resource.prlimit(pool._idle[0].pid, resource.RLIMIT_NOFILE, (3, 3))
        with pytest.raises(CallableDidNotExecuteError, match=os.strerror(errno.EMFILE)) as refused:
            await iso.run(print, "to be captured", output="capture")
        assert refused.value.reason is Reason.ARGUMENT_DECODING
        assert (await iso.capture(print, "captured", output="capture")).stdout == "captured\n"
