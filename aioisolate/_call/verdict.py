"""The verdict on a call: a pure, total function of the evidence.

The class of the error depends only on the STARTED mark, which the child sends right before it calls
fn: a child that has not sent the mark has not called fn. An exit code proves nothing, since fn may
choose it; only a complete answer is an answer.
"""

from __future__ import annotations

import enum
import signal
from typing import NamedTuple

from .._errors import (
    CallableDidNotExecuteError,
    CallableExecutedError,
    CallableStatusUnknownError,
    CallTimeoutError,
    IsolationError,
    MemoryLimitError,
    MemoryLostError,
    MemoryNotStartedError,
    Reason,
    StartTimeoutError,
)
from .._limits import Limits
from .._outcome import Exit
from .._wire.frames import Kind, parse_failure

__all__ = ["Answer", "Evidence", "KilledFor", "Verdict", "judge"]


class KilledFor(enum.Enum):
    """Why the parent killed the child."""

    TIMEOUT = "the call's deadline passed"
    START_TIMEOUT = "the start deadline passed"
    PROTOCOL = "the channel carried data that are not frames"
    CHANNEL_READ = "the channel could not be read"
    LINGERING = "it kept running after its answer"
    RESULT_TOO_LARGE = "its result or exception is larger than allowed"
    ITEM_TOO_LARGE = "one of its items is larger than allowed"
    RESULT_DECODING = "one of its items could not be decoded"
    OUTPUT_LIMIT = "it wrote more output than limits.output_size allows"
    UNCONFINED = "it was not confined as required"
    UNKILLABLE = "it did not end when it was killed"
    CANCELLED = "its job was cancelled"
    CLOSED = "its Isolator was closed"
    SERVER_DIED = "its fork server died"


class Answer(enum.Enum):
    """The answer of fn, which the caller gets if there is no error of this package."""

    VALUE = "the result of fn"
    RAISED = "the exception of fn"


class Evidence(NamedTuple):
    """The evidence about a call whose child has ended.

    Attributes:
        started: whether the STARTED mark arrived.
        answer: the kind of the frame that ended the conversation, or None.
        detail: the body of a LOST or FAILED frame, or the fault on the channel.
        killed_for: why the parent killed the child, or None if it did not.
        exit: how the child ended, or None if unknown.
        seconds: the deadline that passed, if one did.
        limits: the limits of the call, or None.
        spent: the CPU seconds that the child used.
        out_of_memory: the memory limit that killed the child, if known.
        others_memory: whether the machine or container lacked memory, and not the call's limit.
        confined: whether the child was in a sandbox.
        stopped_by: the signal that had stopped the child when its deadline passed, or "".
    """

    started: bool
    answer: Kind | None = None
    detail: str = ""
    killed_for: KilledFor | None = None
    exit: Exit | None = None
    seconds: float = 0.0
    limits: Limits | None = None
    spent: float = 0.0
    out_of_memory: str = ""
    others_memory: bool = False
    confined: bool = False
    stopped_by: str = ""


class Verdict(NamedTuple):
    """The class, reason and message of the error to raise.

    Attributes:
        transient: whether the cause may pass by itself; None: the reason decides.
    """

    error: type[IsolationError]
    reason: Reason
    message: str
    transient: bool | None = None


