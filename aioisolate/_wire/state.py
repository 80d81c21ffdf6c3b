"""The order in which a child's frames may come.

              STARTED              VALUE, RAISED, LOST
    BORN ----------------> RUNNING --------------------> DONE
      |                    |    ^                         ^
      |                    +----+ ITEM, PROGRESS          |
      +------------------------ FAILED -------------------+

Whatever follows DONE is not looked at: the first whole answer counts.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from .frames import Frame, FrameDecoder, Kind, ProtocolError

__all__ = ["Conversation", "State"]


class State(enum.Enum):
    """How far the child has got, as far as its frames prove it."""

    BORN = "the child has not said anything"
    RUNNING = "fn was about to be called"
    DONE = "the child has given its answer"


_TRANSITIONS = {
    (State.BORN, Kind.STARTED): State.RUNNING,
    (State.BORN, Kind.FAILED): State.DONE,
    (State.RUNNING, Kind.ITEM): State.RUNNING,
    (State.RUNNING, Kind.PROGRESS): State.RUNNING,
    (State.RUNNING, Kind.VALUE): State.DONE,
    (State.RUNNING, Kind.RAISED): State.DONE,
    (State.RUNNING, Kind.LOST): State.DONE,
}


class Conversation:
    """What one child has said so far.

    Attributes:
        state: how far it has got.
        started: fn was about to be called.
        answer: the frame that ended the conversation, or None.
    """

    __slots__ = ("_decoder", "answer", "started", "state")

    def __init__(self, nonce: bytes) -> None:
        self._decoder = FrameDecoder(nonce)
        self.state = State.BORN
        self.started = False
        self.answer: Frame | None = None

    def receive(self, data: bytes) -> Sequence[Frame]:
        """Take more bytes from the channel; return the ITEM and PROGRESS frames among them.

        Raises ProtocolError if they make no sense.
        """
        if self.state is State.DONE:
            return ()
        between: list[Frame] = []
        for frame in self._decoder.feed(data):
            kind = frame[0]
            after = _TRANSITIONS.get((self.state, kind))
            if after is None:
                raise ProtocolError(f"a {kind.name} frame came when {self.state.value}")
            self.state = after
            if kind is Kind.STARTED:
                self.started = True
            elif after is State.DONE:
                self.answer = frame
                break
            else:
                between.append(frame)
        return between
