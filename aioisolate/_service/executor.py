"""A `concurrent.futures.Executor` whose every call runs in a child of its own."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from concurrent import futures
from types import TracebackType
from typing import Any, ParamSpec, Protocol, TypeVar

from .._child.order import AsyncBackend
from .job import Job

__all__ = ["Executor"]

P = ParamSpec("P")
T = TypeVar("T")


class _Service(Protocol):
    backend: AsyncBackend

    def check_owner(self) -> None:
        """Raise RuntimeError in a forked copy of the process that it belongs to."""

    def is_owned(self) -> bool:
        """Tell whether this process is no such copy."""
        ...

    def submit(self, call: Callable[[], Any]) -> Job[Any]:
        """Make a job of a call, in the loop's thread."""
        ...


class _Future(futures.Future[Any]):
    """A future that can be cancelled while it runs: the child is killed."""

    def __init__(self, post: Callable[[Callable[[], object]], None]) -> None:
        super().__init__()
        self._post = post
        self.job: Job[Any] | None = None

    def cancel(self) -> bool:
        """Cancel it, whether it waits or runs; False only if it is done."""
        with self._condition:
            if self._state == "FINISHED":
                return False
            if self._state == "RUNNING":
                self._state = "PENDING"  # so that it may still be cancelled
        cancelled = super().cancel()
        try:
            self._post(self._end_job)
        except RuntimeError:
            pass  # the loop is closed, and every job with it
        return cancelled

    def _end_job(self) -> None:
        if self.job is not None:
            self.job.cancel()


class Executor(futures.Executor):
    """Runs each call in a child of its own; may be used from any thread.

    Cancelling a future kills its child, and so does cancelling the asyncio future that
    ``loop.run_in_executor`` returned for it.
    """

    def __init__(self, service: _Service) -> None:
        self._service = service
        self._lock = threading.Condition()
        self._futures: set[_Future] = set()
        self._shut = False
        self._thread = threading.get_ident()
        backend = service.backend
        if backend.loop is not None:
            self._post: Callable[[Callable[[], object]], Any] = backend.loop.call_soon_threadsafe
        else:
            self._post = sys.modules["trio"].lowlevel.current_trio_token().run_sync_soon

    def __repr__(self) -> str:
        state = " shut down" if self._shut else ""
        return f"<Executor{state}: {len(self._futures)} calls not done>"

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> futures.Future[T]:
        """Have ``fn(*args, **kwargs)`` run in a child; return a future for its result.

        Raises RuntimeError if the executor has been shut down, if its Isolator's loop is closed, or
        in a forked copy of its Isolator's process.
        """
        self._service.check_owner()
        future = _Future(self._post)
        with self._lock:
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._futures.add(future)
        try:
            self._post(lambda: self._begin(future, functools.partial(fn, *args, **kwargs)))
        except BaseException:
            self._forget(future)
            raise
        return future

    def _begin(self, future: _Future, call: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            self._forget(future)
            return
        try:
            job = future.job = self._service.submit(call)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it is the future's
            future.set_exception(exc)
            self._forget(future)
            return

        def done() -> None:
            try:
                if future.cancelled():
                    future.set_running_or_notify_cancel()
                elif job.error is not None:
                    future.set_exception(job.error)
                else:
                    future.set_result(job.take_value())
            except futures.InvalidStateError:
                pass  # it was cancelled just now
            finally:
                future.job = None  # whoever keeps the result need not keep the call
                self._forget(future)

        job.on_done = done
        job.start()

    def _forget(self, future: _Future) -> None:
        with self._lock:
            self._futures.discard(future)
            self._lock.notify_all()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._service.is_owned():  # else it is a copy that unwinds its stack
            self.shutdown()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls.

        Args:
            wait: block until those that are there are done. Not in the event loop's own thread,
                which has to carry them out: RuntimeError, unless there are none.
            cancel_futures: cancel those that have not begun.

        Raises RuntimeError in a forked copy of its Isolator's process.
        """
        self._service.check_owner()  # in a copy the futures are the original's
        with self._lock:
            self._shut = True
            pending = list(self._futures)
        if cancel_futures:
            for future in pending:
                if not future.running():
                    future.cancel()
        if not wait:
            return
        if threading.get_ident() == self._thread and self._futures:
            raise RuntimeError(
                "waiting here would block the event loop that has to do the work: await the "
                "futures first, or use shutdown(wait=False)"
            )
        with self._lock:
            self._lock.wait_for(lambda: not self._futures)
