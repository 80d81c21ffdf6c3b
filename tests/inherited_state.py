"""What a process has of all that may or may not reach a child; see tests/apps/test_usage.py."""

from __future__ import annotations

import contextvars
import logging
import os
import sys
import threading
import warnings
from pathlib import Path

setting = "as imported"
variable = contextvars.ContextVar("variable", default="as imported")
local = threading.local()


class ReachWarning(Warning):
    """For a filter of its own."""


def state() -> dict[str, object]:
    return {
        "global": setting,
        "context": variable.get(),
        "thread": getattr(local, "value", "as imported"),
        "environ": os.environ.get("AIOISOLATE_REACH", "as imported"),
        "cwd": Path.cwd().name,
        "path": Path(sys.path[-1]).name,
        "limit": sys.getrecursionlimit(),
        "logging": logging.getLogger("aioisolate-reach").level,
        "warnings": [f[1].pattern for f in warnings.filters if f[2] is ReachWarning][:1],
    }


def say() -> None:
    print("from Python", flush=True)
    os.write(1, b"from C\n")
