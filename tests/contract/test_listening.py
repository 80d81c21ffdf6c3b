"""How often a child may wake this process up."""

from __future__ import annotations

import math
import os
import time
import types

import anyio
import pytest

from aioisolate import IsolationError, Reason
from tests import actions, helpers, output_functions
from tests.functions import count
from tests.helpers import Stages, alive, error_of, until
from tests.internals import CallOptions, WaitSet, WakeupRateLimiter, channel, messages, supervision

pytestmark = pytest.mark.once

SECONDS = 0.5
# In a row, and a second; what is read at a start and an end, and timers that come early.
IN_A_ROW, A_SECOND, BESIDE = 64, 250, 30


@pytest.fixture
def reads(monkeypatch):
    """Each reading of a child's channel or output: of what, and how much came."""
    found = []

    def read(fd, size, real=os.read):
        data = real(fd, size)
        found.append(len(data))
        return data

    def receive_on(fd, size, real=messages.receive_on):
        found.append(0)
        data, *rest = real(fd, size)
        found[-1] = len(data)
        return data, *rest

    monkeypatch.setattr(supervision.os, "read", read)
    monkeypatch.setattr(messages, "receive_on", receive_on)
    return found


@pytest.fixture(params=["fork", "zygote"])
def strange(request):
    """How to open an Isolator whose children are strangers."""
    start = {"start": request.param}
    return lambda: helpers.isolator(start, "tests.output_functions", "tests.actions", codec="json")


@pytest.mark.parametrize("what", ["print_bytes", "print_lines", "dribble", "ring", "report"])
async def test_a_chatterer_is_left_alone(what, strange, reads):
    lines, heard = [], []
    fn = output_functions.print_bytes if what == "print_lines" else getattr(output_functions, what)
    options = {
        "print_bytes": {"output": "capture"},
        "print_lines": {"output": lambda _, line: lines.append(line)},
        "report": {"on_progress": heard.append},
    }.get(what, {})
    async with strange() as iso:
        assert await iso.run(actions.double, 4) == 8
        reads.clear()
        begun = time.monotonic()
        outcome = await iso.capture(fn, SECONDS, timeout=30, **options)
        took = time.monotonic() - begun
    small = [size for size in reads if size < 8 * 1024]
    assert len(small) < IN_A_ROW + A_SECOND * took + BESIDE
    # Nothing is lost for that.
    match what:
        case "print_bytes":
            assert outcome.stdout == "x" * outcome.value
        case "print_lines":
            assert "".join(lines) == "x" * outcome.value
        case "dribble":
            assert outcome.value == "x" * 10_000_000
        case "ring":
            assert outcome.error is None or outcome.error.reason is Reason.PROTOCOL
        case "report":
            assert outcome.error.reason is Reason.NO_RESULT
            assert 0 < len(heard) < 64 * (IN_A_ROW + A_SECOND * took) + 50


@pytest.mark.one_loop
@pytest.mark.parametrize("end", ["\n", "\r"])
async def test_11_30_each_line_counts_whatever_ends_it(strange, end):
    lines, text = [], ("a" + end) * 262_144
    async with strange() as iso:
        assert await iso.run(actions.double, 4) == 8
        begun = time.monotonic()
        await iso.run(output_functions.print_text, text, output=lambda _, line: lines.append(line))
        took = time.monotonic() - begun
    assert lines == ["a"] * 262_144
    assert took > 0.4  # without a share: a quarter of a second


async def test_what_is_due_is_done_while_a_child_is_left_alone(strange):
    async with strange() as iso:
        error = await error_of(
            iso.run(output_functions.print_bytes, 60, timeout=0.4, output="capture")
        )
        assert error.reason is Reason.TIMEOUT
        assert "in print_bytes" in error.crash_traceback
        assert error.usage.wall < 10
        stages = Stages()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(
                    lambda: iso.run(
                        output_functions.print_bytes, 60, output="capture", on_event=stages
                    )
                )
                pid = await stages.reached("started")
                await anyio.sleep(0.3)
                scope.cancel()
        await until(lambda: not alive(pid))
        async with iso.open_job(output_functions.print_bytes, 60, output="capture") as job:
            await until(lambda: len(job.stdout or "") > IN_A_ROW)
            job.cancel()
            with pytest.raises(IsolationError):
                await job.result()


async def test_streams_go_on(strange):
    async with strange() as iso:
        async with iso.stream(output_functions.items, 5000, 0.3, output="capture") as items:
            got = []
            async for item in items:
                got.append(item)
                if not item % 500:
                    await anyio.sleep(0.01)  # held up meanwhile
        assert got == list(range(5000))
        async with iso.stream(count, 1 << 60) as items:
            async for item in items:
                if item == 2000:
                    break


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(at=1000.0)
    monkeypatch.setattr(channel, "time", types.SimpleNamespace(monotonic=lambda: now.at))
    return now


class Pipes:
    """As much of a child as is needed: something to read, and something to wait for it."""

    talks = True

    def __init__(self):
        self.channel, self.far = os.pipe()
        self.other, self.other_far = os.pipe()
        self.streams = (types.SimpleNamespace(fd=self.other),)
        self.waitset = WaitSet()
        self.waitset.add(self.channel)
        self.waitset.add(self.other)
        for fd in (self.far, self.other_far):
            os.write(fd, b"x")

    def close(self):
        self.waitset.close()
        for fd in (self.channel, self.far, self.other, self.other_far):
            os.close(fd)


@pytest.fixture
def pipes():
    made = Pipes()
    yield made
    made.close()


def test_rests(clock, pipes):
    ears = WakeupRateLimiter(pipes, CallOptions(codec="json"))
    both = {pipes.channel, pipes.other}
    for _ in range(64):
        ears.heard(1)
    assert ears.until == math.inf
    ears.heard(1)
    assert 0.003 < ears.until - clock.at < 0.009
    assert not pipes.waitset.poll()
    ears.go_on()
    assert not pipes.waitset.poll()
    clock.at = ears.until
    ears.go_on()
    assert ears.until == math.inf
    assert set(pipes.waitset.poll()) == both
    # As often as it likes within a rest: whatever is added then is waited for after it.
    ears.heard(0)
    ears.remove(pipes.channel)
    ears.add(pipes.channel)
    ears.remove(pipes.other)
    assert not pipes.waitset.poll()
    clock.at += 1
    ears.go_on()
    assert pipes.waitset.poll() == [pipes.channel]
    # A second's worth is there again, and no more than what may come in a row.
    clock.at += 3600
    for _ in range(64):
        ears.heard(0)
    assert ears.until == math.inf
    ears.heard(0)
    assert ears.until != math.inf


def test_who_has_much_to_say_is_not_held_up(clock, pipes):
    ears = WakeupRateLimiter(pipes, CallOptions(codec="json"))
    for _ in range(10_000):
        ears.heard(64 * 1024)
        ears.heard(8 * 1024)
    assert ears.until == math.inf
    ears.took_reports(1000, 20_000)
    ears.took_lines(10_000)
    assert ears.until == math.inf
    ears.took_lines(64 * 1024)
    assert 0.1 < ears.until - clock.at < 0.5


def test_who_is_trusted_is_heard_at_once(pipes):
    ears = WakeupRateLimiter(pipes, CallOptions())
    for _ in range(10_000):
        ears.heard(1)
        ears.took_reports(10, 1000)
    assert ears.until == math.inf
    assert len(pipes.waitset.poll()) == 2
