"""Errors of isolated calls: their class, and their reason.

The class says whether a retry is safe:

    IsolationError
      CallableDidNotExecuteError    fn never began: a retry is always safe
      CallableExecutedError         fn ran to its end, and its result was lost
      CallableStatusUnknownError    fn began and did not end regularly

The reason names the event; ``__cause__`` is the OSError, if there was one.
`IsolationError.transient` says whether the cause may pass by itself: whether a retry may succeed.
The error of a passed deadline is also a builtin TimeoutError, and the error of a memory overrun is
also a MemoryError, in each of the classes.
"""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._outcome import Exit, Usage

__all__ = [
    "CallableDidNotExecuteError",
    "CallableExecutedError",
    "CallableStatusUnknownError",
    "ForkSafetyWarning",
    "IsolationError",
    "PerformanceWarning",
    "Reason",
    "RemoteError",
    "SandboxWarning",
]


class Reason(enum.Enum):
    """The reason for which an isolated call has neither a result nor an exception of fn."""

    # fn did not begin
    PIPE_CREATION = "a descriptor for the call could not be created"
    FORK = "the process could not be forked"
    CHILD_SETUP = "the child failed before it reached fn"
    START_TIMEOUT = "fn did not begin in time"
    ARGUMENT_ENCODING = "fn or its arguments could not be pickled"
    ARGUMENT_DECODING = "fn or its arguments could not be unpickled in the child"
    QUEUE_FULL = "too many calls are waiting"
    QUEUE_TIMEOUT = "the call waited too long for its turn"
    CLOSED = "the Isolator was closed"
    FEATURE_UNAVAILABLE = "this platform lacks something that the call needs"
    # fn ran to its end
    RESULT_ENCODING = "the result or exception of fn could not be pickled"
    RESULT_DECODING = "the result, item or exception of fn could not be decoded here"
    RESULT_WRITE = "the result or exception of fn could not be sent"
    RESULT_TOO_LARGE = "the result, item or exception of fn is larger than allowed"
    # fn began and did not end regularly
    SIGNAL = "the child was killed by a signal"
    EXIT = "the child exited by itself"
    NO_RESULT = "the child exited with code 0 and left no result"
    BASE_EXCEPTION = "fn raised an exception that would tear down its caller"
    TIMEOUT = "the deadline passed"
    MEMORY_LIMIT = "the child exceeded its memory limit"
    CPU_LIMIT = "the child used more CPU time than limits.cpu_time allows"
    OUTPUT_LIMIT = "the child wrote more output than limits.output_size allows"
    CANCELLED = "the job was cancelled"
    SERVER_DIED = "the fork server died, and its children with it"
    CHANNEL_READ = "the result channel could not be read"
    WAIT = "the child's end could not be observed"
    PROTOCOL = "invalid data arrived on the result channel"

    def __repr__(self) -> str:
        return f"Reason.{self.name}"


# Reasons whose causes lie in fn, its arguments, its options or the program, and persist. The causes
# of all other reasons lie in the machine, its load or other processes.
_LASTING = frozenset(
    {
        Reason.ARGUMENT_ENCODING,
        Reason.ARGUMENT_DECODING,
        Reason.CLOSED,
        Reason.FEATURE_UNAVAILABLE,
        Reason.RESULT_ENCODING,
        Reason.RESULT_DECODING,
        Reason.RESULT_TOO_LARGE,
        Reason.EXIT,
        Reason.NO_RESULT,
        Reason.BASE_EXCEPTION,
        Reason.MEMORY_LIMIT,
        Reason.CPU_LIMIT,
        Reason.OUTPUT_LIMIT,
        Reason.CANCELLED,
        Reason.PROTOCOL,
    }
)

_PASSING_ERRNOS = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EINTR", "EBUSY", "ENOMEM", "ENOBUFS", "EMFILE", "ENFILE", "ENOSPC", "EDQUOT"),
        *("ETXTBSY", "EIO", "ESTALE", "ETIMEDOUT", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED"),
        *("EHOSTUNREACH", "EHOSTDOWN", "ENETUNREACH", "ENETDOWN", "EADDRINUSE", "ETOOMANYREFS"),
    )
    if hasattr(errno, name)
)


def may_pass(number: int | None) -> bool:
    """Return whether the cause of an errno may pass by itself."""
    return number in _PASSING_ERRNOS


