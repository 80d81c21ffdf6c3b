"""What is called with large arguments, and what takes its time to be pickled or to be imported."""

from __future__ import annotations

import threading
import types
from typing import Any


class Gate:
    """An argument whose pickling waits until it may go on; in the child it is its number."""

    def __init__(self, number: int = 7) -> None:
        self.number = number
        self.reached = threading.Event()
        self.opened = threading.Event()
        self.thread = 0

    def __reduce__(self) -> Any:
        self.thread = threading.get_ident()
        self.reached.set()
        assert self.opened.wait(20), "nobody opened it: the event loop was held up"
        return int, (self.number,)


class Ident:
    """An argument that notes in which thread it is pickled; in the child it is a number."""

    def __init__(self, number: int = 7) -> None:
        self.number = number
        self.thread = 0

    def __reduce__(self) -> Any:
        self.thread = threading.get_ident()
        return int, (self.number,)


def same(*values):
    return values[0] if len(values) == 1 else values


def items(value):
    yield value


def are_one(first, second):
    return first is second


def holds_itself(array):
    return array[0][0] is array


def total(values):
    return len(values), sum(map(len, values))


def own_memory():
    """How many bytes of memory this process has written to itself."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty")) << 10


def growth(before, array):
    """How much memory of its own this child has more than *before*, and whether it can write."""
    grown = own_memory() - before
    first = int(array[0])
    try:
        array[0] = 5
    except ValueError:
        return grown, first, False
    return grown, first, int(array[0]) == 5


def thing(name):
    """An object of a module that is imported here."""
    return __import__(name).Thing()


def things(name):
    yield __import__(name).Thing()


def raise_thing(name):
    raise __import__(name).ThingError("of a module of its own")


def module_of(name):
    module = __import__(name)
    assert isinstance(module, types.ModuleType)
    return module
