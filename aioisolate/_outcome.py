"""The outcome of a call: plain data."""

from __future__ import annotations

import reprlib
import signal as _signal
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar, cast

__all__ = ["CallEvent", "Exit", "Outcome", "Progress", "Usage"]

T = TypeVar("T")

_MESSAGE_MAX = 160  # characters of an exception's message in the repr of an Outcome


class Exit(int):
    """How a process ended, as one number: its exit code, or minus the signal that killed it.

    The convention is that of `subprocess.Popen.returncode`, so ``outcome.exit == 0`` and
    ``outcome.exit == -signal.SIGSEGV`` both work; `code` and `signal` return the two parts.
    """

    @property
    def code(self) -> int | None:
        """The exit code, or None if a signal ended the process."""
        return int(self) if self >= 0 else None

    @property
    def signal(self) -> _signal.Signals | int | None:
        """The signal that ended the process, or None if it exited by itself."""
        if self >= 0:
            return None
        try:
            return _signal.Signals(-self)
        except ValueError:  # a real-time signal between SIGRTMIN and SIGRTMAX has no name
            return int(-self)

    def __str__(self) -> str:
        number = self.signal
        if number is None:
            return f"exit code {int(self)}"
        return f"{number.name if isinstance(number, _signal.Signals) else f'signal {number}'}"

    def __repr__(self) -> str:
        return f"<Exit {int(self)}: {self}>"


class Usage(NamedTuple):
    """The resources that a child used.

    Attributes:
        wall: seconds from the fork until the child was seen to have ended.
        user: CPU seconds in user mode, of the child and the children that it waited for.
        system: CPU seconds in the kernel, of the same processes.
        max_rss: peak resident size in bytes. A forked child starts at its parent's size:
            pages shared with the parent count, so this is no measure of what fn allocated.
        fork: seconds for which the fork itself blocked this thread, and so the event loop.
    """

    wall: float
    user: float
    system: float
    max_rss: int
    fork: float


class CallEvent(NamedTuple):
    """A stage of a call; the argument of ``on_event``.

    Attributes:
        name: ``"spawn"`` (the child exists), ``"started"`` (the child is about to call fn),
            ``"result"`` (fn's result or exception has arrived whole) or ``"reaped"``
            (the child has ended). A stage that did not happen causes no event.
        pid: the child's process id.
        time: seconds since the fork.
    """

    name: str
    pid: int
    time: float


class Progress(NamedTuple):
    """Progress of fn, as reported by `report_progress`.

    Attributes:
        done: the amount of work done.
        total: the total amount of work, or None if unknown.
        message: a description of the current step.
    """

    done: float
    total: float | None = None
    message: str = ""


@dataclass(frozen=True, repr=False)
class Outcome(Generic[T]):
    """The outcome of one isolated call.

    `capture_isolated`, `Isolator.capture` and `Job.outcome` return one, and so does `Isolator.map`
    for each item with ``capture=True``. ``Outcome[bytes]`` is the type of the outcome of a function
    that returns bytes::

        outcome = await capture_isolated(convert, path)
        data = outcome.value if outcome.error is None else b""

    Attributes:
        value: the result of fn; None if it returned None or did not return.
        error: the exception of fn, or the `IsolationError`; None if fn returned.
        usage: the resources that the child used, or None if there was no child.
        exit: how the child ended, an `Exit`, or None if unknown or there was no child.
        pid: the child's process id, or None if there was no child.
        stdout: the child's standard output with ``output="capture"``, else None.
        stderr: the child's standard error with ``output="capture"``, else None.
    """

    value: T | None = None
    error: BaseException | None = None
    usage: Usage | None = None
    exit: Exit | None = None
    pid: int | None = None
    stdout: str | None = None
    stderr: str | None = None

    def __repr__(self) -> str:
        """Describe the outcome in one line of bounded length."""
        if self.error is None:
            parts = [f"returned {' '.join(reprlib.repr(self.value).split())}"]
        else:
            parts = [f"failed with {type(self.error).__name__}{_first_line(self.error)}"]
        if self.exit is not None:
            parts.append(str(self.exit))
        if self.usage is not None:
            parts.append(f"{self.usage.wall:.3f} s")
        where = "without a process" if self.pid is None else f"of process {self.pid}"
        return f"<Outcome {where}: {', '.join(parts)}>"

    def unwrap(self) -> T:
        """Return the result of fn, or raise `error`."""
        if self.error is not None:
            raise self.error
        return cast("T", self.value)


def _first_line(error: BaseException) -> str:
    """Return the beginning of an exception's message, for one line."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001 - a broken __str__ may raise anything
        return ""
    if not lines:
        return ""
    return f": {lines[0][:_MESSAGE_MAX]}{'...' if lines[0][_MESSAGE_MAX:] else ''}"
