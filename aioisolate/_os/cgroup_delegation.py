"""Find where this process may create cgroups for its children (Linux).

Version 1: below the cgroup of this process, if it may write there, which mostly takes root.

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
from collections.abc import Mapping
from typing import NamedTuple

from .cgroup_tree import UNIFIED, CgroupPosition, places, read

__all__ = ["Delegation", "Home", "delegated", "delegated_at"]

# Limits of this process's cgroup that a sibling would escape. ("max" means no limit.)
_LIMITS = ("memory.max", "memory.high", "memory.swap.max", "pids.max", "cpu.max")


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
