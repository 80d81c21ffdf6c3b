"""Random generators in a fork server's modules, from which each child would draw the same numbers.

The generators of `random`, `numpy.random` and torch itself are seeded again in each child.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

__all__ = ["Found", "find"]

# A module, the name of a global variable, and its type.
Found = tuple[str, str, str]

_KINDS = (
    ("random", ("Random",)),
    ("numpy.random", ("Generator", "BitGenerator", "RandomState")),
    ("torch", ("Generator",)),
)
# Packages without a generator whose numbers matter: trio's shuffles tasks, for example.
_IGNORED = frozenset({"aioisolate", "numpy", "random", "secrets", "torch", "trio"})


def find(preloaded: Iterable[str] = ()) -> list[Found]:
    """List generators among the global variables of *preloaded* packages and the user's modules.

    Another module is the user's if it is in neither the standard library nor site-packages.
    """
    modules = sys.modules
    kinds = {
        getattr(modules[home], name, None)
        for home, names in _KINDS
        if home in modules
        for name in names
    }
    if not kinds:
        return []
    stateless = getattr(modules.get("random"), "SystemRandom", None)
    seeded = _seeded_in_each_child()
    wanted = {name.partition(".")[0] for name in preloaded}
    found = []
    for name, module in list(modules.items()):
        top = name.partition(".")[0]
        if top in _IGNORED or not issubclass(type(module), ModuleType):
            continue
        if top not in wanted and not _is_users(module):
            continue
        for attribute, value in list(vars(module).items()):
            bases = type(value).__mro__  # unlike __class__, which a proxy may fake
            if kinds.isdisjoint(bases) or stateless in bases or id(value) in seeded:
                continue
            seeded.add(id(value))  # reported once, for the module imported first
            found.append((name, attribute, type(value).__name__))
    return found


def _seeded_in_each_child() -> set[int]:
    modules: dict[str, Any] = dict(sys.modules)
    known = (
        getattr(modules.get("random"), "random", None),
        getattr(modules.get("numpy.random"), "rand", None),
    )
    ids = {id(getattr(method, "__self__", None)) for method in known}
    return ids | {id(getattr(modules.get("torch"), "default_generator", None))}


def _is_users(module: ModuleType) -> bool:
    path = getattr(module, "__file__", None)
    if not isinstance(path, str):
        return False
    library = getattr(sys, "_stdlib_dir", None)
    if library and path.startswith(library + "/"):
        return False
    return "/site-packages/" not in path and "/dist-packages/" not in path
