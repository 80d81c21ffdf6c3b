"""Pickling a call without holding up the event loop: at once if it is little, else in a thread.

The C pickler keeps the GIL until it calls something that is written in Python. So a thread helps
only if it writes to a file that is: that gets each frame (64 KiB), and whatever is larger than one
as the object that it is. How long it takes nobody knows ahead; so whether it is little is found out
by trying: with a file that refuses a second frame, and a pickler that refuses what may take long
before it writes a byte.
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

# So much of small objects is pickled at once, about a millisecond's work.
_FRAMES_MAX = 64 * 1024
# Objects from this size on the C pickler hands over to its file as they are; and the codes that a
# length precedes: of 4 bytes, for text and bytes, and of 8.
_PAYLOAD_MIN = 64 * 1024
_TEXT = b"X\x8d"
_BYTES = b"B\x8e\x96"
_LONG_LENGTHS = b"\x8d\x8e\x96"
_LENGTH_MAX = 1 << 48
# A text of so many bytes is copied in some milliseconds.
_TEXT_COPIED_MAX = 8 << 20
# So many objects are looked at before, for long texts and lists.
_LOOK_AT = 20_000

# Tells of a file name whether the child can't read that file.
NeedsSource: TypeAlias = Callable[[str], bool]


def dump_at_once(
    fn: Callable[..., Any],
    args: Sequence[Any],
    functions: ancestry.Functions | None,
    needs_source: NeedsSource,
) -> Call:
    """Pickle a call if that is done in a moment. Raises TooMuch, and whatever pickling raises.

    Either for a fresh fork server's child: what ``__main__`` defines, lambdas and closures travel
    by value, modules' functions by name. Or for a copy of this process that has *functions*:
    these are not copied again.
    """
    if shows_long_text((fn, args)):
        raise TooMuch
    if functions is None:
        stream, buffer_ref, bundle = _try_plain((fn, args))
        # There, __main__ is another module.
        if stream and b"__main__" not in stream:
            return Call(stream, buffer_ref, bundle)
    if f"{__package__}.code_calls" not in sys.modules:  # cloudpickle takes long to import
        raise TooMuch(by_value=True)
    from .code_calls import QuickCodePickler  # noqa: PLC0415 - only where pickle is not enough

    file, buffer_ref = _Little(), []
    try:
        with fd_passing.FdBundle() as bundle:
            pickler = QuickCodePickler(
                file, 5, buffer_callback=codecs.taking_lent(buffer_ref, bundle)
            )
            pickler.functions, pickler.needs_source = functions or {}, needs_source
            pickler.dump((fn, args))
    except TooMuch:
        raise TooMuch(by_value=True) from None
    return Call(file.joined(), buffer_ref, bundle, by_cloudpickle=functions is None)


def _try_plain(call: object) -> tuple[bytes, list[BufferRef], fd_passing.FdBundle]:
    """Pickle by plain pickle; no bytes: it can't. Raises TooMuch."""
    file = _Little()
    buffer_ref: list[BufferRef] = []
    with fd_passing.FdBundle() as bundle:
        try:
            callback = codecs.taking_lent(buffer_ref, bundle)
            _QuickPickler(file, 5, buffer_callback=callback).dump(call)
        except Exception:  # noqa: BLE001 - pickle raises anything that a __reduce__ raises
            return b"", buffer_ref, bundle
    return file.joined(), buffer_ref, bundle


class _QuickPickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if may_take_long(obj):
            raise TooMuch
        return NotImplemented


class _Little:
    """A file for what takes a moment to pickle. It raises TooMuch once that is more."""

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
        # Here, before the pickler copies a text, which it can't hand over as it is.
        self._announced = _announced(data)
        self._payload += self._announced
        if self._framed > _FRAMES_MAX or self._payload > PAYLOAD_MAX:
            raise TooMuch

    def joined(self) -> bytes:
        """Return all of it."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


def _announced(data: bytes, codes: bytes = _TEXT + _BYTES) -> int:
    """Return how long the object is that is handed over next; 0 if *data* does not end so.

    *codes*: of the kinds of objects that are meant.
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
    """Pickle a call into files, letting other threads run all the while.

    Like `dump_at_once`, but of any size. *by_value*: it is known that plain pickle can't do it.
    Raises TooMuch if the parcel is not wanted any more, ChangedError if an argument was seen to
    change, UnwritableError, and whatever pickling raises.
    """
    call = (fn, args)
    by_value = by_value or functions is not None or _is_by_value(fn)
    texts = False
    while True:
        try:
            large = list(find_large(call, _LOOK_AT))
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
    """Tell whether plain pickle can't do even the function."""
    try:
        stream = _try_plain(fn)[0]
    except TooMuch:
        return False  # it can't be told
    return not stream or b"__main__" in stream


class _ByValueError(Exception):
    """Something of ``__main__`` is among it, which is another module there."""


class _LongTextError(Halt):
    """A long text is among it, which the pickler is about to copy."""


class _Attentive:
    """A file that looks at what it passes on."""

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


class _AsidePickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        return reduce_array(obj)


class _AsideTextPickler(_AsidePickler):
    out_of_band: OutOfBand

    def persistent_id(self, obj: Any) -> int | None:
        return self.out_of_band.number(obj) if type(obj) is str else None


def _dump_plain(
    large_call: LargeCall, call: object, out_of_band: OutOfBand, *, texts: bool
) -> None:
    file = _Attentive(large_call, plain=True, texts=texts)
    if not texts:
        _AsidePickler(file, 5, buffer_callback=out_of_band.take_buffer).dump(call)
        return
    pickler = _AsideTextPickler(file, 5, buffer_callback=out_of_band.take_buffer)
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
    from .code_calls import AsideCodePickler, AsideTextPickler  # noqa: PLC0415

    file = _Attentive(large_call, plain=False, texts=texts or functions is not None)
    if not texts and functions is None:
        pickler = AsideCodePickler(file, 5, buffer_callback=out_of_band.take_buffer)
    else:
        pickler = AsideTextPickler(file, 5, buffer_callback=out_of_band.take_buffer)
        pickler.out_of_band, pickler.functions = out_of_band, functions or {}
    pickler.needs_source = needs_source
    pickler.dump(call)
