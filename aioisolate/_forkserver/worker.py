"""The user's side of a child of a fork server."""

from __future__ import annotations

import _socket
import errno
import functools
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .._call.diagnosis import why_unconfined
from .._errors import CallableDidNotExecuteError, Reason, may_pass
from .._os import memfd
from .._os.fds import Descriptors
from .._os.killing import kill_through_descriptor, signal_group
from .._os.process import Status, group_is_gone, has_ended, is_child_of
from .._os.unpatched import select
from .._wire.conversation import Conversation, Message
from .._wire.frames import NONCE_SIZE, Kind, ProtocolError, encode, parse_failure, parse_layers
from .._wire.shared_constants import PID_AT

if TYPE_CHECKING:
    from .._call.call_cgroup import CallCgroup

__all__ = ["Worker", "WorkerOwner"]

# Maximum size of the frames about a child's layers, which are far smaller.
_PROOF_MAX = 16 * 1024

_signal: Any = signal


class WorkerOwner(Protocol):
    """The methods of `ForkServer` that a worker uses.

    A protocol, because the module of that class imports this one.
    """

    @property
    def pid(self) -> int: ...

    @property
    def encodings(self) -> tuple[str, str]: ...

    def is_owned(self) -> bool:
        """Return whether this process, and not the one it was forked from, started the server."""
        ...

    def kill(self, pid: int, number: int, *, group: bool) -> None:
        """Make the server send a signal to one of its children."""

    def drain(self, worker: Worker) -> None:
        """Watch a worker that has returned its result until it has ended."""

    def begin(self) -> None:
        """Note that a worker has begun a call."""

    def finish(self) -> None:
        """Note that a worker has ended a call."""

    def discard(self, worker: Worker) -> None:
        """Kill a worker that is not needed."""


