"""Python objects to bytes and back: pickle first, cloudpickle where pickle refuses.

Buffers that support it (numpy arrays and whatever else speaks pickle protocol 5) leave the
stream when they are large, so that they can travel through the scratch file.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from . import handles, relation
from .handles import Lent

__all__ = [
    "Call",
    "Dumped",
    "PieceReader",
    "dump",
    "dump_by",
    "dump_call",
    "dump_call_to_copy",
    "dump_whole",
    "load",
    "load_call",
]

# Below this a buffer is as cheap inside the stream as in a mapping of its own, or cheaper, as
# benchmarks/memory.py shows; and a longer stream would be loaded in a thread.
OUT_OF_BAND_MIN = 128 * 1024
AT_ONCE = 128 * 1024
_STEP = 1 << 20
_MAX_BUFFERS = 4000  # with the stream's own region fewer than frames allow


# A stream, the buffers that it refers to, and what travels with it, if anything does.
Dumped: TypeAlias = tuple[bytes, "list[memoryview | Lent]", "handles.Packing | None"]


def dump(value: object) -> Dumped:
    """Pickle *value* into a stream and the large buffers that the stream refers to.

    Raises whatever cloudpickle raises if neither pickle nor cloudpickle can do it.
    """
    buffers: list[memoryview | Lent] = []
    try:
        if handles.find is not None:
            with handles.Packing() as packing:
                callback = _taking(buffers, packing)
                return pickle.dumps(value, 5, buffer_callback=callback), buffers, packing
        return pickle.dumps(value, 5, buffer_callback=_taking(buffers)), buffers, None
    except Exception:  # noqa: BLE001 - pickle raises anything that a __reduce__ raises
        from .kinship import KinPickler  # noqa: PLC0415 - small servers do without cloudpickle

        return dump_by(KinPickler, value)


def dump_whole(value: object) -> tuple[bytes, handles.Packing]:
    """Pickle *value* into a stream that holds everything but what descriptors stand for.

    Raises like `dump`.
    """
    with handles.Packing() as packing:
        try:
            return pickle.dumps(value, 5), packing
        except Exception:  # noqa: BLE001 - pickle raises anything that a __reduce__ raises
            from .kinship import KinPickler  # noqa: PLC0415 - not in every child, see `dump`

            file = io.BytesIO()
            KinPickler(file, 5).dump(value)
            return file.getvalue(), packing


class Call(NamedTuple):
    """A pickled call.

    Attributes:
        stream: the pickle.
        lent: where the buffers are that are not in it.
        luggage: the descriptors that travel with it.
        by_cloudpickle: it needs cloudpickle to be loaded.
    """

    stream: bytes
    lent: list[Lent]
    luggage: handles.Packing
    by_cloudpickle: bool = False


def dump_call(
    fn: Callable[..., Any],
    args: Sequence[Any],
    *,
    needs_source: Callable[[str], bool] = lambda _: False,
) -> Call:
    """Pickle a call for a fresh fork server's child.

    What ``__main__`` defines, lambdas and closures travel by value, modules' functions by name.
    *needs_source* tells of a file name whether the child can't read that file.
    """
    lent: list[Lent] = []
    with handles.Packing() as packing:
        callback = _taking_lent(lent, packing)
        try:
            stream = pickle.dumps((fn, args), 5, buffer_callback=callback)
        except Exception:  # noqa: BLE001 - pickle raises anything that a __reduce__ raises
            stream = b""
        # There, __main__ is another module.
        if stream and b"__main__" not in stream:
            return Call(stream, lent, packing)
        from .by_value import CodePickler  # noqa: PLC0415 - only where pickle is not enough

        lent.clear()
        file = io.BytesIO()
        pickler = CodePickler(file, 5, buffer_callback=callback)
        pickler.needs_source = needs_source
        pickler.dump((fn, args))
        return Call(file.getvalue(), lent, packing, by_cloudpickle=True)


def dump_call_to_copy(
    fn: Callable[..., Any], args: Sequence[Any], functions: relation.Functions
) -> Call:
    """Pickle a call for a copy of this process that has *functions*: these are not copied again."""
    from .by_value import CodePickler  # noqa: PLC0415 - only where pickle is not enough

    class CallPickler(CodePickler):
        def persistent_id(self, obj: Any) -> int | None:
            reference = functions.get(id(obj))
            return id(obj) if reference is not None and reference() is obj else None

    file = io.BytesIO()
    lent: list[Lent] = []
    with handles.Packing() as packing:
        callback = _taking_lent(lent, packing)
        CallPickler(file, 5, buffer_callback=callback).dump((fn, args))
    return Call(file.getvalue(), lent, packing)


def load_call(
    stream: bytes, buffers: Sequence[memoryview] = ()
) -> tuple[Callable[..., Any], Sequence[Any]]:
    """Unpickle a call. It may raise anything."""
    call: tuple[Callable[..., Any], Sequence[Any]]
    if not relation.known:
        call = pickle.loads(stream, buffers=buffers)  # noqa: S301 - from this process's own parent
        return call

    class CallUnpickler(pickle.Unpickler):
        def persistent_load(self, address: int) -> Any:
            found = relation.known[address]()
            if found is None:
                raise LookupError("a function of the template's no longer exists")
            return found

    call = CallUnpickler(io.BytesIO(stream), buffers=buffers).load()
    return call


def dump_by(pickler: Callable[..., Any], value: object, *, lend: bool = True) -> Dumped:
    """Like `dump`, by a pickler of one's own; buffers that lie in files are copied, if wanted."""
    buffers: list[memoryview | Lent] = []
    file = io.BytesIO()
    with handles.Packing() as packing:
        pickler(file, 5, buffer_callback=_taking(buffers, packing if lend else None)).dump(value)
    return file.getvalue(), buffers, packing


