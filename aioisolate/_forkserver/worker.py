"""A fork server's child, seen from the process that it works for."""

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
from .._child.execution import PID_AT
from .._errors import CallableDidNotExecuteError, Reason, may_pass
from .._os import memfd
from .._os.fds import Descriptors
from .._os.killing import kill_through_descriptor, signal_group
from .._os.process import Status, group_is_gone, has_ended, is_child_of
from .._os.unpatched import select
from .._wire.conversation import Conversation, Message
from .._wire.frames import NONCE_SIZE, Kind, ProtocolError, encode, parse_failure, parse_layers

if TYPE_CHECKING:
    from .._call.call_cgroup import CallCgroup

__all__ = ["Worker", "WorkerOwner"]

# What a child says of its confinement is far less.
_PROOF_MAX = 16 * 1024

_signal: Any = signal


class WorkerOwner(Protocol):
    """What a worker needs of its fork server, a `ForkServer`.

    A protocol, because the module of that class imports this one.
    """

    @property
    def pid(self) -> int: ...

    @property
    def encodings(self) -> tuple[str, str]: ...

    def is_owned(self) -> bool:
        """Tell whether this process started it, and is not a forked copy of that one."""
        ...

    def kill(self, pid: int, number: int, *, group: bool) -> None:
        """Have the server send a signal to one of its children."""

    def drain(self, worker: Worker) -> None:
        """Watch a ward that has given its answer until it is gone."""

    def begin(self) -> None:
        """Note that a call has begun in one of its wards."""

    def finish(self) -> None:
        """Note that such a call is over."""

    def discard(self, worker: Worker) -> None:
        """Kill a ward that nobody wants."""


class Worker:
    """A process that a fork server has forked, waiting for a call.

    Attributes:
        pid: its process id.
        channel, scratch, pidfd: descriptors; the last is -1 where there are none.
        born: when it was announced, on the clock of time.monotonic.
        ended: its end has been reported.
        status: how it ended, once it has.
        lost: why its server died, or "": it has not.
        on_end: called when it has ended.
        group: the control group to be dissolved then, or None.
        proved: it has told that it is confined as it should be.
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
        """Open what it needs, before there is a process. Raises OSError."""
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
        """Return what its server must get: its end of the channel, and the scratch file."""
        return self._theirs, self.scratch

    def passed(self) -> None:
        """Note that the server has got it."""
        self._fds.close(self._theirs)

    def adopt(self, pid: int, pidfd: int) -> None:
        """Note which process it has become."""
        self.pid = pid
        if pidfd >= 0:
            self.pidfd = self._fds.own(pidfd)

    def end(self, status: Status, *, lost: str = "") -> None:
        """Note that it has ended; *lost*: with its server, and why that has."""
        self.ended = True
        self.status = status
        self.lost = lost
        self.dissolve()
        if self.on_end is not None:
            self.on_end()

    def dissolve(self) -> bool:
        """Kill whoever is left in its control group; False if somebody is dying: try again."""
        if self.group is not None and self.group.dissolve():
            self.group = None
        return self.group is None

    def prove(self, layers: Sequence[str]) -> bool:
        """Hear what it says of its confinement; False: it has said nothing yet.

        Raises CallableDidNotExecuteError if that is not *layers*.
        """
        if self.proved:
            return True
        conversation = Conversation(b"\0" * NONCE_SIZE, confined=True)
        try:
            data = os.read(self.channel, _PROOF_MAX)
            if data == _proof(tuple(layers)):  # as always, if all is well
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
        """Send a signal to it or to its process group, if it has not ended."""
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
                # EINVAL: before Linux 6.9. EPERM: it has another user, and this process has given
                # up the right to signal it since; or a filter forbids this call.
                if exc.errno not in (errno.EINVAL, errno.EPERM):
                    raise
                if exc.errno == errno.EPERM and number == signal.SIGKILL:
                    kill_through_descriptor(self.pid, functools.partial(has_ended, self.pidfd))
        # Only its parent can name it safely by its number.
        self.owner.kill(self.pid, number, group=group)

    def seems_ended(self) -> bool:
        """Tell whether it has ended, without its server, which does not answer, having told."""
        if self.pidfd >= 0:
            return has_ended(self.pidfd)
        return not is_child_of(self.owner.pid, self.pid)

    def noted_pid(self, until: float) -> int:
        """Return its process id, which it has noted itself; 0 if there never was a process.

        For one that its server, which is dead, has not told of. Blocks until it has ended, at most
        *until* then, on the clock of time.monotonic.
        """
        poll = select.poll()
        poll.register(self.channel, 0)  # POLLHUP: nobody has the other end any more
        self._fds.close(self._theirs)
        poll.poll(max(0.0, until - time.monotonic()) * 1000)
        return int(os.pread(self.scratch, 16, PID_AT).rstrip(b"\0") or b"0")

    def group_is_gone(self) -> bool:
        """Tell whether nobody is left of its process group."""
        return self.pid <= 0 or group_is_gone(self.pid, self.pidfd)

    def close(self) -> None:
        """Close what is open of it here."""
        self.pidfd = self.channel = self.scratch = -1
        self._fds.close_all()


@functools.lru_cache(32)
def _proof(layers: tuple[str, ...]) -> bytes:
    return encode(b"\0" * NONCE_SIZE, Kind.READY, ",".join(sorted(layers)).encode())


def _failure(answer: Message | None) -> tuple[str, int]:
    """Tell from a FAILED frame what has failed, and the errno or 0."""
    if answer is None:
        return "it ended without a word", 0
    # Nobody's code but ours has run in it.
    _, number, text = parse_failure(b"".join(answer[1]).decode(errors="replace"))
    return text, number
