"""A large data set that many isolated jobs query at once, without a copy of it in any of them.

    python examples/dataset.py [--megabytes 120] [--queries 32] [--at-once 8]

A million taxi trips and more lie in a `Snapshot`, which each job gets as an argument; what that
costs in memory is shown beside what copies would. The figures come from Linux's /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from aioisolate import Isolator, Snapshot, run_isolated

ZONES = 250
# This script is __main__, whose functions travel by cloudpickle.
PRELOAD = ["numpy", "cloudpickle"]
TRIP = np.dtype(
    [
        ("start", "i8"),  # seconds from the beginning of the year
        ("origin", "u2"),
        ("target", "u2"),
        ("kilometres", "f4"),
        ("seconds", "f8"),
        ("fare", "f8"),
    ]
)

# The trips from a zone, their mean fare, the longest; what the query took: bytes, seconds.
Answer = tuple[int, float, float]
Found = tuple[Answer, int, float]


def make_trips(megabytes: int) -> np.ndarray:
    """Make trips, the same each time."""
    random = np.random.default_rng(1)
    trips = np.empty(megabytes * 1_000_000 // TRIP.itemsize, TRIP)
    step = 100_000
    for at in range(0, len(trips), step):  # in parts: what is freed later is small
        part = trips[at : at + step]
        part["start"] = np.sort(random.integers(0, 86400, len(part))) + 86400 * (at // step)
        part["origin"] = random.integers(0, ZONES, len(part))
        part["target"] = random.integers(0, ZONES, len(part))
        part["kilometres"] = random.gamma(2, 3, len(part))
        part["seconds"] = part["kilometres"] * random.normal(150, 20, len(part))
        part["fare"] = 3 + 2 * part["kilometres"]
    return trips


def query(data: Any, zone: int) -> Found:
    """Look at all trips for those from *zone*; runs in a child."""
    start = time.perf_counter()
    trips = data.as_array() if isinstance(data, Snapshot) else data
    there = trips["origin"] == zone
    chosen = trips[there]
    answer = len(chosen), float(chosen["fare"].mean()), float(chosen["kilometres"].max())
    seconds = time.perf_counter() - start
    own = own_memory()  # now, when it has most
    if not isinstance(data, Snapshot):
        own += data.nbytes  # a copy lies in a file that is there for this call alone
    return answer, own, seconds


def own_memory() -> int:
    """Return how many bytes of memory only this process has, by having written to them."""
    own = 0
    with open("/proc/self/smaps") as file:
        private = 0
        for line in file:
            name, _, size = line.partition(":")
            if name in ("Private_Clean", "Private_Dirty"):
                private += int(size.split()[0]) * 1024
            elif name == "Anonymous":
                # Of a file, and a snapshot is one, this is what was written to.
                own += min(private, int(size.split()[0]) * 1024)
                private = 0
    return own


def resident() -> int:
    """Return how many bytes of memory this process uses."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def ask(
    run: Callable[..., Awaitable[Found]], data: Any, zones: list[int], at_once: int
) -> tuple[list[Found], float]:
    """Query all *zones*, so many at a time; return what was found and the time per query."""
    some = asyncio.Semaphore(at_once)

    async def one(zone: int) -> Found:
        async with some:
            return await run(query, data, zone)

    start = time.perf_counter()
    found = await asyncio.gather(*(one(zone) for zone in zones))
    return found, (time.perf_counter() - start) / len(zones)


def line(text: str, *columns: float | str, unit: float = 1e6, name: str = "MB") -> None:
    cells = (f"{c:>18}" if isinstance(c, str) else f"{c / unit:15.1f} {name}" for c in columns)
    print(f"{text:36}{''.join(cells)}".rstrip())


async def main() -> None:
    parser = argparse.ArgumentParser(description="Many isolated queries of one large data set.")
    parser.add_argument("--megabytes", type=int, default=120)
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--at-once", type=int, default=8)
    options = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("This shows figures that only Linux has, in /proc/self/smaps.")

    server = [resident()]
    trips = make_trips(options.megabytes)
    data = Snapshot.from_array(trips)
    count = len(trips)
    del trips
    server.append(resident())
    zones = [number % ZONES for number in range(options.queries)]
    at_once = min(options.at_once, options.queries)

    async with Isolator(preload=PRELOAD, warm=2, max_concurrency=at_once) as isolator:
        warm, warm_each = await ask(isolator.run, data, zones, at_once)
        forked, forked_each = await ask(run_isolated, data, zones, at_once)
        server.append(resident())
        # For comparison: a job that gets the trips themselves, pickled.
        copied, copied_each = await ask(isolator.run, np.array(data.as_array()), zones[:1], 1)

    print(f"{count} trips, {len(data) / 1e6:.1f} MB, queried {options.queries} times")
    for zone, (answer, _, _) in zip(zones[:5], warm, strict=False):
        print(f"  zone {zone}: {answer[0]} trips, {answer[1]:.2f} on average, {answer[2]:.1f} km")
    same = [a for a, _, _ in warm] == [a for a, _, _ in forked] and copied[0][0] == warm[0][0]
    print(f"  the same answers however they were asked: {same}")

    print()
    line("this process", "before", "with the data", "after all queries")
    line("  resident", *server)
    line("  the Snapshot, once for all", 0, data.size, data.size)

    print()
    line(f"the children, {at_once} at a time", "an Isolator's", "forked from here", "with a copy")
    columns = [warm, forked, copied]
    peaks = [[own for _, own, _ in found] for found in columns]
    line("  a child's own memory at its peak", *(max(of) for of in peaks))
    line("  all at once, together", *(max(of) * at_once for of in peaks))
    line("  copies of the data would be", *[len(data) * at_once] * 3)
    inside = [statistics.median(seconds for _, _, seconds in found) for found in columns]
    line("  the query itself, in the child", *inside, unit=1e-3, name="ms")
    line("  all, per query", warm_each, forked_each, copied_each, unit=1e-3, name="ms")


if __name__ == "__main__":
    asyncio.run(main())
