"""How many CPUs this process may use: affinity and the cgroup's quota included."""

from __future__ import annotations

import math
import os
from typing import Any

__all__ = ["available"]

_os: Any = os  # not every platform has all of it
_CGROUP = "/sys/fs/cgroup"


def available() -> int:
    """Return how many CPUs' worth of time this process can get, at least 1."""
    try:
        count = len(_os.sched_getaffinity(0))
    except AttributeError:  # macOS
        count = os.cpu_count() or 1
    quota = _quota()
    return max(1, count if quota is None else min(count, math.ceil(quota)))


def _quota() -> float | None:
    """Return the CPUs that the cgroups of this process allow, or None: no limit."""
    quotas = []
    try:
        with open("/proc/self/cgroup") as file:
            paths = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return None
    for _, controllers, path in paths:
        if controllers == "":
            # Every group on the way up may have a limit of its own.
            while True:
                quotas.append(_read_v2(f"{_CGROUP}{path}/cpu.max"))
                if path in ("", "/"):
                    break
                path = path.rpartition("/")[0]  # noqa: PLW2901 - the parent group
        elif "cpu" in controllers.split(","):
            quotas.append(_read_v1(f"{_CGROUP}/{controllers}{path.rstrip('/')}"))
    limits = [quota for quota in quotas if quota is not None]
    return min(limits, default=None)


def _read_v2(name: str) -> float | None:
    try:
        with open(name) as file:
            quota, period = file.read().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _read_v1(directory: str) -> float | None:
    try:
        with open(f"{directory}/cpu.cfs_quota_us") as file:
            quota = int(file.read())
        with open(f"{directory}/cpu.cfs_period_us") as file:
            period = int(file.read())
    except (OSError, ValueError):
        return None
    return None if quota <= 0 else quota / period
