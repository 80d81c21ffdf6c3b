"""What a call may consume: every limit, for every way of starting a child."""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import glob
import math
import os
import pickle
import signal

import anyio
import numpy as np
import pytest

from aioisolate import (
    CallableDidNotExecuteError,
    CallableExecutedError,
    CallableStatusUnknownError,
    IsolationError,
    Isolator,
    Limits,
    Reason,
    RemoteError,
    Sandbox,
    Snapshot,
    capture_isolated,
    isolated,
    run_isolated,
)
from tests import actions, helpers
from tests.attacks.channel import announce_item
from tests.helpers import Stages, alive, error_of, until
from tests.internals import (
    CallOptions,
    Cgroup,
    diagnosis,
    make_confinement,
    make_plan,
    oom,
    plan_limits,
    platform_features,
)

pytestmark = [pytest.mark.once, pytest.mark.part(name="limits")]

MiB = 1 << 20
HERE = platform_features.containment()
IS_ROOT = os.geteuid() == 0
one_loop = pytest.mark.one_loop
confinable = pytest.mark.skipif(
    not HERE.landlock or not HERE.seccomp, reason="a sandbox would be refused here"
)
with_groups = pytest.mark.skipif(
    not {"memory", "pids"} <= HERE.groups, reason="no control groups can be made here"
)


def directories():
    """The control groups that this process has made and not removed."""
    found = set()
    with open("/proc/self/mountinfo") as mounts:
        for line in mounts:
            if " - cgroup" in line:
                top = line.split()[4]
                found.update(glob.glob(f"{top}/**/aioisolate-*-{os.getpid()}-*", recursive=True))
    return found


@pytest.fixture(autouse=True)
def _no_group_left():
    yield
    if HERE.groups:
        assert not directories()


def isolator(start, **options):
    return helpers.isolator(start, "tests.actions", "numpy", **options)


def check_memory(error):
    assert isinstance(error, IsolationError)
    assert isinstance(error, MemoryError)
    assert error.reason is Reason.MEMORY_LIMIT
    assert isinstance(pickle.loads(pickle.dumps(error)), type(error))


# Memory


@pytest.mark.parametrize(
    "fn", [actions.allocate, actions.allocate_numpy, actions.map_memory, actions.return_memory]
)
@one_loop
async def test_memory_is_refused(start, fn):
    async with isolator(start, limits=Limits(memory="64 MiB")) as iso:
        error = await error_of(iso.run(fn, 256 * MiB))
        check_memory(error)
        assert isinstance(error, CallableStatusUnknownError)
        assert str(64 * MiB) in str(error)
        assert isinstance(error.__cause__, (MemoryError, OSError))
        assert error.pid
        # It is not the whole service's end.
        assert await iso.run(actions.allocate, 16 * MiB) == 16 * MiB


async def test_memory_on_every_loop(start):
    async with isolator(start, limits=Limits(memory="64 MiB")) as iso:
        check_memory(await error_of(iso.run(actions.allocate, 256 * MiB)))
        check_memory((await iso.capture(actions.allocate, 256 * MiB)).error)


@one_loop
async def test_memory_counts_from_what_is_there(start):
    ballast = bytearray(512 * MiB)  # not touched: addresses count
    async with isolator(start, limits=Limits(memory="192 MiB")) as iso:
        assert await iso.run(actions.allocate, 96 * MiB) == 96 * MiB
        check_memory(await error_of(iso.run(actions.allocate, 256 * MiB)))
    assert len(ballast) == 512 * MiB


@pytest.mark.parametrize("size", [1, 10_000, 1 << 16, MiB, "8 MiB", "1 GB", 1 << 62])
@one_loop
async def test_a_little_works_whatever_the_limit(start, size):
    async with isolator(start, limits=Limits(memory=size)) as iso:
        for fn, argument in ((actions.double, 4), (actions.catch_and_go_on, 1 << 50)):
            try:
                assert await iso.run(fn, argument) in (8, "did without")
            except IsolationError as error:
                check_memory(error)
                assert size in (1, 10_000, 1 << 16)


@pytest.mark.parametrize("size", [1, 1024, 1 << 16, 1 << 18, MiB])
@pytest.mark.parametrize(
    "fn", [actions.many_small, actions.fill_up_and_raise, actions.double, actions.allocate_numpy]
)
@one_loop
async def test_hardly_any_memory_is_a_typed_error(start, size, fn):
    """Neither an exit code nor nothing: what there is to tell is always told."""
    args = {actions.double: (4,), actions.allocate_numpy: (256 * MiB,)}.get(fn, ())
    async with isolator(start, limits=Limits(memory=size)) as iso:
        try:
            assert await iso.run(fn, *args) == 8
        except ValueError as error:
            assert str(error) == "full"
        except IsolationError as error:
            check_memory(error)


