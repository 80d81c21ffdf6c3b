"""From its turn on a call has so much time to begin, and so much to end."""

from __future__ import annotations

import math
import time

from .._errors import Reason, StartTimeoutError
from .._options import CallOptions

__all__ = ["Deadlines"]


class Deadlines:
    """The moment from which a call's deadlines count: the call no longer waits in a queue.

    Attributes:
        end: when the call must have ended, on the clock of time.monotonic, or infinity.
        start: when fn must have begun, *end* included, or infinity.
        held_up: what keeps this call, and not any other, from beginning, or "".
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
        """Return how many seconds are left for fn to begin."""
        return max(0.0, self.start - time.monotonic())

    def late(self, why: str) -> StartTimeoutError:
        """Make the error for a call that had to wait too long: for what held it up, or *why*."""
        limits = (self._options.timeout, self._options.start_timeout)
        seconds = min(limit for limit in limits if limit is not None)
        why = self.held_up or why
        return StartTimeoutError(
            f"fn was not called within {seconds:g} s: {why}", reason=Reason.START_TIMEOUT
        )
