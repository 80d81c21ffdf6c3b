"""Which functions the two processes of a call share because one is a copy of the other.

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

# By address. A copy has the same functions at the same addresses. Addresses are only looked up
# here, never dereferenced, so a reused address is harmless.
Functions: TypeAlias = Mapping[int, "weakref.ref[Any]"]

# Whether this process is a copy of the one that it answers to, and which functions both have. Read
# by others; changed only by the functions below.
is_copy = True
known: Functions = {}


def mark_as_no_copy() -> None:
    """Note that this process is a fresh fork server, or will be forked from one."""
    global is_copy
    is_copy = False


def set_known(functions: Functions) -> None:
    """Set the functions that this process has in common with the one that it answers to."""
    global known
    known = functions


def functions_of_now() -> Functions:
    """List the functions that exist, for a copy of this process that is about to be made.

    Of the functions that `gc.freeze` has frozen, only those that modules and their classes hold are
    listed: the garbage collector does not enumerate frozen objects.
    """
    objects = gc.get_objects()
    if gc.get_freeze_count():
        for module in list(sys.modules.values()):
            for value in list(getattr(module, "__dict__", {}).values()):
                objects.append(value)
                if isinstance(value, type):
                    objects += vars(value).values()
    return {id(found): weakref.ref(found) for found in objects if type(found) is FunctionType}
