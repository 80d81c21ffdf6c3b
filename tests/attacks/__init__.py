"""What a stranger's code may try: functions for a child, and how the parent sees that they worked.

None of them does any harm where it succeeds: files, processes and mounts are the scene's own, and
what takes time or space has a bound of its own.
"""

from __future__ import annotations

from . import (
    channel,
    files,
    inheritance,
    kernel,
    network,
    outside,
    preloaded,
    processes,
    resources,
)
from .processes import be_a_sibling
from .scene import Attack, Scene, without_imports

__all__ = ["ATTACKS", "Attack", "Scene", "be_a_sibling", "without_imports"]

ATTACKS: list[Attack] = [
    attack
    for group in (
        files,
        network,
        processes,
        kernel,
        resources,
        outside,
        inheritance,
        preloaded,
        channel,
    )
    for attack in group.ATTACKS
]
