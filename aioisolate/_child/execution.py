"""Call fn, and send its result or exception to the parent."""

from __future__ import annotations

import _thread
import atexit
import functools
import gc
import mmap
import os
import sys
from collections.abc import Sequence
from types import CoroutineType
from typing import TextIO, TypeAlias

from .._os import cstdio, memfd
from .._wire import codecs, safe_text
from .._wire.fd_passing import BufferRef, FdBundle
from .._wire.frames import INLINE_MAX, Kind, Payload, Region, encode, encode_small_value
from .._wire.shared_constants import MARK_AT, SCRATCH_START
from . import coroutines, finalization, items, progress
from .spec import ChildSpec

__all__ = ["prepare_memory_error", "work", "work_within"]

# Bound here, since each child uses them to check what fn has left running, and attribute lookups
# would touch, so copy, more pages.
_register_exit, _count_exits, _mark = atexit.register, atexit._ncallbacks, finalization.mark
_count_threads = _thread._count

_HERE = os.path.dirname(__file__)


def prepare_memory_error(spec: ChildSpec) -> None:
    """Encode the answer for a MemoryError in advance, while memory is available."""
    text = b"MEMORY_LIMIT\nno memory was left to send the result or exception of fn"
    spec.memory_error_frame = spec.started_mark if spec.quiet else b""
    spec.memory_error_frame += encode(spec.nonce, Kind.LOST, text)


def work_within(spec: ChildSpec, streams: Sequence[TextIO]) -> int:
    """Like `work`, with resource limits."""
    pid = os.getpid()
    try:
        return work(spec, streams)
    except MemoryError:
        if os.getpid() == pid:
            os.write(spec.channel, spec.memory_error_frame)
        return 1


def work(  # noqa: C901, PLR0912, PLR0915 - each function costs page copies
    spec: ChildSpec, streams: Sequence[TextIO]
) -> int:
    """Call fn, send the answer, return the exit code."""
    pid = os.getpid()
    code = 0
    raised = False
    if spec.exits < 0:  # not counted by a fork server
        _register_exit(_mark)
        spec.exits = _count_exits()
        # Counted here, since the parent may create finalizers until the fork.
        if spec.weak is not None:
            spec.finalizers = next(spec.weak)
    # The parent's threads do not exist after the fork, but Python still counts them.
    threads = _count_threads()
    if spec.quiet:
        leave_mark = memfd.is_marked if spec.rehearsing else memfd.mark
        leave_mark(spec.scratch, MARK_AT)
    else:
        os.write(spec.channel, spec.started_mark)
    if spec.progress:
        progress.begin(spec)
    try:
        if spec.streaming:
            value = None
            items.stream(spec)
        else:
            value = spec.fn(*spec.args)
            if type(value) is CoroutineType:
                value = coroutines.run(value, spec.backend)
    except BaseException as exc:  # noqa: BLE001 - every exception is fn's answer
        if os.getpid() != pid:
            return 1
        if spec.rlimits is not None:
            _raise_limits()
        if isinstance(exc, SystemExit):
            code = _exit_code(exc)
        if type(exc) is items.LostItemError:
            answer, passed_fds = _lost_item(spec, exc)
        elif type(exc) is items.LeftError:
            answer, passed_fds = b"", None  # a forked copy of the child sends no answer
        else:
            answer, passed_fds = _raised(spec, exc)
        finalization.forget_frames(exc)
        raised = True
    else:
        # fn may have forked and returned in both processes; only the child sends the answer.
        if os.getpid() != pid:
            return 0
        if spec.rlimits is not None:
            _raise_limits()
        answer, passed_fds = _returned(spec, value)
    if raised:
        # Freeing fn's frames flushes the files that they hold open. (The parent's objects are
        # frozen, so they are not collected.)
        gc.collect()
    mark = spec.started_mark if spec.quiet else b""
    left = None
    due = _count_exits() != spec.exits
    if spec.weak is None:
        due |= "weakref" in sys.modules
    elif (index := next(spec.weak)) == spec.finalizers + 1:
        spec.finalizers = index
    else:
        due = True
    # (After-fork hooks, coverage's for example, may register finalizers; a rehearsal runs no fn.)
    suspected = due or _count_threads() != threads or "multiprocessing.util" in sys.modules
    if suspected and not spec.rehearsing:
        left = finalization.unfinished_work(due=due)
    if left is not None:
        mark += encode(spec.nonce, Kind.LEAVING, left)
    _flush(streams)
    if not answer:
        if left is not None:
            finalization.finish(spec, items.end_by_signal, functools.partial(_flush, streams))
        items.end_by_signal()
    try:
        try:
            progress.send(spec.channel, mark + answer, passed_fds.fds if passed_fds else ())
        except progress.RefusedError as exc:
            text = f"the result or exception of fn {_unsent(exc)}"
            progress.send(spec.channel, mark + _lost(spec, "RESULT_WRITE", text)[0])
    except OSError:
        # fn has closed the channel; the parent detects that no answer came.
        pass
    if left is not None:
        end = functools.partial(os._exit, code)
        finalization.finish(spec, end, functools.partial(_flush, streams))
    return code


