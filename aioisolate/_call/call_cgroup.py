"""The control groups of calls: made before the child, gone after everything that was in it."""

from __future__ import annotations

from .._child.layers import CgroupSpec as Wanted
from .._errors import CallableDidNotExecuteError, Reason, may_pass
from .._os.cgroups import Cgroup

__all__ = ["CallCgroup", "make"]

# Somebody was still dying in these.
_left: list[CallCgroup] = []


class CallCgroup(Cgroup):
    """The control group of one call."""

    __slots__ = ()

    def dissolve(self) -> bool:
        """Kill whoever is in it and remove it; False if somebody is still dying: try again later.

        If nobody does, it is tried when the next group is made.
        """
        gone = self.kill(0) and self.remove()
        if self in _left:
            _left.remove(self)
        if not gone:
            _left.append(self)
        return gone


def make(wanted: Wanted) -> CallCgroup:
    """Make a call's control group. Raises CallableDidNotExecuteError."""
    for group in _left.copy():
        group.dissolve()
    try:
        return CallCgroup.create(*wanted)
    except OSError as exc:
        raise CallableDidNotExecuteError(
            f"{Reason.CHILD_SETUP.value}: its control group could not be made: {exc}",
            reason=Reason.CHILD_SETUP,
            transient=may_pass(exc.errno),
        ) from exc
