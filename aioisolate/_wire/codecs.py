"""Convert Python objects to bytes and back, by pickle, or by cloudpickle if pickle fails.

Large buffers of objects that support pickle protocol 5 (numpy arrays, for example) are kept out of
the stream, so that they can be passed through the scratch file.
"""

from __future__ import annotations

import io
import pickle
import sys
from _thread import _local
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from .._os import imports
from . import ancestry, fd_passing
from .fd_passing import BufferRef

if TYPE_CHECKING:
    from .large_call import LargeCall, Part

__all__ = [
    "Call",
    "Dumped",
    "ImportNeeded",
    "PieceReader",
    "check_import",
    "dump",
    "dump_by",
    "dump_plain_call",
    "dump_whole",
    "load",
    "load_at_once",
    "load_call",
    "make_array",
    "set_objects",
    "taking_buffer_refs",
    "view_as",
]

# Smaller buffers are as cheap inside the stream as in a mapping of their own, or cheaper (see
# benchmarks/memory.py). Longer streams are loaded in a thread.
OUT_OF_BAND_MIN = 128 * 1024
AT_ONCE = 128 * 1024
_STEP = 1 << 20
# The opcode STACK_GLOBAL, which pickle uses for globals from protocol 4 on.
_GLOBAL = b"\x93"
# Functions that import the module named by an argument.
_IMPORTERS = frozenset({"__import__", "import_module", "load_lazy", "subimport"})
_OWN = __name__.partition(".")[0]
# Per thread: whether the thread is in `load_at_once`.
_here = _local()
_MAX_BUFFERS = 4000  # below the limit of frames, including the stream's region


# A stream, the buffers that it refers to, and the descriptors to pass with it, if any.
Dumped: TypeAlias = tuple[bytes, "list[memoryview | BufferRef]", "fd_passing.FdBundle | None"]


def dump(value: object) -> Dumped:
    """Pickle *value* into a stream and the large buffers that the stream refers to.

    Raise cloudpickle's error if neither pickle nor cloudpickle can pickle the value.
    """
    buffers: list[memoryview | BufferRef] = []
    try:
        if fd_passing.find is not None:
            with fd_passing.FdBundle() as bundle:
                callback = _taking(buffers, bundle)
                return pickle.dumps(value, 5, buffer_callback=callback), buffers, bundle
        return pickle.dumps(value, 5, buffer_callback=_taking(buffers)), buffers, None
    except Exception:  # noqa: BLE001 - pickle raises anything that a __reduce__ raises
        from .shared_classes import SharedClassPickler  # noqa: PLC0415 - imports cloudpickle

        return dump_by(SharedClassPickler, value)


def dump_whole(value: object) -> tuple[bytes, fd_passing.FdBundle]:
    """Pickle *value* into a stream that contains everything except memory passed as descriptors.

    Raise the same errors as `dump`.
    """
    with fd_passing.FdBundle() as bundle:
        try:
            return pickle.dumps(value, 5), bundle
        except Exception:  # noqa: BLE001 - pickle raises anything that a __reduce__ raises
            from .shared_classes import SharedClassPickler  # noqa: PLC0415 - imports cloudpickle

            file = io.BytesIO()
            SharedClassPickler(file, 5).dump(value)
            return file.getvalue(), bundle


class Call(NamedTuple):
    """A pickled call.

    Attributes:
        stream: the pickle, if it is not in the files of a large call.
        buffer_refs: positions of the out-of-band buffers; -1: in the large call's second file.
        passed_fds: the descriptors that are passed with the call.
        by_cloudpickle: loading the pickle needs cloudpickle.
        texts: positions of the out-of-band texts in the large call's second file.
        large_call: the files that are passed with the call, or None.
    """

    stream: bytes
    buffer_refs: list[BufferRef]
    passed_fds: fd_passing.FdBundle
    by_cloudpickle: bool = False
    texts: tuple[Part, ...] = ()
    large_call: LargeCall | None = None

    @property
    def size(self) -> int:
        """Return the number of bytes that are sent for the call."""
        return len(self.stream) if self.large_call is None else self.large_call.total


