"""Run any function in a throw-away copy of your process, from asyncio."""

import logging

from ._errors import (
    CallableDidNotExecuteError,
    CallableExecutedError,
    CallableStatusUnknownError,
    ForkSafetyWarning,
    IsolationError,
    Reason,
)
from ._outcome import CallEvent, Exit, Outcome, Usage
from ._run import capture_isolated, isolated, run_isolated

__version__ = "0.1.0"

__all__ = [
    "CallEvent",
    "CallableDidNotExecuteError",
    "CallableExecutedError",
    "CallableStatusUnknownError",
    "Exit",
    "ForkSafetyWarning",
    "IsolationError",
    "Outcome",
    "Reason",
    "Usage",
    "capture_isolated",
    "isolated",
    "run_isolated",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())