class Worker:
    """A process that a fork server has forked, and that waits for a call.

    Attributes:
        pid: the process id.
        channel, scratch, pidfd: descriptors; the last is -1 where there are none.
        born: when the server reported the process, on the clock of time.monotonic.
        ended: whether the end of the process has been reported.
        status: how the process ended, once it has.
        lost: why the server died, or "" if it has not.
        on_end: called when the process has ended.
        group: the control group to remove when the process has ended, or None.
        proved: whether the process has proved that its layers are engaged.
    """

    __slots__ = (
        "_fds",
        "_theirs",
        "born",
        "channel",
        "ended",
        "group",
        "lost",
        "on_end",
        "owner",
        "pid",
        "pidfd",
        "proved",
        "scratch",
        "status",
    )

    def __init__(self, owner: WorkerOwner) -> None:
        """Open the descriptors of the worker, before there is a process. Raises OSError."""
        self.owner = owner
        self.pid = 0
        self.pidfd = -1
        self._fds = fds = Descriptors()
        try:
            here, there = _socket.socketpair()
            self.channel = fds.own(here.detach())
            self._theirs = fds.own(there.detach())
            self.scratch = memfd.create(fds)
            os.set_blocking(self.channel, False)
        except OSError:
            fds.close_all()
            raise
        self.born = time.monotonic()
        self.ended = False
        self.lost = ""
        self.proved = False
        self.status = Status(None)
        self.on_end: Callable[[], object] | None = None
        self.group: CallCgroup | None = None

    def to_pass(self) -> tuple[int, int]:
        """Return the server's descriptors: its end of the channel, and the scratch file."""
        return self._theirs, self.scratch

    def passed(self) -> None:
        """Close the server's end of the channel, which the server has received."""
        self._fds.close(self._theirs)

    def adopt(self, pid: int, pidfd: int) -> None:
        """Note the process of the worker, and own *pidfd*."""
        self.pid = pid
        if pidfd >= 0:
            self.pidfd = self._fds.own(pidfd)

    def end(self, status: Status, *, lost: str = "") -> None:
        """Note that the process has ended; *lost*: why its server died, if both died."""
        self.ended = True
        self.status = status
        self.lost = lost
        self.dissolve()
        if self.on_end is not None:
            self.on_end()

    def dissolve(self) -> bool:
        """Kill the processes left in the control group; return False if some are still dying."""
        if self.group is not None and self.group.dissolve():
            self.group = None
        return self.group is None

    def prove(self, layers: Sequence[str]) -> bool:
        """Read the frames about the child's layers; return False if none has arrived yet.

        Raises CallableDidNotExecuteError if the layers are not *layers*.
        """
        if self.proved:
            return True
        conversation = Conversation(b"\0" * NONCE_SIZE, confined=True)
        try:
            data = os.read(self.channel, _PROOF_MAX)
            if data == _proof(tuple(layers)):  # the usual case
                self.proved = True
                return True
            heard = conversation.receive(data)
            if conversation.fault is not None:
                raise conversation.fault
        except BlockingIOError:
            return False
        except (ProtocolError, ConnectionResetError) as exc:
            raise self._unconfined(str(exc)) from exc
        if not heard:
            raise self._unconfined(*_failure(conversation.answer))
        wrong = why_unconfined(layers, parse_layers(heard[0][1]))
        if wrong:
            raise self._unconfined(wrong)
        self.proved = True
        return True

    def _unconfined(self, why: str, number: int = 0) -> CallableDidNotExecuteError:
        error = CallableDidNotExecuteError(
            f"the child could not be confined: {why}",
            reason=Reason.CHILD_SETUP,
            pid=self.pid,
            transient=may_pass(number) if number else None,
        )
        error.__cause__ = OSError(number, why) if number else None
        return error

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process or to its process group, if it has not ended."""
        if self.ended or not self.owner.is_owned():
            return
        if self.pidfd >= 0:
            try:
                if group:
                    signal_group(self.pidfd, number)
                else:
                    _signal.pidfd_send_signal(self.pidfd, number)
                return
            except ProcessLookupError:
                return
            except OSError as exc:
                # EINVAL: before Linux 6.9. EPERM: the child has another user, and this process has
                # dropped the right to signal it since; or a filter forbids this call.
                if exc.errno not in (errno.EINVAL, errno.EPERM):
                    raise
                if exc.errno == errno.EPERM and number == signal.SIGKILL:
                    kill_through_descriptor(self.pid, functools.partial(has_ended, self.pidfd))
        # Only the parent of a process can safely signal it by its number.
        self.owner.kill(self.pid, number, group=group)

    def seems_ended(self) -> bool:
        """Return whether the process has ended, even if the server has not reported it."""
        if self.pidfd >= 0:
            return has_ended(self.pidfd)
        return not is_child_of(self.owner.pid, self.pid)

    def noted_pid(self, until: float) -> int:
        """Return the process id that the process itself has noted; 0 if there was no process.

        For a process that its server has not reported before it ended. Blocks until the process has
        ended, at most until *until* on the clock of time.monotonic.
        """
        poll = select.poll()
        poll.register(self.channel, 0)  # POLLHUP: no process has the other end any more
        self._fds.close(self._theirs)
        poll.poll(max(0.0, until - time.monotonic()) * 1000)
        return int(os.pread(self.scratch, 16, PID_AT).rstrip(b"\0") or b"0")

    def group_is_gone(self) -> bool:
        """Return whether the process group is empty."""
        return self.pid <= 0 or group_is_gone(self.pid, self.pidfd)

    def close(self) -> None:
        """Close the descriptors of the worker."""
        self.pidfd = self.channel = self.scratch = -1
        self._fds.close_all()


@functools.lru_cache(32)
def _proof(layers: tuple[str, ...]) -> bytes:
    return encode(b"\0" * NONCE_SIZE, Kind.READY, ",".join(sorted(layers)).encode())


def _failure(answer: Message | None) -> tuple[str, int]:
    """Return the message of a FAILED frame, and its errno or 0."""
    if answer is None:
        return "it ended without a report", 0
    # The text is trusted: only code of this package has run in the process.
    _, number, text = parse_failure(b"".join(answer[1]).decode(errors="replace"))
    return text, number
