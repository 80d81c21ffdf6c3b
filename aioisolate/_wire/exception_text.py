"""Get str and repr of exceptions and other objects, whose methods may run any code."""

from __future__ import annotations

import builtins
import re
import signal
import time
from collections.abc import Callable
from typing import Any

from .exception_rebuild import Words
from .safe_text import shorten

__all__ = ["Comparison", "ExceptionText"]

# The seconds that all calls of __str__ and __repr__, which are user code, may take together.
_PATIENCE = 1.0
_WORDS_MAX = 4096
_TEXT_MAX = 64 * 1024
_LINE_MAX = 512


class _TooLongError(BaseException):
    """A call of __str__ or __repr__ takes too long."""


class _Alarm:
    """Raise _TooLongError in the context after a time, repeatedly; main thread only."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._active = False
        try:
            self._handler = signal.signal(signal.SIGALRM, self._ring)
        except ValueError:  # not the main thread
            return
        try:
            self._timer = signal.setitimer(signal.ITIMER_REAL, self._seconds, self._seconds)
        except OSError:  # a sandbox's filter forbids it
            self._restore()
            return
        self._active = True

    def _ring(self, *_: object) -> None:
        if self._active:
            raise _TooLongError

    def _restore(self) -> None:
        # None if the handler was not set from Python: then it can't be restored.
        signal.signal(signal.SIGALRM, signal.SIG_DFL if self._handler is None else self._handler)

    def __exit__(self, *_: object) -> None:
        if self._active:
            self._active = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._restore()
            if self._timer[0]:  # fn had started this timer
                signal.setitimer(signal.ITIMER_REAL, *self._timer)


class ExceptionText:
    """Get str and repr of objects, in one second for all of them."""

    def __init__(self) -> None:
        self._left = _PATIENCE

    def convert(self, to_text: Callable[[Any], str], obj: object) -> str:
        """Return ``to_text(obj)``, or a description of its failure; *to_text* is str or repr."""
        begin = time.monotonic()
        try:
            with _Alarm(max(self._left, 0.01)):
                text = to_text(obj)
            return str.__str__(text)
        except _TooLongError:
            return f"<its __{to_text.__name__}__ took too long>"
        except BaseException as broken:  # noqa: BLE001 - its own methods may raise anything
            return f"<its __{to_text.__name__}__ raised {type(broken).__name__}>"
        finally:
            self._left -= time.monotonic() - begin

    def line(self, exc: BaseException) -> str:
        """Return the first line of an exception's text."""
        return self.convert(str, exc).partition("\n")[0][:_LINE_MAX]

    def words(self, obj: object) -> Words:
        """Return the str and repr of *obj* as `Words`."""
        return Words(*(shorten(self.convert(to_text, obj), _WORDS_MAX) for to_text in (str, repr)))


class Comparison:
    """Compare the str and repr of an exception's copies with those of the original."""

    WHOLLY = 2

    def __init__(self, exception_text: ExceptionText, exc: BaseException) -> None:
        self._exception_text = exception_text
        self._exc = exc
        self._texts: dict[Callable[[Any], str], str] = {}

    @property
    def words(self) -> Words:
        """Return the str of the original, also as its repr."""
        text = shorten(self._text(str), _TEXT_MAX)
        return Words(text, text)

    def _text(self, to_text: Callable[[Any], str]) -> str:
        if to_text not in self._texts:
            self._texts[to_text] = self._exception_text.convert(to_text, self._exc)
        return self._texts[to_text]

    def alike(self, copy: BaseException) -> int:
        """Return WHOLLY if str and repr are the same, 1 if only str is, else 0."""
        cls = type(copy)
        if cls is type(self._exc) and vars(builtins).get(cls.__name__) is cls:
            return self.WHOLLY  # the copy may contain text in place of unpicklable parts
        if not self._same(str, copy):
            return 0
        return self.WHOLLY if self._same(repr, copy) else 1

    def _same(self, to_text: Callable[[Any], str], copy: BaseException) -> bool:
        ours, theirs = self._text(to_text), self._exception_text.convert(to_text, copy)
        if ours == theirs or _essence(ours) == _essence(theirs):
            return True
        # The text may differ between calls, for example by a time or a counter.
        return _essence(ours) != _essence(self._exception_text.convert(to_text, self._exc))


def _essence(text: str) -> list[str]:
    """Return the parts of a text that depend neither on addresses nor on set order."""
    return sorted(re.findall(r"\w+|[^\w\s]", re.sub(r"0x[0-9a-fA-F]+", "0x", text)))
