"""A call that is sent to a child of a fork server."""

from __future__ import annotations

import _socket
import contextvars
import errno
import functools
import os
import pickle
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .._async_backend import AsyncBackend
from .._call import eventloop
from .._call.child import DescriptorSet
from .._call.eventloop import AnyioWaiter, AsyncioWaiter, Waiter
from .._call.output import OutputStream, open_streams
from .._call.plan import Plan
from .._call.result import INLINE_MAX, Decoding
from .._errors import CallableDidNotExecuteError, Reason, may_pass
from .._os import memfd, messages
from .._os.fds import Descriptors, is_open
from .._os.process import Status
from .._os.threads import NoThreadError
from .._os.waitset import WaitSet
from .._wire import ancestry, calls, codecs
from .._wire.frames import NONCE_SIZE
from .._wire.large_call import ChangedError, LargeCall, TooMuch, UnwritableError
from .._wire.request import Request
from .large_call_files import HEAD_MAX, LargeCallFiles
from .worker import Worker

if TYPE_CHECKING:
    from .._call.call_cgroup import CallCgroup

__all__ = ["WorkerCall", "drop", "encode_call", "encode_large_call"]

# Files up to this size are closed in a millisecond or two.
_FREED_AT_ONCE = 32 << 20

# errnos for descriptors that do not exist, and for more descriptors than one message can carry.
_UNFIT_TO_PASS = frozenset({errno.EBADF, errno.EINVAL})


