"""Signal masks and dispositions, without the conversion to enums that `signal` does.

`signal.pthread_sigmask` builds an enum member for each of some sixty signals at each call, which
is slow and, after a fork, touches pages for nothing. The functions below it do not.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C part of signal; it has no stubs
import signal
from collections.abc import Iterable
from typing import Any

__all__ = ["block_all", "handled", "reset", "reset_child_signal", "set_mask"]

_raw: Any = _signal
_ALL = frozenset(int(number) for number in signal.valid_signals())
_DEFAULT = int(signal.SIG_DFL)
# Python itself ignores these at start, so that a write to a closed pipe or past a file size
# limit is an exception and not the end. fn is Python and counts on it; programs that it starts
# through `subprocess` get the system's defaults back (restore_signals).
_PYTHONS_OWN = frozenset(
    int(getattr(signal, name)) for name in ("SIGPIPE", "SIGXFSZ", "SIGXFZ") if hasattr(signal, name)
)
_CATCHABLE = tuple(sorted(_ALL - _PYTHONS_OWN - {int(signal.SIGKILL), int(signal.SIGSTOP)}))


def block_all() -> Iterable[int]:
    """Block every signal in this thread and return the mask until now."""
    mask: Iterable[int] = _raw.pthread_sigmask(_raw.SIG_BLOCK, _ALL)
    return mask


def set_mask(mask: Iterable[int]) -> None:
    """Set the mask. Handlers of signals that waited may run, and raise, inside this call."""
    _raw.pthread_sigmask(_raw.SIG_SETMASK, mask)


def handled() -> list[int]:
    """List the signals that this process handles or ignores where Python would not."""
    # 0 is SIG_DFL, by far the most common answer.
    get = _raw.getsignal
    return [number for number in _CATCHABLE if get(number) != _DEFAULT]


def reset(numbers: Iterable[int]) -> None:
    """Give *numbers* their default disposition, drop Python's wakeup descriptor, unblock all."""
    _raw.set_wakeup_fd(-1)
    for number in numbers:
        _raw.signal(number, _DEFAULT)
    _raw.pthread_sigmask(_raw.SIG_SETMASK, ())


def reset_child_signal() -> None:
    """Drop Python's wakeup descriptor and the handler of SIGCHLD, if there is one."""
    if _raw.getsignal(_raw.SIGCHLD) != _DEFAULT:
        _raw.set_wakeup_fd(-1)
        _raw.signal(_raw.SIGCHLD, _DEFAULT)
