"""What a call of an Isolator costs: warm and cold, alone and together, beside reused workers.

    python benchmarks/service.py [--quick]

Each part runs in a process of its own. Latencies are compared call by call, in random order, in one
process; everything is a median.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import anyio.to_process

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import contenders
from bench import grow, resident_mb

from aioisolate import Isolator

clock = time.perf_counter
Call = Callable[[], Awaitable[Any]]

C_FORKER = r"""
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int n, char **a) {
    size_t size = atol(a[1]) << 20;
    memset(malloc(size), 1, size);
    for (int i = atoi(a[2]); i--;) { if (!fork()) _exit(0); wait(0); }
}
"""


async def interleaved(calls: dict[str, Call], rounds: int, gap: float) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(5):
            await call()
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            if gap:
                await asyncio.sleep(gap)
            start = clock()
            await calls[name]()
            times[name].append(clock() - start)
    return {name: statistics.median(of) for name, of in times.items()}


async def warm(rounds: int) -> dict[str, Any]:
    """A warm child per call, beside workers that are used again and again."""
    import loky
    from pebble import ProcessPool

    loop = asyncio.get_running_loop()
    fork = multiprocessing.get_context("fork")
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as executor,
        ProcessPool(1, context=fork) as pebble,
    ):
        reusable = loky.get_reusable_executor(max_workers=1)
        async with Isolator(warm=4, max_concurrency=64) as iso:
            calls: dict[str, Call] = {
                "aioisolate, a fresh process each": lambda: iso.run(abs, -1),
                "anyio.to_process": lambda: anyio.to_process.run_sync(abs, -1),
                "ProcessPoolExecutor": lambda: loop.run_in_executor(executor, abs, -1),
                "loky": lambda: asyncio.wrap_future(reusable.submit(abs, -1)),
                "pebble": lambda: asyncio.wrap_future(pebble.schedule(abs, args=(-1,))),
            }
            spaced = await interleaved(calls, rounds, 0.004)
            calls.pop("pebble")
            tight = await interleaved(calls, rounds, 0)
        reusable.shutdown(kill_workers=True)
    return {"spaced": spaced, "tight": tight}


async def cold(rounds: int) -> dict[str, Any]:
    """A zygote's child forked on demand, from a large parent, against that parent's own fork."""
    ballast = grow(500)

    async def bare() -> None:
        contenders.bare()

    async with Isolator(max_concurrency=64) as iso:
        result = await interleaved({"bare": bare, "zygote": lambda: iso.run(abs, -1)}, rounds, 0)
    resident = resident_mb()
    del ballast
    return {"resident": resident, **result}


async def rate(call: Call, in_flight: int, total: int) -> float:
    left = iter(range(total))

    async def worker() -> None:
        for _ in left:
            await call()

    start = clock()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return total / (clock() - start)


async def together(rounds: int) -> dict[str, Any]:
    """Calls per second with 64 in flight."""
    rates: dict[str, float] = {}
    async with Isolator(warm=4, max_concurrency=64) as iso:
        pid = await iso.run(os.getppid)
        with open(f"/proc/{pid}/statm") as file:
            size = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
        rates["aioisolate"] = await rate(lambda: iso.run(abs, -1), 64, 10 * rounds)
    for name in ("multiprocessing.Process(fork)", "asyncio subprocess (python -I -S)"):
        async with contenders.contender(name) as call:
            rates[name] = await rate(call, 64, 2 * rounds)
    if compiler := shutil.which("cc"):
        with tempfile.TemporaryDirectory() as directory:
            program = f"{directory}/forker"
            source = Path(f"{directory}/forker.c")
            source.write_text(C_FORKER)
            subprocess.run([compiler, "-O1", "-w", "-o", program, str(source)], check=True)
            start = clock()
            pair = [subprocess.Popen([program, str(size), str(10 * rounds)]) for _ in range(2)]
            for process in pair:
                process.wait()
            rates[f"two C programs of {size} MB that fork"] = 20 * rounds / (clock() - start)
    return rates


async def longest_gap(work: Callable[[], Awaitable[Any]]) -> float:
    longest, done = 0.0, False

    async def watch() -> None:
        nonlocal longest
        last = clock()
        while not done:
            await asyncio.sleep(0)
            longest = max(longest, (now := clock()) - last)
            last = now

    watching = asyncio.create_task(watch())
    await work()
    done = True
    await watching
    return longest


async def gap(rounds: int) -> dict[str, Any]:
    """How long the loop of a parent with 2 GB is held up, at most."""
    ballast = grow(2000)
    async with Isolator(warm=2) as iso:

        async def calls() -> None:
            for _ in range(rounds):
                await iso.run(abs, -1)

        async def threads() -> None:
            for _ in range(rounds):
                await asyncio.to_thread(abs, -1)

        await threads()
        result = {"threads": await longest_gap(threads), "zygote": await longest_gap(calls)}
    del ballast
    return result


async def memory(rounds: int) -> dict[str, Any]:
    """What an idle warm child has to itself, with numpy preloaded."""
    del rounds
    async with Isolator(preload=["numpy"], warm=4) as iso:
        await asyncio.sleep(0.5)
        sizes = []
        for worker in iso._service._source._pool._idle:  # type: ignore[attr-defined]
            with open(f"/proc/{worker.pid}/smaps_rollup") as file:
                fields = {line.split(":")[0]: line.split() for line in file}
            sizes.append(int(fields["Private_Dirty"][1]) + int(fields["Private_Clean"][1]))
    return {"kb": statistics.median(sizes)}


async def crowd(rounds: int) -> dict[str, Any]:
    """Many children alive at once."""
    many = 2000 if rounds >= 200 else 500
    result: dict[str, Any] = {"many": many}
    async with Isolator(max_concurrency=many) as iso:
        for number in (10, many):
            calls: list[asyncio.Task[None]] = []

            async def begin(number: int = number, calls: list[Any] = calls) -> None:
                for _ in range(number):
                    calls.append(asyncio.create_task(iso.run(time.sleep, 600)))
                    await asyncio.sleep(0)
                while sum(job.state == "running" for job in iso.jobs()) < number:
                    await asyncio.sleep(0.05)

            async def end(calls: list[Any] = calls) -> None:
                for call in calls:
                    call.cancel()
                await asyncio.wait(calls)

            result[f"gap {number}"] = await longest_gap(begin)
            result[f"end {number}"] = await longest_gap(end)
            calls.clear()
            # Once more, without the watcher, which is never idle.
            used = time.process_time()
            await begin()
            await end()
            result[f"cpu {number}"] = (time.process_time() - used) / number
    return result


PARTS = {f.__name__: f for f in (warm, cold, together, gap, memory, crowd)}


def measure(part: str, loop: str, rounds: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--part", part, "--loop", loop, "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part} on {loop}:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, about a minute")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--loop", default="asyncio", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run: Callable[..., Any] = asyncio.run
        if options.loop == "uvloop":
            import uvloop

            run = uvloop.run
        print(json.dumps(run(PARTS[options.part](options.rounds))))
        return

    rounds = 100 if options.quick else 400
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, Linux {os.uname().release}\n")
    targets = []
    print("One call at a time, in microseconds: 4 ms apart, and back to back")
    for loop in ("asyncio", "uvloop"):
        found = measure("warm", loop, rounds)
        for name, seconds in found["spaced"].items():
            tight = found["tight"].get(name)
            shown = f"{tight * 1e6:8.0f}" if tight else "       -"
            print(f"  {loop:8} {name:34} {seconds * 1e6:8.0f} {shown}")
        ours, theirs = (found["spaced"][name] for name in list(found["spaced"])[:2])
        targets.append((f"warm / anyio.to_process on {loop}", ours / theirs, "at most 1.0"))
    found = measure("cold", "asyncio", rounds // 4)
    print(
        f"\nForked on demand, with {found['resident']:.0f} MB in the parent: "
        f"{found['zygote'] * 1e6:.0f} us; the parent's own fork: {found['bare'] * 1e6:.0f} us"
    )
    targets.append(("cold / bare fork at 500 MB", found["zygote"] / found["bare"], "at most 0.2"))
    print("\nCalls per second, 64 in flight, a fresh process each")
    found = measure("together", "asyncio", rounds)
    for name, per_second in found.items():
        print(f"  {name:44} {per_second:8.0f}")
    ours, *peers = found.values()
    targets.append(("calls/s / best peer", ours / max(peers[:2]), "at least 6"))
    if len(peers) > 2:
        targets.append(("calls/s / two C forkers", ours / peers[2], "at least 0.3"))
    found = measure("gap", "asyncio", rounds)
    print(
        f"\nLongest gap of the loop with 2 GB in the parent: {found['zygote'] * 1e3:.1f} ms, with "
        f"asyncio.to_thread {found['threads'] * 1e3:.1f} ms"
    )
    targets.append(
        ("gap above to_thread, ms", (found["zygote"] - found["threads"]) * 1e3, "at most 5")
    )
    found = measure("memory", "asyncio", rounds)
    print(f"An idle warm child with numpy has {found['kb']:.0f} KB to itself")
    targets.append(("private MB of an idle child", found["kb"] / 1024, "at most 1.5"))
    found = measure("crowd", "asyncio", rounds)
    many = found["many"]
    print(
        f"{many} children alive at once: longest gap {found[f'gap {many}'] * 1e3:.0f} ms (when all "
        f"are cancelled in one turn {found[f'end {many}'] * 1e3:.0f} ms), "
        f"{found[f'cpu {many}'] * 1e6:.0f} us of the parent's CPU per call (with 10: "
        f"{found['cpu 10'] * 1e6:.0f})"
    )
    targets.append((f"longest gap with {many}, ms", found[f"gap {many}"] * 1e3, "below 100"))
    targets.append(
        (f"CPU per call, {many} / 10", found[f"cpu {many}"] / found["cpu 10"], "at most 1.5")
    )
    print("\nTargets")
    for name, value, wanted in targets:
        print(f"  {name:40} {value:7.2f}   (wanted: {wanted})")


if __name__ == "__main__":
    main()
