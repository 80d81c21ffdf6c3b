"""Picklers for calls that plain pickle can't pickle: inline, or in a thread."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from . import ancestry
from .by_value import CodePickler
from .large_call import TooMuch
from .out_of_band import OutOfBand, reduce_array
from .pickle_cost import TEXT_MAX, may_take_long

__all__ = ["OutOfBandCodePickler", "OutOfBandTextCodePickler", "QuickCodePickler"]


class QuickCodePickler(CodePickler):
    """A CodePickler that raises TooMuch for an object that may take long.

    Attributes:
        functions: the functions that the other process shares, being a copy of this one.
    """

    functions: ancestry.Functions

    def persistent_id(self, obj: Any) -> int | None:
        """Return the address of a shared function; None for all other objects."""
        kind = type(obj)
        if kind is str and len(obj) > TEXT_MAX:
            raise TooMuch
        return _address(self.functions, obj) if kind is FunctionType else None

    def reducer_override(self, obj: Any) -> Any:
        """Refuse a slow object, or delegate to `CodePickler`."""
        if may_take_long(obj):
            raise TooMuch
        return super().reducer_override(obj)


class OutOfBandCodePickler(CodePickler):
    """A CodePickler that writes large arrays as out-of-band data."""

    def reducer_override(self, obj: Any) -> Any:
        """Reduce a large array; delegate all other objects to `CodePickler`."""
        reduced = reduce_array(obj)
        return super().reducer_override(obj) if reduced is NotImplemented else reduced


class OutOfBandTextCodePickler(OutOfBandCodePickler):
    """An OutOfBandCodePickler that also writes long texts as out-of-band data, at twice the cost.

    Attributes:
        functions: see `QuickCodePickler`.
        out_of_band: the out-of-band data.
    """

    functions: ancestry.Functions
    out_of_band: OutOfBand

    def persistent_id(self, obj: Any) -> int | None:
        """Return the number of a long text or the address of a function; None for other objects."""
        kind = type(obj)
        if kind is str:
            return self.out_of_band.number(obj)
        return _address(self.functions, obj) if kind is FunctionType else None


def _address(functions: ancestry.Functions, obj: object) -> int | None:
    reference = functions.get(id(obj))
    return id(obj) if reference is not None and reference() is obj else None
