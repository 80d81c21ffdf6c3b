"""Right uses; mypy --strict and pyright must accept every line and infer these types."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, Unpack, assert_type

from aioisolate import (
    Executor,
    IsolatedDecorator,
    Isolator,
    Job,
    Outcome,
    Results,
    Statistics,
    Stream,
    Times,
    capture_isolated,
    features,
    isolated,
    run_isolated,
    stream_isolated,
)
from aioisolate.sandbox import Sandbox
from aioisolate.typing import (
    Codec,
    CommonArgs,
    JobArgs,
    MapArgs,
    OnEvent,
    OnLine,
    OnProgress,
    Output,
    Paths,
    RunArgs,
    Size,
    Start,
    Stdin,
    StreamArgs,
)


def plain(x: int, y: str) -> bytes:
    return y.encode() * x


async def later(x: int) -> str:
    return str(x)


def collect(_stream: str, _line: str) -> None: ...


class Thing:
    def method(self, x: int) -> float:
        return float(x)

    @isolated
    def decorated(self, x: int, *, scale: float = 1.0) -> float:
        return x * scale


@isolated
def bare(a: int, *, b: str = "") -> bytes:
    return b.encode() * a


@isolated(timeout=3, output="null")
async def optional(a: int) -> str:
    return str(a)


async def main() -> None:
    assert_type(await run_isolated(plain, 1, "a"), bytes)
    assert_type(await run_isolated(later, 1), str)
    assert_type(await run_isolated(lambda: 3), int)
    assert_type(await run_isolated(Thing().method, 2), float)
    assert_type(await run_isolated(functools.partial(plain, 1), "a"), bytes)
    assert_type(await run_isolated(plain, 1, "a", timeout=2.5, grace=1, output="capture"), bytes)
    assert_type(await run_isolated(plain, 1, "a", output=collect), bytes)
    assert_type(await capture_isolated(plain, 1, "a", on_event=print), Outcome[bytes])
    assert_type(await capture_isolated(later, 1, start="fork"), Outcome[str])
    assert_type(await bare(1, b="x"), bytes)
    assert_type(await optional(1), str)
    assert_type(await Thing().decorated(2, scale=0.5), float)
    assert_type((await capture_isolated(later, 1)).unwrap(), str)
    assert_type(await run_isolated(plain, 1, "a", stdin="inherit"), bytes)
    async with Isolator(queue_timeout=2, stdin="null") as iso:
        assert_type(await iso.run(later, 1, queue_timeout=None, stdin="inherit"), str)
    kept: Callable[[int], Coroutine[Any, Any, str]] = optional
    await kept(1)


# What is returned has names, and so have the options.


def numbers(end: int) -> Iterator[int]:
    yield from range(end)


async def words() -> AsyncIterator[str]:
    yield "one"


class Holder:
    job: Job[bytes] | None = None
    stream: Stream[int] | None = None
    results: Results[str] | None = None
    outcomes: Results[Outcome[str]] | None = None
    executor: Executor | None = None
    statistics: Statistics | None = None
    run: Times | None = None
    jobs: list[Job[Any]]
    codec: Codec = "json"
    on_line: OnLine = collect
    on_event: OnEvent = print
    on_progress: OnProgress = print
    output: Output = collect
    paths: Paths = ("/srv",)
    size: Size = "1 MiB"
    start: Start = "zygote"
    stdin: Stdin = "null"


async def later_with(x: int, **options: Unpack[RunArgs]) -> str:
    return await run_isolated(later, x, **options)


def stream_with(x: int, **options: Unpack[StreamArgs]) -> Stream[int]:
    return stream_isolated(numbers, x, **options)


async def job_with(iso: Isolator, x: int, **options: Unpack[JobArgs]) -> str:
    return await iso.run(later, x, **options)


def map_with(iso: Isolator, **options: Unpack[MapArgs]) -> Results[str]:
    return iso.map(later, [1, 2], **options)


async def names(iso: Isolator, holder: Holder) -> None:
    common: CommonArgs = {"timeout": 3, "output": "capture"}
    await iso.run(later, 1, **common)
    decorator: IsolatedDecorator = isolated(timeout=1)
    assert_type(await decorator(later)(1), str)
    assert_type(await later_with(1, timeout=2, sandbox=Sandbox.crash_guard()), str)
    assert_type(await job_with(iso, 1, queue_timeout=2), str)
    async with iso.open_job(plain, 1, "a", timeout=3) as job:
        assert_type(job, Job[bytes])
        assert_type(await job.result(), bytes)
        assert_type(await job.outcome(), Outcome[bytes])
        assert_type(job.error, BaseException | None)
        holder.job = job
    async with iso.open_job(later, 1) as other:
        assert_type(other, Job[str])
    async with iso.stream(numbers, 3) as some, stream_isolated(words) as more:
        assert_type(some, Stream[int])
        assert_type(more, Stream[str])
        assert_type(await anext(some), int)
        holder.stream = some
    holder.stream = stream_with(3, timeout=1)
    holder.results = iso.map(later, [1, 2], concurrency=2)
    assert_type(iso.map(str, [1, 2]), Results[str])
    holder.outcomes = iso.map(later, [1, 2], capture=True)
    assert_type(iso.map(str, [1, 2], ordered=False, capture=True), Results[Any])
    assert_type(iso.map(lambda x: x + 1, [1, 2]), Results[Any])
    assert_type(iso.map(functools.partial(plain, 1), "ab"), Results[bytes])
    async for text in iso.map(later, [1, 2], timeout=3):
        assert_type(text, str)
    async with iso.open_job(functools.partial(plain, y="a"), 1) as partial:
        assert_type(partial, Job[bytes])
    async with iso.open_job(lambda: 3) as three:
        assert_type(three, Job[int])
    async with iso.open_job(Thing().method, 3) as method:
        assert_type(method, Job[float])
    assert_type(iso.map(str, [1, 2], capture=bool(holder.job)), Results[Any])
    holder.executor = iso.executor()
    assert_type(holder.executor.submit(plain, 1, "a"), Future[bytes])
    holder.statistics = iso.statistics()
    holder.run = holder.statistics.run
    holder.jobs = iso.jobs()
    report: features.Report = features.report(Sandbox(), holder.start)
    found: features.Finding = report.findings[0]
    assert_type(found.holds, bool)
