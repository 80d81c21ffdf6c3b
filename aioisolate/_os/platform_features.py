"""What this platform offers, found out once by trying; for sandboxes it is in `containment`."""

from __future__ import annotations

import functools
import os
import sys
from typing import NamedTuple

from .containment import Containment, containment

__all__ = ["Containment", "Features", "containment", "current"]


class Features(NamedTuple):
    """What a call can count on here.

    Attributes:
        platform: `sys.platform`.
        waitid: os.waitid exists; without it no reaper is safe.
    """

    platform: str
    waitid: bool


@functools.cache
def current() -> Features:
    """Return what this platform offers."""
    return Features(
        platform=sys.platform,
        waitid=hasattr(os, "waitid"),
    )