# The bytes of a frame, and the descriptors that are sent with it, if any.
_Answer: TypeAlias = tuple[bytes, FdBundle | None]


def _raise_limits() -> None:
    """Raise the limits to make room for the answer, which may report that fn reached a limit."""
    from . import rlimits  # noqa: PLC0415 - already imported

    rlimits.raise_soft_limits()


def _returned(spec: ChildSpec, value: object) -> _Answer:
    try:
        if spec.codec != "pickle":
            from .._wire import plain_data  # noqa: PLC0415 - only for plain data

            return _data(spec, Kind.VALUE, plain_data.dump(spec.codec, value))
        dumped = codecs.dump(value)
    except BaseException as exc:  # noqa: BLE001 - a __reduce__ may raise anything
        why = _where(value) + _one_line(exc) if spec.codec == "pickle" else _one_line(exc)
        text = f"fn returned {_kind(value)}, which could not be {_encoded(spec)}: {why}"
        short = isinstance(exc, MemoryError) and spec.rlimits is not None
        return _lost(spec, "MEMORY_LIMIT" if short else "RESULT_ENCODING", text)
    return _payload(spec, Kind.VALUE, dumped)


def _raised(spec: ChildSpec, exc: BaseException) -> _Answer:
    safe_text.trim(exc, _is_own_file)
    if spec.codec != "pickle":
        return _data(spec, Kind.RAISED, safe_text.dump_exception(exc))
    # Imported here, since only children that raise need the module.
    try:
        from .._wire import exceptions  # noqa: PLC0415
    except OSError:
        # fn has used all descriptors. Standard input is empty, so its descriptor can be reused.
        os.close(0)
        from .._wire import exceptions  # noqa: PLC0415

    try:
        dumped = exceptions.dump(exc)
    except BaseException as why:  # noqa: BLE001 - loading the pickle may raise anything
        text = (
            f"fn raised {_kind(exc)}, which could not be pickled and loaded again: "
            f"{_one_line(why)}\n{exceptions.describe(exc)}"
        )
        return _lost(spec, "RESULT_ENCODING", text)
    return _payload(spec, Kind.RAISED, dumped)


def _data(spec: ChildSpec, kind: Kind, stream: bytes) -> _Answer:
    """Return an answer of plain data, which is sent in a frame and never by the scratch file."""
    limit = spec.result_size
    if limit is not None and len(stream) > limit:
        return _too_large(spec, len(stream))
    if kind is Kind.VALUE:
        return encode_small_value(spec.nonce, stream), None
    return encode(spec.nonce, kind, Payload((stream,)).encode()), None


def _too_large(spec: ChildSpec, size: int) -> _Answer:
    text = f"the result or exception of fn has {size:,} bytes; the limit is {spec.result_size:,}"
    return _lost(spec, "RESULT_TOO_LARGE", text)


def _is_own_file(filename: str) -> bool:
    return filename.startswith(_HERE)


def _payload(spec: ChildSpec, kind: Kind, dumped: codecs.Dumped) -> _Answer:
    stream, buffers, passed_fds = dumped
    fds = passed_fds.fds if passed_fds else ()
    if spec.result_size is not None:
        own = (part.nbytes for part in buffers if isinstance(part, memoryview))
        if (size := len(stream) + sum(own)) > spec.result_size:
            return _too_large(spec, size)
    if not buffers and (len(stream) <= INLINE_MAX or not memfd.sealable()):
        if kind is Kind.VALUE and not fds:
            return encode_small_value(spec.nonce, stream), None
        return encode(spec.nonce, kind, Payload((stream,)).encode(), len(fds)), passed_fds
    in_scratch = len(stream) > INLINE_MAX and memfd.sealable()
    parts = [memoryview(stream), *buffers] if in_scratch else buffers
    try:
        regions = _fill_scratch(spec.scratch, parts)
    except OSError as exc:
        total = sum(part.nbytes for part in parts if isinstance(part, memoryview))
        text = f"the result of fn ({total} bytes) could not be written: {_one_line(exc)}"
        return _lost(spec, "RESULT_WRITE", text)
    payload = Payload(() if in_scratch else (stream,), regions, in_scratch)
    return encode(spec.nonce, kind, payload.encode(), len(fds)), passed_fds