@one_loop
async def test_code_that_does_without(start):
    async with isolator(start, limits=Limits(memory="32 MiB")) as iso:
        assert await iso.run(actions.catch_and_go_on, 256 * MiB) == "did without"
        with pytest.raises(ValueError, match="full"):
            await iso.run(actions.fill_up_and_raise)


@one_loop
async def test_a_result_that_takes_more_memory_than_there_is(start):
    """It fits; but what it is pickled into does not, with the room that an answer has."""
    async with isolator(start, limits=Limits(memory="256 MiB")) as iso:
        error = await error_of(iso.run(actions.text, 240 * MiB))
        check_memory(error)
        assert isinstance(error, CallableExecutedError)


@one_loop
async def test_a_memory_error_of_fn_is_its_own_without_limits(start):
    async with isolator(start) as iso:
        for limits in (None, Limits(), Limits(cpu_time=60)):
            with pytest.raises(MemoryError) as caught:
                await iso.run(actions.allocate, 1 << 60, limits=limits)
            assert type(caught.value) is MemoryError


@one_loop
async def test_address_space_is_the_whole(start):
    async with isolator(start) as iso:
        large = Limits(address_space="1 TiB")
        assert await iso.run(actions.allocate, 64 * MiB, limits=large) == 64 * MiB
        # More than what malloc may have left over.
        much = 512 * MiB
        check_memory(await error_of(iso.run(actions.allocate, 2 << 40, limits=large)))
        assert (await iso.run(actions.limit_of, "RLIMIT_AS", limits=large))[0] == 1 << 40
        both = Limits(address_space="1 TiB", memory="32 MiB")
        check_memory(await error_of(iso.run(actions.allocate, much, limits=both)))
        # Less than what it has already: nothing can be had.
        check_memory(
            await error_of(iso.run(actions.allocate, much, limits=Limits(address_space=1)))
        )


# CPU time


@one_loop
async def test_cpu_time(start):
    async with isolator(start, limits=Limits(cpu_time=1)) as iso:
        error = await error_of(iso.run(actions.spin, 30))
        assert type(error) is CallableStatusUnknownError
        assert error.reason is Reason.CPU_LIMIT
        assert error.exit == -signal.SIGXCPU
        assert "the limit is 1 s" in str(error)
        assert "in spin" in error.crash_traceback
        # By the kernel's ticks it has used 1 s, in which a busy machine may have run others.
        assert 0.5 < error.usage.user + error.usage.system < 2


@one_loop
async def test_cpu_time_of_who_ignores_the_signal(start):
    async with isolator(start, limits=Limits(cpu_time=0.5)) as iso:
        error = await error_of(iso.run(actions.ignore_and_spin))
        assert error.reason is Reason.CPU_LIMIT
        assert error.exit == -signal.SIGKILL
        assert 1 < error.usage.user + error.usage.system < 3  # 2 s by its ticks


@one_loop
async def test_sleeping_costs_no_cpu_time(start):
    async with isolator(start, limits=Limits(cpu_time=1)) as iso:
        assert await iso.run(actions.sleep, 1.3) == "slept"


# Descriptors, files, cores


@pytest.mark.parametrize("count", [0, 1, 7, 100])
@one_loop
async def test_open_files(start, count):
    async with isolator(start, limits=Limits(open_files=count)) as iso:
        assert await iso.run(actions.open_more, 200) == [count, errno.EMFILE]
        assert await iso.run(actions.double, 4) == 8


@one_loop
async def test_open_files_of_the_confined(start):
    """Whatever has come with the call: what there is is counted, not assumed."""
    refused = [7, errno.EMFILE]
    box = Sandbox.crash_guard(cgroup="off", limits=Limits(open_files=7))
    async with isolator(start, sandbox=box) as iso:
        assert await iso.run(actions.open_more, 50) == refused
        assert await iso.run(actions.open_more, 200, limits=Limits(open_files=150)) == [150, 24]
        assert (await iso.capture(actions.open_more, 50, output="capture")).value == refused
        with open("/dev/null") as one:
            number = fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 90)
            more = {"limits": Limits(open_files=100), "pass_fds": [number]}
            assert await iso.run(actions.open_more, 200, **more) == [100, errno.EMFILE]
            os.close(number)
        with Snapshot.from_bytes(b"x") as snapshot:
            assert await iso.run(actions.open_more_beside, snapshot, 50) == refused
        if start["start"] != "fork":  # where it is pickled
            assert await iso.run(actions.open_more_beside, actions.OpensAFile(), 50) == refused


