"""Turn a verdict into an outcome: decode the answer, or build the error with all evidence.

Small answers are decoded on the event loop, large ones in a thread (`Decoding`).
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import anyio

from .._errors import (
    CallableDidNotExecuteError,
    CallableExecutedError,
    CallableStatusUnknownError,
    IsolationError,
    MemoryLimitError,
    Reason,
    RemoteError,
    may_pass,
)
from .._limits import Limits
from .._os import mappings, memfd, threads
from .._os.threads import NoThreadError
from .._outcome import Outcome, Usage
from .._wire import codecs, safe_text
from .._wire.conversation import Message
from .._wire.frames import Kind, Payload, ProtocolError, Region, TooLarge, parse_failure
from .crash import innermost
from .output import TAIL_MAX
from .supervision import Supervision
from .verdict import Answer, Evidence, KilledFor, Verdict, judge

__all__ = ["INLINE_MAX", "Decoding", "loss_of_item", "outcome_of", "settle"]

# Stack text of an untrusted child is no longer than the traceback in a RemoteError.
_STACK_MAX = 44 * 1024
_MESSAGE_MAX = 16 * 1024
# To decode this many bytes takes well under a millisecond, or a few milliseconds for hostile data.
INLINE_MAX = 128 * 1024


async def settle(supervision: Supervision) -> tuple[Any, BaseException | None]:
    """Return the value and the error of a call, from the evidence about its ended child."""
    answer = supervision.conversation.answer
    # For a value the verdict is known, so no evidence is collected.
    is_value = answer is not None and answer[0] is Kind.VALUE
    if supervision.killed_for is not None:  # the usual call does not touch the enumeration
        is_value &= supervision.killed_for is not KilledFor.OUTPUT_LIMIT
    verdict = Answer.VALUE if is_value else judge(_evidence(supervision))
    if isinstance(verdict, Verdict) or answer is None:
        assert isinstance(verdict, Verdict)
        return None, _error(supervision, verdict, cause=_os_error(supervision, answer))
    try:
        if supervision.options.codec != "pickle":
            return await _as_data(supervision, verdict, answer[1])
        payload = Payload.decode(answer[1])
        if supervision.options.limits is not None:
            _check_size(supervision.options.limits, payload)
        fds = answer[2]
        stream, buffers = _collect(payload, supervision.child.scratch, fds)
        value = await _unpickle(supervision, stream, buffers, fds)
    except anyio.get_cancelled_exc_class():
        raise
    except BaseException as exc:  # noqa: BLE001 - loading a pickle may raise anything
        return None, _error(supervision, _as_loss(exc, verdict.value), cause=exc)
    if verdict is Answer.VALUE:
        return value, None
    return None, _exception_of_fn(supervision, value)


async def _unpickle(
    supervision: Supervision, stream: Sequence[Any], buffers: list[memoryview], fds: Sequence[int]
) -> Any:
    size = sum(map(len, stream))
    if size <= INLINE_MAX:
        try:
            return codecs.load_at_once(stream, buffers, fds)
        except codecs.ImportNeeded:
            size = INLINE_MAX + 1
    if not fds:
        return await _decode(size, lambda: codecs.load(stream, buffers))
    # The decoding thread closes them: a cancelled call must not close them while it runs.
    passed_fds = supervision.hand_over(fds)

    def load() -> Any:
        try:
            return codecs.load(stream, buffers, fds)
        finally:
            passed_fds.close_all()

    return await _decode(size, load, otherwise=passed_fds.close_all)


async def _as_data(
    supervision: Supervision, verdict: Answer, body: Sequence[bytes]
) -> tuple[Any, BaseException | None]:
    """Decode an answer in a data-only codec. May raise ValueError or ProtocolError."""
    from .._wire import plain_data  # noqa: PLC0415 - only with a data-only codec

    options = supervision.options
    pieces = Payload.decode(body, plain=True).stream
    if verdict is Answer.RAISED:
        raised = safe_text.load_exception(pieces)
        return None, _exception_of_fn(supervision, raised)
    load = functools.partial(plain_data.load, options.codec, pieces, options.result_type)
    effort = plain_data.effort(options.codec, pieces, options.result_type)
    return await _decode(effort, load), None


def _check_size(limits: Limits, payload: Payload) -> None:
    """Raise TooLarge if an answer's buffers exceed the limit."""
    if limits.result_size is not None and payload.regions:
        size = sum(region.length for region in payload.regions) + sum(map(len, payload.stream))
        if size > limits.result_size:
            raise TooLarge(Kind.VALUE, size, limits.result_size)


def outcome_of(supervision: Supervision, value: Any, error: BaseException | None) -> Outcome[Any]:
    """Return the `Outcome` of a call that has ended."""
    child = supervision.child
    return Outcome(
        value=value,
        error=error,
        usage=_usage(supervision),
        exit=supervision.status.exit,
        pid=child.pid,
        stdout=child.streams[0].text() if child.streams else None,
        stderr=child.streams[1].text() if child.streams else None,
    )


