"""The idle workers of a fork server: requests for workers, waiting calls, and restarts.

acquire --> idle worker? --> take it, and request another once the call is over
                 | no
                 v
           request one, and wait for a worker, a refusal, or the end of the server
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

import anyio

from .._async_backend import AsyncBackend
from .._call import eventloop
from .._errors import CallableDidNotExecuteError, Reason
from . import protocol
from .client import ForkServer
from .launch import Launch
from .random_generators import Found
from .worker import Worker

__all__ = ["Pool"]

_log = logging.getLogger("aioisolate.zygote")

# Seconds for a fresh server to become ready: it may have many modules to import.
_READY_PATIENCE = 120.0
# Seconds after which a server that does not answer is replaced. (A server answers in a millisecond,
# but a fork of a very large template may take a second.)
_ANSWER_PATIENCE = 5.0
_ANSWER_LEAST = 1.0
# The number of servers in a row that end without a child, after which waiting calls fail.
_FAILURES_MAX = 3
# Seconds before a server is started again: at first, and at most.
_BACKOFF_FIRST = 0.05
_BACKOFF_MAX = 5.0
# The number of idle workers that may end between two calls before none is forked ahead.
_IDLE_DEATHS_MAX = 20
# The maximum number of requests in one iteration of the event loop: more would block it.
_ASK_MAX = 16
# Seconds after which idle workers beyond the configured number are killed.
_IDLE_PATIENCE = 5.0


class _Waiter:
    """A call that waits for a worker."""

    __slots__ = ("answer", "event")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.answer: Worker | CallableDidNotExecuteError | None = None


class Pool:
    """A fork server and its idle workers.

    Attributes:
        restarts: how often the server was started again.
    """

    def __init__(
        self,
        backend: AsyncBackend,
        launch: Launch,
        setup: Callable[[], protocol.Setup] | None,
        *,
        warm: int,
        layers: Sequence[str] | None = None,
        patience: float | None = None,
    ) -> None:
        """Prepare the pool. *setup* is None if the server is a copy, which can't be started again.

        *layers*: the layers of the server's sandbox. *patience*: seconds in which fn must begin.
        """
        # Shorter than *patience*, so that another server can replace this one in time.
        self._answer_patience = _ANSWER_PATIENCE
        if patience is not None:
            self._answer_patience = max(_ANSWER_LEAST, min(_ANSWER_PATIENCE, patience / 2))
        # Servers that do not answer and whose last child has not ended.
        self._retired: set[ForkServer] = set()
        self._layers = layers
        self._backend = backend
        self._launch = launch
        self._setup = setup
        self._warm = warm
        self._idle: deque[Worker] = deque()
        self._waiters: deque[_Waiter] = deque()
        self._requested = 0
        self._refill_due = False
        # Deaths of idle workers since the last call that got a worker.
        self._idle_deaths = 0
        self._forkserver: ForkServer | None = None
        # A server that is not ready yet.
        self._starting_server: ForkServer | None = None
        self._learned: set[str] = set()
        # Descriptors, by number and module, that a warning has already named.
        self._warned_of: set[tuple[int, str | None]] = set()
        # The number of servers in a row that ended, or could not be started, without a child.
        self._failures = 0
        self._starting: eventloop.Background | None = None
        self._trimming: eventloop.Background | None = None
        self._closed = False
        self._final_error: CallableDidNotExecuteError | None = None
        self.restarts = 0

    @property
    def idle(self) -> int:
        """The number of workers that wait for a call."""
        return len(self._idle)

    @property
    def pid(self) -> int | None:
        """The process id of the server, while there is one."""
        return None if self._forkserver is None else self._forkserver.pid

    @property
    def repeating(self) -> Sequence[Found]:
        """The random generators that each child has a copy of."""
        return () if self._forkserver is None else self._forkserver.repeating

    async def start(self) -> None:
        """Start the server. Raises CallableDidNotExecuteError, with its report, on failure."""
        await self._start()
        self._refill()
        if self._warm:  # the first call should find an idle worker
            with anyio.move_on_after(_READY_PATIENCE):
                self.give_back(await self.acquire())
                return
            raise CallableDidNotExecuteError(
                f"the fork server provided no child within {_READY_PATIENCE:g} s: "
                f"{self.hindrance()}",
                reason=Reason.CHILD_SETUP,
            )

    async def _start(self) -> None:
        forkserver = ForkServer(
            self._backend,
            on_worker=self._receive,
            on_refusal=self._refuse,
            on_lost=self._recover,
            on_silent=self._retire,
            on_held=self._warn_of_held,
            patience=self._answer_patience,
        )
        setup = None if self._setup is None else self._setup()
        self._starting_server = forkserver
        try:
            await forkserver.start(self._launch, setup, _READY_PATIENCE, self._layers)
        except CallableDidNotExecuteError as exc:
            if forkserver.outdated:
                self._final_error = exc
            raise
        finally:
            self._starting_server = None
        self._forkserver = forkserver
        for module in self._learned:
            forkserver.learn(module)

    def _warn_of_held(self, held: Sequence[tuple[int, str, str | None]]) -> None:
        """Log, once for all servers, the descriptors that an empty file replaces in children."""
        from .._wire.safe_text import escape  # noqa: PLC0415 - only for this warning

        for fd, description, module in held:
            if (fd, module) not in self._warned_of:
                self._warned_of.add((fd, module))
                _log.warning(
                    "descriptor %d (%s)%s is open in the fork server; in the children of this "
                    "sandbox an empty file, for reading only, is in its place. If fn needs the "
                    "file itself, open it in this process and name it in pass_fds",
                    fd,
                    escape(description, line=True),
                    f", opened while {module!r} was imported," if module else "",
                )

    def hindrance(self) -> str:
        """Return why a call has no worker yet."""
        forkserver = self._forkserver
        if forkserver is None:
            return "the fork server is being started"
        if forkserver.silent:
            return f"the fork server (process {forkserver.pid}) does not answer"
        before = f"; fork servers replaced before: {self.restarts}" if self.restarts else ""
        return (
            f"the fork server (process {forkserver.pid}) has not forked a child for it yet{before}"
        )

    # Assigning workers to calls

    def acquire_nowait(self) -> Worker | None:
        """Return a worker that has not ended, for one call, or None."""
        while self._idle:
            worker = self._idle.popleft()
            worker.on_end = None
            if not worker.ended:
                self._idle_deaths = 0
                if not self._idle:
                    self._refill()
                return worker
        return None

    async def acquire(self) -> Worker:
        """Return a worker that has not ended, for one call; the server may have to fork it first.

        Raises CallableDidNotExecuteError if there can't be one.
        """
        if self._final_error is not None:
            raise copy.copy(self._final_error)
        worker = self.acquire_nowait()
        if worker is not None:
            return worker
        waiter = _Waiter()
        self._waiters.append(waiter)
        self._refill_soon()
        try:
            await waiter.event.wait()
        except BaseException:
            if isinstance(waiter.answer, Worker):
                self.give_back(waiter.answer)
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise
        assert waiter.answer is not None
        if isinstance(waiter.answer, Worker):
            return waiter.answer
        raise waiter.answer

    def give_back(self, worker: Worker) -> None:
        """Take back a worker that has not got a call."""
        self._hand_out(worker)

    def after_call(self) -> None:
        """Request a worker in place of the used one; off the critical path of the call."""
        self._refill_soon()

    def learn(self, module: str) -> None:
        """Make the server import a module that its children need, and also all later servers."""
        if module not in self._learned:
            self._learned.add(module)
            if self._forkserver is not None:
                self._forkserver.learn(module)

    def has_imported(self, module: str) -> bool:
        """Return whether the server has imported a module, as far as known."""
        return self._forkserver is None or module in self._forkserver.modules

    def _refill_soon(self) -> None:
        if not self._refill_due:
            self._refill_due = True
            eventloop.soon(self._backend, self._refill)

    def _refill(self) -> None:
        """Request the missing workers, some in each iteration of the event loop."""
        self._refill_due = False
        forkserver = self._forkserver
        if self._closed or forkserver is None:
            return
        urgent = len(self._waiters) - self._requested
        missing = urgent + self._warm - len(self._idle)
        if missing <= 0:
            return
        now = min(missing, _ASK_MAX)
        at_once = max(0, min(urgent, now))
        self._requested += now
        forkserver.request(at_once, ahead=False)
        forkserver.request(now - at_once, ahead=True)
        if now < missing:
            self._refill_soon()

    def _receive(self, worker: Worker) -> None:
        self._failures = 0
        if self._requested:
            self._requested -= 1
        self._hand_out(worker)

    def _hand_out(self, worker: Worker) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if waiter.answer is None:
                waiter.answer = worker
                waiter.event.set()
                return
        if self._closed:
            self.let_go(worker)
            return
        worker.on_end = self._idle_ended
        self._idle.append(worker)
        if len(self._idle) > self._warm and self._trimming is None:
            self._trimming = eventloop.spawn(self._backend, self._trim)

    def _refuse(self, error: CallableDidNotExecuteError) -> None:
        if self._requested:
            self._requested -= 1
        if len(self._waiters) > self._requested:  # otherwise no call waits for this worker
            waiter = self._waiters.popleft()
            waiter.answer = error
            waiter.event.set()
        else:
            _log.warning("no child can be forked ahead: %s", error)

    def _idle_ended(self) -> None:
        """Handle the end of an idle worker for any reason: it is never assigned to a call.

        If idle workers end one after another, forking more ahead would be a fork bomb: then none is
        forked until a call needs one.
        """
        for worker in [worker for worker in self._idle if worker.ended]:
            self._idle.remove(worker)
            worker.on_end = None
            worker.close()
            how = worker.status.exit
            _log.warning(
                "child %d ended while it waited for a call: %s",
                worker.pid,
                "its exit status is unknown" if how is None else how,
            )
            self._idle_deaths += 1
        if self._idle_deaths <= _IDLE_DEATHS_MAX:
            self._refill_soon()
        elif self._idle_deaths <= _IDLE_DEATHS_MAX + 1:
            _log.error("children end while they wait; none is forked ahead until the next call")

    async def _trim(self) -> None:
        """Kill workers that no call has needed for a while."""
        try:
            while len(self._idle) > self._warm:
                await anyio.sleep(_IDLE_PATIENCE / 5)
                now = time.monotonic()
                while len(self._idle) > self._warm and now - self._idle[0].born > _IDLE_PATIENCE:
                    self.let_go(self._idle.popleft())
        finally:
            self._trimming = None

    def let_go(self, worker: Worker) -> None:
        """Kill a worker that no call needs."""
        worker.on_end = None
        worker.owner.discard(worker)
        worker.close()

    # A server that does not answer, or has ended

    def _retire(self, forkserver: ForkServer) -> None:
        """Replace a server that does not answer, and give it no more work.

        Calls that run in its children continue; the server is killed when the last one has ended.
        """
        if forkserver is not self._forkserver:
            return  # the server was not ready yet: `ForkServer.start` raises
        if self._setup is None:
            # A second copy would have other objects. This server may answer again later.
            _log.warning("the fork server %d does not answer", forkserver.pid)
            return
        _log.warning("the fork server %d does not answer; starting another", forkserver.pid)
        self._forkserver = None
        self._requested = 0
        self._retired.add(forkserver)
        while self._idle:
            self.let_go(self._idle.popleft())
        forkserver.retire(lambda: self._retired.discard(forkserver))
        self._failures += 1
        self.restarts += 1
        self._starting = eventloop.spawn(self._backend, self._restart)

    def _recover(self, forkserver: ForkServer) -> None:
        if forkserver is not self._forkserver:
            return  # the server was not ready yet, so `ForkServer.start` raises; or it is retired
        self._forkserver = None
        self._requested = 0
        while self._idle:
            worker = self._idle.popleft()
            worker.on_end = None
            worker.close()
        if self._closed:
            return
        if self._setup is None:
            self._final_error = forkserver.error()
            self._fail_waiters(self._final_error)
            return
        _log.warning("the fork server died (%s); starting another", forkserver.problem)
        self._failures += 1
        self.restarts += 1
        self._starting = eventloop.spawn(self._backend, self._restart)

    async def _restart(self) -> None:
        while not self._closed:
            if self._failures > 1:
                delay = _BACKOFF_FIRST * math.pow(4, self._failures - 2)
                await anyio.sleep(min(delay, _BACKOFF_MAX))
            try:
                await self._start()
            except CallableDidNotExecuteError as exc:
                self._failures += 1
                _log.warning("the fork server could not be started: %s", exc)
                if self._final_error is not None:
                    self._fail_waiters(exc)
                    return  # every other server would be outdated, too
                if self._failures >= _FAILURES_MAX:
                    self._fail_waiters(exc)
                continue
            self._refill()
            return

    def _fail_waiters(self, error: CallableDidNotExecuteError) -> None:
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if waiter.answer is None:
                waiter.answer = copy.copy(error)
                waiter.event.set()

    # The end of the pool

    async def aclose(self) -> None:
        """End the server and all its children."""
        forkservers = self._shut()
        try:
            for forkserver in forkservers:
                await forkserver.aclose()
        finally:
            for forkserver in forkservers:  # if cancelled; no effect on servers that have ended
                forkserver.kill_now()

    def kill_now(self) -> None:
        """Do the same as `aclose` at once, blocking, where nothing can be awaited any more."""
        for forkserver in self._shut():
            forkserver.kill_now()

    def _shut(self) -> list[ForkServer]:
        """Release everything but the servers; return the servers."""
        self._closed = True
        for task in (self._starting, self._trimming):
            if task is not None:
                task.cancel()
        forkserver, self._forkserver = self._forkserver, None
        while self._idle:
            self.let_go(self._idle.popleft())
        others = forkserver, self._starting_server
        return [*self._retired, *(other for other in others if other is not None)]
