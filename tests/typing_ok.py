"""Right uses; mypy --strict and pyright must accept every line and infer these types."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, assert_type

from aioisolate import Isolator, Outcome, capture_isolated, isolated, run_isolated


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
