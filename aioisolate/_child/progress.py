"""The frames of a child before its answer: progress reports, and the items of a stream."""

from __future__ import annotations

import errno
import os
from _thread import allocate_lock
from collections.abc import Sequence

from .._os import messages
from .._wire import safe_text
from .._wire.frames import Kind, encode
from .spec import ChildSpec

__all__ = ["RefusedError", "begin", "report_progress", "send"]

_spec: ChildSpec | None = None
_pid = 0
# Threads of fn's may report while another sends something longer than a pipe holds.
_lock = allocate_lock()
# A frame has been cut short, by what a handler of a signal raised: whatever came next would be read
# as the rest of it.
_torn = False


def begin(spec: ChildSpec) -> None:
    """Let `report_progress` report, in this process only."""
    global _spec, _pid
    _spec = spec
    _pid = os.getpid()


def report_progress(done: float, total: float | None = None, message: str = "") -> None:
    """Tell whoever awaits this call how far it has got.

    To be called by fn, in the child; from any of its threads. Elsewhere, and where nobody asked by
    ``on_progress``, it does nothing, so fn may be called directly as well. It waits while the
    parent has not read earlier reports.

    Args:
        done: how much is done, a number.
        total: how much there is to do, in the same unit; None if that is not known.
        message: what is being done; its middle is left out above 32 KiB.

    Raises:
        TypeError: the arguments are of other types.

    Example::

        for number, page in enumerate(pages):
            render(page)
            report_progress(number + 1, len(pages), page.title)
    """
    _check("done", done, int, float)
    _check("total", total, int, float, type(None))
    _check("message", message, str)
    if _spec is not None and _pid == os.getpid():
        body = safe_text.dump_progress(done, total, message)
        send(_spec.channel, encode(_spec.nonce, Kind.PROGRESS, body))


def _check(name: str, value: object, *types: type) -> None:
    if isinstance(value, bool) or not isinstance(value, types):
        what = "a string" if str in types else "a number"
        raise TypeError(f"{name} must be {what}, not {value!r}")


class RefusedError(OSError):
    """Descriptors may not travel now, and nothing of what they belong to has been sent."""


def send(fd: int, data: bytes, passed_fds: Sequence[int] = ()) -> None:
    """Write all of *data* in one piece, and descriptors with its beginning.

    Raises OSError; RefusedError: something else may be sent in its place.
    """
    global _torn
    view = memoryview(data)
    with _lock:
        if _torn:
            raise BrokenPipeError(errno.EPIPE, "what was sent before was cut short")
        try:
            if passed_fds:
                try:
                    sent = messages.send_on(fd, data, passed_fds)
                except (BrokenPipeError, ConnectionResetError):
                    raise
                except OSError as exc:
                    raise RefusedError(exc.errno, exc.strerror) from exc
                view = view[sent:]
            while view:
                view = view[os.write(fd, view) :]
        except OSError:
            raise
        except BaseException:
            _torn = True
            raise
