"""What a supervision needs to know of a child, however that came about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .._os.process import Status
from .eventloop import Waiter
from .output import OutputStream

if TYPE_CHECKING:
    from .call_cgroup import CallCgroup

__all__ = ["Child", "Members"]


class Members(Protocol):
    """The descriptors that a call waits for."""

    def fileno(self) -> int: ...
    def add(self, fd: int) -> None: ...
    def remove(self, fd: int) -> None: ...
    def poll(self, seconds: float = 0, /) -> list[int]: ...
    def close(self) -> None: ...


class Child(Protocol):
    """A child and all that belongs to it on this side.

    Attributes:
        pid: its process id; 0 before it is launched.
        end_fd: readable once it has ended, or -1: `has_ended` tells.
        waitset: what the call waits for.
        waiter: how it waits.
        channel: where the child's frames arrive.
        scratch: the scratch file.
        nonce: what its frames are marked with.
        streams: its output streams, stdout and stderr, if they are read here.
        forked_at: when, on the clock of time.monotonic.
        fork_seconds: how long the fork itself took.
        talks: it speaks once, when it has its answer, so its channel is watched from the
            beginning; and it leaves a mark in the scratch file when it starts.
        lost: why its fork server died, and it with that, or "".
        group: the control group that it is in, or None.
        has_init: it is in a process namespace of its own, which ends with it.
        suspicion: what may have kept fn from its end if its deadline passes, or "".
        layers: what confines it, if it is to tell and then to wait for `go`; else None.
    """

    pid: int
    end_fd: int
    waitset: Members
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
        """Start it. Raises CallableDidNotExecuteError, and leaves nothing behind, if that fails."""

    def go(self) -> None:
        """Let it call fn: its layers are what they should be."""

    def signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""

    def signal_group(self, number: int) -> None:
        """Send a signal to its process group."""

    def has_ended(self) -> bool:
        """Tell whether its end has been reported, where `end_fd` does not tell."""
        ...

    def reap(self, *, spare: bool = False) -> Status:
        """Collect its status; it has ended. *spare*: let its trackers do their work."""
        ...

    def reap_adopted(self) -> bool:
        """Collect orphans of it, and whoever is in its group; tell if there may be more."""
        ...

    def waits_for_trackers(self) -> bool:
        """Return whether trackers that were spared have something to do yet."""
        ...

    def leave(self) -> bool:
        """Let somebody else see it off now that it has answered; False if there is nobody."""
        ...

    def kill_now(self) -> None:
        """Kill it, and see to its end without anyone awaiting that."""

    def give_up(self) -> None:
        """Go on watching it in the background: it does not end although it was killed."""

    def release(self) -> None:
        """Close everything that belonged to the call. The child must be gone, or left."""
