"""A table of what a call costs, from one run: us, the bare system calls, and our peers.

    python benchmarks/bench.py [--quick] [--json FILE]

Ratios to the bare system calls come from one process, call by call in random order: on a shared
machine nothing else can be compared. Medians of rounds, with their spread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio  # noqa: F401 - every parent measured has what aioisolate needs loaded
import cloudpickle  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import contenders

clock = time.perf_counter
BOUND = "(bare fork + exit + wait)"


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def grow(mb: int) -> bytearray:
    """Take so much memory that *mb* are resident, each page written to."""
    size = max(0, int((mb - resident_mb()) * 2**20))
    ballast = bytearray(size)
    ballast[::4096] = b"x" * len(ballast[::4096])
    return ballast


def faults(who: int) -> int:
    return resource.getrusage(who).ru_minflt


async def against_bare(rounds: int, calls: int) -> dict[str, Any]:
    """Interleave bare forks with calls; also count the pages that each copies or touches."""
    times: dict[str, list[list[float]]] = {"bare": [], "bare+pickle": [], "aioisolate": []}
    touched: dict[str, list[tuple[int, int]]] = {name: [] for name in times}
    async with contenders.contender("aioisolate") as call:
        for _ in range(10):
            await call()
        for _ in range(rounds):
            for of_round in times.values():
                of_round.append([])
            order = list(times) * calls
            random.shuffle(order)
            for name in order:
                here, there = faults(resource.RUSAGE_SELF), faults(resource.RUSAGE_CHILDREN)
                start = clock()
                if name == "bare":
                    contenders.bare()
                elif name == "bare+pickle":
                    contenders.bare_with_result()
                else:
                    await call()
                times[name][-1].append(clock() - start)
                touched[name].append(
                    (
                        faults(resource.RUSAGE_SELF) - here,
                        faults(resource.RUSAGE_CHILDREN) - there,
                    )
                )
    medians = {name: [statistics.median(r) for r in of_all] for name, of_all in times.items()}
    return {
        "resident": resident_mb(),
        "medians": medians,
        "faults": {
            name: [statistics.median(side) for side in zip(*pairs, strict=True)]
            for name, pairs in touched.items()
        },
    }


async def alone_and_together(name: str, calls: int, in_flight: int) -> dict[str, Any]:
    """Median latency one at a time, and calls per second with many in flight."""
    async with contenders.contender(name) as call:
        for _ in range(3):
            await call()
        latencies = []
        for _ in range(calls):
            start = clock()
            await call()
            latencies.append(clock() - start)
        total = max(in_flight, calls)
        left = iter(range(total))

        async def worker() -> None:
            for _ in left:
                await call()

        start = clock()
        await asyncio.gather(*(worker() for _ in range(in_flight)))
        rate = total / (clock() - start)
    return {"resident": resident_mb(), "latency": statistics.median(latencies), "rate": rate}


def bare_alone_and_together(calls: int, in_flight: int) -> dict[str, Any]:
    """The same for nothing but the system calls: no library that forks can do better."""
    latencies = []
    for _ in range(calls):
        start = clock()
        contenders.bare()
        latencies.append(clock() - start)
    start = clock()
    contenders.bare_together(calls, in_flight)
    rate = calls / (clock() - start)
    return {"resident": resident_mb(), "latency": statistics.median(latencies), "rate": rate}


def child(options: argparse.Namespace) -> None:
    """Be the process that is measured."""
    ballast = grow(options.mb)

    async def main() -> dict[str, Any]:
        if options.measure == "bare":
            return await against_bare(options.rounds, options.calls)
        if options.measure == BOUND:
            return bare_alone_and_together(options.calls, options.in_flight)
        return await alone_and_together(options.measure, options.calls, options.in_flight)

    if options.loop == "uvloop":
        import uvloop

        result = uvloop.run(main())
    else:
        result = asyncio.run(main())
    del ballast
    print(json.dumps(result))


def measure(what: str, loop: str, mb: int, **options: int) -> dict[str, Any] | None:
    command = [sys.executable, __file__, "--measure", what, "--loop", loop, "--mb", str(mb)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{what} on {loop}: {done.stderr.splitlines()[-1:]}", file=sys.stderr)
        return None
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def ratios(result: dict[str, Any], name: str) -> list[float]:
    medians = result["medians"]
    return [a / b for a, b in zip(medians[name], medians["bare"], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, about half a minute")
    parser.add_argument("--json", metavar="FILE", help="also write all figures there")
    for name in ("measure", "loop"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in ("mb", "rounds", "calls", "in-flight"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        child(options)
        return

    rounds, calls = (3, 40) if options.quick else (7, 120)
    report: dict[str, Any] = {}
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, Linux {os.uname().release}\n")
    print("One at a time, against os.fork + os._exit + os.waitpid in the same process")
    head = (
        f"{'':14}{'loop':9}{'resident':>9}{'median':>10}{'/ bare':>8}{'spread':>15}{'faults':>13}"
    )
    print(head)
    for mb in (20, 500):
        for loop in ("asyncio", "uvloop"):
            result = measure(
                "bare", loop, mb, rounds=rounds, calls=calls if mb < 100 else calls // 3
            )
            if result is None:
                continue
            report[f"bare/{loop}/{mb}"] = result
            for name, of_rounds in result["medians"].items():
                ratio = ratios(result, name)
                median = statistics.median(of_rounds) * 1e6
                pages = "{:.0f}+{:.0f}".format(*result["faults"][name])
                print(
                    f"{name:14}{loop:9}{result['resident']:6.0f} MB{median:7.0f} us"
                    f"{statistics.median(ratio):8.2f}{min(ratio):8.2f}-{max(ratio):.2f}{pages:>15}"
                )
    print("\nfaults: pages touched in the parent + in the child, medians\n")

    print("Peers that give each call a process of its own: latency, and 64 in flight")
    print(f"{'':36}{'loop':9}{'resident':>9}{'latency':>11}{'calls/s':>9}")
    rates: dict[tuple[str, int], float] = {}
    for mb in (20, 500):
        for name in [BOUND, *contenders.CONTENDERS]:
            for loop in ("asyncio", "uvloop") if name == "aioisolate" else ("asyncio",):
                n = (15 if options.quick else 60) * (5 if name in ("aioisolate", BOUND) else 1)
                result = measure(name, loop, mb, calls=n, in_flight=64)
                if result is None:
                    continue
                report[f"{name}/{loop}/{mb}"] = result
                rates[f"{name} {loop}", mb] = result["rate"]
                print(
                    f"{name:36}{loop:9}{result['resident']:6.0f} MB"
                    f"{result['latency'] * 1e3:8.2f} ms{result['rate']:9.0f}"
                )

    print("\nTargets")
    for mb, target in ((20, 1.25), (500, 1.02)):
        for loop in ("asyncio", "uvloop"):
            if f"bare/{loop}/{mb}" in report:
                reached = statistics.median(ratios(report[f"bare/{loop}/{mb}"], "aioisolate"))
                print(f"  / bare at {mb} MB on {loop}: {reached:.2f} (wanted: at most {target})")
    for mb in (20, 500):
        peers = [
            rate
            for (name, at), rate in rates.items()
            if at == mb and not name.startswith(("aioisolate", BOUND))
        ]
        for loop in ("asyncio", "uvloop"):
            if peers and (ours := rates.get((f"aioisolate {loop}", mb))):
                print(
                    f"  calls/s / best peer at {mb} MB on {loop}: {ours / max(peers):.1f} "
                    "(wanted: at least 3)"
                )
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