def _taking(
    buffers: list[memoryview | Lent], packing: handles.Packing | None = None
) -> Callable[[pickle.PickleBuffer], bool]:
    """Make a callback that takes buffers out of a stream; True leaves one inside.

    It takes large ones, and those that lie in a file that can travel.
    """
    find = handles.find

    def callback(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if packing is not None and find is not None:
            lent = find(view, packing)
            if lent is not None and len(buffers) < _MAX_BUFFERS:
                buffers.append(lent)
                return False
        if view.nbytes < OUT_OF_BAND_MIN or len(buffers) >= _MAX_BUFFERS:
            return True
        buffers.append(view)
        return False

    return callback


def _taking_lent(
    lent: list[Lent], packing: handles.Packing
) -> Callable[[pickle.PickleBuffer], bool] | None:
    """Make a callback that takes only those buffers that lie in a file that can travel."""
    find = handles.find
    if find is None:
        return None

    def callback(buffer: pickle.PickleBuffer) -> bool:
        try:
            found = find(buffer.raw(), packing)
        except BufferError:  # not contiguous
            return True
        if found is None:
            return True
        lent.append(found)
        return False

    return callback


def load(
    stream: Sequence[bytes | memoryview],
    buffers: Sequence[memoryview] = (),
    fds: Sequence[int] = (),
) -> Any:
    """Unpickle a stream that came in pieces. It may raise anything: pickles run code.

    *fds* came with it; they stay open, and whoever needs one duplicates it.
    """
    if fds:
        with handles.Unpacking(fds):
            return load(stream, buffers)
    if len(stream) == 1 and len(stream[0]) <= AT_ONCE:
        return pickle.loads(stream[0], buffers=buffers)  # noqa: S301 - the child is trusted
    # Through a file that is written in Python: pickle.loads keeps the GIL until it is done, and
    # with it every event loop of the process, even when it runs in another thread. This way
    # the interpreter gets a chance to switch at every frame (64 KiB) of the stream.
    return pickle.load(PieceReader(stream), buffers=buffers)  # noqa: S301 - likewise


class PieceReader:
    """A file over pieces of bytes, copied a little at a time and never joined."""

    def __init__(self, pieces: Sequence[bytes | memoryview]) -> None:
        self._pieces = [memoryview(piece) for piece in reversed(pieces)]

    def readinto(self, target: bytearray | memoryview) -> int:
        """Fill *target*, or as much of it as there is."""
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
        """Read *size* bytes, or all."""
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
