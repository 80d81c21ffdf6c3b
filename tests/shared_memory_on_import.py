"""A module whose import makes shared memory: a fork server that has it has a tracker."""

from __future__ import annotations

from multiprocessing import shared_memory

memory = shared_memory.SharedMemory(create=True, size=16)
memory.unlink()