def _evidence(supervision: Supervision) -> Evidence:
    """Return the evidence for the verdict."""
    answer = supervision.conversation.answer
    detail = supervision.detail
    if answer is not None and answer[0] in (Kind.LOST, Kind.FAILED):
        detail = b"".join(answer[1]).decode(errors="replace")
    return Evidence(
        started=supervision.has_started(),
        answer=None if answer is None else answer[0],
        detail=detail,
        killed_for=supervision.killed_for,
        exit=supervision.status.exit,
        seconds=supervision.seconds,
        limits=supervision.options.limits,
        spent=supervision.status.user + supervision.status.system,
        out_of_memory=supervision.out_of_memory,
        others_memory=supervision.others_memory,
        confined=supervision.options.sandbox is not None,
        stopped_by=supervision.stopped_by,
    )


def _usage(supervision: Supervision) -> Usage:
    """Return the resources that the child has used."""
    status = supervision.status
    return Usage(
        wall=supervision.ended_at - supervision.child.forked_at,
        user=status.user,
        system=status.system,
        max_rss=status.max_rss,
        fork=supervision.child.fork_seconds,
    )


def _collect(
    payload: Payload, scratch: int, fds: Sequence[int]
) -> tuple[Sequence[Any], list[memoryview]]:
    """Join the stream and the buffers of a payload. Raises ProtocolError if that fails."""
    if not payload.regions:
        return payload.stream, []
    views = [
        _borrow(fds, region) if region.source else _view(scratch, region)
        for region in payload.regions
    ]
    if payload.stream_in_scratch:
        return views[:1], views[1:]
    return payload.stream, views


def _borrow(fds: Sequence[int], region: Region) -> memoryview:
    from .._memory import snapshot  # noqa: PLC0415 - only with such memory

    if region.source > len(fds):
        raise ProtocolError("a result refers to a descriptor that was not sent with it")
    return snapshot.borrow(
        fds[region.source - 1], region.offset, region.length, shared=region.shared
    )


def _view(scratch: int, region: Region) -> memoryview:
    if not memfd.is_sealed(scratch):
        raise ProtocolError("the scratch file is not sealed, so its content could still change")
    size = os.fstat(scratch).st_size
    start, length = region.offset, region.length
    if not length or start % os.sysconf("SC_PAGE_SIZE") or start + length > size:
        raise ProtocolError(f"a result of {length} bytes at {start} is not in the scratch file")
    return mappings.map_private(scratch, start, length)


def loss_of_item(supervision: Supervision, exc: BaseException) -> IsolationError:
    """Return the error for an item that could not be decoded. The child has ended."""
    verdict = _as_loss(exc, "an item that fn yielded")
    if supervision.conversation.answer is None:
        verdict = verdict._replace(error=CallableStatusUnknownError)  # fn had not ended
    return _error(supervision, verdict, cause=exc)


def _as_loss(exc: BaseException, lost: str) -> Verdict:
    if isinstance(exc, TooLarge):
        return Verdict(CallableExecutedError, Reason.RESULT_TOO_LARGE, str(exc))
    if isinstance(exc, ProtocolError):
        return Verdict(CallableStatusUnknownError, Reason.PROTOCOL, str(exc))
    message = f"{lost} could not be decoded here: {type(exc).__name__}: {exc}"
    transient = isinstance(exc, NoThreadError) or None  # caused by the machine, not by the result
    return Verdict(CallableExecutedError, Reason.RESULT_DECODING, message, transient)


def _exception_of_fn(supervision: Supervision, raised: Any) -> BaseException:
    if not issubclass(type(raised), BaseException):
        kind = safe_text.full_name(type(raised))
        text = f"the child reports that fn raised an object that is not an exception: {kind}"
        return _error(supervision, Verdict(CallableStatusUnknownError, Reason.PROTOCOL, text))
    if isinstance(raised, CallableDidNotExecuteError):
        # A nested call did not begin, but fn did, so a retry of this call may be unsafe.
        text = f"fn raised {type(raised).__name__}: {raised}"
        verdict = Verdict(CallableStatusUnknownError, raised.reason, text, raised.transient)
        return _error(supervision, verdict, cause=raised)
    limits = supervision.options.limits
    size = None if limits is None else limits.memory or limits.address_space
    if size is not None and _ran_out_of_memory(raised):
        text = f"an allocation of fn failed; its limit is {size} bytes"
        if detail := str(raised):  # Python's own MemoryError has no text
            text += f": {detail}"
        verdict = Verdict(MemoryLimitError, Reason.MEMORY_LIMIT, text)
        return _error(supervision, verdict, cause=raised)
    name = raised.type_name if isinstance(raised, RemoteError) else type(raised).__name__
    if isinstance(raised, Exception) and name not in _NEVER_RAISED:
        return raised
    # SystemExit, KeyboardInterrupt, GeneratorExit, CancelledError... have an effect on the
    # caller's event loop or program; those of fn must not.
    reason = Reason.EXIT if name == "SystemExit" else Reason.BASE_EXCEPTION
    # The args of a RemoteError also contain the traceback.
    args = [raised.message] if isinstance(raised, RemoteError) else safe_text.part(raised, "args")
    text = f"fn raised {name}({', '.join(map(repr, args))})"
    verdict = Verdict(CallableStatusUnknownError, reason, text)
    return _error(supervision, verdict, cause=raised)


