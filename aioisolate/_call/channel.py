"""Reading what a child says: bytes and descriptors from its channel, to messages or a fault."""

from __future__ import annotations

from collections.abc import Sequence

from .._options import CallOptions
from .._os import messages
from .._os.fds import Descriptors
from .._wire.conversation import Conversation, Message
from .._wire.frames import Kind, ProtocolError, TooLarge
from .child import Child
from .verdict import KilledFor

__all__ = ["READ_SIZE", "Channel", "FaultError"]

# More than this would be memory that malloc maps and unmaps for each read.
READ_SIZE = 64 * 1024
# What nobody has asked for, by whether there are items and reports of progress to be had, and
# whether the child is trusted.
_UNASKED = {
    (items, reports, trusted): frozenset(
        [Kind.ITEM] * (not items)
        + [Kind.PROGRESS] * (not reports)
        + [Kind.IMPORTED] * (not trusted)
    )
    for items in (False, True)
    for reports in (False, True)
    for trusted in (False, True)
}


class FaultError(Exception):
    """Something is wrong with what a child says, or with hearing it.

    Attributes:
        cause: what to kill it for.
    """

    def __init__(self, cause: KilledFor, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


class Channel:
    """This side of a child's channel.

    Attributes:
        conversation: what has been said so far.
        received: the descriptors that came.
    """

    __slots__ = ("_child", "conversation", "received")

    def __init__(self, child: Child, options: CallOptions, *, items: bool) -> None:
        """*items*: fn is a generator, whose items are wanted."""
        self._child = child
        limits = options.limits
        self.received = Descriptors()
        self.conversation = Conversation(
            child.nonce,
            None if limits is None else limits.result_size,
            plain=options.codec != "pickle",
            confined=child.layers is not None,
            unasked=_UNASKED[items, options.on_progress is not None, options.codec == "pickle"],
        )

    def read(self) -> tuple[int, Sequence[Message]]:
        """Read once what is there: how many bytes, and what is said between beginning and answer.

        0 bytes: the other side is closed. Raises BlockingIOError if nothing is there, FaultError.
        """
        try:
            data, fds, cut = messages.receive_on(self._child.channel, READ_SIZE)
        except BlockingIOError:
            raise
        except ConnectionResetError:
            return 0, ()  # it ended without having read what it was sent
        except OSError as exc:
            text = f"reading its channel failed: {exc.strerror}"
            raise FaultError(KilledFor.CHANNEL_READ, text) from exc
        for fd in fds:
            self.received.own(fd)
        if cut:
            raise FaultError(
                KilledFor.CHANNEL_READ,
                "this process may not open the descriptors that came with its answer "
                "(RLIMIT_NOFILE)",
            )
        try:
            return len(data), self.conversation.receive(data, fds) if data else ()
        except ProtocolError as exc:
            raise _fault(exc) from exc

    def fault(self) -> FaultError:
        """Return what is wrong behind what `read` has returned last; something is."""
        assert self.conversation.fault is not None
        return _fault(self.conversation.fault)


def _fault(exc: ProtocolError) -> FaultError:
    if not isinstance(exc, TooLarge):
        return FaultError(KilledFor.PROTOCOL, str(exc))
    item = exc.kind is Kind.ITEM
    cause = KilledFor.ITEM_TOO_LARGE if item else KilledFor.RESULT_TOO_LARGE
    return FaultError(cause, str(exc))