def dump_plain_call(fn: Callable[..., Any], args: Sequence[Any]) -> Call:
    """Pickle a small call that plain pickle supports."""
    buffer_refs: list[BufferRef] = []
    with fd_passing.FdBundle() as bundle:
        stream = pickle.dumps(
            (fn, args), 5, buffer_callback=taking_buffer_refs(buffer_refs, bundle)
        )
    return Call(stream, buffer_refs, bundle)


def load_call(
    stream: bytes | memoryview,
    buffers: Sequence[memoryview] = (),
    texts: Sequence[memoryview] = (),
) -> tuple[Callable[..., Any], Sequence[Any]]:
    """Unpickle a call. It may raise any exception. *texts*: out-of-band texts in UTF-8."""
    call: tuple[Callable[..., Any], Sequence[Any]]
    if not ancestry.known and not texts:
        call = pickle.loads(stream, buffers=buffers)  # noqa: S301 - from this process's own parent
        return call
    made: dict[int, str] = {}

    class CallUnpickler(pickle.Unpickler):
        def persistent_load(self, key: int) -> Any:
            if key < 0:
                if key not in made:
                    made[key] = str(texts[-key - 1], "utf-8", "surrogatepass")
                return made[key]
            found = ancestry.known[key]()
            if found is None:
                raise LookupError("a function of the template no longer exists")
            return found

    file = io.BytesIO(stream) if isinstance(stream, bytes) else PieceReader([stream])
    call = CallUnpickler(file, buffers=buffers).load()
    return call


def make_array(kind: str, content: Any) -> Any:
    """Return an `array.array` with type code *kind* and the given content."""
    import array  # noqa: PLC0415 - rarely needed

    made = array.array(kind)
    made.frombytes(content)
    return made


def set_objects(array: Any, state: tuple[Sequence[Any], Sequence[list[Any]]]) -> None:
    """Set an array's objects, which are pickled in parts; the array may contain itself."""
    given, parts = state
    array.__setstate__((*given, [obj for part in parts for obj in part]))


def view_as(array: Any, kind: type) -> Any:
    """Return a numpy array as an instance of a subclass."""
    return array.view(kind)


def dump_by(pickler: Callable[..., Any], value: object, *, lend: bool = True) -> Dumped:
    """Like `dump`, by the given pickler; without *lend*, buffers in files are copied."""
    buffers: list[memoryview | BufferRef] = []
    file = io.BytesIO()
    with fd_passing.FdBundle() as bundle:
        pickler(file, 5, buffer_callback=_taking(buffers, bundle if lend else None)).dump(value)
    return file.getvalue(), buffers, bundle