class _SingleWaitSet:
    """A wait set of one descriptor, which the event loop watches directly."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def add(self, fd: int) -> None:
        """Watch the descriptor again."""
        self._fd = fd

    def remove(self, fd: int) -> None:
        """Stop watching the descriptor."""
        if fd == self._fd:
            self._fd = -1

    def poll(self, seconds: float = 0, /) -> list[int]:
        """Return the descriptor: reading it without blocking shows whether there is data."""
        del seconds
        return [self._fd] if self._fd >= 0 else []

    def close(self) -> None:
        """Do nothing: the descriptor belongs to another object."""


class WorkerCall:
    """A `Child` that was forked before its call, and receives the call as a request."""

    __slots__ = (
        "_backend",
        "_fds",
        "_left",
        "_passed_fds",
        "_request",
        "_sent_along",
        "_stranger",
        "_worker",
        "channel",
        "end_fd",
        "fork_seconds",
        "forked_at",
        "group",
        "has_init",
        "nonce",
        "pid",
        "scratch",
        "streams",
        "suspicion",
        "waiter",
        "waitset",
    )

    talks = True
    # The worker has proved its layers before it is given a call.
    layers: Sequence[str] | None = None
    waiter: Waiter
    waitset: DescriptorSet
    streams: tuple[OutputStream, ...]

    def __init__(
        self, worker: Worker, plan: Plan, call: codecs.Call, backend: AsyncBackend, *, quiet: bool
    ) -> None:
        """Prepare to send *call* to *worker*; on failure the worker is killed.

        Raises CallableDidNotExecuteError if a descriptor can't be opened.
        """
        self._worker = worker
        worker.owner.begin()
        self._backend = backend
        self._left = False
        self._stranger = plan.options.codec != "pickle"
        self.group: CallCgroup | None = None
        self._fds = Descriptors()
        self.has_init = plan.confinement is not None and plan.confinement.init
        self.pid = worker.pid
        self.suspicion = ""
        self.end_fd = -1
        self.channel = worker.channel
        self.scratch = worker.scratch
        self.nonce = os.urandom(NONCE_SIZE)
        self.forked_at = time.monotonic()
        self.fork_seconds = 0.0
        try:
            self._prepare(plan, call, backend, quiet)
        except BaseException as exc:
            self.kill_now()
            self._close_all()
            if isinstance(exc, OSError):
                raise CallableDidNotExecuteError(
                    f"{Reason.PIPE_CREATION.value}: {exc.strerror}", reason=Reason.PIPE_CREATION
                ) from exc
            raise

    def _prepare(self, plan: Plan, call: codecs.Call, backend: AsyncBackend, quiet: bool) -> None:
        options, fds, stream = plan.options, self._fds, call.stream
        self._sent_along: list[int] = []
        self.streams = ()
        limits, rlimits = options.limits, plan.enforcement.rlimits
        if plan.enforcement.group is not None:
            from .._call import call_cgroup  # noqa: PLC0415 - only with limits

            self.group = call_cgroup.make(plan.enforcement.group)
            self._sent_along += self.group.entrances
        entrances = len(self._sent_along)
        large_call, size = call.large_call, len(stream)
        if large_call is None and size > HEAD_MAX:  # more than the socket accepts at once
            large_call = LargeCallFiles.of(stream)
        in_file = beside = False
        if large_call is not None:
            in_file, beside, size = large_call.stream >= 0, large_call.beside >= 0, large_call.size
            self._sent_along += map(fds.own, large_call.release())
        # Without sys.__stdin__, another file may have the number 0.
        stdin = options.stdin == "inherit" and sys.__stdin__ is not None and is_open(0)
        if stdin:
            self._sent_along.append(0)
        # The child of a fork server for untrusted code has no output since the fork.
        has_no_output = plan.confinement is not None and plan.confinement.codec != "pickle"
        output = options.output != "inherit" and not (has_no_output and options.output == "null")
        if output:
            null = fds.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            self.streams, stdout, stderr = open_streams(
                options.output, null, fds, self._worker.owner.encodings
            )
            self._sent_along += (stdout, stderr)
        numbers = tuple(options.pass_fds)
        self._sent_along += numbers
        self._passed_fds = call.passed_fds  # open until they are sent
        self._sent_along += call.passed_fds.fds
        self._request = Request(
            self.nonce,
            size if in_file else stream,
            in_file,
            # Untrusted code could remove a mark that is not a seal, and claim not to have begun.
            quiet and not (self._stranger and not memfd.sealable()),
            plan.streaming,
            options.on_progress is not None,
            backend.name,
            backend.uvloop,
            stdin,
            output,
            numbers,
            tuple((buffer_ref.which, *buffer_ref[1:]) for buffer_ref in call.buffer_refs),
            len(call.passed_fds.fds),
            options.codec,
            None if limits is None else limits.result_size,
            None if rlimits is None else tuple(rlimits),
            entrances,
            beside,
            call.texts,
            options.exit_timeout,
        ).encode()
        # The event loop itself cannot suspend watching a descriptor.
        if plan.streaming or self.streams or options.on_progress or self._stranger:
            self.waitset = WaitSet()
            self.waitset.add(self.channel)
            for output_stream in self.streams:
                self.waitset.add(output_stream.fd)
        else:
            self.waitset = _SingleWaitSet(self.channel)
        fd = self.waitset.fileno()
        if backend.loop is not None:
            self.waiter = AsyncioWaiter(backend.loop, fd, self.kill_now)
        else:
            self.waiter = AnyioWaiter(fd)
        self._worker.on_end = self.waiter.ring

    def launch(self) -> None:
        """Send the call. If the child has ended, the report of its end ends the call, too.

        Raises CallableDidNotExecuteError if the call can't be sent: the child would wait for ever.
        """
        self.forked_at = time.monotonic()
        channel = _socket.socket(fileno=self.channel)
        try:
            sent = messages.send(channel, self._request, self._sent_along)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the child has ended; its end will be reported
        except OSError as exc:
            why = exc.strerror or str(exc)
            unfit = exc.errno in _UNFIT_TO_PASS
            reason = Reason.ARGUMENT_ENCODING if unfit else Reason.PIPE_CREATION
            raise self._unsendable(why, reason) from exc
        else:
            if sent < len(self._request):
                why = "the socket's buffer is too small"
                raise self._unsendable(why, Reason.ARGUMENT_ENCODING)
        finally:
            channel.detach()
            for fd in self._sent_along:
                self._fds.close(fd)
            if self.group is not None:
                self.group.close_entrances()
        if self._worker.ended:
            self.waiter.ring()

    def _unsendable(self, why: str, reason: Reason) -> CallableDidNotExecuteError:
        self.kill_now()
        return CallableDidNotExecuteError(
            f"the call could not be sent to its child: {why}", reason=reason, pid=self.pid
        )

    @property
    def lost(self) -> str:
        """Why the fork server died, or ""."""
        return self._worker.lost

    def go(self) -> None:
        """Do nothing: the child waits only for its call."""

    def signal(self, number: int) -> None:
        """Send the child a signal, if it has not ended."""
        self._worker.signal(number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the process group of the child."""
        self._worker.signal(number, group=True)

    def has_ended(self) -> bool:
        """Return whether the server has reported the end of the child."""
        return self._worker.ended

    def reap(self, *, spare: bool = False) -> Status:
        """Return how the child ended; the server has collected it."""
        del spare
        return self._worker.status

    def reap_adopted(self) -> bool:
        """Empty the control group or process namespace; the server reaps all other processes."""
        more = self.has_init and not self._worker.group_is_gone()
        return more or not (self.group is None or self.group.dissolve())

    def waits_for_trackers(self) -> bool:
        """Return False: the server waits for trackers."""
        return False

    def leave(self) -> bool:
        """Let the server drain the child, and with it the processes in its control group."""
        if not self._worker.ended:
            self._worker.group, self.group = self.group, None
        self._worker.owner.drain(self._worker)
        self._left = True
        return True

    def kill_now(self) -> None:
        """Kill the child."""
        self._worker.owner.discard(self._worker)

    give_up = kill_now

    def release(self) -> None:
        """Close all descriptors of the call; later, if the server drains the child."""
        self._worker.on_end = None
        if self._left:
            eventloop.soon(self._backend, self._close_all)
        else:
            self._close_all()

    def _close_all(self) -> None:
        if self._left and self._stranger:
            # The whole answer has been received, so untrusted code need not run any longer.
            self._worker.owner.discard(self._worker)
        self._close()
        self._worker.close()
        self._worker.owner.finish()

    def _close(self) -> None:
        if hasattr(self, "waiter"):
            self.waiter.close()
        if hasattr(self, "waitset"):
            self.waitset.close()
        self._fds.close_all()
        if self.group is not None:
            self.group.dissolve()


