"""What snapshots, pages and growing arrays cost beside bytearray, numpy and array.array.

    python benchmarks/memory.py [--quick]

What is compared is done in turns, in random order, in one process; everything is a median.
"""

from __future__ import annotations

import argparse
import array
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from aioisolate import PagedArray, Pages, Snapshot, page_size

clock = time.perf_counter
Work = Callable[[], Any]
MB = 1 << 20


def in_turns(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """Return how long each takes; giving back what it returns counts as well."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name in random.sample(list(works), len(works)):
            start = clock()
            works[name]()
            times[name].append(clock() - start)
    return {name: statistics.median(of) for name, of in times.items()}


def show(title: str, found: dict[str, float], items: int = 1, unit: float = 1e6) -> None:
    """Print a table, with ratios to the first."""
    names = {1e3: "ms", 1e6: "us", 1e9: "ns"}
    print(f"\n{title}")
    first = next(iter(found.values()))
    for name, seconds in found.items():
        print(
            f"  {name:44}{seconds / items * unit:12.2f} {names[unit]}"
            f"{seconds / first:9.2f} of the first"
        )


def allocation(rounds: int) -> None:
    """50 MB, given back again: without and with a write to each page."""
    size, page = 50 * MB, page_size()
    makers: dict[str, Callable[[int], Any]] = {
        "Pages": Pages,
        "Pages, with guards": lambda n: Pages(n, guard=True),
        "Pages, huge": lambda n: Pages(n, huge=True),
        "bytearray": bytearray,
        "numpy.empty": lambda n: np.empty(n, "u1"),
        "numpy.zeros": lambda n: np.zeros(n, "u1"),
        "Snapshot.zeroed and a view": lambda n: Snapshot.zeroed(n).view(),
    }
    try:
        makers["Pages, huge"](5)
    except OSError:
        del makers["Pages, huge"]

    def touched(make: Callable[[int], Any]) -> Work:
        def work() -> None:
            np.frombuffer(make(size), "u1")[::page] = 1

        return work

    untouched = {name: lambda make=make: make(size) for name, make in makers.items()}
    show("50 MB allocated and freed, not touched", in_turns(untouched, rounds))
    found = in_turns({name: touched(make) for name, make in makers.items()}, rounds // 5)
    show("50 MB allocated, each page written to, freed", found)


def numbers(rounds: int) -> None:
    """Append and scan, beside array.array."""
    count = 200_000

    def append(kind: Any) -> Work:
        def work() -> None:
            append = kind("q").append
            for i in range(count):
                append(i)

        return work

    ours, theirs = PagedArray("q", range(count)), array.array("q", range(count))
    kinds = {"array.array": array.array, "PagedArray": PagedArray}
    both = {"array.array": theirs, "PagedArray": ours}
    turns = max(rounds // 20, 5)
    found = in_turns({name: append(kind) for name, kind in kinds.items()}, turns)
    show("Append, per number", found, count, 1e9)
    block = theirs[:1000]

    def extend(kind: Any) -> Work:
        def work() -> None:
            made = kind("q")
            for _ in range(5000):
                made.extend(block)

        return work

    found = in_turns({name: extend(kind) for name, kind in kinds.items()}, turns)
    show("Extend to 40 MB by 8 KB each time, all together", found, 1, 1e3)
    found = in_turns({name: lambda of=of: sum(of) for name, of in both.items()}, turns)
    show("Scan by a loop, per number", found, count, 1e9)
    found = in_turns({n: lambda of=of: [of[i] for i in range(count)] for n, of in both.items()}, 5)
    show("Scan by index, per number", found, count, 1e9)
    found = in_turns({n: lambda of=of: np.frombuffer(of, "q").sum() for n, of in both.items()}, 50)
    show("Scan by numpy, all together", found)


def views(rounds: int, sizes: list[int]) -> None:
    """A view's creation, its restoration with 1% of its pages changed; a copy beside it."""
    print("\nViews of a Snapshot, in microseconds; changed: 1% of the pages, at random")
    print(f"{'':12}{'view, close':>14}{'change':>12}{'restore':>12}{'new copy':>14}")
    page = page_size()
    for mb in sizes:
        snapshot = Snapshot.from_bytes(np.ones(mb * MB, "u1"))
        view = snapshot.view()
        content = np.frombuffer(view, "u1")
        pages = mb * MB // page
        times: dict[str, list[float]] = {name: [] for name in ("view", "change", "restore")}
        for _ in range(max(rounds // 10, 10)):
            start = clock()
            snapshot.view().close()
            times["view"].append(clock() - start)
            places = np.array(random.sample(range(pages), max(pages // 100, 1))) * page
            start = clock()
            content[places] = 2
            times["change"].append(clock() - start)
            start = clock()
            view.restore()
            times["restore"].append(clock() - start)
        copies = []
        for _ in range(3):
            start = clock()
            bytearray(content)
            copies.append(clock() - start)
        found = [*(statistics.median(of) for of in times.values()), statistics.median(copies)]
        print(
            f"  {mb:6} MB {found[0] * 1e6:14.1f}{found[1] * 1e6:12.0f}{found[2] * 1e6:12.0f}"
            f"{found[3] * 1e6:14.0f}"
        )


# What crosses to a child and back: results, arguments, shared arrays, fork of a large process.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rounds = 100 if options.quick else 500
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, Linux {os.uname().release}")
    allocation(rounds)
    numbers(rounds)
    views(rounds, [1, 100] if options.quick else [1, 100, 1024])


if __name__ == "__main__":
    main()
