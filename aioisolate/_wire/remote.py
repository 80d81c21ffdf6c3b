"""Exceptions that cross a process boundary whole: type, arguments, frames, causes, notes, groups.

tblib teaches pickle to keep tracebacks. It is installed only in the child that has an exception
to send: it registers reducers process-wide, and the parent's pickles are none of our business.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

from tblib import pickling_support

from . import codecs

__all__ = ["describe", "dump", "trim"]


def trim(exc: BaseException, is_ours: Callable[[str], bool]) -> None:
    """Cut off the outer frames of *exc* that belong to the machinery and not to fn."""
    rest = tb = exc.__traceback__
    while tb is not None:
        if is_ours(tb.tb_frame.f_code.co_filename):
            rest = tb.tb_next
        tb = tb.tb_next
    exc.__traceback__ = rest


def dump(exc: BaseException) -> tuple[bytes, list[memoryview]]:
    """Pickle an exception such that it can be loaded again, or raise.

    That is tried out here: a constructor that wants other arguments than `args` has fails when
    it is loaded, and there nothing could be done about it any more.
    """
    pickling_support.install(exc)
    stream, buffers = codecs.dump(exc)
    copy = codecs.load([stream], [view.toreadonly() for view in buffers])
    if type(copy).__qualname__ != type(exc).__qualname__:
        raise TypeError(f"it comes back as {type(copy).__qualname__}")
    return stream, buffers


def describe(exc: BaseException) -> str:
    """Describe an exception in words, whatever its own methods do."""
    try:
        text = str(exc)
    except BaseException as broken:  # noqa: BLE001 - a broken __str__ may raise anything
        text = f"<its __str__ raised {type(broken).__name__}>"
    try:
        stack = "".join(traceback.format_tb(exc.__traceback__))
    except BaseException as broken:  # noqa: BLE001 - a broken loader of source lines, likewise
        stack = f"<its traceback could not be formatted: {type(broken).__name__}>"
    kind = f"{type(exc).__module__}.{type(exc).__qualname__}"
    return f"{kind}: {text}\n{stack}".rstrip("\n")
