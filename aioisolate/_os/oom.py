"""Find out whether the kernel's OOM killer killed a process (Linux)."""

from __future__ import annotations

from typing import NamedTuple

from .cgroup_tree import CgroupPosition, above, place_of, places, read

__all__ = ["Kills", "kills", "kills_at", "parse_counter", "since"]

# memory.limit_in_bytes without a limit is the largest multiple of the page size, which may be
# 64 KiB.
_NO_LIMIT = (1 << 63) - (1 << 16)


class Kills(NamedTuple):
    """The numbers of processes that the OOM killer has killed so far; None if unknown.

    Attributes:
        system: on the whole machine, other containers included.
        group: in the cgroup of this process (in version 2 including its descendants).
    """

    system: int | None
    group: int | None


def kills() -> Kills:
    """Return the numbers for this process."""
    return kills_at(place_of("memory", places()))


def kills_at(place: CgroupPosition | None) -> Kills:
    """Return the numbers for a process in that cgroup."""
    group = None
    if place is not None:
        name = "memory.oom_control" if place.version == 1 else "memory.events"
        group = parse_counter(read(place.group, name), "oom_kill")
    return Kills(parse_counter(read("/proc", "vmstat"), "oom_kill"), group)


def parse_counter(text: str | None, key: str) -> int | None:
    """Return the number after *key* in the text of a file with one key and number in each line."""
    # A search instead of a split: /proc/vmstat has about two hundred lines.
    _, found, rest = f"\n{text or ''}".partition(f"\n{key} ")
    return int(rest.partition("\n")[0]) if found else None


def since(before: Kills) -> str:
    """Return the cause of OOM kills in this process's cgroup since *before*; "" if there was none.

    The system's counter is used only if the cgroup's can't be read. Processes that were moved to
    another cgroup are not included: that cgroup has its own counter.
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
    """Return whether this cgroup or a visible ancestor has a memory limit."""
    if place.version == 1:
        limit = parse_counter(read(place.group, "memory.stat"), "hierarchical_memory_limit")
        return limit is not None and limit < _NO_LIMIT
    return any((read(group, "memory.max") or "max").strip() != "max" for group in above(place))
