"""A call that signals must not interrupt: block them around it, and they arrive after it.

    python examples/blocking_signals.py

The child starts with no signal blocked and no handler of yours, so it can still be ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

from aioisolate import run_isolated

events: list[str] = []


def log(text: str) -> None:
    events.append(text)
    print(text)


async def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: log("SIGTERM handled"))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        log("call begins, SIGTERM blocked")

        def interrupt_the_parent() -> str:
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(0.1)
            return "call ends undisturbed"

        log(await run_isolated(interrupt_the_parent))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    log("signals let in again")


if __name__ == "__main__":
    asyncio.run(main())
    assert events == [
        "call begins, SIGTERM blocked",
        "call ends undisturbed",
        "SIGTERM handled",
        "signals let in again",
    ]
