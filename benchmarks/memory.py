"""What memory costs: made here, beside bytearray, numpy and array.array; taken to a child and back.

    python benchmarks/memory.py [--quick] [--only PART]

What is compared is done in turns, in random order, in one process; everything is a median.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import multiprocessing
import os
import random
import statistics
import sys
import time
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from aioisolate import (
    Isolator,
    PagedArray,
    Pages,
    Snapshot,
    page_size,
    run_isolated,
    shared_array,
)

clock = time.perf_counter
Work = Callable[[], Any]
Call = Callable[[], Awaitable[Any]]
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


class Turns(dict[str, list[float]]):
    """How long each took, in seconds, turn by turn."""

    def median(self, name: str) -> float:
        return statistics.median(self[name])

    def ratio(self, name: str, to: str) -> float:
        """Return the median of the ratios within the turns."""
        return statistics.median(a / b for a, b in zip(self[name], self[to], strict=True))

    def show(self, title: str, to: str | None = None) -> None:
        print(f"\n{title}")
        to = to or next(iter(self))
        for name in self:
            print(f"  {name:52}{self.median(name) * 1e3:10.2f} ms{self.ratio(name, to):9.2f}")


async def calls_in_turns(calls: dict[str, Call], rounds: int, warm_up: int = 1) -> Turns:
    """Await each, in random order, so many times; giving back the result does not count."""
    times = Turns({name: [] for name in calls})
    for deadlines in range(-warm_up, rounds):
        for name in random.sample(list(calls), len(calls)):
            start = clock()
            result = await calls[name]()
            if deadlines >= 0:
                times[name].append(clock() - start)
            del result
    return times


LARGE = 256 * MB
source: Any = None  # what children find, since they are forked after it is there


def whole_source() -> Any:
    return source


def made(size: int) -> Any:
    return np.full(size // 8, 1.5)


def add(out: Any) -> None:
    np.add(source, 1, out=out)


def sine(out: Any) -> None:
    np.sin(source, out=out)


async def results(quick: bool, targets: Targets) -> None:
    """256 MB that come back: as a result, and in a shared array."""
    global source
    rng = np.random.default_rng(1)
    source = rng.random(LARGE // 8)
    rounds = 5 if quick else 15
    loop = asyncio.get_running_loop()
    fork = multiprocessing.get_context("fork")
    with warnings.catch_warnings(), ProcessPoolExecutor(1, mp_context=fork) as pool:
        warnings.simplefilter("ignore")  # it forks while threads run
        await loop.run_in_executor(pool, abs, -1)

        async def read(call: Call) -> float:
            return float((await call())[::512].sum())  # a number in each page

        there: dict[str, Call] = {
            "ProcessPoolExecutor": lambda: loop.run_in_executor(pool, whole_source),
            "run_isolated": lambda: run_isolated(whole_source),
        }
        new: dict[str, Call] = {
            "ProcessPoolExecutor": lambda: loop.run_in_executor(pool, made, LARGE),
            "run_isolated": lambda: run_isolated(made, LARGE),
        }
        found = await calls_in_turns(there, rounds)
        found.show("256 MB of numpy as result, which the child had")
        targets.add(
            "result of 256 MB / ProcessPoolExecutor's",
            found.ratio("run_isolated", "ProcessPoolExecutor"),
            1 / 7,
        )
        found = await calls_in_turns(
            {name: lambda call=call: read(call) for name, call in there.items()}, rounds
        )
        found.show("the same, and each page of it read here")
        targets.add("  and read here", found.ratio("run_isolated", "ProcessPoolExecutor"), 1 / 7)
        found = await calls_in_turns(new, rounds)
        found.show("256 MB of numpy as result, made by the child")
        targets.add(
            "  made by the child as well", found.ratio("run_isolated", "ProcessPoolExecutor"), 1 / 7
        )

    for work in (add, sine):
        reused = shared_array(LARGE // 8)

        async def here(work: Any = work) -> Any:
            out = np.empty(LARGE // 8)
            work(out)
            return out

        async def shared(work: Any = work) -> Any:
            out = shared_array(LARGE // 8)
            await run_isolated(work, out)
            return out

        calls: dict[str, Call] = {
            "here, into a fresh array": here,
            "by a child, into a fresh shared array": shared,
            "by a child, into the same shared array": (
                lambda work=work, reused=reused: run_isolated(work, reused)
            ),
        }
        found = await calls_in_turns(calls, rounds)
        found.show(f"256 MB computed by numpy.{'add' if work is add else 'sin'}")
        first, fresh, same = calls
        name = work.__name__
        targets.add(f"into a fresh shared array / here, {name}", found.ratio(fresh, first), 1.3)
        targets.add(f"into the same shared array / here, {name}", found.ratio(same, first), 1.3)
    source = None


async def arguments(quick: bool, targets: Targets) -> None:
    """A Snapshot of 1 GB as argument, for a child forked from here and a warm one."""
    array = Snapshot.from_array(np.ones(1 << 27))
    plain = Snapshot.from_bytes(bytes(1 << 30))
    rounds = 100 if quick else 400
    arguments = {"without": b"", "with 1 GB": plain, "with 1 GB from an array": array}
    async with Isolator(warm=4, preload=["numpy"]) as isolator:
        for name, run, gap in (("fork", run_isolated, 0.0), ("warm child", isolator.run, 0.015)):
            times = Turns({key: [] for key in arguments})
            for deadlines in range(-10, rounds):
                for key in random.sample(list(times), len(times)):
                    await asyncio.sleep(gap)  # until a child is warm again
                    start = clock()
                    await run(len, arguments[key])
                    if deadlines >= 0:
                        times[key].append(clock() - start)
            times.show(f"A call with a Snapshot of 1 GB as argument: {name}")
            for key in list(arguments)[1:]:
                targets.add(f"{key} / without, {name}", times.ratio(key, "without"), 1.1)


FORKERS = [
    "nothing",
    "2 GB in a Snapshot, a view of it read",
    "  and one page of the view written to",
    "2 GB in bytes",
]


def forker(connection: Any, holding: str) -> None:
    """Fork, each time that is asked for, with so much in memory."""
    held: list[Any] = []
    if "Snapshot" in holding or "view" in holding:
        snapshot = Snapshot.zeroed(2 << 30)
        with snapshot.view_mut() as view:
            np.frombuffer(view, "u1")[:] = 1
        array = snapshot.as_array()
        assert array[:: page_size()].sum() == (2 << 30) // page_size()
        if "written" in holding:
            array[0] = 2
        held += [snapshot, array]
    elif holding != "nothing":
        held.append(b"1" * (2 << 30))
    with asyncio.Runner() as runner:
        for what in iter(connection.recv, None):
            start = clock()
            if what == "bare":
                pid = os.fork()
                if not pid:
                    os._exit(0)
                os.waitpid(pid, 0)
            else:
                runner.run(run_isolated(abs, -1))
            connection.send(clock() - start)


async def forks(quick: bool, targets: Targets) -> None:
    """A direct fork of a process with 2 GB, in a Snapshot or not, and of one without."""
    rounds = 40 if quick else 200
    context = multiprocessing.get_context("spawn")
    ends = {}
    for name in FORKERS:
        ends[name], theirs = context.Pipe()
        context.Process(target=forker, args=(theirs, name), daemon=True).start()
    for what, title in (("bare", "os.fork, _exit, wait"), ("call", "run_isolated")):
        times = Turns({name: [] for name in FORKERS})
        for deadlines in range(-3, rounds):
            for name in random.sample(FORKERS, len(FORKERS)):
                ends[name].send(what)
                seconds = ends[name].recv()
                if deadlines >= 0:
                    times[name].append(seconds)
        times.show(f"{title}: of a process that holds")
        found = times.ratio(FORKERS[1], FORKERS[0])
        targets.add(f"fork with 2 GB in a Snapshot / without, {what}", found, 1.3)
    for end in ends.values():
        end.send(None)


async def thresholds(quick: bool, targets: Targets) -> None:  # noqa: ARG001 - as the others
    """Which way a result should take, by its size."""
    from aioisolate._child import execution
    from aioisolate._wire import codecs

    ways = {
        "through the channel": (1 << 40, 1 << 40),
        # Not 0: a warm child's rehearsal has an answer as well.
        "stream in the scratch file": (1 << 40, 1024),
        "buffer in the scratch file": (0, 1 << 40),
    }
    before = codecs.OUT_OF_BAND_MIN, execution.INLINE_MAX
    rounds = 60 if quick else 300
    print("\nA result by its size, and the way that it takes, read here; microseconds")
    print(f"{'':12}{''.join(f'{way:>30}' for way in ways)}")
    async with AsyncExitStack() as stack:
        isolators = {}
        for way, (codecs.OUT_OF_BAND_MIN, execution.INLINE_MAX) in ways.items():
            # The copy of this process has these numbers from now on.
            isolators[way] = await stack.enter_async_context(Isolator(start="template", warm=2))
        codecs.OUT_OF_BAND_MIN, execution.INLINE_MAX = before
        for kb in (16, 32, 64, 128, 256, 512, 1024, 4096):
            times = Turns({way: [] for way in ways})
            for deadlines in range(-3, rounds):
                for way in random.sample(list(ways), len(ways)):
                    await asyncio.sleep(0.015)  # until a child is warm again
                    start = clock()
                    (await isolators[way].run(made, kb * 1024)).sum()
                    if deadlines >= 0:
                        times[way].append(clock() - start)
            print(f"  {kb:7} KB{''.join(f'{times.median(way) * 1e6:30.0f}' for way in ways)}")


class Targets(list[tuple[str, float, float]]):
    """What was wanted, and what was reached."""

    def add(self, name: str, found: float, wanted: float) -> None:
        self.append((name, found, wanted))

    def show(self) -> None:
        print("\nTargets" if self else "", end="\n" if self else "")
        for name, found, wanted in self:
            print(f"  {name:52}{found:8.2f}   (wanted: at most {wanted:.3g})")


PARTS = ("here", "results", "arguments", "forks", "thresholds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    options = parser.parse_args()
    rounds = 100 if options.quick else 500
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, Linux {os.uname().release}")
    parts = [options.only] if options.only else PARTS
    if "here" in parts:
        allocation(rounds)
        numbers(rounds)
        views(rounds, [1, 100] if options.quick else [1, 100, 1024])
    targets = Targets()
    for part in (results, arguments, forks, thresholds):
        if part.__name__ in parts:
            asyncio.run(part(options.quick, targets))
    targets.show()


if __name__ == "__main__":
    main()
