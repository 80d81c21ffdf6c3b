"""Who has killed a process that was killed: the kernel, for want of memory? (Linux)."""

from __future__ import annotations

from typing import NamedTuple

from .cgroup_tree import CgroupPosition, above, place_of, places, read

__all__ = ["Kills", "count", "kills", "kills_at", "since"]

# What memory.limit_in_bytes says where there is none: the largest number of whole pages, and they
# may be large (64 KiB).
_NO_LIMIT = (1 << 63) - (1 << 16)


class Kills(NamedTuple):
    """How many processes the kernel has killed so far for want of memory; None: nothing tells.

    Attributes:
        system: anywhere on this machine, other containers included.
        group: in the group of this process (in version 2 also in those below it).
    """

    system: int | None
    group: int | None


def kills() -> Kills:
    """Count."""
    return kills_at(place_of("memory", places()))


def kills_at(place: CgroupPosition | None) -> Kills:
    """Count for a process that has its place there."""
    group = None
    if place is not None:
        name = "memory.oom_control" if place.version == 1 else "memory.events"
        group = count(read(place.group, name), "oom_kill")
    return Kills(count(read("/proc", "vmstat"), "oom_kill"), group)


def count(text: str | None, key: str) -> int | None:
    """Return the number beside *key* in a file of such pairs, one a line."""
    # Searched, not split: /proc/vmstat has some two hundred lines.
    _, found, rest = f"\n{text or ''}".partition(f"\n{key} ")
    return int(rest.partition("\n")[0]) if found else None


def since(before: Kills) -> str:
    """Say in words who has killed a process of this one's group since then; "" if nobody has.

    If the group's counter can be read, that of the system says nothing of us. Processes that have
    been put in a group of their own are not asked about here: that group has its own counter.
    """
    place = place_of("memory", places())
    now = kills_at(place)
    if place is not None and now.group is not None and before.group is not None:
        if now.group <= before.group:
            return ""
        if _limited(place):
            return "the memory limit of this container (its cgroup)"
        return "the kernel's out-of-memory killer"
    if now.system is not None and before.system is not None and now.system > before.system:
        return "the kernel's out-of-memory killer"
    return ""


def _limited(place: CgroupPosition) -> bool:
    """Tell whether a group from ours upwards has a limit of memory; what is hidden is not seen."""
    if place.version == 1:
        limit = count(read(place.group, "memory.stat"), "hierarchical_memory_limit")
        return limit is not None and limit < _NO_LIMIT
    return any((read(group, "memory.max") or "max").strip() != "max" for group in above(place))
