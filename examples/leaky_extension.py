"""A C extension that leaks 20 MB at each call, called directly and isolated.

    python examples/leaky_extension.py

The leak is real: memory from C's malloc, written to and never freed. Called directly, it stays in
this process for ever; called isolated, it ends with the child.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Awaitable, Callable

from aioisolate import run_isolated

LEAK = 20 * 1024 * 1024
CALLS = 10

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p


def leaky(data: bytes) -> int:
    """Compute something, and forget to free what was needed for it."""
    address = libc.malloc(ctypes.c_size_t(LEAK))
    ctypes.memset(address, 1, LEAK)
    return len(data)


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def directly() -> None:
    leaky(b"data")


async def isolated() -> None:
    await run_isolated(leaky, b"data")


async def grown(call: Callable[[], Awaitable[None]]) -> float:
    """Call ten times and return by how many MB this process has grown."""
    await call()
    before = resident_mb()
    for _ in range(CALLS):
        await call()
    return resident_mb() - before


async def main() -> None:
    print(f"{CALLS} calls of a function that leaks {LEAK >> 20} MB each\n")
    print(f"{'':12}{'this process grew by':>24}")
    for name, call in (("isolated", isolated), ("directly", directly)):
        print(f"{name:12}{await grown(call):21.1f} MB")


if __name__ == "__main__":
    asyncio.run(main())