@one_loop
async def test_more_open_files_than_there_can_be(start):
    async with isolator(start, limits=Limits(open_files=1 << 31), timeout=20) as iso:
        assert await iso.run(actions.open_more, 200) == [200, 0]


@confinable
@one_loop
async def test_who_may_be_hostile_has_no_room_above(start):
    """The limits that fn can't raise are the promised ones; answers are told all the same."""
    box = Sandbox(read=None, write=None, namespaces="off", limits=Limits("64 MiB", open_files=20))
    async with isolator(start, sandbox=box) as iso:
        assert await iso.run(actions.open_more, 200) == [20, errno.EMFILE]
        soft, hard = await iso.run(actions.limit_of, "RLIMIT_NOFILE")
        assert soft == hard
        soft, hard = await iso.run(actions.limit_of, "RLIMIT_AS")
        assert hard - soft == 8 * MiB
        # With no descriptor left, and with no memory.
        with pytest.raises(RemoteError, match="no more descriptors") as caught:
            await iso.run(actions.open_all_for_good)
        assert caught.value.type_name == "ValueError"
        assert await iso.run(actions.keep_all_memory) == "kept"
        assert await iso.run(actions.catch_and_go_on, 256 * MiB) == "did without"
        with pytest.raises(RemoteError, match="full"):
            await iso.run(actions.fill_up_and_raise)
        check_memory(await error_of(iso.run(actions.many_small)))
        check_memory(await error_of(iso.run(actions.allocate, 256 * MiB)))
        for size in (1, 1024, 1 << 16, MiB):
            check_memory(await error_of(iso.run(actions.allocate, 256 * MiB, limits=Limits(size))))
            check_memory(await error_of(iso.run(actions.many_small, limits=Limits(size))))
        whole = Limits(address_space=1)
        check_memory(await error_of(iso.run(actions.allocate, 256 * MiB, limits=whole)))


@one_loop
async def test_file_size(start, tmp_path):
    os.chmod(tmp_path, 0o777)
    path = str(tmp_path / "file")
    async with isolator(start, limits=Limits(file_size="2 MiB")) as iso:
        assert await iso.run(actions.write_file, path, 2 * MiB) == 2 * MiB
        with pytest.raises(OSError) as caught:
            await iso.run(actions.write_file, path, 2 * MiB + 1)
        assert caught.value.errno == errno.EFBIG
        assert os.path.getsize(path) == 2 * MiB
        with pytest.raises(OSError) as caught:
            await iso.run(actions.write_memory_file, 3 * MiB)
        assert caught.value.errno == errno.EFBIG
        # Results go through a file, too, and may be larger.
        assert len(await iso.run(actions.text, 5 * MiB)) == 5 * MiB
        assert (await iso.run(actions.zeros, 5 * MiB)).nbytes == 5 * MiB


@pytest.mark.parametrize("size", [0, 1, 4096, MiB - 1, MiB, MiB + 1])
@one_loop
async def test_small_files(start, size, tmp_path):
    os.chmod(tmp_path, 0o777)
    path = str(tmp_path / "file")
    async with isolator(start, limits=Limits(file_size=size)) as iso:
        assert await iso.run(actions.double, 4) == 8
        assert await iso.run(actions.write_file, path, size) == size
        with pytest.raises(OSError) as caught:
            await iso.run(actions.write_file, path, size + 1)
        assert caught.value.errno == errno.EFBIG
        assert len(await iso.run(actions.text, MiB)) == MiB


@one_loop
async def test_core_size(start):
    async with isolator(start, limits=Limits()) as iso:
        assert (await iso.run(actions.limit_of, "RLIMIT_CORE"))[0] == 0
        hard = (await iso.run(actions.limit_of, "RLIMIT_CORE", limits=Limits(core_size=4096)))[0]
        assert hard == 4096
        error = await error_of(iso.run(actions.crash))
        assert error.reason is Reason.SIGNAL
        assert "in crash" in error.crash_traceback


# Processes


@with_groups
@one_loop
async def test_processes_by_a_group(start):
    async with isolator(start, limits=Limits(processes=5)) as iso:
        assert await iso.run(actions.count_forks, 20) == [4, errno.EAGAIN]  # and itself
        assert await iso.run(actions.count_threads, 20) == 4
        assert await iso.run(actions.count_forks, 20, limits=Limits(processes=2)) == [
            1,
            errno.EAGAIN,
        ]
        assert await iso.run(actions.count_forks, 20, limits=Limits(processes=1)) == [
            0,
            errno.EAGAIN,
        ]