def _fill_scratch(fd: int, parts: Sequence[memoryview | BufferRef]) -> tuple[Region, ...]:
    """Write *parts* to the scratch file, each at a page boundary, and seal the file.

    Buffers that lie in other files are not copied.
    """
    offset = SCRATCH_START
    regions = []
    for part in parts:
        if not isinstance(part, memoryview):
            regions.append(Region(part.offset, part.length, part.which + 1, part.shared))
            continue
        regions.append(Region(offset, part.nbytes))
        done = 0
        while done < part.nbytes:
            done += os.pwrite(fd, part[done:], offset + done)
        offset += -(-part.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    # Sealed, so that the parent can map the file safely: no process, even one that fn left running,
    # can change or truncate the file while the parent reads it.
    memfd.seal(fd)
    return tuple(regions)


def _unsent(exc: OSError) -> str:
    return f"could not be sent with its descriptors: {exc.strerror}"


def _lost_item(spec: ChildSpec, lost: items.LostItemError) -> _Answer:
    """Report why an item that fn yielded could not be sent."""
    why, subject = lost.why, f"an item that fn yielded, {_kind(lost.item)},"
    reason = "ITEM_ENCODING"
    if isinstance(why, items.TooLargeError):
        reason = "ITEM_TOO_LARGE"
        text = f"{subject} has {why.size:,} bytes; the limit is {spec.result_size:,}"
    elif isinstance(why, progress.RefusedError):
        reason = "ITEM_WRITE"
        text = f"{subject} {_unsent(why)}"
    else:
        if isinstance(why, MemoryError) and spec.rlimits is not None:
            reason = "ITEM_MEMORY_LIMIT"
        where = _where(lost.item) if spec.codec == "pickle" else ""
        text = f"{subject} could not be {_encoded(spec)}: {where}{_one_line(why)}"
    if lost.closing_error is not None:
        text += f" (and when it was closed, its generator raised {_one_line(lost.closing_error)})"
    return _lost(spec, reason, text)


def _encoded(spec: ChildSpec) -> str:
    return "pickled" if spec.codec == "pickle" else f"encoded as {spec.codec}"


def _lost(spec: ChildSpec, reason: str, text: str) -> _Answer:
    body = f"{reason}\n{text}".encode(errors="backslashreplace")
    return encode(spec.nonce, Kind.LOST, body), None


def _flush(streams: Sequence[TextIO]) -> None:
    if sys.stdout is not streams[0] or sys.stderr is not streams[1]:
        streams = (*streams, sys.stdout, sys.stderr)
    for stream in streams:
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # fn has closed the stream, or replaced it by another object
    cstdio.flush()


def _exit_code(exc: SystemExit) -> int:
    # As the interpreter does at exit: None is 0, a number is the code, any other value is 1.
    if exc.code is None:
        return 0
    return exc.code & 0xFF if isinstance(exc.code, int) else 1


def _where(value: object) -> str:
    """Return a message prefix that names the part that can't be pickled, or an empty string."""
    try:
        from .._wire import shared_classes, unpicklable  # noqa: PLC0415 - only for errors

        where = unpicklable.find(shared_classes.SharedClassPickler, "", value)
    except BaseException:  # noqa: BLE001 - memory or descriptors may be exhausted
        return ""
    return f"{where}: " if where else ""


def _kind(value: object) -> str:
    kind = safe_text.full_name(type(value))
    if kind in ("builtins.generator", "builtins.async_generator"):
        hint = "stream_isolated() and Isolator.stream() send its items one by one"
        return f"a generator ({hint})"
    return kind.removeprefix("builtins.")


def _one_line(exc: BaseException) -> str:
    try:
        text = str(exc)
    except BaseException as broken:  # noqa: BLE001 - a broken __str__ may raise anything
        text = f"<its __str__ raised {type(broken).__name__}>"
    return f"{type(exc).__name__}: {' '.join(text.split())}"
