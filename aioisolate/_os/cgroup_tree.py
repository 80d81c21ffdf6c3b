"""Find the cgroups of this process in the mounted hierarchies (Linux).

Version 1 has one hierarchy for each controller, version 2 a single one for all. A hybrid system has
some controllers in each version. Only the mounts tell which directory a path in /proc/self/cgroup
stands for: a container may see only a part of a hierarchy.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

__all__ = ["UNIFIED", "CgroupPosition", "above", "place_of", "places", "places_in", "read"]

UNIFIED = ""  # the key of version 2; the keys of version 1 are names of controllers

_ESCAPE = re.compile(r"\\([0-7]{3})")


class CgroupPosition(NamedTuple):
    """The cgroup of a process in one hierarchy.

    Attributes:
        version: 1 or 2.
        top: the directory of the highest visible cgroup.
        group: the directory of the process's own cgroup.
    """

    version: int
    top: str
    group: str


def places() -> Mapping[str, CgroupPosition]:
    """Return this process's cgroups by controller (`UNIFIED` for version 2); {} if it has none."""
    return _places(os.getpid(), read("/proc/self", "cgroup") or "")


@functools.lru_cache(4)
def _places(_: int, groups: str) -> Mapping[str, CgroupPosition]:
    # A process may be moved at any time, so its cgroups are read each time; its mounts change too
    # rarely for that.
    return places_in(groups, read("/proc/self", "mountinfo") or "")


def places_in(groups: str, mounts: str) -> dict[str, CgroupPosition]:
    """Return the cgroups that /proc/self/cgroup and /proc/self/mountinfo describe."""
    mounted = dict(_mounted(mounts))
    found = {}
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        version = 1 if controllers else 2
        for controller in controllers.split(","):
            for root, top in mounted.get((version, controller), ()):
                # A cgroup outside the mounted part is not visible (its path starts with "/..").
                inside = path.removeprefix(root) if root != "/" else path
                if (inside == path and root != "/") or inside[:1] not in ("", "/"):
                    continue
                if ".." in inside.split("/"):
                    continue
                found[controller] = CgroupPosition(version, top, (top + inside).rstrip("/"))
                break
    return found


def _mounted(mounts: str) -> Iterator[tuple[tuple[int, str], list[tuple[str, str]]]]:
    """Yield the mounts of each hierarchy, as pairs of (root of the mount, mount point)."""
    found: dict[tuple[int, str], list[tuple[str, str]]] = {}
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        kind, *_, options = [*after.split(), "", ""][:3]
        if kind not in ("cgroup", "cgroup2"):
            continue
        root, point = (_unescaped(field) for field in before.split()[3:5])
        names = options.split(",") if kind == "cgroup" else [UNIFIED]
        for name in names:
            found.setdefault((1 if kind == "cgroup" else 2, name), []).append((root, point))
    yield from found.items()


def _unescaped(field: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), field)


def place_of(controller: str, within: Mapping[str, CgroupPosition]) -> CgroupPosition | None:
    """Return the cgroup in which *controller* works: in its own hierarchy, or the unified one."""
    return within.get(controller) or within.get(UNIFIED)


def above(place: CgroupPosition) -> Iterator[str]:
    """Yield the process's own cgroup and its ancestors, up to the highest visible one."""
    group = place.group
    while True:
        yield group
        if group == place.top:
            return
        group = group.rpartition("/")[0]


def read(directory: str, name: str) -> str | None:
    """Return the text of a control file, or None if it does not exist or is not readable."""
    try:
        # Python's file objects would cost several times as much as the reads.
        fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    parts = []
    try:
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    except OSError:
        return None  # the cgroup has just been removed
    finally:
        os.close(fd)
    return os.fsdecode(b"".join(parts))