@pytest.mark.skipif(not HERE.becomes, reason="only root can become somebody else")
@pytest.mark.parametrize("subprocesses", [True, False])
@confinable
@one_loop
async def test_processes_of_a_user_of_their_own(start, subprocesses):
    sandbox = Sandbox(subprocesses=subprocesses, limits=Limits(processes=5))
    async with isolator(start, sandbox=sandbox) as iso:
        assert await iso.run(actions.count_threads, 20) == 4
        if subprocesses:
            assert await iso.run(actions.count_forks, 20) == [4, errno.EAGAIN]


@pytest.mark.skipif(HERE.namespaces == "", reason="no namespaces")
@confinable
@one_loop
async def test_those_who_look_after_it_are_not_counted(start):
    """Neither the init of a process namespace nor who follows it from outside."""
    if not ({"pids"} <= HERE.groups or HERE.processes_by_namespace):
        pytest.skip("processes can't be counted here")
    sandbox = Sandbox(subprocesses=True, user="keep", limits=Limits(processes=5))
    async with isolator(start, sandbox=sandbox) as iso:
        assert await iso.run(actions.count_threads, 20) == 4
        assert await iso.run(actions.count_forks, 20) == [4, errno.EAGAIN]


# Results


@pytest.mark.parametrize("size", [1000, 100_000, 3 * MiB])
@one_loop
async def test_result_size(start, size):
    """In its frame, and through the scratch file."""
    async with isolator(start, limits=Limits(result_size=size)) as iso:
        assert len(await iso.run(actions.text, size - 100)) == size - 100
        error = await error_of(iso.run(actions.text, size))
        assert type(error) is CallableExecutedError
        assert error.reason is Reason.RESULT_TOO_LARGE
        assert f"the limit is {size:,}" in str(error)


@one_loop
async def test_result_size_of_arrays(start):
    async with isolator(start, limits=Limits(result_size="1 MiB")) as iso:
        assert (await iso.run(actions.zeros, MiB - 1000)).nbytes == MiB - 1000
        error = await error_of(iso.run(actions.zeros, MiB))
        assert error.reason is Reason.RESULT_TOO_LARGE


@pytest.mark.parametrize("codec", ["pickle", "msgspec", "json"])
@one_loop
async def test_result_size_of_every_codec(start, codec):
    async with isolator(start, codec=codec, limits=Limits(result_size=1000)) as iso:
        assert await iso.run(actions.text, 900) == "x" * 900
        error = await error_of(iso.run(actions.text, 2000))
        assert type(error) is CallableExecutedError
        assert error.reason is Reason.RESULT_TOO_LARGE


@one_loop
async def test_result_size_of_exceptions(start):
    async with isolator(start, limits=Limits(result_size=10_000)) as iso:
        with pytest.raises(ValueError, match="xxx"):
            await iso.run(actions.raise_text, 100)
        error = await error_of(iso.run(actions.raise_text, 200_000))
        assert error.reason is Reason.RESULT_TOO_LARGE


@pytest.mark.parametrize("codec", ["pickle", "msgspec", "json"])
@one_loop
async def test_result_size_of_items(start, codec):
    async with isolator(start, codec=codec, limits=Limits(result_size=10_000)) as iso:
        async with iso.stream(actions.texts, [9_000] * 20) as items:
            assert [len(item) async for item in items] == [9_000] * 20  # each by itself
        got = []
        async with iso.stream(actions.texts, [10, 20_000, 10]) as items:
            with pytest.raises(IsolationError) as caught:
                async for item in items:
                    got.append(len(item))
        assert type(caught.value) is CallableStatusUnknownError  # it was not at its end
        assert caught.value.reason is Reason.RESULT_TOO_LARGE
        assert str(caught.value).startswith("an item that fn yielded, str, has 20,0")
        assert str(caught.value).endswith("bytes; the limit is 10,000")
        assert got == [10]


@pytest.mark.parametrize("codec", ["pickle", "msgspec", "json"])
@pytest.mark.parametrize("length", [10_001, (1 << 32) + 1, (1 << 40) + 1, (1 << 64) - 1])
@one_loop
async def test_a_forged_item_that_is_too_large(start, codec, length):
    limits = Limits(result_size=10_000)
    async with isolator(start, codec=codec, limits=limits) as iso:
        async with iso.stream(announce_item, length) as items:
            assert await anext(items) == 1
            error = await error_of(anext(items))
    assert type(error) is CallableStatusUnknownError
    assert error.reason is Reason.RESULT_TOO_LARGE
    assert f"an item that fn yielded has {length:,} bytes; the limit is 10,000" in str(error)


