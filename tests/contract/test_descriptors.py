"""Descriptors run out, or may not travel: here, in the fork server, in its child.

Hazard 31, beyond single calls.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import signal
import socket
import textwrap
import time

import anyio
import pytest

from aioisolate import (
    CallableDidNotExecuteError,
    CallableStatusUnknownError,
    IsolationError,
    Isolator,
    Reason,
)
from tests import actions
from tests.conftest import STARTS
from tests.helpers import alive, until
from tests.internals import messages


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
            await iso.run(actions.open_for_good)
        assert refused.value.errno == errno.EMFILE


async def test_none_left_in_the_server(start):
    async with Isolator(**start, max_concurrency=8) as iso:
        await works_again(iso)
        server = iso._service._source._pool.pid
        old = resource.prlimit(server, resource.RLIMIT_NOFILE)
        used = sorted(map(int, os.listdir(f"/proc/{server}/fd")))
        for limit in (3, 5, 8, 50, used[-1], *range(used[-1] + 1, used[-1] + 6)):
            resource.prlimit(server, resource.RLIMIT_NOFILE, (limit, old[1]))
            check(await outcomes_of(iso, 8))
            resource.prlimit(server, resource.RLIMIT_NOFILE, old)
            await works_again(iso)
        pool = iso._service._source._pool
        assert pool.pid == server
        assert iso.statistics().restarts == 0
        # None that it could not watch is left, be it as a zombie.
        await until(lambda: children_of(server) == set(pool._forkserver.workers))


async def test_none_left_in_the_child():
    async with Isolator(warm=1) as iso:
        pool = iso._service._source._pool
        # It rehearses at first, which takes descriptors, too.
        await until(lambda: pool.idle and waits(pool._idle[0].pid))
        resource.prlimit(pool._idle[0].pid, resource.RLIMIT_NOFILE, (3, 3))
        with pytest.raises(CallableDidNotExecuteError, match=os.strerror(errno.EMFILE)) as refused:
            await iso.run(print, "to be captured", output="capture")
        assert refused.value.reason is Reason.ARGUMENT_DECODING
        assert (await iso.capture(print, "captured", output="capture")).stdout == "captured\n"


# How many may be on their way is counted for all of a user's processes: whoever shares the user,
# a hostile child perhaps, can use all of that up.

NOT_NOW = [errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM, errno.EMFILE]


def oserror(code):
    return OSError(code, os.strerror(code))


@contextlib.contextmanager
def refusing(wanted):
    """Messages that are sent from here fail with what *wanted* returns for them, if not 0."""
    send = messages.send

    def refuse(sock, data, fds=()):
        if code := wanted(sock, data, fds):
            raise oserror(code)
        return send(sock, data, fds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "send", refuse)
        yield


def check_unasked(error, code):
    assert type(error) is CallableDidNotExecuteError
    assert error.reason is Reason.PIPE_CREATION
    assert str(error) == f"a request to the fork server could not be sent: {os.strerror(code)}"
    assert error.__cause__.errno == code


async def nothing_is_left(iso):
    """Nobody waits for a child that was never asked for, and there is none that nobody knows."""
    pool = iso._service._source._pool
    await until(lambda: not (pool._refill_due or pool._requested or pool._forkserver._requested))
    await until(lambda: children_of(pool.pid) == set(pool._forkserver.workers))
    assert iso.statistics().restarts == 0


async def test_none_may_travel_to_the_server(start):
    async with Isolator(**start, max_concurrency=8) as iso:
        await works_again(iso)
        await nothing_is_left(iso)
        opened = len(os.listdir("/proc/self/fd"))
        for code in NOT_NOW:
            await nothing_is_left(iso)
            idle = iso.statistics().idle
            with refusing(lambda sock, data, fds, code=code: code if fds else 0):
                outcomes = await outcomes_of(iso, 8)
            assert check(outcomes) == idle
            for outcome in outcomes:
                if outcome.error is not None:
                    check_unasked(outcome.error, code)
            await until(lambda: len(os.listdir("/proc/self/fd")) <= opened)
        await works_again(iso)
        await nothing_is_left(iso)


async def test_whoever_is_refused_takes_nobody_elses_child():
    """Every second request is; the answers to the others are for those who have made them."""
    requests = itertools.count(1)
    refuse = lambda _, __, fds: errno.ETOOMANYREFS if fds and next(requests) % 2 else 0
    async with Isolator(max_concurrency=8) as iso, contextlib.AsyncExitStack() as stack:
        with refusing(refuse):
            jobs = [await stack.enter_async_context(iso.open_job(os.getpid)) for _ in range(8)]
            refused = 0
            with anyio.fail_after(20):
                for job in jobs:
                    try:
                        assert await job.result() == job.pid
                    except CallableDidNotExecuteError as error:
                        check_unasked(error, errno.ETOOMANYREFS)
                        refused += 1
        assert refused == 4
        await nothing_is_left(iso)


async def test_one_ahead_of_need_that_is_refused_fails_no_call():
    requests = itertools.count(1)
    refuse = lambda _, __, fds: errno.ETOOMANYREFS if fds and next(requests) == 2 else 0
    async with Isolator(warm=1) as iso:
        pool = iso._service._source._pool
        await until(lambda: not pool._requested)
        while pool._idle:
            pool.let_go(pool._idle.popleft())
        with refusing(refuse), anyio.fail_after(20):
            assert await iso.run(abs, -1) == 1
        assert next(requests) == 3


async def test_an_order_to_the_server_is_not_lost():
    """Nor is what is behind it when the kernel has no memory for it at the moment."""
    codes = [errno.ENOMEM, errno.ENOBUFS]
    async with Isolator() as iso, iso.open_job(time.sleep, 60) as job:
        await until(lambda: job.pid)
        forkserver = iso._service._source._pool._forkserver
        with refusing(lambda sock, *_: codes.pop() if codes and sock is forkserver._socket else 0):
            forkserver.kill(job.pid, signal.SIGKILL, group=False)
            assert codes == [errno.ENOMEM]
            forkserver.kill(job.pid, signal.SIGCONT, group=False)
            with anyio.fail_after(20), pytest.raises(CallableStatusUnknownError):
                await job.result()
        assert not codes


async def test_a_request_of_which_a_part_has_gone_is_finished(monkeypatch):
    """Its descriptors have gone, too: the rest can wait, but not be taken back."""
    send = messages.send
    refused = []
    async with Isolator() as iso:
        forkserver = iso._service._source._pool._forkserver

        def piecemeal(sock, data, fds=()):
            if sock is not forkserver._socket or len(refused) == 2:
                return send(sock, data, fds)
            if fds:
                return send(sock, data[:3], fds)
            refused.append(data)
            raise oserror(errno.ENOBUFS)

        monkeypatch.setattr(messages, "send", piecemeal)
        with anyio.fail_after(20):
            assert await iso.run(abs, -1) == 1
        assert len(refused) == 2
        await nothing_is_left(iso)


async def test_a_child_that_nobody_has_asked_for():
    async with Isolator() as iso:
        assert await iso.run(abs, -1) == 1
        forkserver = iso._service._source._pool._forkserver
        await until(lambda: not forkserver.workers)
        opened = len(os.listdir("/proc/self/fd"))
        told = []
        handle = forkserver._handle
        forkserver._handle = lambda record: (told.append(record), handle(record))
        forkserver.request(1, ahead=False)
        ((number, worker),) = forkserver._requested.items()
        forkserver._requested.clear()
        async with iso.open_job(os.getpid) as job:  # asked for next, and answered next
            with anyio.fail_after(20):
                assert await job.result() == job.pid
        (child,) = [record for record in told if record[:2] == ("child", number)]
        ends = await until(lambda: [r for r in told if r[:2] == ("ended", child[2])])
        # It waits for its call: so if it ends, it has been killed.
        assert os.waitstatus_to_exitcode(ends[0][2]) == -signal.SIGKILL
        worker.close()
        await until(lambda: len(os.listdir("/proc/self/fd")) <= opened)
        for answer in (("refused", number, errno.EAGAIN, "no"), ("unfit", number, "no")):
            handle(answer)
        assert await iso.run(abs, -1) == 1
        await nothing_is_left(iso)


SHORT = """
    import os
    from tests.internals import messages

    def short(sock, data, fds=(), send=messages.send):
        codes = CODES[bool(fds)]
        if codes and os.getpid() == PID:
            code = codes.pop(0)
            raise OSError(code, os.strerror(code))
        return send(sock, data, fds)

    PID = os.getpid()
    messages.send = short
