"""Signal masks and dispositions, without the conversion to enums that `signal` does.

At each call `signal.pthread_sigmask` creates an enum member for each of some sixty signals, which
is slow and, after a fork, copies pages needlessly. The functions of `_signal` do not.
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
# Python ignores these signals at its start, so that a write to a closed pipe or past a file size
# limit raises an exception instead of killing the process. fn relies on that; programs that fn
# starts through `subprocess` get the system's defaults back (restore_signals).
_PYTHONS_OWN = frozenset(
    int(getattr(signal, name)) for name in ("SIGPIPE", "SIGXFSZ", "SIGXFZ") if hasattr(signal, name)
)
_CATCHABLE = tuple(sorted(_ALL - _PYTHONS_OWN - {int(signal.SIGKILL), int(signal.SIGSTOP)}))


def block_all() -> Iterable[int]:
    """Block all signals in this thread and return the previous mask."""
    mask: Iterable[int] = _raw.pthread_sigmask(_raw.SIG_BLOCK, _ALL)
    return mask


def set_mask(mask: Iterable[int]) -> None:
    """Set the mask. Handlers of pending signals may run, and raise, inside this call."""
    _raw.pthread_sigmask(_raw.SIG_SETMASK, mask)


def handled() -> list[int]:
    """Return the signals whose disposition is not Python's default."""
    # 0 is SIG_DFL, by far the most common answer.
    get = _raw.getsignal
    return [number for number in _CATCHABLE if get(number) != _DEFAULT]


def reset(numbers: Iterable[int]) -> None:
    """Reset *numbers* to SIG_DFL, remove Python's wakeup descriptor, and unblock all signals."""
    _raw.set_wakeup_fd(-1)
    for number in numbers:
        _raw.signal(number, _DEFAULT)
    _raw.pthread_sigmask(_raw.SIG_SETMASK, ())


def reset_child_signal() -> None:
    """If SIGCHLD has a handler, remove it and Python's wakeup descriptor."""
    if _raw.getsignal(_raw.SIGCHLD) != _DEFAULT:
        _raw.set_wakeup_fd(-1)
        _raw.signal(_raw.SIGCHLD, _DEFAULT)
