"""Pickle exceptions completely: type, arguments, attributes, frames, causes, notes, groups.

Pickle alone keeps only the type, the arguments and the attributes, and calls the constructor again,
which fails for every exception whose constructor has other parameters than `args`. And it recurses
for each exception that another one refers to.

This module converts an exception to a list of records (`exception_rebuild.Record`): for itself, and
for the exceptions that it refers to. It pickles each of them in one way after the other, and loads
the pickle in this process, until str() and repr() of the copy equal those of the original. A part
that can't be pickled is replaced by a description; the other parts are kept.
"""

from __future__ import annotations

import builtins
import collections
import copyreg
import io
import traceback
from collections.abc import Callable, Iterator, Sequence
from pickle import PickleBuffer
from types import FunctionType, MemberDescriptorType, TracebackType
from typing import Any, NamedTuple

from . import codecs, exception_rebuild, fd_passing
from .exception_rebuild import Frame, Record, State, Words
from .exception_text import Comparison, ExceptionText
from .safe_text import full_name, part, trim
from .shared_classes import SharedClassPickler

__all__ = ["describe", "dump", "load", "trim"]

# The number of exceptions that are kept at each end of a chain of exceptions or of nested groups,
# and the number of frames at each end of a traceback. Of many exceptions, fewer frames are kept:
# the parent makes the tracebacks in its event loop.
_CHAIN_KEPT = 50
_FRAMES_KEPT = 50
_FRAMES_KEPT_OF_MANY = 20
_MANY = 20
# A copy with a longer pickle is not compared: the repr of large data takes long.
_COMPARED_MAX = 1 << 20

_BUILTIN_REDUCERS = (
    *(BaseException.__reduce__, OSError.__reduce__, ImportError.__reduce__),
    *(AttributeError.__reduce__, BaseExceptionGroup.__reduce__),
)
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: not a static type


def dump(exc: BaseException) -> codecs.Dumped:
    """Pickle an exception so that it can be loaded again. May raise any exception.

    The pickle is loaded here, too: a constructor with other parameters than `args` fails only then.
    """
    return codecs.dump_by(_ListPickler, exc, lend=False)


def describe(exc: BaseException) -> str:
    """Describe an exception as text, even if its methods raise."""
    try:
        text = str(exc)
    except BaseException as broken:  # noqa: BLE001 - a broken __str__ may raise anything
        text = f"<its __str__ raised {type(broken).__name__}>"
    try:
        stack = "".join(traceback.format_tb(part(exc, "__traceback__")))
    except BaseException as broken:  # noqa: BLE001 - a loader of source lines may raise anything
        stack = f"<its traceback could not be formatted: {type(broken).__name__}>"
    return f"{full_name(type(exc))}: {text}\n{stack}".rstrip("\n")


def load(records: Sequence[tuple[Any, ...]]) -> BaseException:
    """Load an exception that `dump` has pickled. May raise any exception.

    This function is defined here so that the parent imports this module with the first exception:
    later children are copies of the parent, and need not import it.
    """
    return exception_rebuild.exceptions(records)


class _ListPickler(SharedClassPickler):
    """Pickles one exception, as a list of records."""

    def reducer_override(self, obj: Any) -> Any:
        """Reduce the exception; delegate other objects to the base class."""
        if issubclass(type(obj), BaseException):
            return load, (_Listing(obj).records,)
        return super().reducer_override(obj)


class _NeededError(BaseException):
    """An exception is an argument of another one, so it must be made first."""


