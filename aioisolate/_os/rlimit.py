"""Resource limits of a process: what they may be set to, and setting them."""

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
# No process has more addresses.
_ADDRESSES = 1 << 57

_resource: Any = resource
# By the name of the option; not every platform has all of them.
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
    """Return how many bytes of addresses this process has in use; 0 where nothing tells.

    RLIMIT_AS counts them, those included that a child inherits: a limit has to come on top.
    """
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split(None, 1)[0]) * resource.getpagesize()
    except OSError:
        return measure_address_space()


def measure_address_space() -> int:
    """Find out how many bytes of addresses this process has in use, where /proc does not tell.

    By the limit under which not a page more can be had; it is put back. Other threads may be
    refused memory meanwhile. 0: there is no such limit, or it does not hold.
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

    Raises OSError if one can't be set, by which time those before it are.
    """
    for number, soft, hard in limits:
        try:
            resource.setrlimit(number, (soft, hard))
        except ValueError as exc:  # Python's word for EINVAL (soft above hard) and EPERM
            code = errno.EINVAL if "exceeds" in str(exc) else errno.EPERM
            raise OSError(code, f"{exc}: {soft}, {hard}", _name(number)) from None


def limit_pending_signals(most: int) -> None:
    """Let this process's user have no more signals waiting, and timers, by its doing.

    Does nothing where there is no such limit. Raises OSError.
    """
    number = getattr(_resource, "RLIMIT_SIGPENDING", None)
    if number is not None:
        _, hard = resource.getrlimit(number)
        most = most if hard == INFINITY else min(most, hard)
        apply([(number, most, most)])


def _name(number: int) -> str:
    return next((name for name, known in NUMBERS.items() if known == number), str(number))
