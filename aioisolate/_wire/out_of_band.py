"""Out-of-band data: parts of a large call that are written to a second file, without a copy."""

from __future__ import annotations

import array
import pickle
import sys
from collections.abc import Sequence
from typing import Any

from . import codecs, fd_passing
from .codecs import OUT_OF_BAND_MIN, Call
from .fd_passing import BufferRef
from .large_call import ChangedError, LargeCall, copied
from .pickle_cost import TEXT_MAX

__all__ = ["OutOfBand", "reduce_array"]

# The maximum number of parts: one message holds all their positions.
_PARTS_MAX = 1000
# An array of at least this many objects is converted to lists in parts.
_OBJECTS_MIN = 100_000
_OBJECTS_STEP = 20_000
# Methods that a subclass of numpy.ndarray must not override to be pickled like numpy.ndarray.
_PICKLE_METHODS = ("__reduce__", "__reduce_ex__", "__setstate__")


class OutOfBand:
    """The out-of-band data of a pickle, written to the large call's second file."""

    def __init__(
        self, large_call: LargeCall, bundle: fd_passing.FdBundle, lists: Sequence[list[Any]]
    ) -> None:
        """Initialize; `settle` raises ChangedError if the length of one of *lists* has changed."""
        self._large_call = large_call
        self._bundle = bundle
        self._buffers: list[memoryview | BufferRef] = []
        self._texts: list[str] = []
        self._numbers: dict[int, int] = {}
        self._lists = [(found, len(found)) for found in lists]

    def take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Take a buffer out of the pickle, or return True."""
        self._large_call.check()
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        buffer_ref = None if fd_passing.find is None else fd_passing.find(view, self._bundle)
        if buffer_ref is not None:
            self._buffers.append(buffer_ref)
            return False
        if view.nbytes < OUT_OF_BAND_MIN or len(self._buffers) >= _PARTS_MAX:
            return True
        self._buffers.append(view)
        return False

    def number(self, text: str) -> int | None:
        """Take a long text out of the pickle and return its number; None for a short text."""
        if len(text) <= TEXT_MAX:
            return None
        known = self._numbers.get(id(text))
        if known is not None:
            return known
        if len(self._texts) >= _PARTS_MAX:
            return None
        self._texts.append(text)
        self._numbers[id(text)] = number = -len(self._texts)
        return number

    def settle(self, *, by_cloudpickle: bool = False) -> Call:
        """Write all parts to the files, and return the call."""
        for found, size in self._lists:
            if len(found) != size:
                raise ChangedError(f"the size of a list changed from {size} to {len(found)}")
        large_call = self._large_call
        buffer_refs = [
            part
            if isinstance(part, BufferRef)
            else BufferRef(-1, large_call.add_buffer(part), part.nbytes, shared=False)
            for part in self._buffers
        ]
        texts = tuple(map(large_call.add_text, self._texts))
        return Call(large_call.head, buffer_refs, self._bundle, by_cloudpickle, texts, large_call)


def reduce_array(obj: Any) -> Any:
    """Reduce a large array without copying it with the GIL held."""
    if type(obj) is array.array:
        return _reduce_numbers(obj)
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(obj, numpy.ndarray):
        return NotImplemented
    kind, standard = type(obj), numpy.ndarray
    if obj.dtype.hasobject:
        return _reduce_objects(obj, numpy)
    contiguous = obj.flags.c_contiguous or obj.flags.f_contiguous
    if (
        obj.nbytes < OUT_OF_BAND_MIN
        or (kind is standard and contiguous)
        or any(getattr(kind, name) is not getattr(standard, name) for name in _PICKLE_METHODS)
    ):
        return NotImplemented
    plain = obj.view(standard)
    if not contiguous:
        plain = numpy.ascontiguousarray(plain)  # releases the GIL
    return plain.__reduce_ex__(5) if kind is standard else (codecs.view_as, (plain, kind))


def _reduce_numbers(obj: array.array[Any]) -> Any:
    if len(obj) * obj.itemsize < OUT_OF_BAND_MIN:
        return NotImplemented
    copy, at = bytearray(len(obj) * obj.itemsize), 0
    for piece in copied(obj):
        copy[at : at + len(piece)] = piece
        at += len(piece)
    return codecs.make_array, (obj.typecode, pickle.PickleBuffer(copy))


def _reduce_objects(obj: Any, numpy: Any) -> Any:
    """Reduce an array of objects as numpy does, but convert it to lists in parts."""
    if type(obj) is not numpy.ndarray or obj.dtype != object or obj.size < _OBJECTS_MIN:
        return NotImplemented
    make, args, (version, _, dtype, _, _) = numpy.empty(0, object).__reduce__()
    flat = obj.flat  # in the order in which numpy takes them back
    parts = [
        flat[start : start + _OBJECTS_STEP].tolist() for start in range(0, obj.size, _OBJECTS_STEP)
    ]
    fortran = bool(obj.flags.f_contiguous and not obj.flags.c_contiguous)
    state = (version, obj.shape, dtype, fortran), parts
    return make, args, state, None, None, codecs.set_objects
