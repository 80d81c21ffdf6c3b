"""Wrong uses; mypy must report each line that is marked, and no other."""

from __future__ import annotations

from aioisolate import capture_isolated, isolated, run_isolated


def plain(x: int, y: str) -> bytes:
    return y.encode() * x


@isolated(timeout=3)
def decorated(a: int, *, b: str = "") -> bytes:
    return b.encode() * a


async def main() -> None:
    await run_isolated(plain, 1, 2)  # wrong
    await run_isolated(plain, 1)  # wrong
    await run_isolated(plain, 1, "a", "b")  # wrong
    await run_isolated(3)  # wrong
    await run_isolated(plain, 1, "a", timeout="5")  # wrong
    await run_isolated(plain, 1, "a", output="pipe")  # wrong
    await run_isolated(plain, 1, "a", no_such_option=1)  # wrong
    await run_isolated(plain, 1, "a", stdin="pipe")  # wrong
    await capture_isolated(plain, 1, "a", queue_timeout=1)  # wrong
    await capture_isolated(plain, "x", "a")  # wrong
    await decorated("a")  # wrong
    await decorated(1, c=2)  # wrong
    number: int = await run_isolated(plain, 1, "a")  # wrong
    await run_isolated(plain, 1, "a")
    assert number


@isolated(timeout="3")  # wrong
def badly_decorated() -> None: ...