def judge(evidence: Evidence) -> Verdict | Answer:  # noqa: C901, PLR0911 - one for each verdict
    """Decide the outcome of a call: an answer to return or raise, or an error."""
    if evidence.killed_for is KilledFor.OUTPUT_LIMIT and evidence.answer is not Kind.FAILED:
        return _killed(evidence, evidence.killed_for)
    match evidence.answer:
        case Kind.VALUE:
            return Answer.VALUE
        case Kind.RAISED:
            return Answer.RAISED
        case Kind.LOST:
            name, _, text = evidence.detail.partition("\n")
            if name == Reason.MEMORY_LIMIT.name:
                return Verdict(MemoryLostError, Reason.MEMORY_LIMIT, text)
            if name in _LOSSES_OF_ITEMS:  # fn has not ended
                loss, reason = _LOSSES_OF_ITEMS[name]
                return Verdict(loss, reason, text)
            reason = Reason[name] if name in _LOSSES else Reason.RESULT_WRITE
            return Verdict(CallableExecutedError, reason, text)
        case Kind.FAILED if evidence.started:
            message = "the child reports that it did not call fn, but it did"
            return Verdict(CallableStatusUnknownError, Reason.PROTOCOL, message)
        case Kind.FAILED:
            step, _, text = parse_failure(evidence.detail)
            if step == "request":
                message = f"fn or its arguments could not be loaded in the child: {text}"
                if evidence.confined and text.startswith(_UNREADABLE):
                    message += (
                        " (a confined child reads only the paths of its sandbox: name fn's module "
                        "in preload, or its path in sandbox.read)"
                    )
                return Verdict(CallableDidNotExecuteError, Reason.ARGUMENT_DECODING, message)
            if text.startswith("MemoryError") and evidence.limits is not None:
                message = f"the child had no memory left before it called fn, at step {step!r}"
                return Verdict(MemoryNotStartedError, Reason.MEMORY_LIMIT, message)
            message = f"the child failed before it called fn, at step {step!r}: {text}"
            return Verdict(CallableDidNotExecuteError, Reason.CHILD_SETUP, message)
    if evidence.killed_for is not None and evidence.killed_for is not KilledFor.LINGERING:
        return _killed(evidence, evidence.killed_for)
    return _died(evidence)


_UNREADABLE = ("ModuleNotFoundError", "ImportError", "PermissionError", "FileNotFoundError")
_LOSSES = frozenset(
    {Reason.RESULT_ENCODING.name, Reason.RESULT_WRITE.name, Reason.RESULT_TOO_LARGE.name}
)
_LOSSES_OF_ITEMS: dict[str, tuple[type[IsolationError], Reason]] = {
    "ITEM_ENCODING": (CallableStatusUnknownError, Reason.RESULT_ENCODING),
    "ITEM_WRITE": (CallableStatusUnknownError, Reason.RESULT_WRITE),
    "ITEM_TOO_LARGE": (CallableStatusUnknownError, Reason.RESULT_TOO_LARGE),
    "ITEM_MEMORY_LIMIT": (MemoryLimitError, Reason.MEMORY_LIMIT),
}


def _killed(  # noqa: C901, PLR0911 - one for each cause
    evidence: Evidence, cause: KilledFor
) -> Verdict:
    started = evidence.started
    error: type[IsolationError]
    match cause:
        case KilledFor.TIMEOUT:
            error = CallTimeoutError if started else StartTimeoutError
            where = "" if started else " before it called fn"
            message = f"the child was killed{where}: it took longer than {evidence.seconds:g} s"
            message += _stopped(evidence)
            reason = Reason.TIMEOUT if started else Reason.START_TIMEOUT
            return Verdict(error, reason, message)
        case KilledFor.START_TIMEOUT:
            error = CallTimeoutError if started else StartTimeoutError
            message = f"the child was killed: it did not reach fn within {evidence.seconds:g} s"
            message += _stopped(evidence) or (
                " (perhaps another thread of this process held a lock when it was forked)"
            )
            # The child may have reached fn at the moment of the kill.
            reason = Reason.TIMEOUT if started else Reason.START_TIMEOUT
            return Verdict(error, reason, message)
        case KilledFor.PROTOCOL | KilledFor.CHANNEL_READ:
            # fn may have written these bytes, so a missing mark proves nothing.
            message = f"the child was killed: {evidence.detail}"
            return Verdict(CallableStatusUnknownError, Reason[cause.name], message)
        case KilledFor.RESULT_TOO_LARGE:
            error = CallableExecutedError if started else CallableStatusUnknownError
            return Verdict(
                error, Reason.RESULT_TOO_LARGE, f"the child was killed: {evidence.detail}"
            )
        case KilledFor.ITEM_TOO_LARGE:
            message = f"the child was killed: {evidence.detail}"
            return Verdict(CallableStatusUnknownError, Reason.RESULT_TOO_LARGE, message)
        case KilledFor.OUTPUT_LIMIT:
            error = CallableStatusUnknownError if started else CallableDidNotExecuteError
            if evidence.answer is not None:
                error = CallableExecutedError
            size = evidence.limits.output_size if evidence.limits else None
            message = f"the child wrote more than {size} bytes of output"
            return Verdict(error, Reason.OUTPUT_LIMIT, message)
        case KilledFor.UNCONFINED:
            message = f"the child was not confined as required ({evidence.detail})"
            return Verdict(CallableDidNotExecuteError, Reason.CHILD_SETUP, message, transient=False)
        case (
            KilledFor.RESULT_DECODING
            | KilledFor.CANCELLED
            | KilledFor.CLOSED
            | KilledFor.SERVER_DIED
        ):
            error = CallableStatusUnknownError if started else CallableDidNotExecuteError
            when = "while fn was running" if started else "before it called fn"
            message = f"the child was killed {when}: {cause.value}"
            if cause is KilledFor.SERVER_DIED and evidence.detail:
                message += f" ({evidence.detail})"
            return Verdict(error, Reason[cause.name], message)
        case _:
            error = CallableStatusUnknownError if started else CallableDidNotExecuteError
            message = (
                f"the child was killed and had not ended {evidence.seconds:g} s later (perhaps "
                "it is stuck in the kernel); it is still being watched"
            )
            return Verdict(error, Reason.WAIT, message)


