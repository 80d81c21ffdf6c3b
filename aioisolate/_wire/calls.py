"""Pickle a call without blocking the event loop: inline if it is small, else in a thread.

The C pickler keeps the GIL until it calls Python code. So a thread helps only if the pickler writes
to a file object written in Python: `write` gets each frame (64 KiB), and each larger object as is.
The duration of pickling can't be predicted, so a call counts as small if an attempt succeeds with a
file that refuses a second frame and a pickler that refuses slow objects before it writes a byte.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from . import ancestry, codecs, fd_passing
from .codecs import Call
from .fd_passing import BufferRef
from .large_call import ChangedError, Halt, LargeCall, TooMuch, UnwritableError, shows_change
from .out_of_band import OutOfBand, reduce_array
from .pickle_cost import PAYLOAD_MAX, find_large, may_take_long, shows_long_text

__all__ = ["NeedsSource", "dump_at_once", "dump_into"]

# The maximum number of bytes of small objects that are pickled inline, which takes about a
# millisecond.
_FRAMES_MAX = 64 * 1024
# The C pickler passes objects of at least this size to its file without copying them. The opcodes
# below are followed by a length: of text, of bytes, and all those whose length has 8 bytes, not 4.
_PAYLOAD_MIN = 64 * 1024
_TEXT = b"X\x8d"
_BYTES = b"B\x8e\x96"
_LONG_LENGTHS = b"\x8d\x8e\x96"
_LENGTH_MAX = 1 << 48
# A text of this many bytes is copied in some milliseconds.
_TEXT_COPIED_MAX = 8 << 20
# The number of objects that are searched for long texts and lists before pickling.
_SEARCHED_MAX = 20_000

# A function that returns whether the child can't read the file with a given name.
NeedsSource: TypeAlias = Callable[[str], bool]


def dump_at_once(
    fn: Callable[..., Any],
    args: Sequence[Any],
    functions: ancestry.Functions | None,
    needs_source: NeedsSource,
) -> Call:
    """Pickle a small call. Raise TooMuch if it is not small, and any error that pickling raises.

    For a child of a fresh fork server, objects of ``__main__``, lambdas and closures are pickled by
    value, and functions of modules by name. For a copy of this process, *functions* are pickled
    by address.
    """
    if shows_long_text((fn, args)):
        raise TooMuch
    if functions is None:
        stream, buffer_refs, bundle = _try_plain((fn, args))
        # In the child, __main__ is another module.
        if stream and b"__main__" not in stream:
            return Call(stream, buffer_refs, bundle)
    if f"{__package__}.code_calls" not in sys.modules:  # cloudpickle takes long to import
        raise TooMuch(by_value=True)
    from .code_calls import QuickCodePickler  # noqa: PLC0415 - only where pickle is not enough

    file, buffer_refs = _SmallFile(), []
    try:
        with fd_passing.FdBundle() as bundle:
            pickler = QuickCodePickler(
                file, 5, buffer_callback=codecs.taking_buffer_refs(buffer_refs, bundle)
            )
            pickler.functions, pickler.needs_source = functions or {}, needs_source
            pickler.dump((fn, args))
    except TooMuch:
        raise TooMuch(by_value=True) from None
    return Call(file.joined(), buffer_refs, bundle, by_cloudpickle=functions is None)


def _try_plain(call: object) -> tuple[bytes, list[BufferRef], fd_passing.FdBundle]:
    """Pickle by plain pickle; return no bytes if that fails. Raise TooMuch."""
    file = _SmallFile()
    buffer_refs: list[BufferRef] = []
    with fd_passing.FdBundle() as bundle:
        try:
            callback = codecs.taking_buffer_refs(buffer_refs, bundle)
            _QuickPickler(file, 5, buffer_callback=callback).dump(call)
        except Exception:  # noqa: BLE001 - pickle raises anything that a __reduce__ raises
            return b"", buffer_refs, bundle
    return file.joined(), buffer_refs, bundle


class _QuickPickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if may_take_long(obj):
            raise TooMuch
        return NotImplemented


class _SmallFile:
    """A file for small pickles. `write` raises TooMuch when the pickle gets large."""

    __slots__ = ("_announced", "_framed", "_payload", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._framed = self._payload = self._announced = 0

    def write(self, data: Any) -> None:
        if self._announced:
            self._announced = 0
            self._pieces.append(bytes(data))
            return
        self._pieces.append(data)
        self._framed += len(data)
        # Checked before the pickler copies a text, which it can't pass on without a copy.
        self._announced = _announced(data)
        self._payload += self._announced
        if self._framed > _FRAMES_MAX or self._payload > PAYLOAD_MAX:
            raise TooMuch

    def joined(self) -> bytes:
        """Return all bytes that were written."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


