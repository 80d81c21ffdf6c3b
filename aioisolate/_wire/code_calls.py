"""Picklers for calls that plain pickle can't do: at once, or in a thread."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from . import ancestry
from .by_value import CodePickler
from .large_call import TooMuch
from .out_of_band import OutOfBand, reduce_array
from .pickle_cost import TEXT_MAX, may_take_long

__all__ = ["AsideCodePickler", "AsideTextPickler", "QuickCodePickler"]


class QuickCodePickler(CodePickler):
    """One that raises TooMuch where something may take long.

    Attributes:
        functions: what the other side has, too, since it is a copy of this process.
    """

    functions: ancestry.Functions

    def persistent_id(self, obj: Any) -> int | None:
        """Return the address of what is not pickled; None for all else."""
        kind = type(obj)
        if kind is str and len(obj) > TEXT_MAX:
            raise TooMuch
        return _address(self.functions, obj) if kind is FunctionType else None

    def reducer_override(self, obj: Any) -> Any:
        """Refuse an object, or leave it to `CodePickler`."""
        if may_take_long(obj):
            raise TooMuch
        return super().reducer_override(obj)


class AsideCodePickler(CodePickler):
    """One that lays large arrays aside."""

    def reducer_override(self, obj: Any) -> Any:
        """Reduce a large array; leave all else to `CodePickler`."""
        reduced = reduce_array(obj)
        return super().reducer_override(obj) if reduced is NotImplemented else reduced


class AsideTextPickler(AsideCodePickler):
    """One that lays long texts aside, too, at twice the effort.

    Attributes:
        functions: as above.
        asides: what lies aside.
    """

    functions: ancestry.Functions
    out_of_band: OutOfBand

    def persistent_id(self, obj: Any) -> int | None:
        """Return the number or address of what is not pickled; None for all else."""
        kind = type(obj)
        if kind is str:
            return self.out_of_band.number(obj)
        return _address(self.functions, obj) if kind is FunctionType else None


def _address(functions: ancestry.Functions, obj: object) -> int | None:
    reference = functions.get(id(obj))
    return id(obj) if reference is not None and reference() is obj else None