"""


@pytest.fixture
def short_server(tmp_path, monkeypatch):
    """Make a module that has messages of the fork server's refused; by whether they pass any."""

    def make(alone, passing):
        codes = f"CODES = {(alone, passing)!r}\n"
        (tmp_path / "short_server.py").write_text(codes + textwrap.dedent(SHORT))
        monkeypatch.syspath_prepend(str(tmp_path))
        return {"preload": ["short_server"]}

    return make


async def end_job(job):
    job.cancel()
    with anyio.fail_after(20), pytest.raises(IsolationError) as ended:
        await job.result()
    assert ended.value.reason is Reason.CANCELLED
    await until(lambda: not alive(job.pid))


async def test_none_may_travel_from_the_server(short_server):
    """A child of which there is no pidfd here is signalled by the server, as any without one."""
    short = short_server([errno.ENOBUFS, errno.ENOMEM] * 2, list(NOT_NOW))
    async with Isolator(**short, max_concurrency=8) as iso, contextlib.AsyncExitStack() as stack:
        pool = iso._service._source._pool
        server = pool.pid
        passed = []
        for _ in range(6):
            job = await stack.enter_async_context(iso.open_job(time.sleep, 60))
            await until(lambda job=job: job.pid or job.done())
            passed.append(pool._forkserver.workers[job.pid].pidfd >= 0)
            await end_job(job)
        assert passed == [False] * len(NOT_NOW) + [True] * 2
        assert await iso.run(abs, -1) == 1
        await nothing_is_left(iso)
        assert pool.pid == server