class IsolationError(Exception):
    """An isolated call failed for a reason that is not fn's own exception.

    Attributes:
        reason: the `Reason`.
        pid: the child's process id, or None if there was no child.
        exit: how the child ended, an `Exit`, or None if unknown or there was no child.
        usage: the resources that the child used, a `Usage`, or None.
        stderr_tail: the last 8 KiB that the child wrote to standard error;
            empty with ``output="inherit"``, where it is not read.
        crash_traceback: the child's Python stack when it crashed or when the deadline
            passed, most recent call first; empty if there is none. After a crash, from Python
            3.14 on, the stack begins with the C functions that the innermost Python function had
            called.
        transient: whether the cause may pass by itself, so that the same call may succeed a little
            later. Whether a retry is *safe* is a matter of the class.

    `transient` follows from the reason, unless more is known:

    ==================================================  =========================================
    True: the machine, its load, other processes        False: fn, its arguments, the program
    ==================================================  =========================================
    PIPE_CREATION                                       ARGUMENT_ENCODING (not if arguments were
                                                        changed meanwhile), ARGUMENT_DECODING
    FORK (not where the interpreter is missing)         FEATURE_UNAVAILABLE
    CHILD_SETUP                                         CHILD_SETUP, if preload fails or the child
                                                        has another version of the package
    START_TIMEOUT, TIMEOUT (not with ``timeout=0``)     RESULT_ENCODING, RESULT_DECODING (not if no
                                                        thread could be started)
    QUEUE_FULL, QUEUE_TIMEOUT                           RESULT_TOO_LARGE, MEMORY_LIMIT, CPU_LIMIT,
                                                        OUTPUT_LIMIT: fn exceeds a limit
    SERVER_DIED                                         EXIT, NO_RESULT, BASE_EXCEPTION
    SIGNAL from other processes (SIGKILL, SIGTERM...)   SIGNAL of a crash (SIGSEGV, SIGABRT...)
    RESULT_WRITE, CHANNEL_READ, WAIT                    CLOSED, CANCELLED, PROTOCOL
    ==================================================  =========================================

    The message ends with the `crash_traceback`. Where results are plain data, because the code in
    the child is not trusted, the message is one line without the stack; and in `stderr_tail` and
    `crash_traceback` each line begins with ``| ``, with characters escaped as in a `RemoteError`.

    Example::

        try:
            await run_isolated(parse, upload, timeout=5)
        except CallableDidNotExecuteError as error:
            if not error.transient:
                raise
            ...  # a retry is safe, and may succeed
        except IsolationError as error:
            log.warning("parser died: %s", error.reason.name)
    """

    reason: Reason
    pid: int | None
    exit: Exit | None
    usage: Usage | None
    stderr_tail: str
    crash_traceback: str
    # Instances that were made without the constructor have no attribute of their own.
    transient: bool = True

    def __init__(
        self,
        message: str,
        *,
        reason: Reason,
        pid: int | None = None,
        exit: Exit | None = None,  # noqa: A002 - the attribute's name is part of the API
        usage: Usage | None = None,
        stderr_tail: str = "",
        crash_traceback: str = "",
        transient: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.pid = pid
        self.exit = exit
        self.usage = usage
        self.stderr_tail = stderr_tail
        self.crash_traceback = crash_traceback
        self.transient = reason not in _LASTING if transient is None else transient

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors of nested calls are pickled and sent through the channel.
        return _rebuild, (type(self), self.args[0], self.__dict__)


def _rebuild(cls: type[IsolationError], message: str, state: dict[str, Any]) -> IsolationError:
    error = cls(message, reason=state["reason"])
    error.__dict__.update(state)
    return error


class CallableDidNotExecuteError(IsolationError):
    """fn never began. A retry is always safe."""


class CallableExecutedError(IsolationError):
    """fn ran to its end and its result was lost. Retry only idempotent functions."""


class CallableStatusUnknownError(IsolationError):
    """fn began and did not end regularly. Retry only idempotent functions."""


class StartTimeoutError(CallableDidNotExecuteError, TimeoutError):
    """The deadline passed before fn began."""


class CallTimeoutError(CallableStatusUnknownError, TimeoutError):
    """The deadline passed while fn was running."""


class RemoteError(Exception):
    r"""The text of an exception that fn raised; the exception itself stays in the child.

    It is raised in place of fn's exception where results are plain data, because the code in the
    child is not trusted. Untrusted code may have chosen all of the text. The text is escaped such
    that it can't pass for anything else in a log or terminal: ``\n``, ``\x1b`` and the like stand
    for characters that end lines, control a terminal, change the direction of text or are
    invisible.

    Attributes:
        type_name: the exception's class, with its module unless it is a builtin; one line.
        message: the exception's message; one line, whose middle is left out above 16 KiB.
        traceback: the traceback as Python prints it, each line behind ``| ``; its middle is
            left out above 44 KiB.

    Example::

        try:
            await run_isolated(plugin, document, sandbox=Sandbox.untrusted())
        except RemoteError as error:
            if error.type_name == "ValueError":
                log.warning("the plugin refused: %s", error.message)
    """

    type_name: str
    message: str
    traceback: str

    def __init__(self, type_name: str, message: str = "", traceback: str = "") -> None:
        super().__init__(type_name, message, traceback)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


class MemoryNotStartedError(CallableDidNotExecuteError, MemoryError):
    """The memory limit of the call was reached before fn began."""


class MemoryLostError(CallableExecutedError, MemoryError):
    """The memory limit of the call left too little memory to send the result."""


class MemoryLimitError(CallableStatusUnknownError, MemoryError):
    """fn needed more memory than its limit allows."""


class SandboxWarning(RuntimeWarning):
    """A layer of a sandbox is missing, and ``missing="warn"`` lets the call run without it."""


class ForkSafetyWarning(RuntimeWarning):
    """This process has a state that a fork does not preserve.

    Other threads, including those of native libraries: a lock that one of them held at the fork
    stays locked in the child for ever, and a library waits there for pool threads that do not
    exist. ``Isolator(start="zygote", preload=[...])`` starts children from a process that has
    no other threads. Threads of libraries that are prepared for a fork (OpenBLAS, Arrow, uvloop...)
    cause no warning.

    Random generators in the modules of a fork server (``rng = default_rng()``): each child
    draws the same numbers from its copy. Create them in the function, or seed them there.

    Example::

        warnings.filterwarnings("error", category=aioisolate.ForkSafetyWarning)  # in tests
    """


class PerformanceWarning(RuntimeWarning):
    """Each call repeats work that could be done once: it sends a large global or imports a module.

    The warning points to the function, and appears at the second such call of an `Isolator`.

    Example::

        warnings.filterwarnings("ignore", category=aioisolate.PerformanceWarning)
    """