def _stopped(evidence: Evidence) -> str:
    return f"; {evidence.stopped_by} had stopped it" if evidence.stopped_by else ""


def _died(evidence: Evidence) -> Verdict:
    exit_ = evidence.exit
    error: type[IsolationError]
    if evidence.out_of_memory and exit_ in (None, -signal.SIGKILL):
        limits = evidence.limits
        own = None if limits is None else limits.memory or limits.address_space
        if evidence.others_memory and own is not None:
            # The child has not exceeded its own limit, so that limit is not reported.
            error = CallableStatusUnknownError if evidence.started else CallableDidNotExecuteError
            when = "" if evidence.started else " before it called fn"
            message = (
                f"the child was killed{when} by {evidence.out_of_memory}, although none of its "
                f"processes had exceeded the limit of {own} bytes: other processes had used the "
                "memory"
            )
            reason = Reason.SIGNAL if evidence.started else Reason.CHILD_SETUP
            return Verdict(error, reason, message, transient=True)
        memory = MemoryLimitError if evidence.started else MemoryNotStartedError
        message = f"the child was killed because memory ran out, by {evidence.out_of_memory}"
        return Verdict(memory, Reason.MEMORY_LIMIT, message, evidence.others_memory)
    if not evidence.started:
        how = f"ended with {exit_}" if exit_ is not None else "ended"
        message = f"the child {how} before it called fn"
        return Verdict(CallableDidNotExecuteError, Reason.CHILD_SETUP, message)
    if _exceeded_cpu_time(evidence):
        assert evidence.limits is not None
        message = (
            f"the child was killed by {exit_}: it used {evidence.spent:.1f} s of CPU time; "
            f"the limit is {evidence.limits.cpu_time:g} s"
        )
        return Verdict(CallableStatusUnknownError, Reason.CPU_LIMIT, message)
    if exit_ is None:
        message = "the child ended without a result; its exit status is not known"
        reason = Reason.WAIT
    elif exit_.signal is not None:
        message = f"the child was killed by {exit_} while fn was running"
        if evidence.limits is not None and evidence.limits.memory is not None:
            message += " (limits.memory is set, and some libraries crash when an allocation fails)"
        if exit_.signal == signal.SIGKILL:
            message += ", not by this process: perhaps the system was out of memory"
        return Verdict(
            CallableStatusUnknownError, Reason.SIGNAL, message, exit_.signal not in _CRASHES
        )
    elif exit_ == 0:
        message = "the child exited with code 0 and left no result"
        reason = Reason.NO_RESULT
    else:
        message = f"the child exited with code {exit_.code} while fn was running"
        reason = Reason.EXIT
    return Verdict(CallableStatusUnknownError, reason, message)


# Signals that fn causes by itself, and would cause again.
_CRASHES = frozenset(
    {
        *(signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL),
        *(signal.SIGTRAP, signal.SIGSYS, signal.SIGXFSZ, signal.SIGXCPU),
    }
)


def _exceeded_cpu_time(evidence: Evidence) -> bool:
    """Return whether the kernel ended the child since it had exceeded its limit of CPU time."""
    limits, exit_ = evidence.limits, evidence.exit
    if limits is None or limits.cpu_time is None or exit_ is None:
        return False
    # The kernel counts a little more than it reports afterwards.
    spent = evidence.spent >= limits.cpu_time - 0.1
    return exit_ == -signal.SIGXCPU or (exit_ == -signal.SIGKILL and spent)
