from __future__ import annotations

import asyncio
import os
import time

import pytest

from aioisolate import run_isolated


async def test_lambda():
    assert await run_isolated(lambda: 42) == 42


@pytest.mark.parametrize("x", [1, 2])
async def test_args(x):
    assert await run_isolated(lambda x: x + 1, x) == x + 1


@pytest.mark.asyncio
async def test_cancel():
    task = asyncio.create_task(run_isolated(time.sleep, 10))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