class _Listing:
    """Make the records of an exception and of those that it refers to, dependencies first."""

    def __init__(self, exc: BaseException) -> None:
        self.records: list[tuple[Any, ...]] = []
        self.copies: dict[int, BaseException] = {}
        self._originals: list[BaseException] = []
        self._numbers: dict[int, int] = {}
        self._left_out: dict[int, BaseException] = {}
        self._gaps: dict[int, int] = {}
        self._walked: set[int] = set()
        self._open: set[int] = set()
        self.exception_text = ExceptionText()
        self._trials: dict[int, _Trial] = {}
        self.new_classes: set[int] | None = None  # see SharedClassPickler; computed once
        self.number(exc)
        done = 0
        while done < len(self._originals):  # `_copy` appends to this list
            self._copy(self._originals[done])
            done += 1
        kept = _FRAMES_KEPT if done <= _MANY else _FRAMES_KEPT_OF_MANY
        for number, trial in self._trials.items():  # in the order in which they were made
            self.records.append(tuple(self._record(number, trial, kept)))

    def number(self, exc: BaseException) -> int:
        """Return the number of an exception, adding it to the list if needed."""
        found = self._numbers.get(id(exc))
        if found is None:
            found = self._numbers[id(exc)] = len(self._originals)
            self._originals.append(exc)
            self._walk(exc)
        return found

    def original(self, number: int) -> BaseException:
        """Return the original exception of a number."""
        return self._originals[number]

    def resolve(self, number: int) -> BaseException:
        """Return the copy of a number, or the original until a copy exists."""
        return self.copies.get(number) or self._originals[number]

    def needed(self, exc: BaseException) -> int | None:
        """Return the number of an exception that is already made, None if it is being made.

        Raise _NeededError if it must be made first.
        """
        number = self._numbers.get(id(exc), -1)
        if number in self.copies:
            return number
        if number in self._open:
            return None
        raise _NeededError(exc)

    def _walk(self, exc: BaseException) -> None:
        """Find the chains of *exc* that are too long, and leave out their middle."""
        heads = [exc]
        while heads:
            exc = heads.pop()
            run: list[BaseException] = []
            in_groups = False
            while id(exc) not in self._walked:
                self._walked.add(id(exc))
                nexts = list(_next(exc))
                if in_groups is not bool(_members(exc)):
                    self._cut(run)
                    run = []
                    in_groups = not in_groups
                run.append(exc)
                if len(nexts) != 1:
                    heads += nexts
                    break
                exc = nexts[0]
            self._cut(run)

    def _cut(self, run: list[BaseException]) -> None:
        """Leave out the middle of a chain of exceptions."""
        if len(run) > 2 * _CHAIN_KEPT:
            self._left_out[id(run[_CHAIN_KEPT])] = run[-_CHAIN_KEPT]
            self._gaps[id(run[_CHAIN_KEPT - 1])] = len(run) - 2 * _CHAIN_KEPT

    def linked(self, exc: BaseException) -> BaseException:
        """Return the exception that replaces *exc* in references from other exceptions."""
        return self._left_out.get(id(exc), exc)

    def gap(self, exc: BaseException) -> int:
        """Return how many exceptions are left out after an exception."""
        return self._gaps.get(id(exc), 0)

    def _copy(self, exc: BaseException) -> None:
        """Pickle and copy an exception, after the exceptions that it needs."""
        waiting = [exc]
        while waiting:
            exc = waiting[-1]
            number = self.number(exc)
            if number in self.copies:
                waiting.pop()
                continue
            if number not in self._open:
                self._open.add(number)
                first = [self.linked(member) for member in _members(exc)]
                first += [arg for arg in part(exc, "args") if issubclass(type(arg), BaseException)]
                waiting += [
                    other for other in reversed(first) if self.number(other) not in self.copies
                ]
                if waiting[-1] is not exc:
                    continue
            try:
                trial = _try_all(self, exc)
            except _NeededError as needed:
                waiting.append(needed.args[0])
                continue
            self._open.discard(number)
            self.copies[number] = trial.copy
            self._trials[number] = trial
            waiting.pop()
            for link in (part(exc, "__cause__"), part(exc, "__context__")):
                if link is not None:
                    self.number(self.linked(link))

    def _record(self, number: int, trial: _Trial, kept: int) -> Record:
        exc = self._originals[number]
        return Record(
            number,
            trial.pickle,
            trial.buffers,
            trial.late,
            self._link(part(exc, "__cause__")),
            self._link(part(exc, "__context__")),
            part(exc, "__suppress_context__"),
            _frames(part(exc, "__traceback__"), kept),
        )

    def _link(self, exc: BaseException | None) -> int:
        return -1 if exc is None else self.number(self.linked(exc))


