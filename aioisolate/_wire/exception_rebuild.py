"""Rebuild exceptions from the flat list that `exceptions` has made.

Exceptions and frames are not nested: they refer to each other by number. So long tracebacks, long
chains and deep groups do not reach the recursion limit.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from types import MemberDescriptorType, SimpleNamespace, TracebackType
from typing import Any, NamedTuple, TypeAlias

from .codecs import AT_ONCE, PieceReader, check_import

__all__ = [
    "Frame",
    "Load",
    "Record",
    "State",
    "Words",
    "complete",
    "exceptions",
    "make",
    "make_bare",
    "member",
    "node",
    "stack",
]

# File, function, line, and ``__name__`` and ``__file__`` of the frame's globals, if set.
Frame: TypeAlias = tuple[str, str, int, "str | None", "str | None"]


class Words(str):  # noqa: SLOT000 - there are few of them
    """The str and repr of an object that could not be pickled."""

    _repr: str

    def __new__(cls, text: str, representation: str) -> Words:  # noqa: PYI034 - it has no subclasses
        words = str.__new__(cls, text)
        words._repr = representation
        return words

    def __repr__(self) -> str:
        return self._repr

    def __str__(self) -> str:
        return str.__str__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Words, (str(self), self._repr)


class State(NamedTuple):
    """The state that is set after an exception is made.

    Attributes:
        attributes: its ``__dict__``, or the state from its ``__reduce__``.
        members: values of member descriptors: ``__slots__``, and those of C types.
        set: a function of the exception and *attributes*; None: update its ``__dict__``.
    """

    attributes: Any = None
    members: dict[str, Any] | None = None
    set: Callable[[Any, Any], object] | None = None


class Record(NamedTuple):
    """One exception of the list.

    Attributes:
        number: the number by which other records refer to it.
        pickle: three pickles in a row: a callable and its arguments, which make the exception; its
            `State`; its ``__notes__``, or None.
        buffers: the buffers of the pickles.
        late: the state refers to exceptions that are made later.
        cause, context: their numbers; -1 is none.
        suppress: its ``__suppress_context__``.
        frames: its traceback, the outermost first.
    """

    number: int
    pickle: bytes
    buffers: Sequence[Any]
    late: bool
    cause: int
    context: int
    suppress: bool
    frames: tuple[Frame, ...]


def node(number: int) -> BaseException:
    """Represent an exception of the list in a pickle; `Load` resolves the number."""
    raise pickle.UnpicklingError(f"exception {number} is not part of a list")


class Load(pickle.Unpickler):
    """Load the pickles of one record; *resolve* maps numbers to exceptions."""

    def __init__(
        self, data: bytes, buffers: Sequence[Any], resolve: Callable[[int], BaseException]
    ) -> None:
        # Large data is read in steps, so that the event loop can run; see `codecs.load`.
        file = io.BytesIO(data) if len(data) <= AT_ONCE else PieceReader([data])
        super().__init__(file, buffers=buffers)
        self._resolve = resolve

    def find_class(self, module: str, name: str) -> Any:
        """Find a global that a pickle refers to."""
        if name == "node" and module == __name__:
            return self._resolve
        check_import(module, name)
        return super().find_class(module, name)


def exceptions(listed: Sequence[tuple[Any, ...]]) -> BaseException:
    """Make the exceptions of a list; return number 0. May raise any exception."""
    made: dict[int, BaseException] = {}
    late = []
    records = [Record(*record) for record in listed]
    for record in records:
        load = Load(record.pickle, record.buffers, made.__getitem__)
        made[record.number] = exc = make(load)
        if record.late:
            late.append((exc, load))
        else:
            complete(exc, load)
    for exc, load in late:
        complete(exc, load)
    for record in records:
        exc = made[record.number]
        # By the member descriptors: __setattr__ of a frozen dataclass raises.
        _set(exc, "__cause__", made.get(record.cause))
        _set(exc, "__context__", made.get(record.context))
        _set(exc, "__suppress_context__", record.suppress)
        _set(exc, "__traceback__", stack(record.frames))
    return made[0]


def _set(exc: BaseException, name: str, value: object) -> None:
    BaseException.__dict__[name].__set__(exc, value)


def make_bare(cls: type[BaseException], base: Any, arguments: Sequence[Any]) -> BaseException:
    """Make an exception by the constructor of its builtin *base*, not by its own."""
    exc: BaseException = base.__new__(cls, *arguments)
    base.__init__(exc, *arguments)
    return exc


def make(load: Load) -> BaseException:
    """Make an exception from the first of the three pickles."""
    make_it, arguments = load.load()
    exc: BaseException = make_it(*arguments)
    return exc


def complete(exc: BaseException, load: Load) -> None:
    """Set an exception's state and notes from the other two pickles."""
    attributes, members, set_them = load.load()
    own: dict[str, Any] = BaseException.__dict__["__dict__"].__get__(exc)
    if set_them is not None:
        set_them(exc, attributes)
    elif attributes:
        own.update(attributes)
    for name, value in (members or {}).items():
        descriptor = member(type(exc), name)
        if descriptor is not None:
            try:
                descriptor.__set__(exc, value)
            except (AttributeError, TypeError):
                pass  # read-only; set when the exception was made
    notes = load.load()
    if notes is not None:
        own["__notes__"] = notes


def member(cls: type, name: str) -> MemberDescriptorType | None:
    """Return the member descriptor of *name* in *cls*, or None."""
    for base in cls.__mro__:
        found = base.__dict__.get(name)
        if type(found) is MemberDescriptorType:
            return found
    return None


def stack(frames: Sequence[Frame]) -> TracebackType | None:
    """Make a traceback that shows *frames*."""
    from tblib import Traceback  # noqa: PLC0415 - a child makes no tracebacks

    tb = None
    for filename, name, line, module, file in reversed(frames):
        f_globals = {"__name__": module, "__file__": file}
        frame = SimpleNamespace(
            f_globals={key: value for key, value in f_globals.items() if value is not None},
            f_code=SimpleNamespace(co_filename=filename, co_name=name),
            f_lineno=line,
        )
        tb = SimpleNamespace(tb_frame=frame, tb_lineno=line, tb_next=tb)
    if tb is None:
        return None
    made: TracebackType | None = Traceback(tb).as_traceback()
    return made
