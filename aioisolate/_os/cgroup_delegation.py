"""Where this process may make control groups for its children (Linux).

Version 1 is simple: below its own group, if it may write there; so mostly as root.

In version 2 a group that has processes can't hand controllers on to groups below it, and this
process sits in its own. That leaves:

- *the root of the hierarchy*, which is exempt: a small machine without systemd, as root;
- *beside its own group*, below the one above, if that one is ours to write, holds no processes,
  and has the controllers: a systemd service with ``Delegate=yes`` and ``DelegateSubgroup=``, or a
  container (as root, with a writable cgroupfs) whose processes were moved from its top group into
  a group below it, as nested container engines do.

Not possible without moving this process, and whatever shares its group, into another one, which is
for its owner to do: a service or ``systemd-run --user --scope`` with ``Delegate=yes`` alone, a
container with all its processes in its top group. Not done, though the kernel would allow it: a
group beside our own that escapes limits of our own, and one in a slice, which systemd alone
manages. So a plain service or a login session has none, root's included.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import NamedTuple

from .cgroup_tree import UNIFIED, CgroupPosition, places, read

__all__ = ["Delegation", "Home", "delegated", "delegated_at"]

# What a group beside ours would escape. (A value that sets no limit starts with "max".)
_LIMITS = ("memory.max", "memory.high", "memory.swap.max", "pids.max", "cpu.max")


class Home(NamedTuple):
    """A group that others can be made in.

    Attributes:
        version: 1 or 2.
        directory: the group.
        missing: controllers that it has yet to hand on to the groups below it (version 2).
    """

    version: int
    directory: str
    missing: tuple[str, ...] = ()


class Delegation(NamedTuple):
    """Where groups with a controller can be made; None: nowhere. In version 2 it is one place."""

    memory: Home | None
    pids: Home | None


def delegated() -> Delegation:
    """Tell where this process may make groups; looked up once in each process."""
    # A forked child may be in another group than its parent.
    return _delegated(os.getpid())


@functools.cache
def _delegated(_: int) -> Delegation:
    return delegated_at(places())


def delegated_at(within: Mapping[str, CgroupPosition]) -> Delegation:
    """Tell where a process may make groups whose places are these."""
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
        return None  # our own limit would not hold for a group below; before Linux 5.11
    return Home(1, place.group)


def _home_v2(place: CgroupPosition, controller: str) -> Home | None:
    if read(place.group, "cgroup.type") is None:
        directory = place.group  # the root of all: the only one without a type
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
    """Tell whether it is all right and possible to make another group beside our own."""
    if directory.endswith(".slice"):
        return False
    kind = read(directory, "cgroup.type")
    if kind is not None and (kind.strip() != "domain" or read(directory, "cgroup.procs") != ""):
        return False
    return all((read(group, name) or "max").startswith("max") for name in _LIMITS)


def _writable(directory: str, name: str = "cgroup.procs") -> bool:
    """Tell whether groups can be made there and processes be moved between those below it."""
    return os.access(directory, os.W_OK | os.X_OK) and os.access(f"{directory}/{name}", os.W_OK)
