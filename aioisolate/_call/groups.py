"""The control groups of calls: made before the child, gone after everything that was in it."""

from __future__ import annotations

from .._os.cgroups import Group

__all__ = ["dissolve", "make"]

# Somebody was still dying in these.
_left: list[Group] = []


def make(memory: int | None, processes: int | None) -> Group:
    """Make a control group for one call. Raises OSError."""
    for group in list(_left):
        if group.remove():
            _left.remove(group)
    return Group.create(memory, processes)


def dissolve(group: Group) -> bool:
    """Kill whoever is in it and remove it; False if somebody is still dying: try again later."""
    if group.kill(0) and group.remove():
        if group in _left:
            _left.remove(group)
        return True
    if group not in _left:
        _left.append(group)
    return False
