"""Many calls of every kind, mixed at random, and then a look for anything left behind.

    python benchmarks/soak.py [--calls N] [--in-flight N] [--loop asyncio|uvloop|trio] [--seed N]

Crashes, exits, timeouts with and without grace, cancellations before and after the start, large
results by every way, exceptions, output, grandchildren, nested calls. Every answer is checked. At
the end there must be no child, no zombie, no descriptor, no thread and no memory more than after
the first tenth (so run enough of them). Exits with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import anyio
import numpy as np

from aioisolate import (
    CallableExecutedError,
    CallableStatusUnknownError,
    Reason,
    capture_isolated,
    run_isolated,
)

MARKER = f"aioisolate-soak-{os.getpid()}"
DRIFT_KB = 3 * 1024
# Left alone, glibc keeps what large results have freed, a random amount of it, in one arena per
# thread; so memory is measured with one arena that gives everything of 64 KiB and more back.
PLAIN_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


class WrongAnswerError(Exception):
    """A call did not end as it had to."""


def check(fact: object, *what: object) -> None:
    if not fact:
        raise WrongAnswerError(*what)


async def value(rng: random.Random) -> None:
    n = rng.randrange(1 << 30)
    check(await run_isolated(lambda: [n, str(n)]) == [n, str(n)])


async def large(rng: random.Random) -> None:
    n = rng.randrange(1, 3_000_000)
    check(await run_isolated(lambda: b"%d" % n * 3 + b"x" * n) == b"%d" % n * 3 + b"x" * n)


async def array(rng: random.Random) -> None:
    n = rng.randrange(1, 400_000)
    result = await run_isolated(lambda: np.arange(n))
    check(int(result[-1]) == n - 1 and len(result) == n)
    result[0] = 7  # ours to write to


async def exception(rng: random.Random) -> None:
    n = rng.randrange(1000)

    def fail() -> None:
        raise LookupError(n)

    error = (await capture_isolated(fail)).error
    check(isinstance(error, LookupError) and error.args == (n,), error)


async def segfault(_rng: random.Random) -> None:
    error: Any = (await capture_isolated(ctypes.string_at, 0)).error
    check(error.reason is Reason.SIGNAL and error.exit == -signal.SIGSEGV, error)
    check("string_at" in error.crash_traceback, error)


async def leave(rng: random.Random) -> None:
    code = rng.randrange(256)
    error: Any = (await capture_isolated(os._exit, code)).error
    check(error.exit == code and isinstance(error, CallableStatusUnknownError), error)


async def killed(rng: random.Random) -> None:
    number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
    error: Any = (await capture_isolated(lambda: os.kill(os.getpid(), number))).error
    check(error.exit == -number, error)


async def too_late(rng: random.Random) -> None:
    stubborn, grace = rng.random() < 0.5, rng.choice([0, 0, 0.02])

    def hang() -> None:
        if stubborn:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)

    error: Any = (await capture_isolated(hang, timeout=0.05, grace=grace)).error
    check(isinstance(error, TimeoutError) and error.reason is Reason.TIMEOUT, error)


async def cancelled(rng: random.Random) -> None:
    with anyio.move_on_after(rng.random() * 0.03) as scope:
        await run_isolated(time.sleep, 60)
    check(scope.cancelled_caught)


async def unpicklable(_rng: random.Random) -> None:
    error = (await capture_isolated(threading.Lock)).error
    check(isinstance(error, CallableExecutedError), error)


async def output(rng: random.Random) -> None:
    n = rng.randrange(1, 2000)

    def speak() -> None:
        for i in range(n):
            print("line", i)

    outcome = await capture_isolated(speak, output="capture")
    check(outcome.stdout == "".join(f"line {i}\n" for i in range(n)), outcome)


async def grandchild(_rng: random.Random) -> None:
    def start() -> int:
        command = [sys.executable, "-S", "-c", "import time; time.sleep(600)", MARKER]
        return subprocess.Popen(command).pid

    check(await run_isolated(start) > 0)


async def asynchronous(rng: random.Random) -> None:
    n = rng.randrange(1000)

    async def later() -> int:
        await anyio.sleep(0.001)
        return n

    check(await run_isolated(later) == n)


async def nested(rng: random.Random) -> None:
    n = rng.randrange(1000)

    async def outer() -> int:
        return await run_isolated(lambda: n) + 1

    check(await run_isolated(outer) == n + 1)


KINDS: dict[Callable[[random.Random], Awaitable[None]], int] = {
    value: 30,
    large: 8,
    array: 8,
    exception: 8,
    segfault: 5,
    leave: 8,
    killed: 6,
    too_late: 4,
    cancelled: 10,
    unpicklable: 4,
    output: 4,
    grandchild: 1,
    asynchronous: 2,
    nested: 2,
}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> int:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return len(file.read().split())


def marked() -> int:
    """Count the processes left of those that were started in children."""
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                count += MARKER.encode() in file.read()
        except OSError:
            continue
    return count


def private_kb() -> int:
    """Measure this process's own memory, after giving back what can be given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_"))


async def soak(calls: int, in_flight: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    kinds, weights = list(KINDS), list(KINDS.values())
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    longest = 0.0
    left = calls

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            kind = rng.choices(kinds, weights)[0]
            counts[kind.__name__] += 1
            try:
                await kind(rng)
            except Exception as exc:
                wrong.append(f"{kind.__name__}: {type(exc).__name__}: {exc}")

    async def run(until: int) -> None:
        nonlocal left
        left = until
        async with anyio.create_task_group() as group:
            for _ in range(in_flight):
                group.start_soon(worker)

    async def watch() -> None:
        nonlocal longest
        last = time.perf_counter()
        while True:
            await anyio.sleep(0.005)
            now = time.perf_counter()
            longest = max(longest, now - last)
            last = now

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await run(calls // 10)
        fds, memory = descriptors(), private_kb()
        for part in range(1, 10):
            await run(calls // 10)
            done = sum(counts.values())
            rate = done / (time.perf_counter() - started)
            print(
                f"{part + 1:3}/10  {done} calls, {rate:.0f} a second, {len(wrong)} wrong, "
                f"{private_kb() - memory:+} KB",
                flush=True,
            )
        group.cancel_scope.cancel()

    drift = private_kb() - memory
    figures = {
        "wrong results": len(wrong),
        "children and zombies left": children(),
        "grandchildren left": marked(),
        "descriptors more": descriptors() - fds,
        "threads left": threading.active_count() - 1,
        "memory drift in KB": drift if drift > DRIFT_KB else 0,
    }
    print("\n" + ", ".join(f"{name} {count}" for name, count in counts.most_common()))
    print(f"longest loop gap {longest * 1000:.0f} ms, memory drift {drift} KB")
    for name, figure in figures.items():
        print(f"{name:28}{figure}")
    return wrong + [name for name, figure in figures.items() if figure > 0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--loop", choices=["asyncio", "uvloop", "trio"], default="asyncio")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    if not os.environ.keys() >= PLAIN_MALLOC.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | PLAIN_MALLOC)
    print(f"{options.calls} calls on {options.loop}, seed {options.seed}")
    backend = "trio" if options.loop == "trio" else "asyncio"
    choice = {"use_uvloop": options.loop == "uvloop"} if backend == "asyncio" else {}
    wrong = anyio.run(
        soak,
        options.calls,
        options.in_flight,
        options.seed,
        backend=backend,
        backend_options=choice,
    )
    for text in wrong[:20]:
        print("WRONG", text)
    print("all well" if not wrong else f"{len(wrong)} things wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
