"""Unfinished work of fn, as its child reports it; and a warning, if it was killed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from .._wire import safe_text

__all__ = ["UnfinishedWork"]

_log = logging.getLogger("aioisolate.call")

_TEXT_MAX = 4096
# Names in warnings that were logged: the calls of a service all leave the same.
_told: set[str] = set()
_TOLD_MAX = 256
# The same for untrusted children, which may invent names: after so many none is logged.
_told_of_strangers: set[str] = set()
_STRANGERS_MAX = 16


class UnfinishedWork:
    """The reports of one child about unfinished work."""

    __slots__ = ("_names", "_times", "_trusted")

    def __init__(self, *, trusted: bool = True) -> None:
        self._trusted = trusted
        self._times = 0
        self._names = ""

    def hear(self, body: Sequence[bytes]) -> None:
        """Add the names of unfinished work: once before the answer, once at the end."""
        self._times += 1
        names = b"".join(body).decode(errors="replace").split("\n")
        self._names = safe_text.tame(", ".join(filter(None, names)), _TEXT_MAX)

    def tell(self, pid: int, *, killed: bool) -> None:
        """Log a warning, once for each set of names, if work has not ended in time.

        *killed*: whether the child had to be killed.
        """
        if not self._times or (self._times > 1 and not self._names) or not (killed or self._names):
            return
        if self._times == 1 and not killed:
            return  # the child ended before its work had to be killed
        what = self._names or "its exit functions"
        if not self._is_new(what):
            return
        _log.warning(
            "child %d: fn has ended, and its unfinished work was killed: %s did not end in time. "
            "Join threads and processes in fn, or raise exit_timeout (and timeout)",
            pid,
            what,
        )

    def _is_new(self, what: str) -> bool:
        told = _told if self._trusted else _told_of_strangers
        if what in told:
            return False
        if len(told) < (_TOLD_MAX if self._trusted else _STRANGERS_MAX):
            told.add(what)
            return True
        return self._trusted
