"""How much memory the kernel keeps for a stranger's code, with all that `memory` does not count.

Everything that is known to take some is taken at the same time (`tests.attacks.outside.pin_all`),
and a control group counts.
"""

from __future__ import annotations

import os
import socket

import anyio
import pytest

from aioisolate import Isolator, Limits, Reason, Sandbox
from tests.attacks.outside import pin_all
from tests.helpers import Stages
from tests.internals import Cgroup, platform_features

HERE = platform_features.containment()
MiB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
pytestmark = [
    pytest.mark.one_loop,
    pytest.mark.skipif(
        not HERE.landlock or not HERE.seccomp, reason="a sandbox would be refused here"
    ),
    pytest.mark.skipif("memory" not in HERE.groups, reason="no control groups can be made here"),
]


def usage(directory):
    for name in ("memory.usage_in_bytes", "memory.current"):
        if os.path.exists(f"{directory}/{name}"):
            with open(f"{directory}/{name}") as file:
                return int(file.read())
    raise AssertionError(directory)


async def most_of(limits):
    """Run a call that takes all it can; return how much memory there is then on its account."""
    group = Cgroup.create(1 << 40, None)
    directory = group.homes[0].directory
    here, there = socket.socketpair()
    stages = Stages()
    try:
        with here, there:
            async with (
                Isolator(
                    sandbox=Sandbox.untrusted(limits=limits), preload=["tests.attacks"]
                ) as iso,
                anyio.create_task_group() as tasks,
            ):
                outcomes = []

                async def call():
                    options = {"pass_fds": [there.fileno()], "on_event": stages, "timeout": 60}
                    outcomes.append(
                        await iso.capture(pin_all, there.fileno(), limits.memory, **options)
                    )

                tasks.start_soon(call)
                pid = await stages.reached("started")
                with open(f"{directory}/cgroup.procs", "w") as file:
                    file.write(str(pid))
                there.close()
                here.setblocking(False)
                here.send(b"x")
                with anyio.fail_after(60):
                    await anyio.wait_readable(here)
                assert here.recv(1) == b"x"
                found = usage(directory)
                here.send(b"x")
            assert outcomes[0].error.reason is Reason.NO_RESULT, outcomes
    finally:
        assert group.kill(5)
        with anyio.fail_after(5):
            while not group.remove():
                await anyio.sleep(0.01)
    return found


async def test_the_sum_of_all_that_is_kept_has_a_bound():
    limits = Limits(memory=64 * MiB, file_size=16 * MiB)
    # For each page of address space, at worst, two pages of page tables, and what describes a
    # mapping. The rest: full sockets, open and on their way, and what watches descriptors.
    mappings = min(limits.memory // PAGE, 65_530)
    bound = limits.memory + limits.file_size + mappings * (2 * PAGE + 512) + 96 * MiB
    found = await most_of(limits)
    assert limits.memory + limits.file_size < found < bound, f"{found / MiB:.0f} MiB"
