"""The control groups of calls: created before the child, removed after the last process in them."""

from __future__ import annotations

from .._child.layers import CgroupSpec as Wanted
from .._errors import CallableDidNotExecuteError, Reason, may_pass
from .._os.cgroups import Cgroup

__all__ = ["CallCgroup", "make"]

# Control groups in which processes were still dying.
_left: list[CallCgroup] = []


class CallCgroup(Cgroup):
    """The control group of one call."""

    __slots__ = ()

    def dissolve(self) -> bool:
        """Kill the group's processes and remove it; False if some are still dying: call it again.

        Otherwise the next call of `make` tries again.
        """
        gone = self.kill(0) and self.remove()
        if self in _left:
            _left.remove(self)
        if not gone:
            _left.append(self)
        return gone


def make(wanted: Wanted) -> CallCgroup:
    """Create the control group of a call. Raises CallableDidNotExecuteError."""
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
