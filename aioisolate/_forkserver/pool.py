"""The idle workers of a fork server: how many there are, who gets one, and restarts.

acquire --> idle worker? --> take it, and request another once the call is over
                 | no
                 v
           request one, wait in line --> its end, a refusal, or a dead server wake the line
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

# Seconds for a fresh server to become ready, since it may have much to import.
_READY_PATIENCE = 120.0
# Seconds after which a server that does not answer a request gets no more work. (A server
# answers in a millisecond; a fork of a very large template may take a second.)
_ANSWER_PATIENCE = 5.0
_ANSWER_LEAST = 1.0
# Number of deaths in a row, without a child in between, after which waiting calls fail.
_FAILURES_MAX = 3
_BACKOFF_FIRST = 0.05
_IDLE_DEATHS_MAX = 20
_BACKOFF_MAX = 5.0
# Number of requests at once; more would hold up the event loop.
_ASK_MAX = 16
# Seconds after which idle workers beyond the wanted number, forked in a rush, are killed.
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
        # Servers that do not answer, until their last child has ended.
        self._retired: set[ForkServer] = set()
        self._layers = layers
        self._backend = backend
        self._launch = launch
        self._setup = setup
        self._warm = warm
        self._idle: deque[Worker] = deque()
        self._line: deque[_Waiter] = deque()
        self._coming = 0
        self._refill_due = False
        # Deaths of idle workers since the last call that got a worker.
        self._idle_deaths = 0
        self._forkserver: ForkServer | None = None
        # A server that is not ready yet.
        self._begun: ForkServer | None = None
        self._learned: set[str] = set()
        # Descriptors, by number and module, that a warning has already named.
        self._told: set[tuple[int, str | None]] = set()
        self._failures = 0
        self._starting: eventloop.Background | None = None
        self._trimming: eventloop.Background | None = None
        self._closed = False
        self._dead: CallableDidNotExecuteError | None = None
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
            on_ward=self._welcome,
            on_refusal=self._refuse,
            on_lost=self._recover,
            on_silent=self._retire,
            on_held=self._tell_of,
            patience=self._answer_patience,
        )
        setup = None if self._setup is None else self._setup()
        self._begun = forkserver
        try:
            await forkserver.start(self._launch, setup, _READY_PATIENCE, self._layers)
        except CallableDidNotExecuteError as exc:
            if forkserver.outdated:
                self._dead = exc
            raise
        finally:
            self._begun = None
        self._forkserver = forkserver
        for module in self._learned:
            forkserver.learn(module)

    def _tell_of(self, held: Sequence[tuple[int, str, str | None]]) -> None:
        """Log, once for all servers, which descriptors are an empty file in children."""
        from .._wire.safe_text import escape  # noqa: PLC0415 - only for this warning

        for fd, what, module in held:
            if (fd, module) not in self._told:
                self._told.add((fd, module))
                _log.warning(
                    "descriptor %d (%s)%s is open in the fork server; in the children of this "
                    "sandbox an empty file, for reading only, is in its place. If fn needs the "
                    "file itself, open it in this process and name it in pass_fds",
                    fd,
                    escape(what, line=True),
                    f", opened while {module!r} was imported," if module else "",
                )

    def hindrance(self) -> str:
        """Return why a call has not got a worker yet."""
        forkserver = self._forkserver
        if forkserver is None:
            return "the fork server is being started"
        if forkserver.silent:
            return f"the fork server (process {forkserver.pid}) does not answer"
        before = f", and {self.restarts} before it had to be replaced" if self.restarts else ""
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
        if self._dead is not None:
            raise copy.copy(self._dead)
        worker = self.acquire_nowait()
        if worker is not None:
            return worker
        waiter = _Waiter()
        self._line.append(waiter)
        self._refill_soon()
        try:
            await waiter.event.wait()
        except BaseException:
            if isinstance(waiter.answer, Worker):
                self.give_back(waiter.answer)
            elif waiter in self._line:
                self._line.remove(waiter)
            raise
        assert waiter.answer is not None
        if isinstance(waiter.answer, Worker):
            return waiter.answer
        raise waiter.answer

    def give_back(self, worker: Worker) -> None:
        """Take back a worker that has not been given its call."""
        self._hand_out(worker)

    def after_call(self) -> None:
        """Request a worker in place of the used one; off the critical path of the call."""
        self._refill_soon()

    def learn(self, module: str) -> None:
        """Make the server import a module of this package that its children turned out to need."""
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
        urgent = len(self._line) - self._coming
        missing = urgent + self._warm - len(self._idle)
        if missing <= 0:
            return
        now = min(missing, _ASK_MAX)
        hurried = max(0, min(urgent, now))
        self._coming += now
        forkserver.request(hurried, ahead=False)
        forkserver.request(now - hurried, ahead=True)
        if now < missing:
            self._refill_soon()

    def _welcome(self, worker: Worker) -> None:
        self._failures = 0
        if self._coming:
            self._coming -= 1
        self._hand_out(worker)

    def _hand_out(self, worker: Worker) -> None:
        while self._line:
            waiter = self._line.popleft()
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
        if self._coming:
            self._coming -= 1
        if len(self._line) > self._coming:  # else it was ahead of need, or more are coming
            waiter = self._line.popleft()
            waiter.answer = error
            waiter.event.set()
        else:
            _log.warning("no child can be forked ahead: %s", error)

    def _idle_ended(self) -> None:
        """Handle the death of an idle worker, whatever killed it: it is never assigned to a call.

        If idle workers die one after another, forking more ahead would be a fork bomb: then none is
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
                "how could not be observed" if how is None else how,
            )
            self._idle_deaths += 1
        if self._idle_deaths <= _IDLE_DEATHS_MAX:
            self._refill_soon()
        elif self._idle_deaths <= _IDLE_DEATHS_MAX + 1:
            _log.error("children die while they wait; none is forked ahead until the next call")

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

    # When the server does not answer, or dies

    def _retire(self, forkserver: ForkServer) -> None:
        """Replace a server that does not answer, and give it no more work.

        Calls that run in its children continue; it is killed when the last of them has ended.
        """
        if forkserver is not self._forkserver:
            return  # the server was not even ready; the task that started it knows
        if self._setup is None:
            # A second copy would be another snapshot. This server may answer again one day.
            _log.warning("the fork server %d does not answer", forkserver.pid)
            return
        _log.warning("the fork server %d does not answer; starting another", forkserver.pid)
        self._forkserver = None
        self._coming = 0
        self._retired.add(forkserver)
        while self._idle:
            self.let_go(self._idle.popleft())
        forkserver.retire(lambda: self._retired.discard(forkserver))
        self._failures += 1
        self.restarts += 1
        self._starting = eventloop.spawn(self._backend, self._restart)

    def _recover(self, forkserver: ForkServer) -> None:
        if forkserver is not self._forkserver:
            return  # not ready yet: the task that started it knows; or retired
        self._forkserver = None
        self._coming = 0
        while self._idle:
            worker = self._idle.popleft()
            worker.on_end = None
            worker.close()
        if self._closed:
            return
        if self._setup is None:
            self._dead = forkserver.error()
            self._fail_line(self._dead)
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
                if self._dead is not None:
                    self._fail_line(exc)
                    return  # every other server would be outdated, too
                if self._failures >= _FAILURES_MAX:
                    self._fail_line(exc)
                continue
            self._refill()
            return

    def _fail_line(self, error: CallableDidNotExecuteError) -> None:
        line, self._line = self._line, deque()
        for waiter in line:
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
            for forkserver in forkservers:  # for cancellation; no effect on servers that have ended
                forkserver.kill_now()

    def kill_now(self) -> None:
        """Do the same as `aclose` at once, blocking, when nothing can be awaited any more."""
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
        return [*self._retired, *(one for one in (forkserver, self._begun) if one is not None)]
