"""What fn has left unfinished, as its child tells of it; and a warning, if that was killed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from .._wire import safe_text

__all__ = ["UnfinishedWork"]

_log = logging.getLogger("aioisolate.call")

_TEXT_MAX = 4096
# Of what a warning was logged: the calls of a service all leave the same.
_told: set[str] = set()
_TOLD_MAX = 256
# The same of strangers, who may think up a new name for each call: after so many none is logged.
_told_of_strangers: set[str] = set()
_STRANGERS_MAX = 16


class UnfinishedWork:
    """What one child has said about that."""

    __slots__ = ("_names", "_times", "_trusted")

    def __init__(self, *, trusted: bool = True) -> None:
        self._trusted = trusted
        self._times = 0
        self._names = ""

    def hear(self, body: Sequence[bytes]) -> None:
        """Take the names of what has not ended: once before the answer, once at the end."""
        self._times += 1
        names = b"".join(body).decode(errors="replace").split("\n")
        self._names = safe_text.tame(", ".join(filter(None, names)), _TEXT_MAX)

    def tell(self, pid: int, *, killed: bool) -> None:
        """Log a warning, once for each set of names, if something has not ended in time.

        *killed*: the child, which has not ended by itself.
        """
        if not self._times or (self._times > 1 and not self._names) or not (killed or self._names):
            return
        if self._times == 1 and not killed:
            return  # it has ended otherwise, with whatever it had left
        what = self._names or "its exit functions"
        if not self._is_new(what):
            return
        _log.warning(
            "child %d: fn has ended, and what it left was killed: %s did not end in time. Have fn "
            "join what it starts, or give it more time by exit_timeout (and timeout)",
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
