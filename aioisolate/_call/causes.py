"""Finding out what was wrong with a child: which layer is missing, who ran out of memory."""

from __future__ import annotations

from collections.abc import Sequence

from .._os import oom
from .._os.cgroups import Group

__all__ = ["memory_killer", "note_memory", "why_unconfined"]

_before: oom.Kills | None = None


def why_unconfined(wanted: Sequence[str], engaged: bytes) -> str:
    """Compare the layers that a child has engaged with the plan; "" if they are the same."""
    told = engaged.decode(errors="replace").split(",") if engaged else []
    if sorted(told) == sorted(wanted):
        return ""
    missing = sorted(set(wanted) - set(told))
    return f"layers missing: {', '.join(missing) or 'none'}; engaged: {', '.join(told) or 'none'}"


def note_memory() -> None:
    """Note how many processes have been killed for want of memory, to know of later ones."""
    global _before
    if _before is None:
        _before = oom.kills()


def memory_killer(group: Group | None) -> str:
    """Say who killed a process for want of memory, if somebody seems to have."""
    global _before
    if group is not None and group.events().oom_kills:
        return "the limit of all its processes together, a control group's"
    before, _before = _before, oom.kills()
    return "" if before is None else oom.since(before)
