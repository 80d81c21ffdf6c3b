"""What this process has in common with the one that it works for, or that works for it.

A direct fork is a copy of the process that it answers to, so what both have need not travel. A
fresh fork server's child is none. A template's child is a copy of an earlier state: it has the
functions that existed then, with their closures as they were.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Mapping
from types import FunctionType
from typing import Any, TypeAlias

__all__ = ["Functions", "functions_of_now", "is_copy", "known"]

# By address. A copy has the same functions at the same addresses; being looked up here, and not
# followed, an address that has since been given to something else is harmless.
Functions: TypeAlias = Mapping[int, "weakref.ref[Any]"]

# Set once, in the process that it is true of.
is_copy = True
known: Functions = {}


def functions_of_now() -> Functions:
    """List the functions that exist, for a copy of this process that is about to be made."""
    objects = _reachable(gc.get_objects()) if gc.get_freeze_count() else gc.get_objects()
    return {id(found): weakref.ref(found) for found in objects if type(found) is FunctionType}


def _reachable(known: list[object]) -> list[object]:
    """Add what can be reached from modules: frozen objects are not listed by anything."""
    seen = {id(found) for found in known}
    found = [*known, *sys.modules.values()]
    for referrer in found:  # it grows meanwhile
        for referent in gc.get_referents(referrer):
            if id(referent) not in seen and gc.is_tracked(referent):
                seen.add(id(referent))
                found.append(referent)
    return found
