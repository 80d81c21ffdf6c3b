"""Reseed the global random number generators of libraries in a child."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["reseeder"]


def reseeder() -> Callable[[], object] | None:
    """Return the function to call in each child, or None if no generator needs a new seed.

    `random` reseeds itself after a fork; numpy and torch do not. (Generators that other code has
    created are not reseeded.)
    """
    numpy_random: Any = sys.modules.get("numpy.random")
    generator = getattr(sys.modules.get("torch"), "default_generator", None)
    if generator is None:
        return None if numpy_random is None else numpy_random.seed
    seed_torch: Callable[[], object] = generator.seed
    if numpy_random is None:
        return seed_torch

    def seed_both() -> None:
        numpy_random.seed()
        seed_torch()

    return seed_both
