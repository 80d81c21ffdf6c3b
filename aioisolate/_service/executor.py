"""A `concurrent.futures.Executor` that runs each call in a child of its own."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent import futures
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .job import Job

if TYPE_CHECKING:
    from .service import Service

__all__ = ["Executor"]

P = ParamSpec("P")
T = TypeVar("T")


class _Future(futures.Future[Any]):
    """A future that can be cancelled while its call runs: the child is killed.

    In the thread of the event loop, which runs the call, waiting for the future raises
    RuntimeError.
    """

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service = service
        self._waiters = _Waiters(service)
        self.job: Job[Any] | None = None

    def result(self, timeout: float | None = None) -> Any:
        """Return the result of fn or raise its exception, like any future.

        Raises RuntimeError in the event loop's own thread, and in a forked copy of its process,
        where waiting would never end.
        """
        _check_thread(self._service, self.done, timeout)
        try:
            return super().result(timeout)
        finally:
            del self  # as in the standard library: a traceback refers to this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception that `result` would raise, or None."""
        _check_thread(self._service, self.done, timeout)
        return super().exception(timeout)

    def cancel(self) -> bool:
        """Cancel the call, whether it waits or runs; return False only if it is done."""
        with self._condition:
            if self._state == "FINISHED":
                return False
            if self._state == "RUNNING":
                self._state = "PENDING"  # so that it can still be cancelled
        cancelled = super().cancel()
        try:
            self._service.post(self._end_job)
        except RuntimeError:
            pass  # the loop is closed, and all jobs have ended
        return cancelled

    def _end_job(self) -> None:
        if self.job is not None:
            self.job.cancel()


def _check_thread(service: Service, is_done: Callable[[], bool], timeout: float | None) -> None:
    if is_done():
        return
    service.check_owner()  # in a forked copy the future is never done
    # A timeout of 0 does not block.
    if (timeout is None or timeout > 0) and service.would_block():
        raise RuntimeError(
            "waiting here would block the event loop that runs the call: use `await "
            "asyncio.wrap_future(future)` or `await loop.run_in_executor(executor, fn)`, `await "
            "isolator.run(fn)` on any loop, or wait in another thread"
        )


class _Waiters(list[Any]):
    """The list to which `concurrent.futures.wait` and `as_completed` add before they block."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service = service

    def append(self, waiter: Any) -> None:
        if not isinstance(waiter.event, _Event):
            waiter.event = _Event(self._service, waiter.event)
        super().append(waiter)


class _Event:
    """An event that cannot be waited for in the event loop's own thread."""

    def __init__(self, service: Service, event: threading.Event) -> None:
        self._service = service
        self.set = event.set
        self.clear = event.clear
        self.is_set = event.is_set
        self._wait = event.wait

    def wait(self, timeout: float | None = None) -> bool:
        _check_thread(self._service, self.is_set, timeout)
        return self._wait(timeout)


class Executor(futures.Executor):
    """Runs each call in a child of its own; may be used from any thread.

    `Isolator.executor` returns one::

        result = await loop.run_in_executor(iso.executor(), parse, data)

    Cancelling a future kills its child, and so does cancelling the asyncio future that
    ``loop.run_in_executor`` returned for it.

    In the event loop's own thread, waiting for its futures, for results of its `map` or in
    `concurrent.futures.wait` raises RuntimeError: the loop could not run the calls meanwhile.

    An executor keeps a reference to its Isolator, and ends with it: once the Isolator is closed,
    futures of calls that have not begun raise RuntimeError, and so do those of later calls. If the
    Isolator is entered again, `Isolator.executor` returns another executor.
    """

    def __init__(self, service: Service, keep: object = None) -> None:
        self._service = service
        self._kept_alive = keep
        self._lock = threading.Condition()
        self._futures: set[_Future] = set()
        self._shut = False
        self._ended = False
        service.dependants.add(self)
        if service.state == "closed":  # the event loop's thread has closed it in this moment
            self._ended = True

    def __repr__(self) -> str:
        state = " shut down" if self._shut else ""
        return f"<Executor{state}: {len(self._futures)} calls not done>"

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> futures.Future[T]:
        """Run ``fn(*args, **kwargs)`` in a child; return a future for its result.

        Raises RuntimeError if the executor has been shut down, if its Isolator's loop is closed, or
        in a forked copy of its Isolator's process.
        """
        self._service.check_owner()
        future = _Future(self._service)
        with self._lock:
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._ended:
                _refuse(future)
                return future
            self._futures.add(future)
        try:
            self._service.post(lambda: self._begin(future, functools.partial(fn, *args, **kwargs)))
        except BaseException:
            self._forget(future)
            raise
        return future

    def _begin(self, future: _Future, call: Callable[[], Any]) -> None:
        if future not in self._futures:
            return  # the call was refused meanwhile
        if not future.set_running_or_notify_cancel():
            self._forget(future)
            return
        try:
            job = future.job = self._service.submit(call)
        except BaseException as exc:  # noqa: BLE001 - every exception goes to the future
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
                    future.set_result(job._take_value())
            except futures.InvalidStateError:
                pass  # another thread has cancelled the future
            finally:
                future.job = None  # a future that is kept must not keep the call
                self._forget(future)

        job._on_done = done
        job._start()

    def _end_with_service(self) -> None:
        """Note that the Isolator has been closed: calls that have not begun are refused."""
        with self._lock:
            self._ended = True
            waiting = [future for future in self._futures if future.job is None]
            self._futures.difference_update(waiting)
            self._lock.notify_all()
        for future in waiting:
            _refuse(future)

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
        if self._service.is_owned():  # a forked copy only unwinds its stack
            self.shutdown()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls.

        Args:
            wait: block until the current calls are done. In the event loop's own thread, which
                runs the calls, that raises RuntimeError unless there are none.
            cancel_futures: cancel the calls that have not begun.

        Raises RuntimeError in a forked copy of its Isolator's process.
        """
        self._service.check_owner()  # in a forked copy the futures are the original's
        with self._lock:
            self._shut = True
            pending = list(self._futures)
        if cancel_futures:
            for future in pending:
                if not future.running():
                    future.cancel()
        if not wait:
            return
        if self._futures and self._service.would_block():
            raise RuntimeError(
                "waiting here would block the event loop that runs the calls: await the futures "
                "first, or use shutdown(wait=False)"
            )
        with self._lock:
            self._lock.wait_for(lambda: not self._futures)


def _refuse(future: _Future) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(
            RuntimeError("cannot schedule new futures: the executor is closed with its Isolator")
        )