def _taking(
    buffers: list[memoryview | BufferRef], bundle: fd_passing.FdBundle | None = None
) -> Callable[[pickle.PickleBuffer], bool]:
    """Return a pickle buffer callback; its result True keeps a buffer inside the stream.

    The callback takes large buffers, and buffers in a file whose descriptor can be passed.
    """
    find = fd_passing.find

    def callback(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if bundle is not None and find is not None:
            buffer_ref = find(view, bundle)
            if buffer_ref is not None and len(buffers) < _MAX_BUFFERS:
                buffers.append(buffer_ref)
                return False
        if view.nbytes < OUT_OF_BAND_MIN or len(buffers) >= _MAX_BUFFERS:
            return True
        buffers.append(view)
        return False

    return callback


def taking_buffer_refs(
    buffer_refs: list[BufferRef], bundle: fd_passing.FdBundle
) -> Callable[[pickle.PickleBuffer], bool] | None:
    """Return a callback that takes only buffers in a file whose descriptor can be passed."""
    find = fd_passing.find
    if find is None:
        return None

    def callback(buffer: pickle.PickleBuffer) -> bool:
        try:
            found = find(buffer.raw(), bundle)
        except BufferError:  # not contiguous
            return True
        if found is None:
            return True
        buffer_refs.append(found)
        return False

    return callback


class ImportNeeded(BaseException):
    """The pickle needs a module that is not imported yet; importing may take a second.

    Not an Exception, so that code that runs during unpickling does not catch it by accident.
    """


def load(
    stream: Sequence[bytes | memoryview],
    buffers: Sequence[memoryview] = (),
    fds: Sequence[int] = (),
) -> Any:
    """Unpickle a stream in pieces. It may raise any exception: pickles run code.

    *fds* came with the stream; they stay open, and an object that keeps one duplicates it.
    """
    if fds:
        with fd_passing.FdUnbundling(fds):
            return load(stream, buffers)
    if len(stream) == 1 and len(stream[0]) <= AT_ONCE:
        return pickle.loads(stream[0], buffers=buffers)  # noqa: S301 - the child is trusted
    # Read from a file object written in Python: pickle.loads holds the GIL until it returns, which
    # blocks every event loop of the process, even if pickle.loads runs in another thread. With the
    # file object, the interpreter can switch threads at every frame (64 KiB) of the stream.
    return pickle.load(PieceReader(stream), buffers=buffers)  # noqa: S301 - the child is trusted


def load_at_once(
    stream: Sequence[bytes | memoryview],
    buffers: Sequence[memoryview] = (),
    fds: Sequence[int] = (),
) -> Any:
    """Unpickle like `load`, but raise ImportNeeded rather than import a module."""
    data = stream[0] if len(stream) == 1 else b"".join(stream)
    # Most pickles have no globals. (A memoryview can't be searched.)
    if isinstance(data, bytes) and _GLOBAL not in data:
        return load((data,), buffers, fds)
    with fd_passing.FdUnbundling(fds):
        _here.at_once = True
        try:
            return _ImportlessUnpickler(io.BytesIO(data), buffers=buffers).load()
        finally:
            _here.at_once = False


class _ImportlessUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        check_import(module, name)
        return super().find_class(module, name)


def check_import(module: str, name: str) -> None:
    """Raise ImportNeeded if finding a global needs an import, inside `load_at_once`.

    Other unpicklers that run inside `load_at_once` call this function.
    """
    if not getattr(_here, "at_once", False):
        return
    if module not in sys.modules:
        needed = module.partition(".")[0] != _OWN
    else:  # another thread may still be importing it
        needed = name in _IMPORTERS or module in imports.in_progress()
    if needed:
        raise ImportNeeded(module)


class PieceReader:
    """A file that reads pieces of bytes, which it copies in small steps and never joins."""

    def __init__(self, pieces: Sequence[bytes | memoryview]) -> None:
        self._pieces = [memoryview(piece) for piece in reversed(pieces)]

    def readinto(self, target: bytearray | memoryview) -> int:
        """Fill *target* with as many bytes as remain, and return their number."""
        view = memoryview(target).cast("B")
        filled = 0
        while filled < len(view) and self._pieces:
            piece = self._pieces.pop()
            part = min(len(piece), len(view) - filled, _STEP)
            view[filled : filled + part] = piece[:part]
            filled += part
            if part < len(piece):
                self._pieces.append(piece[part:])
        return filled

    def read(self, size: int = -1) -> bytes:
        """Read *size* bytes, or all remaining bytes."""
        if size < 0:
            size = sum(map(len, self._pieces))
        target = bytearray(min(size, sum(map(len, self._pieces))))
        self.readinto(target)
        return bytes(target)

    def readline(self) -> bytes:
        """Read up to and including a newline."""
        line = b""
        while self._pieces:
            piece = self._pieces.pop()
            end = piece.tobytes().find(b"\n") + 1
            line += piece[: end or len(piece)]
            if end:
                if end < len(piece):
                    self._pieces.append(piece[end:])
                break
        return line
