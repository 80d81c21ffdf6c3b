"""Python objects to bytes and back: pickle first, cloudpickle where pickle refuses.

Buffers that support it (numpy arrays and whatever else speaks pickle protocol 5) leave the
stream when they are large, so that they can travel through the scratch file.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from .kinship import KinPickler

__all__ = ["PieceReader", "dump", "dump_by", "load"]

# Below this a buffer is cheaper inside the stream than as a mapping of its own.
OUT_OF_BAND_MIN = 256 * 1024
_AT_ONCE = 128 * 1024
_STEP = 1 << 20
_MAX_BUFFERS = 4000  # with the stream's own region fewer than frames allow


def dump(value: object) -> tuple[bytes, list[memoryview]]:
    """Pickle *value* into a stream and the large buffers that the stream refers to.

    Raises whatever cloudpickle raises if neither pickle nor cloudpickle can do it.
    """
    buffers: list[memoryview] = []
    try:
        return pickle.dumps(value, 5, buffer_callback=_taking_large(buffers)), buffers
    except Exception:  # noqa: BLE001 - pickle raises anything that a __reduce__ raises
        return dump_by(KinPickler, value)


def dump_by(pickler: type[KinPickler], value: object) -> tuple[bytes, list[memoryview]]:
    """Like `dump`, by a pickler of one's own."""
    buffers: list[memoryview] = []
    file = io.BytesIO()
    pickler(file, 5, buffer_callback=_taking_large(buffers)).dump(value)
    return file.getvalue(), buffers


def _taking_large(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    """Make a callback that takes large buffers out of a stream; True leaves one inside."""

    def callback(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if view.nbytes < OUT_OF_BAND_MIN or len(buffers) >= _MAX_BUFFERS:
            return True
        buffers.append(view)
        return False

    return callback


def load(stream: Sequence[bytes | memoryview], buffers: Sequence[memoryview]) -> Any:
    """Unpickle a stream that came in pieces. It may raise anything: pickles run code."""
    if len(stream) == 1 and len(stream[0]) <= _AT_ONCE:
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