_DEADLINE_REASONS = frozenset({Reason.TIMEOUT, Reason.START_TIMEOUT})
_NEVER_RAISED = frozenset({"SystemExit", "KeyboardInterrupt", "GeneratorExit"})


def _ran_out_of_memory(raised: BaseException) -> bool:
    if isinstance(raised, RemoteError):
        return raised.type_name.rpartition(".")[2] in ("MemoryError", "_ArrayMemoryError")
    return isinstance(raised, MemoryError) or (
        isinstance(raised, OSError) and raised.errno == errno.ENOMEM
    )


def _os_error(supervision: Supervision, answer: Message | None) -> OSError | None:
    """Return the OSError of a child that failed before fn, if there was one."""
    if answer is None or answer[0] is not Kind.FAILED:
        return None
    _, number, text = parse_failure(b"".join(answer[1]).decode(errors="replace"))
    if not number:
        return None
    if supervision.options.codec != "pickle":
        text = safe_text.tame(text, _MESSAGE_MAX)
    return OSError(number, text)


def _error(
    supervision: Supervision, verdict: Verdict, cause: BaseException | None = None
) -> IsolationError:
    child = supervision.child
    transient = verdict.transient
    if verdict.reason is Reason.CHILD_SETUP and isinstance(cause, OSError):
        transient = may_pass(cause.errno)
    stack = supervision.stack.text()
    message = verdict.message
    if verdict.reason in _DEADLINE_REASONS:
        message += child.suspicion
    stderr_tail = child.streams[1].tail() if child.streams else ""
    if supervision.options.codec == "pickle":
        if stack:
            # The first line is a complete summary: logs and error trackers often show no more.
            place = innermost(stack)
            message += f"; it was in {place}\n{stack}" if place else f"\n{stack}"
    else:  # the stack may be untrusted text
        message = safe_text.tame(message, _MESSAGE_MAX)
        stack = safe_text.quote(stack, _STACK_MAX)
        stderr_tail = safe_text.quote(stderr_tail, TAIL_MAX)
    error = verdict.error(
        message,
        reason=verdict.reason,
        pid=child.pid,
        exit=supervision.status.exit,
        usage=_usage(supervision),
        stderr_tail=stderr_tail,
        crash_traceback=stack,
        transient=transient,
    )
    error.__cause__ = cause
    return error


class Decoding:
    """Work on *size* bytes: done at once if the size is small, else in a thread of its own.

    *size* may exceed the size of the data, if the data takes longer than usual.

    The thread does not belong to a pool of the event loop: idle threads of a pool would be alive at
    every later fork.

    Attributes:
        value: the result of the work, once it is done.
        failure: the exception of the work, or None.
    """

    __slots__ = ("_awaited", "_closing", "_helper", "_work", "failure", "value")

    def __init__(
        self,
        size: int,
        work: Callable[[], Any],
        *,
        otherwise: Callable[[], object] | None = None,
        name: str = "decode",
    ) -> None:
        """Start *work*. If its thread can't start, *otherwise* is called, and that is the failure.

        *name*: the name of the thread.
        """
        self._work: Callable[[], Any] | None = work
        self.value: Any = None
        self.failure: BaseException | None = None
        self._helper: threads.Helper | None = None
        self._awaited = self._closing = False
        if size <= INLINE_MAX:
            self._run()
            return
        try:
            self._helper = threads.Helper(name, self._run)
        except OSError as exc:
            self.failure = exc
            if otherwise is not None:
                otherwise()

    def _run(self) -> None:
        work, self._work = self._work, None
        assert work is not None
        try:
            self.value = work()
        except BaseException as exc:  # noqa: BLE001 - raised in the waiting task
            self.failure = exc

    async def wait(self) -> None:
        """Wait until the work is done; after a cancellation the method may be called again."""
        helper = self._helper
        if helper is None:
            return
        self._awaited = True
        try:
            await anyio.wait_readable(helper.fileno())
            helper.done()
            self._closing = True
        finally:
            self._awaited = False
            if self._closing:
                self.close()

    def close(self) -> None:
        """Stop waiting. A thread ends by itself, and its result is dropped."""
        self._closing = True
        if self._helper is not None and not self._awaited:  # else `wait` would never wake up
            self._helper.close()
            self._helper = None


async def _decode(
    size: int, work: Callable[[], Any], *, otherwise: Callable[[], object] | None = None
) -> Any:
    """Do *work* on *size* bytes and return its result. Raises the exceptions of *work*."""
    decoding = Decoding(size, work, otherwise=otherwise)
    try:
        await decoding.wait()
    finally:
        decoding.close()
    if decoding.failure is not None:
        raise decoding.failure
    return decoding.value