def _next(exc: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions that belong to another one, each once."""
    seen = set()
    for other in (*_members(exc), part(exc, "__cause__"), part(exc, "__context__")):
        if other is not None and id(other) not in seen:
            seen.add(id(other))
            yield other


def _members(exc: BaseException) -> tuple[BaseException, ...]:
    if not issubclass(type(exc), BaseExceptionGroup):
        return ()
    members: tuple[BaseException, ...] = BaseExceptionGroup.__dict__["exceptions"].__get__(exc)
    return members


# Ways to make an exception again


class _Way(NamedTuple):
    """One way to make an exception: ``make(*arguments)``, then its state and notes."""

    make: Callable[..., Any]
    arguments: Sequence[Any]
    state: State
    notes: Any = None


class _Trial(NamedTuple):
    """The pickles of an exception, and the copy that they make."""

    pickle: bytes
    buffers: list[PickleBuffer]
    late: bool
    copy: BaseException


def _try_all(listing: _Listing, exc: BaseException) -> _Trial:
    """Pickle an exception in the first way whose copy has the str and repr of the original."""
    cls = type(exc)
    compare = Comparison(listing.exception_text, exc)
    best: _Trial | None = None
    why = "has another str() or repr() after unpickling"
    for way in _ways(listing, exc):
        trial = _try(listing, way)
        if not isinstance(trial, _Trial):
            why = f"can't be rebuilt: {type(trial).__name__}: {listing.exception_text.line(trial)}"
        elif type(trial.copy).__qualname__ != cls.__qualname__:
            why = f"is unpickled as {type(trial.copy).__qualname__}"
        else:
            # The repr of large data takes time proportional to its size.
            large = len(trial.pickle) > _COMPARED_MAX
            alike = Comparison.WHOLLY if large else compare.alike(trial.copy)
            if alike == Comparison.WHOLLY:
                return trial
            if alike and best is None:
                best = trial
    return best or _nearest(listing, exc, f"{full_name(cls)} {why}", compare)


def _ways(listing: _Listing, exc: BaseException) -> Iterator[_Way]:
    cls = type(exc)
    own = cls in copyreg.dispatch_table or not (
        any(cls.__reduce__ is known for known in _BUILTIN_REDUCERS)
        and cls.__reduce_ex__ is object.__reduce_ex__
    )
    try:
        plain = _plain(listing, exc)
    except BaseException:  # noqa: BLE001 - its __reduce__ may raise anything
        plain = None
    if own and plain is not None:
        yield plain
    base = _builtin(cls)
    arguments = _arguments(listing, exc, None if own else plain)
    state, notes = _state(exc), _notes(listing, exc)
    # A class's own __setstate__ may create attributes that the pickle does not contain.
    setter = cls.__setstate__
    if setter is not BaseException.__setstate__:
        attributes: Any = state.attributes
        if cls.__getstate__ is not object.__getstate__:
            attributes = exc.__getstate__()
        if attributes:
            given = State(attributes, state.members, setter)
            yield _Way(exception_rebuild.make_bare, (cls, base, arguments), given, notes)
    yield _Way(exception_rebuild.make_bare, (cls, base, arguments), state, notes)
    yield _Way(cls, arguments, state, notes)
    if not own and plain is not None:
        yield plain


def _plain(listing: _Listing, exc: BaseException) -> _Way | None:
    """Return the way that pickle uses."""
    reduce = copyreg.dispatch_table.get(type(exc))
    reduced: Any = exc.__reduce_ex__(5) if reduce is None else reduce(exc)
    if not isinstance(reduced, tuple) or any(reduced[3:5]):
        return None
    make, arguments = reduced[:2]
    attributes = reduced[2] if len(reduced) > 2 else None
    setter = reduced[5] if len(reduced) > 5 else None
    if attributes is None:
        return _Way(make, arguments, State(), _notes(listing, exc))
    if setter is None:
        setter = type(exc).__setstate__
    return _Way(make, arguments, State(attributes, None, setter), _notes(listing, exc))


def _arguments(listing: _Listing, exc: BaseException, plain: _Way | None) -> Sequence[Any]:
    if issubclass(type(exc), BaseExceptionGroup):
        # Not from args: the list in args may have been changed.
        message = BaseExceptionGroup.__dict__["message"].__get__(exc)
        return message, [listing.linked(member) for member in _members(exc)]
    # An OSError has more constructor arguments than args.
    return part(exc, "args") if plain is None else plain.arguments


def _state(exc: BaseException) -> State:
    attributes = dict(part(exc, "__dict__"))
    attributes.pop("__notes__", None)
    members = {}
    for base in type(exc).__mro__:
        for name, descriptor in list(vars(base).items()):
            if type(descriptor) is not MemberDescriptorType or name in members:
                continue
            # Like pickle, do not send AttributeError.obj, the object that lacks the attribute.
            if base in (AttributeError, BaseExceptionGroup) and name != "name":
                continue
            try:
                value = descriptor.__get__(exc)
            except AttributeError:  # not set
                continue
            if value is not None or base.__flags__ & _HEAP_TYPE:
                members[name] = value
    return State(attributes, members)


def _notes(listing: _Listing, exc: BaseException, *more: str) -> Any:
    notes = part(exc, "__dict__").get("__notes__")
    if gap := listing.gap(exc):
        more = (f"[{gap:,} exceptions that belong to this one are left out]", *more)
    if not more:
        return notes
    return [*(notes if isinstance(notes, (list, tuple)) else ()), *more]


def _builtin(cls: type[BaseException]) -> type[BaseException]:
    """Return the nearest builtin base of an exception class, compared by identity."""
    found: type[BaseException]
    found = next(base for base in cls.__mro__ if vars(builtins).get(base.__name__) is base)
    return found


def _nearest(listing: _Listing, exc: BaseException, why: str, compare: Comparison) -> _Trial:
    """Make an instance of the nearest base class that can be made and has the same text."""
    words = compare.words
    state = _state(exc)
    notes = _notes(listing, exc, f"[{why}; this is an instance of its nearest base class]")
    for base in type(exc).__mro__[1:]:
        if not issubclass(base, BaseException):
            continue
        given: list[Sequence[Any]] = [part(exc, "args"), (words,)]
        if issubclass(base, BaseExceptionGroup):
            given = [_arguments(listing, exc, None)]
        for arguments in given:
            way = _Way(exception_rebuild.make_bare, (base, _builtin(base), arguments), state, notes)
            trial = _try(listing, way)
            if isinstance(trial, _Trial) and type(trial.copy) is base and compare.alike(trial.copy):
                return trial
    # Not even Exception has the same text, so the text of the original is lost.
    base = Exception if issubclass(type(exc), Exception) else BaseException
    trial = _try(listing, _Way(exception_rebuild.make_bare, (base, base, (words,)), State(), notes))
    if isinstance(trial, _Trial):
        return trial
    raise trial


# Pickling one exception


def _try(listing: _Listing, way: _Way) -> _Trial | BaseException:
    """Pickle an exception in the given way and load it; return the trial or the error.

    Unpicklable parts are replaced by `Words`; if that fails, each whole argument or attribute that
    contains one is replaced.
    """
    failure: BaseException = TypeError("it can't be pickled")
    for lenient in (False, True):
        try:
            return _carry_out(listing, way, lenient=lenient)
        except _NeededError:
            raise
        except BaseException as why:  # noqa: BLE001 - pickling and loading run user code
            failure = failure if lenient else why
    if way.make is not exception_rebuild.make_bare:
        return failure
    lost: list[str] = []

    def piece(value: Any) -> Any:
        return _original_or_text(listing, value, lost)

    cls, base, arguments = way.arguments
    if not issubclass(cls, BaseExceptionGroup):
        arguments = tuple(map(piece, arguments))
    attributes, members = way.state.attributes or {}, way.state.members or {}
    state = State(
        {name: piece(value) for name, value in attributes.items()},
        {name: piece(value) for name, value in members.items()},
        way.state.set,
    )
    notes = piece(way.notes)
    way = _Way(way.make, (cls, base, arguments), state, notes)
    try:
        return _carry_out(listing, way, lenient=True, lost=lost)
    except _NeededError:
        raise
    except BaseException:  # noqa: BLE001 - user code
        return failure


def _original_or_text(listing: _Listing, value: Any, lost: list[str]) -> Any:
    if value is None or issubclass(type(value), BaseException):
        return value
    try:
        _carry_out(listing, _Way(_make_placeholder, (value,), State()), lenient=True)
    except _NeededError:
        raise
    except BaseException as why:  # noqa: BLE001 - its methods may raise anything
        return _replace_by_text(listing, value, why, lost)
    return value


def _make_placeholder(_: object) -> BaseException:
    return Exception()


def _carry_out(listing: _Listing, way: _Way, *, lenient: bool, lost: Sequence[str] = ()) -> _Trial:
    pickler = _Pickler(listing, lenient=lenient)
    pickler.lost += lost
    pickler.dump((way.make, way.arguments))
    pickler.making = False
    pickler.dump(way.state)
    pickler.dump(_with_losses(way.notes, pickler.lost))
    listing.new_classes = pickler.new_classes
    data = pickler.file.getvalue()
    views = [memoryview(buffer).toreadonly() for buffer in pickler.buffers]
    trial = _TrialLoad(data, views, listing.resolve)
    bundle = fd_passing.bundle()
    with fd_passing.FdUnbundling(() if bundle is None else bundle.fds):
        copy = exception_rebuild.make(trial)
        exception_rebuild.complete(copy, trial)
    late = any(number not in listing.copies for number in pickler.referred)
    return _Trial(data, pickler.buffers, late, copy)


class _TrialLoad(exception_rebuild.Load):
    """Load like the parent, but without tracebacks: the child may not be able to import tblib."""

    def find_class(self, module: str, name: str) -> Any:
        """Find a global that a pickle refers to."""
        found = super().find_class(module, name)
        return _no_stack if found is exception_rebuild.stack else found


def _no_stack(_: object) -> None:
    return None


def _with_losses(notes: Any, lost: Sequence[str]) -> Any:
    if not lost:
        return notes
    more = "" if len(lost) == 1 else f", and {len(lost) - 1:,} more"
    note = f"[as text only, since it could not be pickled: {lost[0]}{more}]"
    return [*(notes if isinstance(notes, (list, tuple)) else ()), note]


def _replace_by_text(
    listing: _Listing, thing: object, why: BaseException, lost: list[str]
) -> Words:
    cause = (
        type(why).__name__ if isinstance(why, RecursionError) else listing.exception_text.line(why)
    )
    lost.append(f"{full_name(type(thing))}: {cause}")
    return listing.exception_text.words(thing)


class _Pickler(SharedClassPickler):
    """Pickle the parts of one exception; other exceptions are referred to by their numbers.

    If *lenient*, `Words` replace unpicklable parts.

    Attributes:
        making: the objects that are being pickled are needed to make the exception.
        referred: the numbers of the exceptions that the exception refers to.
        lost: the types of the replaced parts, and the reasons.
    """

    def __init__(self, listing: _Listing, *, lenient: bool) -> None:
        self.file = io.BytesIO()
        self.buffers: list[PickleBuffer] = []
        self.making = True
        self.referred: set[int] = set()
        self.lost: list[str] = []
        self._listing = listing
        self._lenient = lenient
        super().__init__(self.file, 5, buffer_callback=self._take)
        self.new_classes = listing.new_classes

    def _take(self, buffer: PickleBuffer) -> bool:
        """Take a large buffer out of the pickle; leave other buffers in it."""
        try:
            large = buffer.raw().nbytes >= codecs.OUT_OF_BAND_MIN
        except BufferError:  # not contiguous
            return True
        if large:
            self.buffers.append(buffer)
        return not large

    def reducer_override(self, obj: Any) -> Any:
        """Reduce exceptions and tracebacks; delegate other objects to the base class."""
        cls = type(obj)  # unlike __class__, which a proxy may fake
        if issubclass(cls, BaseException):
            return self._refer(obj)
        if cls is TracebackType:
            return exception_rebuild.stack, (_frames(obj, _FRAMES_KEPT),)
        if not self._lenient:
            return super().reducer_override(obj)
        try:
            reduced = super().reducer_override(obj)
            if reduced is NotImplemented and cls is not FunctionType and not issubclass(cls, type):
                reduce = self.dispatch_table.get(cls)
                reduced = obj.__reduce_ex__(5) if reduce is None else reduce(obj)
        except BaseException as why:  # noqa: BLE001 - a __reduce__ may raise anything
            words = _replace_by_text(self._listing, obj, why, self.lost)
            return words.__reduce__()
        return NotImplemented if isinstance(reduced, str) else reduced

    def _refer(self, exc: BaseException) -> Any:
        number = self._listing.needed(exc) if self.making else self._listing.number(exc)
        if number is None:
            words = _replace_by_text(self._listing, exc, TypeError("it contains itself"), self.lost)
            return words.__reduce__()
        self.referred.add(number)
        return exception_rebuild.node, (number,)


def _frames(stack: TracebackType | None, kept: int) -> tuple[Frame, ...]:
    """Return the frames of a traceback; of a long one, *kept* at each end."""
    outer: list[Frame] = []
    inner: collections.deque[Frame] = collections.deque(maxlen=kept)
    count = 0
    while stack is not None:
        frame = stack.tb_frame
        names = (frame.f_globals.get(name) for name in ("__name__", "__file__"))
        module, file = (name if type(name) is str else None for name in names)
        code = frame.f_code
        entry = (code.co_filename, code.co_name, stack.tb_lineno or 1, module, file)
        (outer if count < kept else inner).append(entry)
        count += 1
        stack = stack.tb_next
    if count > 2 * kept:
        left_out = count - 2 * kept
        outer.append(("...", f"<{left_out:,} frames left out>", 1, None, None))
    return (*outer, *inner)
