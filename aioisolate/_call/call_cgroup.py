"""The control groups of calls: created before the child, removed after the last process in them."""

from __future__ import annotations

from .._child.layers import CgroupSpec
from .._errors import CallableDidNotExecuteError, Reason, may_pass
from .._os.cgroups import Cgroup

__all__ = ["CallCgroup", "make"]

# Control groups that could not be removed yet, since killed processes in them had not ended.
_remaining: list[CallCgroup] = []


class CallCgroup(Cgroup):
    """The control group of one call."""

    __slots__ = ()

    def dissolve(self) -> bool:
        """Kill the group's processes and remove the group; return False if some have not ended yet.

        In that case call the method again; the next call of `make` also does.
        """
        removed = self.kill(0) and self.remove()
        if self in _remaining:
            _remaining.remove(self)
        if not removed:
            _remaining.append(self)
        return removed


def make(spec: CgroupSpec) -> CallCgroup:
    """Create the control group of a call. Raises CallableDidNotExecuteError."""
    for group in _remaining.copy():
        group.dissolve()
    try:
        return CallCgroup.create(*spec)
    except OSError as exc:
        raise CallableDidNotExecuteError(
            f"{Reason.CHILD_SETUP.value}: its control group could not be made: {exc}",
            reason=Reason.CHILD_SETUP,
            transient=may_pass(exc.errno),
        ) from exc