@functools.lru_cache(1024)  # a file system that hangs would block the event loop
def _is_no_file(name: str) -> bool:
    return not os.path.isfile(name)


def _is_confined(name: str) -> bool:
    del name
    return True


def encode_call(plan: Plan, functions: ancestry.Functions | None) -> codecs.Call:
    """Pickle a call for a fork server's child, at once.

    *functions* are those that the server has because it is a copy of this process.
    Raises TooMuch if pickling would take long, CallableDidNotExecuteError if it fails.
    """
    try:
        return calls.dump_at_once(plan.fn, plan.args, functions, _needs_source(plan))
    except (KeyboardInterrupt, TooMuch):
        raise  # a KeyboardInterrupt comes from the user
    except BaseException as exc:  # a SystemExit of a __reduce__ would end the event loop
        raise _unpicklable(exc) from exc


async def encode_large_call(
    plan: Plan, functions: ancestry.Functions | None, *, by_value: bool
) -> codecs.Call:
    """Pickle a call in a thread of its own, and write large data to files.

    Raises CallableDidNotExecuteError if pickling or writing the files fails. If this coroutine
    is cancelled, the thread stops as soon as it can, and nothing waits for it.
    """
    large_call = LargeCallFiles()
    dump = functools.partial(calls.dump_into, large_call, by_value=by_value)
    context = contextvars.copy_context()

    def work() -> codecs.Call:
        try:
            return context.run(dump, plan.fn, plan.args, functions, _needs_source(plan))
        finally:
            large_call.finish()

    encoding = Decoding(INLINE_MAX + 1, work, otherwise=large_call.finish, name="encode")
    try:
        await encoding.wait()
    except BaseException:
        drop(large_call)
        raise
    finally:
        encoding.close()
    failure = encoding.failure
    if failure is not None:
        drop(large_call)
        if isinstance(failure, KeyboardInterrupt):
            raise failure
        raise _unpicklable(failure) from failure
    call: codecs.Call = encoding.value
    return call


def drop(large_call: LargeCall) -> None:
    """Close the files of a call that is not sent."""
    if large_call.total <= _FREED_AT_ONCE:
        large_call.drop()
    else:  # the kernel needs some time to free the memory
        Decoding(INLINE_MAX + 1, large_call.drop, otherwise=large_call.drop, name="free").close()


def _needs_source(plan: Plan) -> calls.NeedsSource:
    confined = plan.confinement is not None and plan.confinement.read is not None
    return _is_confined if confined else _is_no_file


def _unpicklable(exc: BaseException) -> CallableDidNotExecuteError:
    reason, transient = Reason.ARGUMENT_ENCODING, None
    # Pickling may import a module, and open files, so the cause may be temporary.
    cause = exc.__cause__ if isinstance(exc, pickle.PicklingError) else exc
    if isinstance(cause, OSError) and may_pass(cause.errno):
        transient = True
    if isinstance(exc, ChangedError):
        transient = True  # a retry may find the argument unchanged
        text = (
            f"an argument of fn was changed while it was pickled: {exc} (large arguments are "
            "pickled in a thread: do not change them until fn has begun, or pass a copy)"
        )
    elif isinstance(exc, NoThreadError):
        reason = Reason.PIPE_CREATION
        text = f"no thread could be started to pickle fn's arguments: {exc.strerror}"
    elif isinstance(exc, UnwritableError):
        reason = Reason.PIPE_CREATION
        text = f"fn's arguments could not be written to a file in memory: {exc.strerror}"
    else:
        text = (
            "fn or its arguments could not be pickled for a fork server's child: "
            f"{type(exc).__name__}: {exc} (start='fork' needs no pickling)"
        )
    return CallableDidNotExecuteError(text, reason=reason, transient=transient)
