"""Decoding what a child has sent: at once if it is little, else in a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from .._os import threads

__all__ = ["INLINE_MAX", "Decoding", "decode"]

# Decoding less than this takes well under a millisecond, or some if somebody has made it so.
INLINE_MAX = 128 * 1024


class Decoding:
    """Work on so many bytes: done by now if they are few, else in a thread of its own.

    *size* may be more than that, for bytes that take longer.

    Not in a pool of the event loop's: its idle threads would stay, and every later fork would be
    one with other threads alive.

    Attributes:
        value: what the work has returned, once it is done.
        failure: what it has raised, or None.
    """

    __slots__ = ("_awaited", "_closing", "_helper", "_work", "failure", "value")

    def __init__(
        self,
        size: int,
        work: Callable[[], Any],
        *,
        otherwise: Callable[[], object] | None = None,
        name: str = "decode",
    ) -> None:
        """*otherwise* is called if it takes a thread and there can be none; that is a failure.

        *name* is the thread's.
        """
        self._work: Callable[[], Any] | None = work
        self.value: Any = None
        self.failure: BaseException | None = None
        self._helper: threads.Helper | None = None
        self._awaited = self._closing = False
        if size <= INLINE_MAX:
            self._run()
            return
        try:
            self._helper = threads.Helper(name, self._run)
        except OSError as exc:
            self.failure = exc
            if otherwise is not None:
                otherwise()

    def _run(self) -> None:
        work, self._work = self._work, None
        assert work is not None
        try:
            self.value = work()
        except BaseException as exc:  # noqa: BLE001 - whoever waits for it is to have it
            self.failure = exc

    async def wait(self) -> None:
        """Wait until it is done; if that is cancelled, it may be waited for again."""
        helper = self._helper
        if helper is None:
            return
        self._awaited = True
        try:
            await anyio.wait_readable(helper.fileno())
            helper.done()
            self._closing = True
        finally:
            self._awaited = False
            if self._closing:
                self.close()

    def close(self) -> None:
        """Wait for it no more. A thread ends by itself, and its result goes nowhere."""
        self._closing = True
        if self._helper is not None and not self._awaited:  # else its waiter would never wake up
            self._helper.close()
            self._helper = None


async def decode(
    size: int, work: Callable[[], Any], *, otherwise: Callable[[], object] | None = None
) -> Any:
    """Carry out *work* on so many bytes and return what it returns. Raises what it raises."""
    decoding = Decoding(size, work, otherwise=otherwise)
    try:
        await decoding.wait()
    finally:
        decoding.close()
    if decoding.failure is not None:
        raise decoding.failure
    return decoding.value
