"""Send the items of a generator one by one, and close it when the caller leaves the stream.

When the caller leaves a stream early, with a grace period, the parent sends SIGTERM and continues
to read. The child then closes the generator at its current position, as if the caller iterated over
the generator in the same process.
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
        why: the exception that prevented sending.
        closing_error: the exception that the generator raised when it was closed, or None.
    """

    def __init__(self, item: object, why: BaseException) -> None:
        super().__init__()
        self.item = item
        self.why = why
        self.closing_error: BaseException | None = None


class TooLargeError(Exception):
    """An item is larger than allowed; *size* is its number of bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class _SigtermHandler:
    """The handler of SIGTERM: end fn at once if it is running, else after the current item is sent.

    Attributes:
        asked: whether SIGTERM has been received.
        interruptible: whether fn is running. False while an item is sent, since its frame must be
            complete.
        interrupt: the function that ends fn.
    """

    __slots__ = ("_blocked", "_pid", "asked", "interrupt", "interruptible")

    def __init__(self) -> None:
        self.asked = self.interruptible = False
        self.interrupt: Callable[[], object] = self._raise
        self._pid = os.getpid()
        # A handler that fn installs later replaces this one.
        if _raw.getsignal(_SIGTERM) == _DEFAULT:
            _raw.signal(_SIGTERM, self)
            self._blocked = False
            # SIGTERM ends a process that fn forks at once, as by default. The signal is blocked
            # during the fork, since Python drops a signal that arrives right after a fork.
            os.register_at_fork(
                before=self._block, after_in_parent=self._unblock, after_in_child=self._reset
            )

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if self._pid == os.getpid():
            self.asked = True
            if self.interruptible:
                self.interrupt()

    def _raise(self) -> NoReturn:
        self.interruptible = False  # at most once
        raise GeneratorExit

    def _block(self) -> None:
        if _raw.getsignal(_SIGTERM) is self:
            before = _raw.pthread_sigmask(_raw.SIG_BLOCK, (_SIGTERM,))
            self._blocked = _SIGTERM not in before

    def _unblock(self) -> None:
        if self._blocked:
            self._blocked = False
            _raw.pthread_sigmask(_raw.SIG_UNBLOCK, (_SIGTERM,))

    def _reset(self) -> None:
        if _raw.getsignal(_SIGTERM) is self:
            _raw.signal(_SIGTERM, _DEFAULT)
        self._unblock()


def end_by_signal() -> NoReturn:
    """End by SIGTERM, or with exit code 128 + SIGTERM if the signal can't be raised."""
    _raw.signal(_SIGTERM, _DEFAULT)
    try:
        _raw.raise_signal(_SIGTERM)
    except OSError:
        pass  # a seccomp filter forbids raise()
    os._exit(128 + _SIGTERM)


def stream(spec: ChildSpec) -> None:
    """Call fn, and send the items of the sync or async iterable that fn returns.

    Each item is sent as soon as the iterable yields it. Sending blocks fn until the parent has
    room. A generator is closed in every case.

    Raises:
        TypeError: fn has not returned an iterable.
        LostItemError: an item can't be sent.
        LeftError: the caller has left the stream.
        BaseException: any exception of fn or of the iterable.
    """
    handler = _SigtermHandler()
    try:
        try:
            handler.interruptible = True
            _stream(spec, handler)
        finally:
            handler.interruptible = False
    except GeneratorExit:
        if not handler.asked:
            raise
    if handler.asked:
        raise LeftError


def _stream(spec: ChildSpec, handler: _SigtermHandler) -> None:
    items = spec.fn(*spec.args)
    if hasattr(items, "__aiter__"):
        handler.interruptible = False
        coroutines.run(_stream_async(spec, items.__aiter__(), handler), spec.backend)
        return
    items = iter(items)
    try:
        try:
            for item in items:
                handler.interruptible = False
                _send(spec, item)
                if handler.asked:
                    break
                handler.interruptible = True
        finally:
            handler.interruptible = False
    except LostItemError as lost:
        try:
            _close(items)
        except BaseException as exc:  # noqa: BLE001 - reported together with LostItemError
            lost.closing_error = exc
        raise
    except BaseException:
        _close(items)
        raise
    else:
        _close(items)


def _close(iterator: Any) -> None:
    # Only generators have both methods. Other iterators stay open: a file may still be in use.
    if hasattr(iterator, "throw") and hasattr(iterator, "close"):
        iterator.close()


async def _stream_async(
    spec: ChildSpec, items: AsyncIterator[Any], handler: _SigtermHandler
) -> None:
    import anyio  # noqa: PLC0415 - `coroutines.run` has imported it

    with anyio.CancelScope() as scope:
        _interrupt_by_cancelling(spec, scope, handler)
        try:
            try:
                handler.interruptible = True
                async for item in items:
                    handler.interruptible = False
                    _send(spec, item)
                    if handler.asked:
                        break
                    handler.interruptible = True
            finally:
                handler.interruptible = False
        except LostItemError as lost:
            try:
                await _close_async(items)
            except BaseException as exc:  # noqa: BLE001 - reported together with LostItemError
                lost.closing_error = exc
            raise
        except anyio.get_cancelled_exc_class():
            await _close_async(items)
            if not handler.asked:
                raise
        except BaseException:
            await _close_async(items)
            raise
        else:
            await _close_async(items)


def _interrupt_by_cancelling(
    spec: ChildSpec, scope: anyio.CancelScope, handler: _SigtermHandler
) -> None:
    """Make `handler` cancel the current task, from the loop: a signal handler must not do that."""
    modules = sys.modules
    if spec.backend.name == "asyncio":
        asyncio = modules["asyncio"]
        post = asyncio.get_running_loop().call_soon_threadsafe
        # Unlike the scope, this cancels once: the generator can await in its cleanup.
        end = asyncio.current_task().cancel
    else:
        post = modules["trio"].lowlevel.current_trio_token().run_sync_soon
        end = scope.cancel

    def interrupt() -> None:
        if handler.interruptible:  # it may have changed since the signal
            handler.interruptible = False
            end()

    handler.interrupt = functools.partial(post, interrupt)


async def _close_async(iterator: Any) -> None:
    if hasattr(iterator, "athrow") and hasattr(iterator, "aclose"):
        await iterator.aclose()


def _send(spec: ChildSpec, item: object) -> None:
    try:
        if spec.codec != "pickle":
            from .._wire import plain_data  # noqa: PLC0415 - only for plain data

            body, fds = plain_data.dump(spec.codec, item), []
        else:
            body, passed_fds = codecs.dump_whole(item)
            fds = passed_fds.fds
        if spec.result_size is not None and len(body) > spec.result_size:
            raise TooLargeError(len(body))  # noqa: TRY301 - all errors are handled below
    except Exception as exc:
        # A BaseException here comes from a signal handler of fn, and is not caught.
        raise LostItemError(item, exc) from exc
    try:
        progress.send(spec.channel, encode(spec.nonce, Kind.ITEM, body, len(fds)), fds)
    except progress.RefusedError as exc:
        raise LostItemError(item, exc) from exc