# Output


@pytest.mark.parametrize("split", [(1000, 0), (0, 1000), (500, 500)])
@one_loop
async def test_output_size(start, split):
    limits = Limits(output_size=1000)
    async with isolator(start, limits=limits, output="capture") as iso:
        assert await iso.run(actions.write_out, *split) == "written"
        outcome = await iso.capture(actions.write_out, split[0] + 1, split[1])
        assert outcome.error.reason is Reason.OUTPUT_LIMIT
        assert "1000 bytes" in str(outcome.error)
        assert len(outcome.stdout) + len(outcome.stderr) <= 1000


@one_loop
async def test_endless_output_is_kept_up_to_the_limit(start):
    limits = Limits(output_size=100_000)
    async with isolator(start, limits=limits, output="capture") as iso:
        outcome = await iso.capture(actions.write_for_ever)
        assert isinstance(outcome.error, CallableStatusUnknownError)
        assert outcome.error.reason is Reason.OUTPUT_LIMIT
        assert outcome.stdout == "y\n" * 50_000


async def test_output_size_for_a_callable(start):
    lines = []
    async with isolator(start) as iso:
        error = await error_of(
            iso.run(
                actions.write_for_ever,
                output=lambda _, line: lines.append(line),
                limits=Limits(output_size=1000),
            )
        )
    assert error.reason is Reason.OUTPUT_LIMIT
    assert lines == ["y"] * 500


async def test_too_much_output_counts_however_soon_it_ends():
    """Whether it is read before or after its end is chance, and must not matter."""
    for _ in range(20):
        outcome = await capture_isolated(
            actions.write_out, 3000, 0, output="capture", limits=Limits(output_size=1000)
        )
        assert isinstance(outcome.error, (CallableExecutedError, CallableStatusUnknownError))
        assert outcome.error.reason is Reason.OUTPUT_LIMIT
        assert outcome.stdout == "o" * 1000


# Where limits come from


async def test_a_calls_own_limits_go_first(start):
    async with isolator(start, limits=Limits(memory="64 MiB", open_files=10)) as iso:
        assert await iso.run(actions.open_more, 200) == [10, errno.EMFILE]
        more = Limits(memory="1 GiB")
        assert await iso.run(actions.allocate, 256 * MiB, limits=more) == 256 * MiB
        assert await iso.run(actions.open_more, 200, limits=more) == [10, errno.EMFILE]
        assert await iso.run(actions.open_more, 200, limits=Limits(open_files=3)) == [
            3,
            errno.EMFILE,
        ]
        assert await iso.run(actions.open_more, 200) == [10, errno.EMFILE]


async def test_without_a_service():
    limits = Limits(memory="64 MiB", open_files=5)
    assert await run_isolated(actions.open_more, 50, limits=limits) == [5, errno.EMFILE]
    check_memory(await error_of(run_isolated(actions.allocate, 256 * MiB, limits=limits)))
    outcome = await capture_isolated(actions.allocate, 256 * MiB, limits=limits)
    check_memory(outcome.error)
    decorated = isolated(limits=limits)(actions.open_more)
    assert await decorated(count=50) == [5, errno.EMFILE]
    guard = Sandbox.crash_guard(limits=Limits(memory="1 GiB", open_files=9))
    assert await run_isolated(actions.open_more, 50, sandbox=guard) == [9, errno.EMFILE]
    assert await run_isolated(
        actions.open_more, 50, sandbox=guard, limits=Limits(open_files=2)
    ) == [
        2,
        errno.EMFILE,
    ]


async def test_every_kind_of_call(start):
    async with isolator(start, limits=Limits(memory="64 MiB", open_files=4)) as iso:
        results = [found async for found in iso.map(actions.open_more, [50, 2])]
        assert results == [[4, errno.EMFILE], [2, 0]]
        outcomes = iso.map(actions.allocate, [1024, 256 * MiB], capture=True)
        first, second = [outcome async for outcome in outcomes]
        assert first.value == 1024
        check_memory(second.error)
        async with iso.open_job(actions.allocate, 256 * MiB) as job:
            check_memory(await error_of(job.result()))
        async with iso.stream(actions.numbers, 5) as items:
            assert [item async for item in items] == [0, 1, 2, 3, 4]
        executor = iso.executor()
        future = executor.submit(actions.allocate, 256 * MiB)
        await until(future.done)
        check_memory(future.exception())
        outcome = await iso.capture(actions.open_more, 50)
        assert outcome.value == [4, errno.EMFILE]


