"""Where this process stands in the hierarchies of control groups (Linux).

Version 1 has a hierarchy for each controller, version 2 one for all; on a hybrid system some
controllers are with the one and some with the other. What a path in /proc/self/cgroup means is
told by the mounts alone: a container may see no more than a part of a hierarchy.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

__all__ = ["UNIFIED", "CgroupPosition", "above", "place_of", "places", "places_in", "read"]

UNIFIED = ""  # stands for version 2, where others have the name of a controller

_ESCAPE = re.compile(r"\\([0-7]{3})")


class CgroupPosition(NamedTuple):
    """The group of a process in one hierarchy.

    Attributes:
        version: 1 or 2.
        top: the directory of the highest group that can be seen from here.
        group: that of the process's own.
    """

    version: int
    top: str
    group: str


def places() -> Mapping[str, CgroupPosition]:
    """Return this process's groups by controller, `UNIFIED` for version 2; {} elsewhere."""
    return _places(os.getpid(), read("/proc/self", "cgroup") or "")


@functools.lru_cache(4)
def _places(_: int, groups: str) -> Mapping[str, CgroupPosition]:
    # A process may be moved at any time; that its mounts change is too rare to look each time.
    return places_in(groups, read("/proc/self", "mountinfo") or "")


def places_in(groups: str, mounts: str) -> dict[str, CgroupPosition]:
    """Work out the groups from the text of /proc/self/cgroup and of /proc/self/mountinfo."""
    mounted = dict(_mounted(mounts))
    found = {}
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        version = 1 if controllers else 2
        for controller in controllers.split(","):
            for root, top in mounted.get((version, controller), ()):
                # A group that is not below what is mounted can't be seen (and reads "/..").
                inside = path.removeprefix(root) if root != "/" else path
                if (inside == path and root != "/") or inside[:1] not in ("", "/"):
                    continue
                if ".." in inside.split("/"):
                    continue
                found[controller] = CgroupPosition(version, top, (top + inside).rstrip("/"))
                break
    return found


def _mounted(mounts: str) -> Iterator[tuple[tuple[int, str], list[tuple[str, str]]]]:
    """Yield what is mounted where, as pairs of (root of the mount, mount point)."""
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
    """Return the place where the *controller* works: its own hierarchy, or the unified one."""
    return within.get(controller) or within.get(UNIFIED)


def above(place: CgroupPosition) -> Iterator[str]:
    """Yield the process's own group, the one above it, and so on up to the highest."""
    group = place.group
    while True:
        yield group
        if group == place.top:
            return
        group = group.rpartition("/")[0]


def read(directory: str, name: str) -> str | None:
    """Return what a control file says, or None if there is none, or none for us."""
    try:
        # Without Python's file objects, which cost several times the reading.
        fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    parts = []
    try:
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    except OSError:
        return None  # the group has just been removed
    finally:
        os.close(fd)
    return os.fsdecode(b"".join(parts))
