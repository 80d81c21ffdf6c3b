"""Reports of a child about unfinished work of fn, and a warning if that work was killed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from .._wire import safe_text

__all__ = ["UnfinishedWork"]

_log = logging.getLogger("aioisolate.call")

_TEXT_MAX = 4096
# The names in the warnings logged so far: all calls of a service may leave the same work.
_logged: set[str] = set()
_LOGGED_MAX = 256
# The same for untrusted children, which may invent names: after this many, none is logged.
_logged_untrusted: set[str] = set()
_UNTRUSTED_MAX = 16


class UnfinishedWork:
    """The reports of one child about unfinished work."""

    __slots__ = ("_names", "_reports", "_trusted")

    def __init__(self, *, trusted: bool = True) -> None:
        self._trusted = trusted
        self._reports = 0
        self._names = ""

    def add(self, body: Sequence[bytes]) -> None:
        """Add a report with names of unfinished work: one precedes the answer, one is the last."""
        self._reports += 1
        names = b"".join(body).decode(errors="replace").split("\n")
        self._names = safe_text.tame(", ".join(filter(None, names)), _TEXT_MAX)

    def warn(self, pid: int, *, killed: bool) -> None:
        """Log a warning, once for each set of names, if work has not ended in time.

        *killed*: whether the child was killed while it did this work.
        """
        # Without the last report, only a kill shows that the work was late.
        late = killed if self._reports == 1 else bool(self._names)
        names = self._names or "its exit functions"
        if not late or not self._is_new(names):
            return
        _log.warning(
            "child %d: fn has ended, and its unfinished work was killed: %s did not end in time. "
            "Join threads and processes in fn, or raise exit_timeout (and timeout)",
            pid,
            names,
        )

    def _is_new(self, names: str) -> bool:
        logged = _logged if self._trusted else _logged_untrusted
        if names in logged:
            return False
        if len(logged) < (_LOGGED_MAX if self._trusted else _UNTRUSTED_MAX):
            logged.add(names)
            return True
        return self._trusted
