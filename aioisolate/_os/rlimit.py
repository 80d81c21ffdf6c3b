"""Resource limits of a process: set them, and measure the address space."""

from __future__ import annotations

import errno
import mmap
import resource
from collections.abc import Sequence
from typing import Any

__all__ = [
    "INFINITY",
    "NUMBERS",
    "address_space",
    "apply",
    "limit_pending_signals",
    "measure_address_space",
]

INFINITY = resource.RLIM_INFINITY
# The largest address space of a process, in bytes.
_ADDRESSES = 1 << 57

_resource: Any = resource
# Limit numbers by option name; not every platform has all of them.
NUMBERS: dict[str, int] = {
    option: getattr(_resource, name)
    for option, name in {
        "address_space": "RLIMIT_AS",
        "cpu_time": "RLIMIT_CPU",
        "open_files": "RLIMIT_NOFILE",
        "file_size": "RLIMIT_FSIZE",
        "processes": "RLIMIT_NPROC",
        "core_size": "RLIMIT_CORE",
    }.items()
    if hasattr(_resource, name)
}


def address_space() -> int:
    """Return the size of this process's address space in bytes, or 0 if it is unknown.

    RLIMIT_AS includes what a child inherits, so a child's limit must be added to this size.
    """
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split(None, 1)[0]) * resource.getpagesize()
    except OSError:
        return measure_address_space()


def measure_address_space() -> int:
    """Measure the size of this process's address space in bytes, where there is no /proc.

    It is the largest RLIMIT_AS under which no further page can be mapped; the limit is restored.
    Memory requests of other threads may fail meanwhile. Return 0 if the system has no such limit or
    does not enforce it.
    """
    which = NUMBERS.get("address_space")
    if which is None:
        return 0
    soft, hard = resource.getrlimit(which)
    page = resource.getpagesize()
    low, high = 0, _ADDRESSES if hard == INFINITY else min(hard, _ADDRESSES)
    try:
        while high - low > page:
            middle = (low + high) // 2 // page * page
            resource.setrlimit(which, (middle, hard))
            try:
                mmap.mmap(-1, page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
                high = middle
            except (OSError, MemoryError):
                low = middle
    finally:
        resource.setrlimit(which, (soft, hard))
    return low


def apply(limits: Sequence[tuple[int, int, int]]) -> None:
    """Set limits, each given as its number, the soft and the hard value.

    Raises OSError if one can't be set; the limits before it stay set.
    """
    for number, soft, hard in limits:
        try:
            resource.setrlimit(number, (soft, hard))
        except ValueError as exc:  # Python raises it for EINVAL (soft above hard) and EPERM
            code = errno.EINVAL if "exceeds" in str(exc) else errno.EPERM
            raise OSError(code, f"{exc}: {soft}, {hard}", _name(number)) from None


def limit_pending_signals(most: int) -> None:
    """Limit the queued signals and timers that this process may add to its user's.

    Does nothing on systems without RLIMIT_SIGPENDING. Raises OSError.
    """
    number = getattr(_resource, "RLIMIT_SIGPENDING", None)
    if number is not None:
        _, hard = resource.getrlimit(number)
        most = most if hard == INFINITY else min(most, hard)
        apply([(number, most, most)])


def _name(number: int) -> str:
    return next((name for name, known in NUMBERS.items() if known == number), str(number))