async def test_none_of_several_may_travel_from_the_server(short_server):
    """All that have been forked ahead of need are told of in one message."""
    async with Isolator(**short_server([], [errno.ETOOMANYREFS]), warm=3) as iso:
        pool = iso._service._source._pool
        await until(lambda: not pool._requested)
        workers = list(pool._forkserver.workers.values())
        lacking = [worker for worker in workers if worker.pidfd < 0]
        assert lacking
        while not all(worker.ended for worker in workers):
            async with iso.open_job(os.getpid) as job:
                assert await job.result() == job.pid
        await until(lambda: pool.idle >= 3 and not pool._requested)
        assert all(worker.pidfd >= 0 for worker in pool._idle)
        await nothing_is_left(iso)


async def test_none_may_travel_with_a_call():
    codes = list(NOT_NOW)
    async with Isolator() as iso:
        forkserver = iso._service._source._pool._forkserver
        while codes:
            with refusing(
                lambda sock, _, fds: codes[0] if fds and sock is not forkserver._socket else 0
            ):
                assert await iso.run(abs, -1) == 1
                with anyio.fail_after(20), pytest.raises(CallableDidNotExecuteError) as refused:
                    await iso.run(print, "to be captured", output="capture")
            assert refused.value.reason is Reason.PIPE_CREATION
            assert refused.value.__cause__.errno == codes.pop(0)
            assert str(refused.value).startswith("the call could not be sent to its child: ")
        assert (await iso.capture(print, "captured", output="capture")).stdout == "captured\n"
        await nothing_is_left(iso)


# By the kernel itself


@contextlib.contextmanager
def on_their_way(count):
    """So many descriptors are in flight from this process, or some more."""
    with contextlib.ExitStack() as stack:
        for _ in range(0, count, messages.FDS_MAX):
            here, _ = map(stack.enter_context, socket.socketpair())
            socket.send_fds(here, [b"x"], [2] * messages.FDS_MAX)
        yield


@contextlib.contextmanager
def limited(pid, count):
    """A process may have so many open, or on their way."""
    old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, old[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, old)


@pytest.mark.skipif(os.getuid() == 0, reason="root is not limited; see test_ordinary_user.py")
async def test_too_many_are_on_their_way(start):
    """An isolator that has nothing to do with who holds them up gets over it."""
    limit = 400
    async with Isolator(**start, max_concurrency=8) as iso:
        await works_again(iso)
        server = iso._service._source._pool.pid
        with on_their_way(2 * limit):
            await works_again(iso)
            with limited(server, limit):
                await works_again(iso)
            await nothing_is_left(iso)
            with limited(0, limit):
                idle = iso.statistics().idle
                outcomes = await outcomes_of(iso, 8)
                assert check(outcomes) == idle
                for outcome in outcomes:
                    if outcome.error is not None:
                        check_unasked(outcome.error, errno.ETOOMANYREFS)
        await works_again(iso)
        await nothing_is_left(iso)
