"""The order in which a child may send its frames.

              STARTED              VALUE, RAISED, LOST
    BORN ----------------> RUNNING --------------------> DONE
      |                    |    ^                         ^
      |                    +----+ ITEM, PROGRESS          |
      +------------------------ FAILED -------------------+

A confined child begins at UNPROVEN; READY makes it BORN. A child that is BORN may send one IMPORTED
frame.

If fn has left threads or processes that are still running, the answer comes between two LEAVING
frames:

            LEAVING            VALUE, RAISED, LOST          LEAVING
    RUNNING --------> LEAVING --------------------> ENDING --------> DONE

The second LEAVING frame names the threads and processes that did not end in time. PROGRESS may come
in any of these states.

Frames after DONE are ignored: the first complete answer counts.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TypeAlias

from . import safe_text
from .fd_passing import FDS_MAX
from .frames import FrameDecoder, Kind, ProtocolError

__all__ = ["Conversation", "Message", "State"]

# A frame: its kind, its body in pieces, the descriptors that came with it.
Message: TypeAlias = tuple[Kind, Sequence[bytes], Sequence[int]]


class State(enum.Enum):
    """The state of the child, as proved by its frames."""

    UNPROVEN = "the child had not reported its layers"
    BORN = "the child had sent no frame"
    RUNNING = "fn had been started"
    LEAVING = "fn had ended"
    ENDING = "the child had sent its answer, and was ending"
    DONE = "the child had sent its answer"


_TRANSITIONS = {
    (State.UNPROVEN, Kind.READY): State.BORN,
    (State.UNPROVEN, Kind.FAILED): State.DONE,
    (State.BORN, Kind.STARTED): State.RUNNING,
    (State.BORN, Kind.FAILED): State.DONE,
    (State.BORN, Kind.IMPORTED): State.BORN,
    (State.RUNNING, Kind.ITEM): State.RUNNING,
    (State.RUNNING, Kind.PROGRESS): State.RUNNING,
    (State.RUNNING, Kind.VALUE): State.DONE,
    (State.RUNNING, Kind.RAISED): State.DONE,
    (State.RUNNING, Kind.LOST): State.DONE,
    (State.RUNNING, Kind.LEAVING): State.LEAVING,
    (State.LEAVING, Kind.PROGRESS): State.LEAVING,
    (State.LEAVING, Kind.VALUE): State.ENDING,
    (State.LEAVING, Kind.RAISED): State.ENDING,
    (State.LEAVING, Kind.LOST): State.ENDING,
    (State.ENDING, Kind.PROGRESS): State.ENDING,
    (State.ENDING, Kind.LEAVING): State.DONE,
}
_ANSWERS = frozenset({Kind.VALUE, Kind.RAISED, Kind.LOST, Kind.FAILED})


class Conversation:
    """The frames that one child has sent so far.

    Args:
        nonce: the nonce that the child's frames carry.
        limit: the maximum size of a result or an item in bytes, or None.
        plain: only plain data is accepted, so no descriptors.
        confined: the child must report its layers first.
        unasked: kinds that this call does not use. Its child sends none of them, so they come from
            code that tries to keep this process busy.

    Attributes:
        state: the child's state.
        started: fn was about to be called.
        answer: the frame that ended the conversation, or None.
        imported: the modules imported to load the call, if that took long; else empty.
        fault: the error after the frames that `receive` has returned, or None.
    """

    __slots__ = (
        "_decoder",
        "_plain",
        "_unasked",
        "_unclaimed",
        "answer",
        "fault",
        "imported",
        "started",
        "state",
    )

    def __init__(
        self,
        nonce: bytes,
        limit: int | None = None,
        *,
        plain: bool = False,
        confined: bool = False,
        unasked: frozenset[Kind] = frozenset(),
    ) -> None:
        self._decoder = FrameDecoder(nonce, limit)
        self._plain = plain
        self._unasked = unasked
        self.state = State.UNPROVEN if confined else State.BORN
        self.started = False
        self.answer: Message | None = None
        self.fault: ProtocolError | None = None
        self.imported = b""
        self._unclaimed: list[int] = []

    def receive(self, data: bytes, fds: Sequence[int] = ()) -> Sequence[Message]:
        """Parse data from the channel; return the ITEM, PROGRESS, READY and LEAVING frames.

        `safe_text.load_progress` accepts each PROGRESS frame that is returned.

        Descriptors come no later than the frame that they belong to, and in the same order.

        Raise ProtocolError if the data is invalid; if valid frames precede the error, return those
        and keep the error as *fault*.
        """
        if self.state is State.DONE or self.fault is not None:
            return ()
        if fds and self._plain:
            raise ProtocolError("the channel carries descriptors, and its frames are plain data")
        between: list[Message] = []
        try:
            self._receive(data, fds, between)
        except ProtocolError as exc:
            if not between:
                raise
            self.fault = exc
        return between

    def _receive(self, data: bytes, fds: Sequence[int], between: list[Message]) -> None:
        self._unclaimed += fds
        if len(self._unclaimed) > FDS_MAX:  # one frame announces all descriptors of a message
            raise ProtocolError("the channel carries more descriptors than its frames announce")
        for kind, body, passed_fds in self._decoder.feed(data):
            after = _TRANSITIONS.get((self.state, kind))
            again = kind is Kind.IMPORTED and self.imported
            if after is None or kind in self._unasked or again:
                raise ProtocolError(f"a {kind.name} frame came when {self.state.value}")
            self.state = after
            if passed_fds > len(self._unclaimed):
                raise ProtocolError(
                    f"a {kind.name} frame came without its descriptors: it has {passed_fds}, and "
                    f"{len(self._unclaimed)} came "
                    "(this process may have no descriptor left, see RLIMIT_NOFILE)"
                )
            message = kind, body, self._unclaimed[:passed_fds]
            del self._unclaimed[:passed_fds]
            if kind is Kind.PROGRESS:
                safe_text.load_progress(body)  # the caller relies on this check
            if kind is Kind.STARTED:
                self.started = True
            elif kind is Kind.IMPORTED:
                self.imported = b"".join(body)
            elif kind in _ANSWERS:
                self.answer = message
            else:
                between.append(message)
            if after is State.DONE:
                break
