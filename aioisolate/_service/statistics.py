"""The statistics of a service: the number of calls, their outcomes, and times."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from .._errors import IsolationError, Reason
from .job import Job

__all__ = ["Recorder", "Statistics", "Times"]

# Quantiles are those of the last 1000 calls.
_WINDOW = 1000


class Times(NamedTuple):
    """Quantiles of the time, in seconds, that a part of the last calls (at most 1000) took.

    Four fields of `Statistics` are of this type: ``iso.statistics().run.p99``.

    Attributes:
        calls: the number of measured calls; if 0, all other fields are 0.
        p50, p90, p99: the time that 50, 90 or 99 per cent of the calls did not exceed.
        max: the longest time.
    """

    calls: int
    p50: float
    p90: float
    p99: float
    max: float


class Statistics(NamedTuple):
    """The statistics of an `Isolator` since it was last entered.

    `Isolator.statistics` returns them::

        now = iso.statistics()
        log.info("%d running, %d queued, p99 %.3f s", now.running, now.queued, now.run.p99)

    Attributes:
        submitted: calls so far, refused ones included.
        queued: calls that wait for their turn or for a child.
        running: calls that have a child.
        idle: warm children that wait for a call.
        outcomes: the number of calls by how they ended: "returned", "raised" (fn's own exception),
            "failed" (an `IsolationError`), "cancelled" (by their caller).
        reasons: the number of failed calls by `Reason`.
        restarts: how often the fork server died and was started again.
        queue: the time for which calls waited for their turn.
        fork: the time to pickle the call and to get a child: to wait for one of the fork server, or
            to fork one.
        run: the time from the request to the child until its answer, or its end.
        reap: the time from the answer until the child had ended, if the call waited for that.
    """

    submitted: int
    queued: int
    running: int
    idle: int
    outcomes: Mapping[str, int]
    reasons: Mapping[Reason, int]
    restarts: int
    queue: Times
    fork: Times
    run: Times
    reap: Times


class Recorder:
    """Records the statistics of jobs that have ended."""

    def __init__(self) -> None:
        self.submitted = 0
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[Reason] = Counter()
        self._samples: dict[str, deque[float]] = {
            name: deque(maxlen=_WINDOW) for name in ("queue", "fork", "run", "reap")
        }

    def note(self, job: Job[Any]) -> None:
        """Add a job that has ended."""
        error = job.error
        samples = self._samples
        if error is None:
            self.outcomes["returned"] += 1
        elif isinstance(error, IsolationError):
            self.outcomes["failed"] += 1
            self.reasons[error.reason] += 1
        elif isinstance(error, Exception):
            self.outcomes["raised"] += 1
        else:
            self.outcomes["cancelled"] += 1
        samples["queue"].append(job._queue_wait)
        supervision = job._supervision
        if supervision is None:
            return
        child = supervision.child
        samples["fork"].append(job._child_wait + child.fork_seconds)
        answered = supervision.answered_at
        samples["run"].append((answered or supervision.ended_at) - child.forked_at)
        if answered is not None and supervision.ended_at > answered and not supervision.left:
            samples["reap"].append(supervision.ended_at - answered)

    def times(self, name: str) -> Times:
        """Return the quantiles of one part."""
        values = sorted(self._samples[name])
        count = len(values)
        if not count:
            return Times(0, 0.0, 0.0, 0.0, 0.0)
        p50, p90, p99 = (values[min(count - 1, int(count * q))] for q in (0.5, 0.9, 0.99))
        return Times(count, p50, p90, p99, values[-1])
