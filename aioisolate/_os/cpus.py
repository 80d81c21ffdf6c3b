"""The number of CPUs that this process may use, by its affinity and its cgroup's quota."""

from __future__ import annotations

import math
import os
from typing import Any

from .cgroup_tree import above, place_of, places, read

__all__ = ["available"]

_os: Any = os  # not every platform has all of it


def available() -> int:
    """Return the number of CPUs that this process may use, at least 1."""
    try:
        count = len(_os.sched_getaffinity(0))
    except AttributeError:  # macOS
        count = os.cpu_count() or 1
    quota = _quota()
    return max(1, count if quota is None else min(count, math.ceil(quota)))


def _quota() -> float | None:
    """Return the number of CPUs that the cgroups of this process allow, or None for no limit."""
    place = place_of("cpu", places())
    if place is None:
        return None
    get = _read_v1 if place.version == 1 else _read_v2
    # Each ancestor may have its own limit.
    limits = [quota for quota in map(get, above(place)) if quota is not None]
    return min(limits, default=None)


def _read_v2(directory: str) -> float | None:
    try:
        quota, period = (read(directory, "cpu.max") or "").split()
        return None if quota == "max" else int(quota) / int(period)
    except ValueError:
        return None


def _read_v1(directory: str) -> float | None:
    try:
        quota = int(read(directory, "cpu.cfs_quota_us") or "")
        period = int(read(directory, "cpu.cfs_period_us") or "")
    except ValueError:
        return None
    return None if quota <= 0 else quota / period
