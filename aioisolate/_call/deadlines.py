"""The deadlines of a call for its start and its end, from its turn on."""

from __future__ import annotations

import math
import time

from .._errors import Reason, StartTimeoutError
from .._options import CallOptions

__all__ = ["Deadlines"]


class Deadlines:
    """The deadlines of one call. They count from now on: the call no longer waits in a queue.

    Attributes:
        end: the time by which the call must end, on the clock of time.monotonic, or infinity.
        start: the time at which fn must have begun, at most *end*, or infinity.
        held_up: a reason for which this call, and not others, is delayed; or "".
    """

    __slots__ = ("_options", "end", "held_up", "start")

    def __init__(self, options: CallOptions) -> None:
        now = time.monotonic()
        self._options = options
        self.held_up: str = ""
        self.end: float = math.inf if options.timeout is None else now + options.timeout
        self.start: float = self.end
        if options.start_timeout is not None:
            self.start = min(self.end, now + options.start_timeout)

    def left(self) -> float:
        """Return the seconds that are left for fn to begin."""
        return max(0.0, self.start - time.monotonic())

    def late(self, why: str) -> StartTimeoutError:
        """Return the error of a call that waited too long; the reason is `held_up`, or *why*."""
        limits = (self._options.timeout, self._options.start_timeout)
        seconds = min(limit for limit in limits if limit is not None)
        why = self.held_up or why
        return StartTimeoutError(
            f"fn was not called within {seconds:g} s: {why}", reason=Reason.START_TIMEOUT
        )