def _announced(data: bytes, codes: bytes = _TEXT + _BYTES) -> int:
    """Return the length of the object that is written next; 0 if *data* announces none.

    *codes*: opcodes of the kinds of objects to look for.
    """
    size = len(data)
    if size >= 9 and data[-9] in _LONG_LENGTHS:
        length = int.from_bytes(data[-8:], "little")
        if _PAYLOAD_MIN <= length < _LENGTH_MAX:
            return length if data[-9] in codes else 0
    if size >= 5 and data[-5] in codes:
        length = int.from_bytes(data[-4:], "little")
        if length >= _PAYLOAD_MIN:
            return length
    return 0


# In a thread


def dump_into(
    large_call: LargeCall,
    fn: Callable[..., Any],
    args: Sequence[Any],
    functions: ancestry.Functions | None,
    needs_source: NeedsSource,
    *,
    by_value: bool = False,
) -> Call:
    """Pickle a call of any size into files, letting other threads run meanwhile.

    See `dump_at_once`. *by_value*: plain pickle is known to fail. Raise TooMuch if the large call
    was cancelled, ChangedError if an argument changed during pickling, UnwritableError, and any
    error that pickling raises.
    """
    call = (fn, args)
    by_value = by_value or functions is not None or _is_by_value(fn)
    texts = False
    while True:
        try:
            large = list(find_large(call, _SEARCHED_MAX))
            texts = texts or any(isinstance(found, str) for found in large)
            with fd_passing.FdBundle() as bundle:
                lists = [found for found in large if isinstance(found, list)]
                out_of_band = OutOfBand(large_call, bundle, lists)
                if by_value:
                    _dump_by_value(
                        large_call, call, out_of_band, functions, needs_source, texts=texts
                    )
                else:
                    _dump_plain(large_call, call, out_of_band, texts=texts)
                return out_of_band.settle(by_cloudpickle=by_value and functions is None)
        except _LongTextError:
            texts = True
        except (ChangedError, UnwritableError):
            raise
        except Exception as exc:
            if shows_change(exc):
                raise ChangedError(str(exc)) from exc
            if by_value:
                raise
            by_value = True
        large_call.rewind()


def _is_by_value(fn: Callable[..., Any]) -> bool:
    """Return whether plain pickle can't pickle the function."""
    try:
        stream = _try_plain(fn)[0]
    except TooMuch:
        return False  # unknown
    return not stream or b"__main__" in stream


class _ByValueError(Exception):
    """The call refers to ``__main__``, which is another module in the child."""


class _LongTextError(Halt):
    """The pickler is about to copy a long text of the call."""


class _InspectingFile:
    """A file that inspects the data that it passes on."""

    def __init__(self, large_call: LargeCall, *, plain: bool, texts: bool) -> None:
        self._large_call = large_call
        self._plain = plain
        self._texts = texts

    def write(self, data: Any) -> None:
        if isinstance(data, bytes) and len(data) < 4 * _PAYLOAD_MIN:  # else it is an object
            if self._plain and b"__main__" in data:
                raise _ByValueError
            if not self._texts and _announced(data, _TEXT) > _TEXT_COPIED_MAX:
                raise _LongTextError
        self._large_call.write(data)


class _OutOfBandPickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        return reduce_array(obj)


class _OutOfBandTextPickler(_OutOfBandPickler):
    out_of_band: OutOfBand

    def persistent_id(self, obj: Any) -> int | None:
        return self.out_of_band.number(obj) if type(obj) is str else None


def _dump_plain(
    large_call: LargeCall, call: object, out_of_band: OutOfBand, *, texts: bool
) -> None:
    file = _InspectingFile(large_call, plain=True, texts=texts)
    if not texts:
        _OutOfBandPickler(file, 5, buffer_callback=out_of_band.take_buffer).dump(call)
        return
    pickler = _OutOfBandTextPickler(file, 5, buffer_callback=out_of_band.take_buffer)
    pickler.out_of_band = out_of_band
    pickler.dump(call)


def _dump_by_value(
    large_call: LargeCall,
    call: object,
    out_of_band: OutOfBand,
    functions: ancestry.Functions | None,
    needs_source: NeedsSource,
    *,
    texts: bool,
) -> None:
    # Only where pickle is not enough.
    from .code_calls import OutOfBandCodePickler, OutOfBandTextCodePickler  # noqa: PLC0415

    file = _InspectingFile(large_call, plain=False, texts=texts or functions is not None)
    if not texts and functions is None:
        pickler = OutOfBandCodePickler(file, 5, buffer_callback=out_of_band.take_buffer)
    else:
        pickler = OutOfBandTextCodePickler(file, 5, buffer_callback=out_of_band.take_buffer)
        pickler.out_of_band, pickler.functions = out_of_band, functions or {}
    pickler.needs_source = needs_source
    pickler.dump(call)
