"""The control groups of this process, and where it may create others for its children (Linux).

Version 1 has one hierarchy for each controller, version 2 a single one for all. A hybrid system has
some controllers in each version. The directory of a path in /proc/self/cgroup depends on the
mounts: a container may see only a part of a hierarchy.

Where cgroups for children can be created:

In version 1, below the cgroup of this process, if it may write there, which mostly takes root.

In version 2, a cgroup with processes can't enable controllers for its children, and the cgroup of
this process has a process. Two places remain:

- *the root of the hierarchy*, which is exempt: a small machine without systemd, as root;
- *a sibling of this process's cgroup*, if the parent cgroup is writable, holds no processes and has
  the controllers: a systemd service with ``Delegate=yes`` and ``DelegateSubgroup=``, or a container
  (as root, with a writable cgroupfs) whose processes were moved from its top cgroup into a child
  cgroup, as nested container engines do.

Some cases would need this process, and all others in its cgroup, to be moved, which only the
administrator should do: a service or ``systemd-run --user --scope`` with ``Delegate=yes`` alone, a
container with all its processes in its top cgroup. Two cases that the kernel allows are left out: a
sibling that escapes limits of this process's cgroup, and a cgroup in a slice, which systemd alone
manages. So a plain service or a login session has no place, not even as root.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

__all__ = [
    "UNIFIED",
    "CgroupPosition",
    "Delegation",
    "Home",
    "above",
    "delegated",
    "delegated_at",
    "place_of",
    "places",
    "places_in",
    "read",
]

UNIFIED = ""  # the key of version 2; the keys of version 1 are names of controllers

_ESCAPE = re.compile(r"\\([0-7]{3})")
# Limits of this process's cgroup that a sibling would escape. ("max" means no limit.)
_LIMITS = ("memory.max", "memory.high", "memory.swap.max", "pids.max", "cpu.max")


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


class Home(NamedTuple):
    """A cgroup in which others can be created.

    Attributes:
        version: 1 or 2.
        directory: the cgroup's directory.
        missing: controllers that must still be enabled in cgroup.subtree_control (version 2).
    """

    version: int
    directory: str
    missing: tuple[str, ...] = ()


class Delegation(NamedTuple):
    """Where cgroups with each controller can be created, or None. Version 2 has one place."""

    memory: Home | None
    pids: Home | None


def delegated() -> Delegation:
    """Return where this process may create cgroups; the result is cached for each process."""
    # A forked child may be in another cgroup than its parent.
    return _delegated(os.getpid())


@functools.cache
def _delegated(_: int) -> Delegation:
    return delegated_at(places())


def delegated_at(within: Mapping[str, CgroupPosition]) -> Delegation:
    """Return where a process with these cgroups may create others."""
    found: dict[str, Home | None] = {"memory": None, "pids": None}
    for controller in found:
        if controller in within:
            found[controller] = _home_v1(within[controller], controller)
        elif UNIFIED in within:
            found[controller] = _home_v2(within[UNIFIED], controller)
    return Delegation(**found)


def _home_v1(place: CgroupPosition, controller: str) -> Home | None:
    if not _writable(place.group):
        return None
    if controller == "memory" and (read(place.group, "memory.use_hierarchy") or "0")[0] != "1":
        return None  # before Linux 5.11: a child cgroup would escape this cgroup's limit
    return Home(1, place.group)


def _home_v2(place: CgroupPosition, controller: str) -> Home | None:
    if read(place.group, "cgroup.type") is None:
        directory = place.group  # the root, the only cgroup without a type
    elif place.group == place.top:
        return None
    else:
        directory = place.group.rpartition("/")[0]
        if not _may_stand_beside(place.group, directory):
            return None
    if not _writable(directory):
        return None
    enabled = (read(directory, "cgroup.subtree_control") or "").split()
    if controller in enabled:
        return Home(2, directory)
    available = (read(directory, "cgroup.controllers") or "").split()
    if controller not in available or not _writable(directory, "cgroup.subtree_control"):
        return None
    return Home(2, directory, (controller,))


def _may_stand_beside(group: str, directory: str) -> bool:
    """Return whether a sibling of *group* may and can be created in *directory*."""
    if directory.endswith(".slice"):
        return False
    kind = read(directory, "cgroup.type")
    if kind is not None and (kind.strip() != "domain" or read(directory, "cgroup.procs") != ""):
        return False
    return all((read(group, name) or "max").startswith("max") for name in _LIMITS)


def _writable(directory: str, name: str = "cgroup.procs") -> bool:
    """Return whether cgroups can be created there and processes moved between them."""
    return os.access(directory, os.W_OK | os.X_OK) and os.access(f"{directory}/{name}", os.W_OK)