async def test_limits_and_deadlines(start):
    limits = Limits(memory="64 MiB", cpu_time=20, open_files=8, processes=None)
    async with isolator(start, limits=limits) as iso:
        error = await error_of(iso.run(actions.sleep, 60, timeout=0.3))
        assert error.reason is Reason.TIMEOUT
        assert "in sleep" in error.crash_traceback
        stages = Stages()
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: iso.run(actions.sleep, 60, on_event=stages))
            pid = await stages.reached("started")
            group.cancel_scope.cancel()
        await until(lambda: not alive(pid))
        assert await iso.run(actions.double, 4) == 8


@with_groups
async def test_groups_and_deadlines(start):
    """Whoever has a control group: nothing of it is left, see `_no_group_left`."""
    async with isolator(start, limits=Limits(processes=10)) as iso:
        error = await error_of(iso.run(actions.sleep, 60, timeout=0.3))
        assert error.reason is Reason.TIMEOUT
        stages = Stages()
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: iso.run(actions.sleep, 60, on_event=stages))
            await stages.reached("spawn")
            assert directories()
            group.cancel_scope.cancel()
        assert not directories()
        async with iso.open_job(actions.sleep, 60) as job:
            await until(lambda: job.state == "running")
            job.cancel()
            error = await error_of(job.result())
            assert error.reason is Reason.CANCELLED
        assert not directories()
        assert await iso.run(actions.double, 4) == 8
        error = await error_of(iso.run(actions.crash))
        assert error.reason is Reason.SIGNAL


# Out of memory

GUARD = {"subprocesses": True, "cgroup": "require", "limits": Limits(memory="64 MiB")}


@with_groups
@one_loop
@pytest.mark.parametrize("patience", [True, False])
async def test_a_group_ends_who_is_left_in_it(start, patience):
    """Even of a call that is over before its child has ended; see `_no_group_left`, too."""
    async with isolator(start, sandbox=Sandbox.crash_guard(**GUARD)) as iso:
        pids = [await iso.run(actions.leave_somebody) for _ in range(3)]
        if patience:
            await until(lambda: not any(map(alive, pids)))
            await until(lambda: not directories())
            assert await iso.run(actions.double, 4) == 8
    assert not any(map(alive, pids))


@with_groups
@one_loop
async def test_a_group_when_its_server_is_killed(start):
    async with isolator(start, sandbox=Sandbox.crash_guard(**GUARD)) as iso:
        pid = await iso.run(actions.leave_somebody)
        if start["start"] == "zygote":
            pool = iso._service._source._pool
            os.kill(server := pool.pid, signal.SIGKILL)
            await until(lambda: pool.pid not in (0, server))
        await until(lambda: not alive(pid))
        assert await iso.run(actions.double, 4) == 8


@with_groups
@one_loop
async def test_a_group_that_runs_out_of_memory(start):
    async with isolator(start, sandbox=Sandbox.crash_guard(**GUARD)) as iso:
        error = await error_of(iso.run(actions.touch_in_forks, 40 * MiB, 4))
        check_memory(error)
        assert error.exit == -signal.SIGKILL
        assert "a control group's" in str(error)
        assert await iso.run(actions.double, 4) == 8


@with_groups
@one_loop
async def test_killed_by_somebody_in_a_group(start):
    async with isolator(start, sandbox=Sandbox.crash_guard(**GUARD)) as iso:
        error = await error_of(iso.run(actions.crash_by, signal.SIGUSR1))
        assert error.exit == -signal.SIGUSR1
        error = await error_of(iso.run(actions.raise_signal, signal.SIGKILL))
        assert error.reason is Reason.SIGNAL
        assert not isinstance(error, MemoryError)


@one_loop
async def test_killed_by_somebody(start, monkeypatch):
    """Though the kernel has killed somebody for want of memory at some time before."""
    counts = iter([oom.Kills(3, 3), *[oom.Kills(5, 5)] * 100])
    monkeypatch.setattr(oom, "kills", lambda: next(counts))
    monkeypatch.setattr(oom, "kills_at", lambda _: next(counts))
    monkeypatch.setattr(diagnosis, "_latest", None)
    async with isolator(start) as iso:
        assert await iso.run(actions.double, 4) == 8
        monkeypatch.setattr(diagnosis, "_noted_at", -math.inf)
        error = await error_of(iso.run(actions.raise_signal, signal.SIGKILL))
        assert error.reason is Reason.SIGNAL
        assert "not by this process" in str(error)


