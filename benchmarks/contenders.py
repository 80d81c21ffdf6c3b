"""Who is measured: each gives every call a process of its own, and is awaited.

A contender is an async generator function: it sets up, yields an async function that makes one
call, and tears down. `nothing` is what they all call.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

Call = Callable[[], Awaitable[Any]]


def nothing() -> None:
    return None


def bare() -> None:
    """What no library can avoid."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def bare_with_result() -> Any:
    """The least that brings a result back, without an event loop or any defence."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, pickle.dumps(nothing(), 5))
        os._exit(0)
    os.close(write)
    data = os.read(read, 65536)
    os.close(read)
    os.waitpid(pid, 0)
    return pickle.loads(data)


def bare_together(total: int, in_flight: int) -> None:
    """`bare`, with so many children alive at a time: the bound for whoever forks per call."""
    alive = 0
    for _ in range(total):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        alive += 1
        while alive >= in_flight:
            os.wait()
            alive -= 1
    for _ in range(alive):
        os.wait()


async def aioisolate() -> AsyncIterator[Call]:
    from aioisolate import run_isolated

    async def call() -> None:
        await run_isolated(nothing)

    yield call


def _into_pipe(connection: Any) -> None:
    connection.send(nothing())


async def multiprocessing_fork() -> AsyncIterator[Call]:
    """multiprocessing.Process(fork) with a pipe, its end awaited through its sentinel."""
    context = multiprocessing.get_context("fork")

    async def call() -> None:
        read, write = context.Pipe(duplex=False)
        process = context.Process(target=_into_pipe, args=(write,))
        process.start()
        write.close()
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        loop.add_reader(process.sentinel, ended.set_result, None)
        await ended
        loop.remove_reader(process.sentinel)
        read.recv()
        read.close()
        process.join()
        process.close()

    yield call


async def asyncio_subprocess() -> AsyncIterator[Call]:
    """A fresh interpreter, without site-packages, that does nothing."""

    async def call() -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", "pass")
        await process.wait()

    yield call


async def process_pool() -> AsyncIterator[Call]:
    """ProcessPoolExecutor that uses each worker once."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        loop = asyncio.get_running_loop()

        async def call() -> None:
            await loop.run_in_executor(pool, nothing)

        await call()
        yield call


async def pebble() -> AsyncIterator[Call]:
    from pebble import ProcessPool

    with ProcessPool(2, max_tasks=1, context=multiprocessing.get_context("fork")) as pool:

        async def call() -> None:
            await asyncio.wrap_future(pool.schedule(nothing))

        await call()
        yield call


CONTENDERS: dict[str, Callable[[], AsyncIterator[Call]]] = {
    "aioisolate": aioisolate,
    "multiprocessing.Process(fork)": multiprocessing_fork,
    "asyncio subprocess (python -I -S)": asyncio_subprocess,
    "ProcessPoolExecutor(1 task each)": process_pool,
    "pebble(max_tasks=1)": pebble,
}


@contextlib.asynccontextmanager
async def contender(name: str) -> AsyncIterator[Call]:
    """Set a contender up and tear it down."""
    generator = CONTENDERS[name]()
    try:
        yield await anext(generator)
    finally:
        with contextlib.suppress(StopAsyncIteration):
            await anext(generator)
