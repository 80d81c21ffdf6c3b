"""What this platform offers, found out once by trying; for sandboxes it is in `containment`."""

from __future__ import annotations

import functools
import os
import sys
from typing import NamedTuple

from . import memfd
from .containment import Containment, containment

__all__ = ["Containment", "Features", "containment", "current"]


class Features(NamedTuple):
    """What a call can count on here.

    Attributes:
        platform: `sys.platform`.
        waitid: os.waitid exists; without it no reaper is safe.
        memfd: large results can travel through sealed anonymous memory.
        parent_death_signal: the kernel kills children whose parent died.
    """

    platform: str
    waitid: bool
    memfd: bool
    parent_death_signal: bool


@functools.cache
def current() -> Features:
    """Return what this platform offers."""
    return Features(
        platform=sys.platform,
        waitid=hasattr(os, "waitid"),
        memfd=memfd.sealable(),
        parent_death_signal=sys.platform == "linux",
    )