@one_loop
async def test_killed_when_the_machine_was_out_of_memory(start, monkeypatch):
    counts = iter([oom.Kills(3, None), *[oom.Kills(4, None)] * 100])
    monkeypatch.setattr(oom, "kills", lambda: next(counts))
    monkeypatch.setattr(oom, "kills_at", lambda _: next(counts))
    monkeypatch.setattr(oom, "place_of", lambda *_: None)
    monkeypatch.setattr(diagnosis, "_latest", None)
    async with isolator(start, limits=Limits()) as iso:
        error = await error_of(iso.run(actions.raise_signal, signal.SIGKILL))
        check_memory(error)
        assert "the kernel's out-of-memory killer" in str(error)


# Refused before anything is forked


def plan(limits, here=HERE, sandbox=None):
    confinement = None if sandbox is None else make_confinement(sandbox, here, "fork")
    return plan_limits(limits, sandbox, confinement, here)


def refusal(limits, here, sandbox=None):
    with pytest.raises(CallableDidNotExecuteError) as caught:
        plan(limits, here, sandbox)
    assert caught.value.reason is Reason.FEATURE_UNAVAILABLE
    return str(caught.value)


FULL = platform_features.Containment(
    "linux", True, "privilege", "", 7, True, frozenset({"memory", "pids"}), True
)
ORDINARY = FULL._replace(becomes=False, namespaces="user", groups=frozenset())
NO_GROUPS = FULL._replace(groups=frozenset())
DARWIN = platform_features.Containment("darwin", False, "", "", 0, False, frozenset(), False)


def test_what_no_machine_lacks():
    small = Limits(cpu_time=1.2, open_files=1, file_size=0, core_size=0, address_space=1)
    for here in (FULL, ORDINARY, DARWIN):
        rlimits, group = plan(small, here)
        assert group is None
        assert rlimits.cpu_time == 2
    assert plan(None) == (None, None)


def test_memory_needs_linux():
    assert "limits.memory" in refusal(Limits(memory=1), DARWIN)
    assert "darwin" in refusal(Limits(memory=1), DARWIN)
    assert plan(Limits(memory=5), ORDINARY).rlimits.memory == 5


def test_processes_need_somebody_who_counts():
    for here in (NO_GROUPS, ORDINARY, DARWIN, NO_GROUPS._replace(groups=frozenset({"memory"}))):
        assert "limits.processes" in refusal(Limits(processes=3), here)
    rlimits, group = plan(Limits(processes=3), FULL)
    assert rlimits.processes is None
    assert group == (None, 3)
    guard = Sandbox.crash_guard(cgroup="off")
    assert "limits.processes" in refusal(Limits(processes=3), FULL, guard)
    # A user of its own, or a namespace of its own where users are counted.
    own = Sandbox()
    assert plan(Limits(processes=3), NO_GROUPS, own).rlimits.processes == 3
    assert plan(Limits(processes=3), ORDINARY, own).rlimits.processes == 3
    old = ORDINARY._replace(processes_by_namespace=False)
    assert "limits.processes" in refusal(Limits(processes=3), old, own)


def test_processes_of_a_given_user():
    """It may have others, of other calls even."""
    given = Sandbox(user=77)
    rlimits, group = plan(Limits(processes=3), FULL, given)
    assert rlimits.processes is None
    assert group == (None, 3)
    rlimits, group = plan(Limits(processes=3), NO_GROUPS, given)
    assert rlimits.processes == 3
    assert rlimits.besides  # those that user 77 has when the call begins
    assert group is None
    programs = Sandbox(user=77, subprocesses=True)
    assert "limits.processes" in refusal(Limits(processes=3), NO_GROUPS, programs)


def test_memory_of_all_processes_together():
    tree = Sandbox(subprocesses=True)
    rlimits, group = plan(Limits(memory=9), FULL, tree)
    assert rlimits.memory == 9  # each of them, too
    assert group.memory == 9
    assert "limits.memory" in refusal(Limits(memory=9), NO_GROUPS, tree)
    # One process, whose limit its own is; and code that is trusted.
    assert plan(Limits(memory=9), NO_GROUPS, Sandbox()).group is None
    assert plan(Limits(memory=9), NO_GROUPS, Sandbox.crash_guard()).group is None
    assert plan(Limits(memory=9), FULL, Sandbox.crash_guard(cgroup="off")).group is None
    required = Sandbox.crash_guard(cgroup="require")
    for here in (NO_GROUPS, ORDINARY):
        assert "require" in refusal(Limits(memory=9), here, required)
    assert "memory controller" in refusal(
        Limits(memory=9), FULL._replace(groups=frozenset({"pids"})), required
    )


