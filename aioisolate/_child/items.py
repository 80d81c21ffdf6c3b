"""Send the items of a generator one by one, and close it when the caller leaves the stream.

Whoever leaves a stream early, with some seconds of grace, sends SIGTERM and reads on. The generator
is closed then, as one that is iterated in the same process would be: at the place where it is.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C part of signal; it has no stubs
import functools
import os
import sys
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from .._wire import codecs
from .._wire.frames import Kind, encode
from . import coroutines, progress
from .spec import ChildSpec

if TYPE_CHECKING:
    import anyio

__all__ = ["LeftError", "LostItemError", "TooLargeError", "end_by_signal", "stream"]

_raw: Any = _signal
_SIGTERM = int(_raw.SIGTERM)
_DEFAULT = int(_raw.SIG_DFL)


class LeftError(BaseException):
    """The caller has left the stream, and the generator is closed."""


class LostItemError(Exception):
    """An item could not be sent, and the generator is closed.

    Attributes:
        item: the item.
        why: what has been raised.
        parting: what the generator has raised when it was closed, or None.
    """

    def __init__(self, item: object, why: BaseException) -> None:
        super().__init__()
        self.item = item
        self.why = why
        self.parting: BaseException | None = None


class TooLargeError(Exception):
    """An item has so many bytes, which is more than it may have."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class _Leave:
    """The handler of SIGTERM: ends fn at once where it runs, else as soon as an item is sent.

    Attributes:
        asked: it has come.
        interruptible: fn is running, and not what sends its items, whose frames must be whole.
        interrupt: what to call to end fn.
    """

    __slots__ = ("_held", "_pid", "asked", "interrupt", "interruptible")

    def __init__(self) -> None:
        self.asked = self.interruptible = False
        self.interrupt: Callable[[], object] = self._raise
        self._pid = os.getpid()
        # fn may have one of its own, later, which then counts.
        if _raw.getsignal(_SIGTERM) == _DEFAULT:
            _raw.signal(_SIGTERM, self)
            self._held = False
            # What fn forks ends by it at once, as ever; also in its first moments, in which Python
            # drops a signal that comes.
            os.register_at_fork(
                before=self._hold, after_in_parent=self._let_go, after_in_child=self._forget
            )

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if self._pid == os.getpid():
            self.asked = True
            if self.interruptible:
                self.interrupt()

    def _raise(self) -> NoReturn:
        self.interruptible = False  # so once at most
        raise GeneratorExit

    def _hold(self) -> None:
        if _raw.getsignal(_SIGTERM) is self:
            before = _raw.pthread_sigmask(_raw.SIG_BLOCK, (_SIGTERM,))
            self._held = _SIGTERM not in before

    def _let_go(self) -> None:
        if self._held:
            self._held = False
            _raw.pthread_sigmask(_raw.SIG_UNBLOCK, (_SIGTERM,))

    def _forget(self) -> None:
        if _raw.getsignal(_SIGTERM) is self:
            _raw.signal(_SIGTERM, _DEFAULT)
        self._let_go()


def end_by_signal() -> NoReturn:
    """End as a process that does not handle SIGTERM; or with the exit code that says so."""
    _raw.signal(_SIGTERM, _DEFAULT)
    try:
        _raw.raise_signal(_SIGTERM)
    except OSError:
        pass  # a filter forbids it
    os._exit(128 + _SIGTERM)


def stream(spec: ChildSpec) -> None:
    """Call fn, and send what the sync or async iterable that it returns yields.

    Each item is sent as soon as it is there; that waits until the parent has room, and fn with it.
    However it ends, a generator is closed by then.

    Raises:
        what fn and the iterable raise. TypeError: it is none.
        LostItemError: an item can't be sent.
        LeftError: nobody wants more.
    """
    leave = _Leave()
    try:
        try:
            leave.interruptible = True
            _stream(spec, leave)
        finally:
            leave.interruptible = False
    except GeneratorExit:
        if not leave.asked:
            raise
    if leave.asked:
        raise LeftError


def _stream(spec: ChildSpec, leave: _Leave) -> None:
    items = spec.fn(*spec.args)
    if hasattr(items, "__aiter__"):
        leave.interruptible = False
        coroutines.run(_stream_async(spec, items.__aiter__(), leave), spec.backend)
        return
    items = iter(items)
    try:
        try:
            for item in items:
                leave.interruptible = False
                _send(spec, item)
                if leave.asked:
                    break
                leave.interruptible = True
        finally:
            leave.interruptible = False
    except LostItemError as lost:
        try:
            _close(items)
        except BaseException as exc:  # noqa: BLE001 - told together with the other one
            lost.parting = exc
        raise
    except BaseException:
        _close(items)
        raise
    else:
        _close(items)


def _close(iterator: Any) -> None:
    # Only a generator has both; a file, say, may be wanted further.
    if hasattr(iterator, "throw") and hasattr(iterator, "close"):
        iterator.close()


async def _stream_async(spec: ChildSpec, items: AsyncIterator[Any], leave: _Leave) -> None:
    import anyio  # noqa: PLC0415 - it is there, see `coroutines.run`

    with anyio.CancelScope() as scope:
        _let_interrupt(spec, scope, leave)
        try:
            try:
                leave.interruptible = True
                async for item in items:
                    leave.interruptible = False
                    _send(spec, item)
                    if leave.asked:
                        break
                    leave.interruptible = True
            finally:
                leave.interruptible = False
        except LostItemError as lost:
            try:
                await _close_async(items)
            except BaseException as exc:  # noqa: BLE001 - told together with the other one
                lost.parting = exc
            raise
        except anyio.get_cancelled_exc_class():
            await _close_async(items)
            if not leave.asked:
                raise
        except BaseException:
            await _close_async(items)
            raise
        else:
            await _close_async(items)


def _let_interrupt(spec: ChildSpec, scope: anyio.CancelScope, leave: _Leave) -> None:
    """Have the running task cancelled if it is to be interrupted: a signal's handler can't."""
    modules = sys.modules
    if spec.backend.name == "asyncio":
        asyncio = modules["asyncio"]
        post = asyncio.get_running_loop().call_soon_threadsafe
        # Once: what the generator awaits in the end goes on.
        end = asyncio.current_task().cancel
    else:
        post = modules["trio"].lowlevel.current_trio_token().run_sync_soon
        end = scope.cancel

    def interrupt() -> None:
        if leave.interruptible:  # still
            leave.interruptible = False
            end()

    leave.interrupt = functools.partial(post, interrupt)


async def _close_async(iterator: Any) -> None:
    if hasattr(iterator, "athrow") and hasattr(iterator, "aclose"):
        await iterator.aclose()


def _send(spec: ChildSpec, item: object) -> None:
    try:
        if spec.codec != "pickle":
            from .._wire import plain_data  # noqa: PLC0415 - only where it is asked for

            body, fds = plain_data.dump(spec.codec, item), []
        else:
            body, passed_fds = codecs.dump_whole(item)
            fds = passed_fds.fds
        if spec.result_size is not None and len(body) > spec.result_size:
            raise TooLargeError(len(body))  # noqa: TRY301 - every failure goes one way
    except Exception as exc:
        # Anything else is what a handler of a signal of fn's has raised meanwhile.
        raise LostItemError(item, exc) from exc
    try:
        progress.send(spec.channel, encode(spec.nonce, Kind.ITEM, body, len(fds)), fds)
    except progress.RefusedError as exc:
        raise LostItemError(item, exc) from exc
