"""The functions that parent and child share, since the child is a copy of the parent.

A direct fork is a copy of its parent, so shared functions are not pickled. A child of a fresh fork
server is not a copy. A template's child is a copy of an earlier state: it has the functions that
existed then, with their closures as they were.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Mapping
from types import FunctionType
from typing import Any, TypeAlias

__all__ = ["Functions", "functions_of_now", "is_copy", "known", "mark_as_no_copy", "set_known"]

# Functions by address. A copy of a process has the same functions at the same addresses. Addresses
# are only used as keys, never dereferenced, so a reused address is harmless.
Functions: TypeAlias = Mapping[int, "weakref.ref[Any]"]

# Whether this process is a copy of the process that sends it calls, and the functions that both
# have. Other modules read these; only the functions below change them.
is_copy = True
known: Functions = {}


def mark_as_no_copy() -> None:
    """Mark this process as a fresh fork server, or as a future child of one."""
    global is_copy
    is_copy = False


def set_known(functions: Functions) -> None:
    """Set the functions that this process shares with the process that sends it calls."""
    global known
    known = functions


def functions_of_now() -> Functions:
    """Return the functions that exist now, for a copy of this process that is about to be made.

    The garbage collector does not list objects that `gc.freeze` has frozen. Of these, the result
    contains only the functions in namespaces of modules and of their classes.
    """
    objects = gc.get_objects()
    if gc.get_freeze_count():
        for module in list(sys.modules.values()):
            for value in list(getattr(module, "__dict__", {}).values()):
                objects.append(value)
                if isinstance(value, type):
                    objects += vars(value).values()
    return {id(found): weakref.ref(found) for found in objects if type(found) is FunctionType}
