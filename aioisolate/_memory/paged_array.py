"""A growing array of numbers in its own pages."""

from __future__ import annotations

import array
import copy
import itertools
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from types import GenericAlias
from typing import Any, ClassVar, Protocol, Self, SupportsIndex, TypeAlias, overload

from .._os import mappings
from .growable import GrowableBuffer

__all__ = ["PagedArray"]

Number: TypeAlias = "int | float"

_TYPECODES = "bBhHiIlLqQfd"
_AHEAD = 256  # items
_AT_ONCE = 1 << 14  # items


class Readable(Protocol):
    """A file to read from."""

    def read(self, size: int, /) -> bytes:
        """Read at most *size* bytes."""
        ...


class Writable(Protocol):
    """A file to write to."""

    def write(self, data: bytes, /) -> object:
        """Write bytes."""
        ...


class PagedArray(GrowableBuffer):
    """An array of numbers of one type, like `array.array`, for large numbers of items.

    It has the methods, operators and errors of `array.array`, and grows without copying: the kernel
    moves the pages. `clear_decommit` and `close` return the memory to the kernel at once.
    memoryview and numpy use the memory without a copy; the length can't change as long as they do.

    A slice is a copy, an `array.array`; `memoryview(array)[a:b]` does not copy. The results of
    ``+`` and ``*`` are PagedArrays. Pickling copies the numbers. ``repr`` shows the number of
    items, not the items.

    Args:
        typecode: a typecode of array.array for numbers: b B h H i I l L q Q f d.
        initial: the initial content: numbers, or bytes in the machine's format.

    Raises:
        ValueError: the typecode is unknown.
        TypeError, OverflowError: an item of *initial* is not a number of that type, or is too
            large.
        MemoryError: memory is short; the message has the size.

    Example::

        samples = PagedArray("d")
        for value in source:
            samples.append(value)
        mean = np.frombuffer(samples).mean()
    """

    # Arrays are mutable, so equal ones may become different.
    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __init__(self, typecode: str, initial: Iterable[Number] = ()) -> None:
        if not isinstance(typecode, str):
            raise TypeError(f"the typecode must be a character, not {typecode!r}")
        if len(typecode) != 1 or typecode not in _TYPECODES:
            raise ValueError(
                f"{typecode!r} is not a numeric typecode: expected one of {', '.join(_TYPECODES)}"
            )
        super().__init__(typecode)
        if isinstance(initial, (bytes, bytearray)):
            self.frombytes(initial)
        else:
            self._add(initial)

    __class_getitem__: ClassVar[Any] = classmethod(GenericAlias)

    def __reduce__(self) -> tuple[Any, ...]:
        whole = type(self), (self._typecode, self.tobytes())
        more = {name: value for name, value in vars(self).items() if name not in _OWN}
        return (*whole, more) if more else whole  # more: attributes of a subclass

    def __copy__(self) -> Self:
        kind, args, *state = self.__reduce__()
        made: Self = kind(*args)
        vars(made).update(*state)
        return made

    def __deepcopy__(self, memo: dict[int, Any], /) -> Self:
        made = self.__copy__()
        memo[id(self)] = made
        for name in vars(made).keys() - _OWN:
            vars(made)[name] = copy.deepcopy(vars(made)[name], memo)
        return made

    def _index(self, key: SupportsIndex, what: str = "array index out of range") -> int:
        self._check_open()
        at = wanted = operator.index(key)
        if at < 0:
            at += self._length
        if not 0 <= at < self._length:
            raise IndexError(f"{what}: {wanted}, of {self._length} items")
        return at

    def _store(self, at: int, value: Number) -> None:
        try:
            self._items[at] = value
        except (ValueError, TypeError):
            # array.array raises the exception, or converts the value.
            self._items[at] = array.array(self._typecode, (value,))[0]

    @overload
    def __getitem__(self, key: SupportsIndex, /) -> Any: ...
    @overload
    def __getitem__(self, key: slice, /) -> array.array[Any]: ...
    def __getitem__(self, key: SupportsIndex | slice, /) -> Any:
        if type(key) is int and 0 <= key < self._length:  # a fast path for the common case
            return self._items[key]
        if isinstance(key, slice):
            self._check_open()
            found: array.array[Any] = array.array(self._typecode)
            found.frombytes(self._items[: self._length][key].tobytes())
            return found
        return self._items[self._index(key)]

    def __setitem__(self, key: SupportsIndex | slice, value: Any, /) -> None:
        self._changes += 1
        if not isinstance(key, slice):
            self._store(self._index(key, "array assignment index out of range"), value)
            return
        self._check_open()
        given = self._like(value, "assign")
        start, stop, step = key.indices(self._length)
        count = len(range(start, stop, step))
        if step == 1:
            stop = start + count
            if len(given) != count:
                given = self._cast(given.tobytes())
                self._shift(stop, len(given) - count)
            self._items[start : start + len(given)] = given
        elif not len(given):
            del self[key]
        elif len(given) != count:
            raise ValueError(
                f"attempt to assign array of size {len(given)} to extended slice of size {count}"
            )
        else:
            self._items[: self._length][key] = given

    def __delitem__(self, key: SupportsIndex | slice, /) -> None:
        if not isinstance(key, slice):
            at = self._index(key, "array assignment index out of range")
            self._shift(at + 1, -1)
            return
        self._check_open()
        gone = range(*key.indices(self._length))
        if gone.step < 0:
            gone = gone[::-1]
        if not gone:
            return
        if gone.step == 1:
            self._shift(gone.stop, -len(gone))
            return
        kept = self[:]
        del kept[key]
        self._may_resize()
        self._changes += 1
        self._items[: len(kept)] = memoryview(kept)
        self._length = len(kept)

    def _shift(self, start: int, by: int) -> None:
        """Move all items from *start* on by *by* places, and change the length accordingly."""
        stop = self._length
        self._room(stop + by)
        self._changes += 1
        self._items[start + by : stop + by] = self._items[start:stop]
        self._length += by

    def _like(self, value: Any, verb: str) -> memoryview[Any]:
        """Return the items of an array of the same type. Raises TypeError for other values."""
        if isinstance(value, PagedArray):
            value._check_open()
            items = value._items[: value._length]
        elif isinstance(value, array.array):
            items = memoryview(value)
        else:
            name = type(value).__qualname__
            raise TypeError(f'can only {verb} an array (not "{name}") here')
        if items.format != self._typecode:
            raise TypeError(f"can only {verb} an array of typecode {self._typecode!r} here")
        return items

    def append(self, value: Number, /) -> None:
        """Append a number.

        Raises TypeError or OverflowError if *value* is not a number of the array's type,
        BufferError if an object uses the memory.
        """
        at = self._length
        if at == self._capacity or self._lent:
            self._room(at + 1)
        try:
            self._items[at] = value
        except (ValueError, TypeError):
            self._store(at, value)
        self._length = at + 1

    def extend(self, values: Iterable[Number], /) -> None:
        """Append numbers: all of them, or none if one of them is invalid.

        A buffer of the same type, such as a numpy array, is copied as a whole. Raises TypeError or
        OverflowError if an item is not a number of the array's type, TypeError for an array of
        another type, BufferError if an object uses the memory.
        """
        if isinstance(values, (PagedArray, array.array)):
            self._like(values, "extend with")
        self._add(values)

    def _add(self, values: Any) -> None:
        self._check_open()
        items = self._as_items(values)
        if items is not None:
            # Read the length first: *values* may be this array.
            count, at = len(items), self._length
            if values is self:
                items.release()
                self._room(at + count)
                items = self._items[:count]
            else:
                self._room(at + count)
            self._items[at : at + count] = items
            self._length = at + count
            return
        before = self._length
        source = iter(values)
        try:
            while block := array.array(self._typecode, itertools.islice(source, _AT_ONCE)):
                self._add(block)
        except BaseException:
            self._cut(before)
            raise

    def _cut(self, length: int) -> None:
        """Remove the items that were added since the array had that length."""
        if self._length != length:
            self._length = length
            self._changes += 1

    def _as_items(self, values: Any) -> memoryview[Any] | None:
        """Return the items of a buffer of the same type, or None for other values."""
        if isinstance(values, PagedArray):
            values._check_open()
            items = values._items[: values._length]
        else:
            try:
                items = memoryview(values)
            except (TypeError, ValueError, BufferError):
                return None
        if items.format == self._typecode and items.ndim == 1:
            return items
        if items.ndim != 1 or _kind(items) != _kind(self._items):
            return None
        # numpy's "l" equals array's "q" where both have 8 bytes.
        return self._cast(items.tobytes())

    def __iadd__(self, other: PagedArray | array.array[Any]) -> Self:
        self._like(other, "extend with")
        self._add(other)
        return self

    def __add__(self, other: PagedArray | array.array[Any]) -> PagedArray:
        made = self._joined(other, (self, other))
        return NotImplemented if made is None else made

    def __radd__(self, other: array.array[Any]) -> PagedArray:
        made = self._joined(other, (other, self))
        return NotImplemented if made is None else made

    def _joined(self, other: object, parts: tuple[Any, ...]) -> PagedArray | None:
        if not isinstance(other, (PagedArray, array.array)):
            return None
        self._like(other, "append")
        made = PagedArray(self._typecode)
        for part in parts:
            made._add(part)
        return made

    def __mul__(self, count: SupportsIndex) -> PagedArray:
        made = PagedArray(self._typecode, self)
        return made.__imul__(count)

    __rmul__ = __mul__

    def __imul__(self, count: SupportsIndex) -> Self:
        self._check_open()
        try:
            times = operator.index(count)
        except TypeError:
            return NotImplemented
        if abs(times) > sys.maxsize:
            raise OverflowError("cannot fit 'int' into an index-sized integer")
        have = self._length
        wanted = have * max(times, 0)
        self._room(wanted)
        self._changes += 1
        if not wanted:
            self._length = 0
        while self._length < wanted:  # doubles the length each time
            at = self._length
            more = min(at, wanted - at)
            self._items[at : at + more] = self._items[:more]
            self._length = at + more
        return self

    def fromlist(self, values: list[Number], /) -> None:
        """Append the numbers of a list: all of them, or none if one of them is invalid.

        Raises TypeError if *values* is not a list, and the exceptions of `extend`.
        """
        if not isinstance(values, list):
            raise TypeError(f"arg must be list, not {type(values).__qualname__}")
        self._add(values)

    def fromunicode(self, text: str, /) -> None:
        """Raise ValueError, as `array.array` does: this is an array of numbers."""
        if not isinstance(text, str):
            raise TypeError(f"fromunicode() argument must be str, not {type(text).__qualname__}")
        raise ValueError("fromunicode() may only be called on unicode type arrays")

    def tounicode(self) -> str:
        """Raise ValueError, as `array.array` does: this is an array of numbers."""
        raise ValueError("tounicode() may only be called on unicode type arrays")

    def fromfile(self, file: Readable, count: int, /) -> None:
        """Read *count* numbers in the machine's format from a file, and append them.

        Raises EOFError if the file has fewer; those are appended. Raises ValueError if *count* is
        negative or the last number is incomplete, TypeError if the file does not return bytes.
        """
        left = operator.index(count)
        if left < 0:
            raise ValueError("negative count")
        before = self._length
        try:
            complete = self._read(file, left)
        except BaseException:
            self._cut(before)
            raise
        if not complete:
            raise EOFError("read() didn't return enough bytes")

    def _read(self, file: Readable, left: int) -> bool:
        """Append *left* numbers from a file; return whether the file had that many."""
        while left:
            wanted = min(left, _AT_ONCE) * self._itemsize
            data: object = file.read(wanted)
            if not isinstance(data, bytes):
                raise TypeError("read() didn't return bytes")
            self.frombytes(data)
            if len(data) < wanted:
                return False
            left -= len(data) // self._itemsize
        return True

    def tofile(self, file: Writable, /) -> None:
        """Write the numbers to a file as bytes, in the machine's format."""
        self._check_open()
        for at in range(0, self._length, _AT_ONCE):
            file.write(self._items[at : min(at + _AT_ONCE, self._length)].tobytes())

    def byteswap(self) -> None:
        """Reverse the byte order of each number."""
        self._check_open()
        self._changes += 1
        for at in range(0, self._length, _AT_ONCE):
            stop = min(at + _AT_ONCE, self._length)
            block = array.array(self._typecode, self._items[at:stop].tobytes())
            block.byteswap()
            self._items[at:stop] = memoryview(block)

    def buffer_info(self) -> tuple[int, int]:
        """Return the address and the number of the items.

        The address is valid until the length changes.
        """
        self._check_open()
        return (mappings.address_of(self._items) if self._length else 0), self._length

    def frombytes(self, data: Any, /) -> None:
        """Append numbers from bytes, or another buffer, in the machine's format.

        Raises ValueError if the last number is incomplete.
        """
        self._check_open()
        with memoryview(data) as given:
            if given.nbytes % self._itemsize:
                raise ValueError("bytes length not a multiple of item size")
            if given.nbytes:
                flat = given.cast("B") if given.c_contiguous else memoryview(given.tobytes())
                # memoryview can cast only from or to bytes.
                at, count = self._length, given.nbytes // self._itemsize
                self._room(at + count)
                start = at * self._itemsize
                self._items.cast("B")[start : start + given.nbytes] = flat
                self._length = at + count

    def insert(self, index: SupportsIndex, value: Number, /) -> None:
        """Insert a number before *index*, or at the nearer end if *index* is out of range.

        All later items move. Raises the exceptions of `append`.
        """
        at = operator.index(index)
        at = max(at + self._length, 0) if at < 0 else min(at, self._length)
        number = array.array(self._typecode, (value,))
        self._shift(at, 1)
        self._items[at] = number[0]

    def pop(self, index: SupportsIndex = -1, /) -> Any:
        """Remove the number at *index*, by default the last one, and return it.

        All later items move. Raises IndexError if there is none, BufferError if an object uses the
        memory.
        """
        if not self._length:
            self._check_open()
            raise IndexError("pop from empty array")
        at = self._index(index, "pop index out of range")
        found = self._items[at]
        if at + 1 == self._length and not self._lent:
            self._length = at
            self._changes += 1
        else:
            self._shift(at + 1, -1)
        return found

    def remove(self, value: Any, /) -> None:
        """Remove the first number that equals *value*. Raises ValueError if there is none."""
        del self[self.index(value)]

    def index(self, value: Any, start: int = 0, stop: int = sys.maxsize, /) -> int:
        """Return the index of the first number that equals *value*, from *start* to before *stop*.

        Raises ValueError if there is none.
        """
        start, stop, _ = slice(start, stop).indices(self._length)
        for at, block in self._blocks(start, stop):
            if value in block:
                return at + block.index(value)
        raise ValueError(f"{value!r} is not in the array")

    def count(self, value: Any, /) -> int:
        """Return how many numbers equal *value*."""
        return sum(block.count(value) for _, block in self._blocks(0, self._length))

    def __contains__(self, value: Any, /) -> bool:
        return any(value in block for _, block in self._blocks(0, self._length))

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, list[Any]]]:
        self._check_open()
        for at in range(start, stop, _AT_ONCE):
            yield at, self._items[at : min(at + _AT_ONCE, stop)].tolist()

    def reverse(self) -> None:
        """Reverse the order of the items."""
        self[:] = self[::-1]

    def tolist(self) -> list[Any]:
        """Return the numbers as a list."""
        self._check_open()
        return self._items[: self._length].tolist()

    def tobytes(self) -> bytes:
        """Return the numbers as bytes, in the machine's format."""
        self._check_open()
        return self._items[: self._length].tobytes()

    def __iter__(self) -> Iterator[Any]:
        self._check_open()
        at = 0
        while at < self._length:
            # Reading ahead is faster, but not possible while another object may write.
            stop = at + 1 if self._lent else min(at + _AHEAD, self._length)
            changes = self._changes
            for number in self._items[at:stop].tolist():
                yield number
                at += 1
                if self._changes != changes:
                    break

    def __eq__(self, other: object) -> bool:
        theirs = self._theirs(other)
        if theirs is None:
            return NotImplemented
        return bool(self._items[: self._length] == theirs)

    def __lt__(self, other: PagedArray | array.array[Any]) -> bool:
        found = self._compare(other, operator.lt)
        return NotImplemented if found is None else found

    def __le__(self, other: PagedArray | array.array[Any]) -> bool:
        found = self._compare(other, operator.le)
        return NotImplemented if found is None else found

    def __gt__(self, other: PagedArray | array.array[Any]) -> bool:
        found = self._compare(other, operator.gt)
        return NotImplemented if found is None else found

    def __ge__(self, other: PagedArray | array.array[Any]) -> bool:
        found = self._compare(other, operator.ge)
        return NotImplemented if found is None else found

    def _theirs(self, other: object) -> memoryview[Any] | None:
        """Return the items of another array of any type, or None if *other* is no array."""
        self._check_open()
        if isinstance(other, PagedArray):
            other._check_open()
            return other._items[: other._length]
        return memoryview(other) if isinstance(other, array.array) else None

    def _compare(self, other: object, compare: Callable[[Any, Any], Any]) -> bool | None:
        """Compare the first numbers that differ or, if there are none, the lengths.

        Return None if *other* is no array.
        """
        theirs = self._theirs(other)
        if theirs is None:
            return None
        for at in range(0, min(self._length, len(theirs)), _AT_ONCE):
            stop = min(at + _AT_ONCE, self._length, len(theirs))
            for mine, yours in zip(
                self._items[at:stop].tolist(), theirs[at:stop].tolist(), strict=True
            ):
                if mine != yours:
                    return bool(compare(mine, yours))
        return bool(compare(self._length, len(theirs)))


_sequence: Any = MutableSequence
_sequence.register(PagedArray)  # like array.array
# The attributes of this class; a subclass may add others.
_OWN = frozenset(vars(PagedArray("b")))


def _kind(items: memoryview[Any]) -> tuple[str, int]:
    """Return the kind of the numbers (signed, unsigned, real or the format) and their size."""
    code = items.format
    kinds = {"bhilq": "signed", "BHILQ": "unsigned", "fd": "real"}
    return next((kind for codes, kind in kinds.items() if code in codes), code), items.itemsize
