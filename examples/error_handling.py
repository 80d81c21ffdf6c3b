"""Handling what can go wrong: as little as you need, or all of it.

python examples/error_handling.py
"""

from __future__ import annotations

import asyncio
import os
import threading
import time

from aioisolate import (
    CallableDidNotExecuteError,
    CallableExecutedError,
    CallableStatusUnknownError,
    IsolationError,
    Reason,
    run_isolated,
)


async def basic() -> None:
    """The class answers the question that matters: may I try again?"""
    for attempt in range(3):
        try:
            print("the answer is", await run_isolated(lambda: 42))
            break
        except CallableDidNotExecuteError:
            print("it never began, so trying again is safe, attempt", attempt)
        except IsolationError as error:
            print("it may have had effects, so it is not tried again:", error)
            break


async def complete() -> None:
    """The reason says what happened; the cause carries the system's own word."""
    jobs = {
        "returns": lambda: "a value",
        "raises": lambda: 1 / 0,
        "crashes": os.abort,
        "exits": lambda: os._exit(3),
        "hangs": lambda: time.sleep(3600),
        "returns what can't be sent": threading.Lock,
    }
    for name, job in jobs.items():
        try:
            answer = repr(await run_isolated(job, timeout=0.5))
        except CallableDidNotExecuteError as error:
            answer = f"did not begin ({error.reason.name}, {error.__cause__})"
        except CallableExecutedError as error:
            answer = f"ended, but its result was lost ({error.reason.name})"
        except CallableStatusUnknownError as error:
            match error.reason:
                case Reason.TIMEOUT:
                    answer = "took too long and was killed"
                case Reason.SIGNAL:
                    answer = f"crashed with {error.exit}"
                case Reason.EXIT:
                    answer = f"exited by itself with {error.exit}"
                case reason:
                    answer = f"ended strangely ({reason.name})"
        except ArithmeticError as error:
            answer = f"raised {error!r}, as it would have here"
        print(f"a job that {name}: {answer}")


async def main() -> None:
    await basic()
    await complete()


if __name__ == "__main__":
    asyncio.run(main())
