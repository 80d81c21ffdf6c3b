"""Following calls: log records, or a callback at each stage.

python examples/tracing.py
"""

from __future__ import annotations

import asyncio
import logging
import os

from aioisolate import CallEvent, capture_isolated, run_isolated


def span(event: CallEvent) -> None:
    """Print a stage; a tracing system would open or close a span here."""
    print(f"  {event.name:8} {event.time * 1000:7.2f} ms after the fork")


async def main() -> None:
    print("on_event:")
    await run_isolated(sum, range(1000), on_event=span)
    print("on_event, a crash: no result")
    await capture_isolated(os.abort, on_event=span)
    print("logging:")
    logging.basicConfig(format="  %(name)s %(levelname)s %(message)s")
    logging.getLogger("aioisolate").setLevel(logging.DEBUG)
    await run_isolated(sum, range(1000))


if __name__ == "__main__":
    asyncio.run(main())
