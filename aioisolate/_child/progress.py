"""Send frames of a child to the parent; `report_progress`."""

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
# Several threads of fn may send at the same time, and a long frame takes several writes.
_lock = allocate_lock()
# Whether an exception of a signal handler has interrupted the sending of a frame: the parent would
# read the next frame as the rest of that frame.
_incomplete = False


def begin(spec: ChildSpec) -> None:
    """Enable `report_progress` in this process only."""
    global _spec, _pid
    _spec = spec
    _pid = os.getpid()


def report_progress(done: float, total: float | None = None, message: str = "") -> None:
    """Report the progress of this call to the caller.

    fn calls this function in the child, from any thread. In other processes, and without an
    ``on_progress`` argument of the call, the function does nothing, so fn can also be called
    directly. The function blocks until the parent has read enough of the earlier reports.

    Args:
        done: the amount of work done, a number.
        total: the total amount of work, in the same unit; None if unknown.
        message: a description of the current step; above 32 KiB its middle is left out.

    Raises:
        TypeError: an argument has another type.

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
        expected = "a string" if str in types else "a number"
        raise TypeError(f"{name} must be {expected}, not {value!r}")


class RefusedError(OSError):
    """The kernel refused to pass descriptors, and no byte of their frame has been sent."""


def send(fd: int, data: bytes, passed_fds: Sequence[int] = ()) -> None:
    """Send all of *data* without interleaving, with the descriptors attached to its first bytes.

    Raises OSError. After RefusedError, another frame may be sent instead.
    """
    global _incomplete
    view = memoryview(data)
    with _lock:
        if _incomplete:
            raise BrokenPipeError(errno.EPIPE, "an earlier frame was not sent completely")
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
            _incomplete = True
            raise
