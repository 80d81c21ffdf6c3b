"""Run any function in a throw-away copy of your process, from asyncio."""

# First, so the version is known even if an import below fails, as in a package being upgraded.
__version__ = "0.1.0"

# Public names are imported when they are first used: a fork server, which imports parts of this
# package and is forked again and again, must stay small.
from typing import TYPE_CHECKING

# Raises ImportError on a platform that is not supported, even if imports are lazy.
__import__(f"{__name__}._os")

if TYPE_CHECKING:
    from ._child.progress import report_progress
    from ._errors import (
        CallableDidNotExecuteError,
        CallableExecutedError,
        CallableStatusUnknownError,
        ForkSafetyWarning,
        IsolationError,
        PerformanceWarning,
        Reason,
        RemoteError,
        SandboxWarning,
    )
    from ._isolator import Isolator
    from ._limits import Limits
    from ._memory.access import Access, Advice, page_size
    from ._memory.paged_array import PagedArray
    from ._memory.pages import Pages
    from ._memory.shared import shared_array
    from ._memory.snapshot import Snapshot, View
    from ._outcome import CallEvent, Exit, Outcome, Progress, Usage
    from ._run import IsolatedDecorator, capture_isolated, isolated, run_isolated
    from ._service.executor import Executor
    from ._service.job import Job
    from ._service.map import Results
    from ._service.statistics import Statistics, Times
    from ._service.stream import Stream
    from ._stream import stream_isolated
    from .sandbox import Sandbox

__all__ = [
    "Access",
    "Advice",
    "CallEvent",
    "CallableDidNotExecuteError",
    "CallableExecutedError",
    "CallableStatusUnknownError",
    "Executor",
    "Exit",
    "ForkSafetyWarning",
    "IsolatedDecorator",
    "IsolationError",
    "Isolator",
    "Job",
    "Limits",
    "Outcome",
    "PagedArray",
    "Pages",
    "PerformanceWarning",
    "Progress",
    "Reason",
    "RemoteError",
    "Results",
    "Sandbox",
    "SandboxWarning",
    "Snapshot",
    "Statistics",
    "Stream",
    "Times",
    "Usage",
    "View",
    "capture_isolated",
    "isolated",
    "page_size",
    "report_progress",
    "run_isolated",
    "shared_array",
    "stream_isolated",
]

_PUBLIC_NAMES = {
    "_child.progress": ["report_progress"],
    "_errors": [
        "CallableDidNotExecuteError",
        "CallableExecutedError",
        "CallableStatusUnknownError",
        "ForkSafetyWarning",
        "IsolationError",
        "PerformanceWarning",
        "Reason",
        "RemoteError",
        "SandboxWarning",
    ],
    "_isolator": ["Isolator"],
    "_limits": ["Limits"],
    "_memory.access": ["Access", "Advice", "page_size"],
    "_memory.paged_array": ["PagedArray"],
    "_memory.pages": ["Pages"],
    "_memory.shared": ["shared_array"],
    "_memory.snapshot": ["Snapshot", "View"],
    "_outcome": ["CallEvent", "Exit", "Outcome", "Progress", "Usage"],
    "_run": ["IsolatedDecorator", "capture_isolated", "isolated", "run_isolated"],
    "_service.executor": ["Executor"],
    "_service.job": ["Job"],
    "_service.map": ["Results"],
    "_service.statistics": ["Statistics", "Times"],
    "_service.stream": ["Stream"],
    "_stream": ["stream_isolated"],
    "sandbox": ["Sandbox"],
}


def __getattr__(name: str) -> object:
    from importlib import import_module  # noqa: PLC0415 - lazy, see above

    for module, names in _PUBLIC_NAMES.items():
        if name in names:
            value: object = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
