"""What several test modules need."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from aioisolate import CallEvent, IsolationError, Isolator

ROOT = Path(__file__).resolve().parent.parent


class Stages:
    """Collects the events of a call and lets a test await one of them."""

    def __init__(self) -> None:
        self.seen: list[CallEvent] = []
        self._changed = anyio.Event()

    def __call__(self, event: CallEvent) -> None:
        self.seen.append(event)
        self._changed.set()
        self._changed = anyio.Event()

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.seen]

    @property
    def pid(self) -> int:
        return self.seen[0].pid

    async def reached(self, name: str) -> int:
        """Wait for the stage *name* and return the child's pid."""
        with anyio.fail_after(20):
            while name not in self.names:
                await self._changed.wait()
        return self.pid


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def must_have_browser() -> bool:
    """Whether a missing browser is an error: scripts/test installs one on a CI machine, once."""
    return "CI" in os.environ and "AIOISOLATE_INSIDE" not in os.environ


async def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait for something that gives no event."""
    with anyio.fail_after(seconds):
        while not (value := condition()):
            await anyio.sleep(0.005)
        return value


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait for something that gives no event, outside a loop."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)
    return value


def fork() -> int:
    """Fork this process as `os.fork` does, without the warning that there are threads.

    From 3.15 on Python counts native threads, too: pytest's watchdog (faulthandler_timeout) and
    libuv's workers, which are there as soon as uvloop has looked up a name. Neither of them holds
    a lock that a child of a test's could need.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process", DeprecationWarning)
        return os.fork()


def forked(work: Callable[..., Any], *args: Any) -> tuple[Any, int]:
    """Run *work* in a bare forked child; return what JSON makes of its result, and its status."""
    read, write = os.pipe()
    pid = fork()
    if not pid:
        try:
            os.close(read)
            os.write(write, json.dumps(work(*args)).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(77)
    os.close(write)
    with open(read, "rb") as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return (json.loads(answer) if answer else None), status


def python(
    source: str, *args: str, prefix: str = "", **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a Python program in an interpreter of its own, maybe behind some shell *prefix*."""
    options = {"capture_output": True, "text": True, "timeout": 60, "cwd": ROOT} | options
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    environment.pop("PYTHONUNBUFFERED", None)  # what is buffered matters here
    command: Any = [sys.executable, "-c", textwrap.dedent(source), *args]
    if prefix:
        command = ["sh", "-c", f'exec "$@" {prefix}', "sh", *command]
    return subprocess.run(command, env=environment, check=False, **options)


@contextlib.contextmanager
def service(name: str = "image_service", *args: str, **env: str) -> Iterator[tuple[str, int]]:
    """Run an example that is a server; give its address and process id."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **env}
    process = subprocess.Popen(
        [sys.executable, f"examples/{name}.py", "--port", "0", *args],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    with process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"running on (http://\S+)", line):
                    yield found[1], process.pid
                    break
            else:
                pytest.fail("the server did not start")
        finally:
            process.terminate()
            log = process.stderr.read()
    assert process.returncode in (0, -15), log
    assert "Traceback" not in log
    assert "Warning" not in log


async def gap_while(work: Callable[[], Any]) -> tuple[float, Any]:
    """Await *work()* and return the longest time that the event loop was held up meanwhile."""
    longest = 0.0
    done = False

    async def watch() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not done:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest = max(longest, now - last)
            last = now

    watching = asyncio.create_task(watch())
    try:
        result = await work()
    finally:
        done = True
        await watching
    return longest, result


def resident() -> int:
    """How many bytes of memory this process has in use."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def mappings() -> int:
    """How many mappings this process has."""
    with open("/proc/self/maps") as file:
        return sum(1 for _ in file)


def leaves_nothing(work: Callable[[], Any], rounds: int = 500) -> None:
    """Do *work* many times, and check that neither memory nor mappings or descriptors add up."""
    for _ in range(20):
        work()
    gc.collect()
    before = mappings(), len(os.listdir("/proc/self/fd")), resident()
    for _ in range(rounds):
        work()
    gc.collect()
    after = mappings(), len(os.listdir("/proc/self/fd")), resident()
    # The heap may get another mapping or two of its own.
    assert after[0] - before[0] <= 3
    assert after[1] == before[1]
    assert after[2] - before[2] < 2 << 20


def count_forks(limit: int = 20) -> int:
    """Fork until it is refused, *limit* times at most; return how many there were at once."""
    forks = []
    try:
        for _ in range(limit):
            pid = fork()
            if not pid:
                time.sleep(30)
                os._exit(0)
            forks.append(pid)
    except BlockingIOError:
        pass
    for pid in forks:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return len(forks)


@contextlib.asynccontextmanager
async def isolator(start: dict[str, Any], *modules: str, **options: Any) -> AsyncIterator[Isolator]:
    """Open an Isolator of some kind; *modules* are for a fork server to import."""
    if start["start"] == "zygote" and modules:
        options.setdefault("preload", modules)
    async with Isolator(**start, **options) as iso:
        yield iso


async def error_of(call: Awaitable[Any]) -> IsolationError:
    """Await it; return what it raises, which is typed."""
    try:
        value = await call
    except IsolationError as error:
        return error
    pytest.fail(f"it returned {str(value)[:100]!r}")