@one_loop
async def test_a_refusal_forks_nothing(monkeypatch):
    monkeypatch.setattr(platform_features, "containment", lambda: NO_GROUPS)
    events = []
    error = await error_of(
        run_isolated(actions.double, 4, limits=Limits(processes=3), on_event=events.append)
    )
    assert type(error) is CallableDidNotExecuteError
    assert error.reason is Reason.FEATURE_UNAVAILABLE
    assert error.pid is None
    assert not events
    async with Isolator() as iso:
        with pytest.raises(CallableDidNotExecuteError, match=r"limits\.processes"):
            await iso.run(actions.double, 4, limits=Limits(processes=3))
        with pytest.raises(CallableDidNotExecuteError, match=r"limits\.processes"):
            iso.map(actions.double, [4], limits=Limits(processes=3))
        assert not iso.jobs()


@with_groups
@one_loop
async def test_a_group_that_can_not_be_made(start, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "/sys/fs/cgroup/x")

    async with isolator(start) as iso:
        monkeypatch.setattr(Cgroup, "create", fail)
        error = await error_of(iso.run(actions.double, 4, limits=Limits(processes=3)))
        monkeypatch.undo()
        assert isinstance(error, CallableDidNotExecuteError)
        assert error.reason is Reason.CHILD_SETUP
        assert "control group" in str(error)
        assert error.__cause__.errno == errno.ENOSPC
        assert await iso.run(actions.double, 4, limits=Limits(processes=3)) == 8


# Data


@pytest.mark.parametrize("name", Limits.__slots__)
def test_bad_values(name):
    for value in (b"1", [], object(), True, {}, 1j):
        with pytest.raises(TypeError, match=f"limits.{name}"):
            Limits(**{name: value})
    for value in (-1, 1 << 80, -(1 << 80), 10**400):
        with pytest.raises(ValueError, match=f"limits.{name}"):
            Limits(**{name: value})
    if name not in {"cpu_time", "open_files", "processes"}:
        for value in ("", "x", "1 XB", "-1", "1e3", "1 2", "9" * 5000, "9" * 400 + ".5"):
            with pytest.raises(ValueError, match=f"limits.{name}"):
                Limits(**{name: value})
        for value in (1.5, math.nan):
            with pytest.raises(TypeError, match=f"limits.{name}"):
                Limits(**{name: value})
    if name == "cpu_time":
        for value in (0, math.nan, math.inf, -math.inf, 1e300, 1e12):
            with pytest.raises(ValueError, match=f"limits.{name}"):
                Limits(cpu_time=value)
    if name in {"memory", "address_space", "result_size", "processes"}:
        with pytest.raises(ValueError, match=f"limits.{name}"):
            Limits(**{name: 0})


async def test_bad_values_in_calls():
    for bad in ({"memory": 1}, 1, "1 GiB"):
        with pytest.raises(TypeError, match="limits must be Limits"):
            await run_isolated(actions.double, 4, limits=bad)
        with pytest.raises(TypeError, match="limits must be Limits"):
            Isolator(limits=bad)
    with pytest.raises(ValueError, match=r"limits\.output_size"):
        await run_isolated(actions.double, 4, limits=Limits(output_size=1))


def test_sizes():
    assert Limits("1 KiB").memory == 1024
    assert Limits("1kb").memory == 1000
    assert Limits(" 1.5 MiB ").memory == 3 * MiB // 2
    assert Limits("7").memory == 7
    assert Limits("2 TB").memory == 2 * 10**12
    assert Limits(memory="1 b").memory == 1


def test_limits_are_data():
    limits = Limits(memory="1 MiB", cpu_time=1.5)
    assert limits == Limits(memory=MiB, cpu_time=1.5)
    assert hash(limits) == hash(Limits(memory=MiB, cpu_time=1.5))
    assert limits != Limits(memory=MiB)
    assert limits != "x"
    assert repr(limits) == f"Limits(core_size=0, cpu_time=1.5, memory={MiB})"
    assert eval(repr(limits)) == limits
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(limits, protocol)) == limits
    assert copy.deepcopy(limits) == copy.copy(limits) == limits
    with pytest.raises(AttributeError):
        limits.memory = 1
    with pytest.raises(AttributeError):
        del limits.memory
    with pytest.raises(AttributeError):
        limits.other = 1


def test_limits_over_others():
    theirs = Limits(memory=5, cpu_time=5, core_size=None)
    mine = Limits(memory=3, result_size=3, core_size=None)
    assert mine.over(theirs) == Limits(memory=3, cpu_time=5, result_size=3, core_size=None)
    assert mine.over(None) is mine
