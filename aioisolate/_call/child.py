"""The interface of a child that a supervision uses; direct and fork servers' children have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .._os.process import Status
from .eventloop import Waiter
from .output import OutputStream

if TYPE_CHECKING:
    from .call_cgroup import CallCgroup

__all__ = ["Child", "DescriptorSet"]


class DescriptorSet(Protocol):
    """The descriptors that a call waits for: a `WaitSet`, or a single descriptor."""

    def fileno(self) -> int: ...
    def add(self, fd: int) -> None: ...
    def remove(self, fd: int) -> None: ...
    def poll(self, seconds: float = 0, /) -> list[int]: ...
    def close(self) -> None: ...


class Child(Protocol):
    """A child and the objects that belong to it in this process.

    Attributes:
        pid: the process id; 0 before the child is launched.
        end_fd: readable once the child has ended, or -1: call `has_ended` instead.
        waitset: the descriptors that the call waits for.
        waiter: waits for the wait set.
        channel: the descriptor from which the child's frames are read.
        scratch: the scratch file.
        nonce: the marker of the child's frames.
        streams: the child's output streams, stdout and stderr, if they are read in this process.
        forked_at: the time of the fork, on the clock of time.monotonic.
        fork_seconds: the duration of the fork itself.
        talks: whether the child sends its answer while it runs, so that its channel is watched from
            the beginning, and marks the scratch file when fn starts.
        lost: why the fork server died, if it died and the child with it; else "".
        group: the control group of the child, or None.
        has_init: whether the child is in a process namespace of its own, which ends with it.
        suspicion: a possible reason for which fn blocks, for the message if its deadline passes;
            or "".
        layers: the planned layers, if the child proves them and then waits for `go`; else None.
    """

    pid: int
    end_fd: int
    waitset: DescriptorSet
    waiter: Waiter
    channel: int
    scratch: int
    nonce: bytes
    streams: tuple[OutputStream, ...]
    forked_at: float
    fork_seconds: float
    talks: bool
    group: CallCgroup | None
    has_init: bool
    suspicion: str
    layers: Sequence[str] | None

    @property
    def lost(self) -> str: ...

    def launch(self) -> None:
        """Start the child. Raises CallableDidNotExecuteError, and leaves nothing behind."""

    def go(self) -> None:
        """Let the child call fn: its layers are as planned."""

    def signal(self, number: int) -> None:
        """Send the child a signal, if it has not ended."""

    def signal_group(self, number: int) -> None:
        """Send a signal to the child's process group."""

    def has_ended(self) -> bool:
        """Return whether the child's end has been reported, where there is no `end_fd`."""
        ...

    def reap(self, *, spare: bool = False) -> Status:
        """Collect the status of the ended child. *spare*: let its trackers finish their work."""
        ...

    def reap_adopted(self) -> bool:
        """Collect the child's orphans and its group's processes; return whether more may remain."""
        ...

    def waits_for_trackers(self) -> bool:
        """Return whether spared trackers have not finished their work."""
        ...

    def leave(self) -> bool:
        """Leave the end of an answered child to the fork server; return False if there is none."""
        ...

    def kill_now(self) -> None:
        """Kill the child; its end is handled without the caller's task."""

    def give_up(self) -> None:
        """Watch, in the background, a child that was killed and has not ended."""

    def release(self) -> None:
        """Close all resources of the call. The child must have ended, or been left."""
