"""The features of this platform, found by one attempt; `containment` has those for sandboxes."""

from __future__ import annotations

import functools
import os
import sys
from typing import NamedTuple

from . import memfd
from .containment import Containment, containment

__all__ = ["Containment", "Features", "containment", "current"]


class Features(NamedTuple):
    """The features of this platform that calls use.

    Attributes:
        platform: `sys.platform`.
        waitid: os.waitid exists; without it children can't be reaped safely.
        memfd: large results can be passed in sealed anonymous memory.
        parent_death_signal: the kernel kills children whose parent has ended.
    """

    platform: str
    waitid: bool
    memfd: bool
    parent_death_signal: bool


@functools.cache
def current() -> Features:
    """Return the features of this platform."""
    return Features(
        platform=sys.platform,
        waitid=hasattr(os, "waitid"),
        memfd=memfd.sealable(),
        parent_death_signal=sys.platform == "linux",
    )
