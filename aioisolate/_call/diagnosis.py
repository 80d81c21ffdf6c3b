"""The diagnosis of a failed child: its missing layers, and the memory limit that killed it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._os.cgroups import Cgroup
    from .._os.oom import Kills

__all__ = ["group_killer", "memory_killer", "note_memory", "why_unconfined"]

# The last count of kills, and its time; to count before every call would cost too much.
_latest: Kills | None = None
_noted_at = -math.inf
_NOTED_FOR = 1.0


def why_unconfined(wanted: Sequence[str], engaged: Sequence[str]) -> str:
    """Compare the layers that a child has engaged with the plan; return "" if they are the same."""
    if sorted(engaged) == sorted(wanted):
        return ""
    missing = sorted(set(wanted) - set(engaged))
    return (
        f"layers missing: {', '.join(missing) or 'none'}; engaged: {', '.join(engaged) or 'none'}"
    )


def note_memory() -> Kills:
    """Return the number of processes killed for lack of memory, at most a second old."""
    from .._os import oom  # noqa: PLC0415 - only with limits

    global _latest, _noted_at
    now = time.monotonic()
    if _latest is None or now - _noted_at > _NOTED_FOR:
        _latest = oom.kills()
        _noted_at = now
    return _latest


def memory_killer(group: Cgroup | None, before: Kills | None) -> str:
    """Return the memory limit that seems to have killed a process, or "".

    *before* is the result of `note_memory` when the process was started.
    """
    from .._os import oom  # noqa: PLC0415 - only with limits

    return group_killer(group) or ("" if before is None else oom.since(before))


def group_killer(group: Cgroup | None) -> str:
    """Return the limit of a call's own control group, if it has killed a process; else ""."""
    if group is not None and group.events().oom_kills:
        return "the limit of all its processes together, a control group's"
    return ""
