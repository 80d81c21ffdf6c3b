"""A tour of run_isolated, capture_isolated and @isolated.

python examples/quick_tour.py
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import threading
import time
import traceback

from aioisolate import IsolationError, capture_isolated, isolated, run_isolated


def title(text: str) -> None:
    print(f"\n--- {text}")


async def results() -> None:
    title("A result comes back; what the child changed does not")
    numbers, lock = [3, 1, 2], threading.Lock()

    def sort_them() -> list[int]:
        with lock:  # closures over what can't be pickled are no problem: the child is a copy
            numbers.sort()
        return numbers

    print("in the child:", await run_isolated(sort_them), "  here:", numbers)


async def exceptions() -> None:
    title("An exception comes back as itself, with the child's lines")

    def parse(text: str) -> int:
        return int(text)

    try:
        await run_isolated(parse, "forty-two")
    except ValueError as error:
        print("caught ValueError:", error)
        last = traceback.extract_tb(error.__traceback__)[-1]
        print(f"raised in {last.name!r}: {last.line}")


async def crashes() -> None:
    title("A segfault is an error that names its line")

    def poke() -> None:
        ctypes.string_at(0)

    try:
        await run_isolated(poke)
    except IsolationError as error:
        print(f"{type(error).__name__}, {error.reason.name}, {error.exit}")
        print(error.crash_traceback.splitlines()[-1].strip())


async def timeouts() -> None:
    title("A timeout kills, and tells where fn was")

    def wait_for_godot() -> None:
        time.sleep(3600)

    try:
        await run_isolated(wait_for_godot, timeout=0.2)
    except TimeoutError as error:
        print(str(error).splitlines()[0])
        print(str(error).splitlines()[-1].strip())


async def cancellation() -> None:
    title("Cancelling kills, too")
    pids: list[int] = []
    task = asyncio.create_task(
        run_isolated(time.sleep, 3600, on_event=lambda event: pids.append(event.pid))
    )
    while len(pids) < 2:  # spawned and started
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    print("the child is gone:", not os.path.exists(f"/proc/{pids[0]}"))


async def outcomes() -> None:
    title("capture_isolated never raises, and brings the output and what it cost")

    def talk() -> str:
        print("hello from the child")
        print("a complaint", file=sys.stderr)
        return "done"

    outcome = await capture_isolated(talk, output="capture")
    print(f"value={outcome.value!r} stdout={outcome.stdout!r} stderr={outcome.stderr!r}")
    outcome = await capture_isolated(os._exit, 3)
    print(f"exit={outcome.exit!r} error={outcome.error}")


@isolated(timeout=10)
async def add_slowly(a: int, *, b: int = 1) -> int:
    """Async functions run in an event loop of their own, in the child."""
    await asyncio.sleep(0.01)
    return a + b


async def decorated() -> None:
    title("A function that always runs isolated")
    print("add_slowly(40, b=2) =", await add_slowly(40, b=2))


async def many() -> None:
    title("Many at once")
    squares = await asyncio.gather(*(run_isolated(pow, i, 2) for i in range(50)))
    print("50 children computed", sum(squares))


async def main() -> None:
    for part in (
        results,
        exceptions,
        crashes,
        timeouts,
        cancellation,
        outcomes,
        decorated,
        many,
    ):
        await part()


if __name__ == "__main__":
    asyncio.run(main())
