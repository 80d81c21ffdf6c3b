"""The features of this platform that calls use; `containment` has those that sandboxes use."""

from __future__ import annotations

import functools
import os
import sys
from typing import NamedTuple

from .containment import Containment, containment

__all__ = ["Containment", "Features", "containment", "current"]


class Features(NamedTuple):
    """The features of this platform that calls use.

    Attributes:
        platform: `sys.platform`.
        waitid: os.waitid exists; without it children can't be reaped safely.
    """

    platform: str
    waitid: bool


@functools.cache
def current() -> Features:
    """Return the features of this platform."""
    return Features(
        platform=sys.platform,
        waitid=hasattr(os, "waitid"),
    )
