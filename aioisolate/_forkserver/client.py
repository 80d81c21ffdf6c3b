"""The user's side of one fork server: start it, exchange records with it, end it."""

from __future__ import annotations

import _socket
import contextlib
import errno
import functools
import itertools
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from .._async_backend import AsyncBackend
from .._call import eventloop, registry
from .._call.diagnosis import memory_killer, note_memory, why_unconfined
from .._call.forked import hint
from .._errors import CallableDidNotExecuteError, Reason, may_pass
from .._os import fds as os_fds
from .._os import messages
from .._os.fds import Descriptors
from .._os.prctl import is_subreaper
from .._os.process import Process, Status
from .._outcome import Exit
from . import protocol
from .draining import PATIENCE, DrainingWorkers
from .launch import Launch, explain
from .random_generators import Found
from .send_queue import SendQueue
from .worker import Worker

if TYPE_CHECKING:
    from .._os.oom import Kills

__all__ = ["ForkServer"]

# The groups of the last 64 children that have ended may still exist for up to 2 seconds.
_RECENT = 64
_GROUP_PATIENCE = 2.0
# Seconds that all children together have to end after their server died.
_ORPHAN_PATIENCE = 0.5
# The number of checks for an answer within the time that a server has to answer.
_CHECKS = 4
# The number of checks while the server imports a module, when it cannot answer.
_CHECKS_AT_IMPORT = 100
# Seconds between checks for ended children of a server that does not answer.
_SILENT_PAUSE = 0.05
# Seconds to block where the event loop cannot be used any more.
_BLOCKING_PATIENCE = 0.1
# Seconds that a killed server has to end before a thread waits for it instead.
_KILL_PATIENCE = 5.0
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
# errnos of a server that has no free file descriptor, or whose limit is below their number.
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE, errno.EBADF, errno.EINVAL})


class ForkServer:
    """A running fork server.

    Attributes:
        workers: the children of the server that have not ended, by pid.
        problem: why the server cannot be used (any more), or "".
        modules: the modules that the server had imported when it was ready.
        repeating: the random generators that each child has a copy of.
        encodings: the encodings of the children's standard output and error.
        silent: whether the server does not answer.
        outdated: whether the server, and any that would replace it, is of another version than
            this process.
    """

    def __init__(
        self,
        backend: AsyncBackend,
        *,
        on_worker: Callable[[Worker], object],
        on_refusal: Callable[[CallableDidNotExecuteError], object],
        on_lost: Callable[[ForkServer], object],
        on_silent: Callable[[ForkServer], object],
        on_held: Callable[[Sequence[tuple[int, str, str | None]]], object],
        patience: float,
    ) -> None:
        """Prepare a server; *on_silent* is called when it has not answered for *patience* seconds.

        *on_held* is called with the descriptors that modules of the server hold open and that its
        children do not get.
        """
        self._backend = backend
        self._on_worker = on_worker
        self._on_refusal = on_refusal
        self._on_lost = on_lost
        self._on_silent = on_silent
        self._on_held = on_held
        self._patience = patience
        self.silent = False
        # The process has sent nothing yet: it may be another program.
        self._may_be_other_program = True
        # The program of the server, if the user named one.
        self._python = ""
        # Whether the server has sent anything since the last check.
        self._heard = False
        # The number of imports that the server has not reported yet, and of running calls.
        self._importing = 0
        self._busy = 0
        self._kills_before: Kills | None = None
        self._watching = False
        self._watchdog: eventloop.Background | None = None
        # Set when the server gets no more work; called when the server has gone.
        self._on_gone: Callable[[], object] | None = None
        # Created when the server is being closed; set when the server has gone.
        self._gone: anyio.Event | None = None
        self._process = Process()
        self._fds = Descriptors()
        self._inbox = protocol.Inbox()
        self._received_fds = protocol.ReceivedFds()
        self._pidfds: list[int] = []
        self._send_queue = SendQueue(backend)
        # Workers that were requested and do not exist yet, by the number of the request.
        self._requested: dict[int, Worker] = {}
        self._numbers = itertools.count(1)
        self._reader: eventloop.Background | None = None
        self._ready = anyio.Event()
        self._draining = DrainingWorkers(backend, self._check_if_empty)
        self._emptied: anyio.Event | None = None
        self._down = False
        self._layers: Sequence[str] | None = None
        self._socket: _socket.socket
        self.workers: dict[int, Worker] = {}
        # Children that have ended, and whose end the server, which is silent, has not reported.
        self._missed: set[int] = set()
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT)
        self.problem = ""
        self.outdated = False
        self._problem_number = 0
        # The server has reported the problem itself: a preloaded module raised, for example.
        self._failed = False
        self.modules: frozenset[str] = frozenset()
        self.repeating: Sequence[Found] = ()
        self.encodings = ("utf-8", "utf-8")

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._process.pid

    async def start(
        self,
        launch: Launch,
        setup: protocol.Setup | None,
        patience: float,
        layers: Sequence[str] | None = None,
    ) -> None:
        """Start the server and wait until it is ready, and confined by *layers* if there are any.

        Raises CallableDidNotExecuteError, with the server's report, if it is not ready after
        *patience* seconds.
        """
        self._layers, self._python = layers, launch.python
        try:
            self._launch(launch, setup)
            with anyio.move_on_after(patience):
                await self._ready.wait()
            if not self._ready.is_set():
                self.problem = f"it was not ready after {patience:g} s"
        except BaseException as exc:
            self.kill_now()
            if isinstance(exc, OSError):
                raise CallableDidNotExecuteError(
                    f"the fork server could not be started: {exc.strerror or exc}{hint(exc)}",
                    reason=Reason.FORK,
                    transient=may_pass(exc.errno),
                ) from exc
            raise
        if self.problem:
            if self._may_be_other_program and launch.hint is not None:
                self.problem += f": {launch.hint()}"
            self.kill_now()
            raise self.error()

    def error(self) -> CallableDidNotExecuteError:
        """Return the error that describes the problem of this server."""
        problem = _with_last_line_first(self.problem)
        error = CallableDidNotExecuteError(
            problem if self.outdated else f"the fork server can't be used: {problem}",
            reason=Reason.CHILD_SETUP,
            pid=self.pid or None,
            crash_traceback=self.problem if "Traceback" in self.problem else "",
            transient=not (self.outdated or self._failed) or may_pass(self._problem_number),
        )
        if self._problem_number:
            error.__cause__ = OSError(self._problem_number, self.problem.rpartition("\n")[2])
        return error

    def _launch(self, launch: Launch, setup: protocol.Setup | None) -> None:
        own = self._fds
        here, there = _socket.socketpair()
        theirs = os_fds.lift(own.own(there.detach()), own)
        ours = os_fds.lift(own.own(here.detach()), own)
        self._socket = _socket.socket(fileno=ours)
        self._kills_before = note_memory()
        registry.register(self._process)
        ends = self._process.outlast_thread()
        self._process.adopt(launch.start(theirs, ends))
        own.close(theirs)
        if setup is not None:
            setup = setup._replace(tied=bool(ends))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server has ended
                self._socket.sendall(protocol.encode(("setup", *setup)))
        self._socket.setblocking(False)
        self._send_queue.open(self._socket)
        self._reader = eventloop.watch(self._backend, ours, self._read)

    def is_owned(self) -> bool:
        """Return whether this process, and not the one it was forked from, started the server."""
        return self._process.owner_pid == os.getpid()

    def _send(self, *record: Any) -> None:
        if not self._down and self.is_owned():
            self._send_queue.put(protocol.encode(record))

    def request(self, count: int, *, ahead: bool) -> None:
        """Request *count* children; each is passed to *on_worker*, or a refusal to *on_refusal*.

        *ahead*: no call waits for them yet, so they have time to rehearse.
        """
        if self._down or not self.is_owned():
            return  # the caller gets *on_lost*, or is another process
        if count:
            self._watch()
        for _ in range(count):
            try:
                worker = Worker(self)
            except OSError as exc:
                error = CallableDidNotExecuteError(
                    f"{Reason.PIPE_CREATION.value}: {exc.strerror}{hint(exc)}",
                    reason=Reason.PIPE_CREATION,
                )
                error.__cause__ = exc
                self._on_refusal(error)
                continue
            number = next(self._numbers)
            self._requested[number] = worker
            self._send_queue.pass_on(
                protocol.encode(("fork", number, ahead, is_subreaper())),
                worker.to_pass(),
                worker.passed,
                functools.partial(self._not_asked, number),
            )

    def _not_asked(self, number: int, exc: OSError) -> None:
        error = CallableDidNotExecuteError(
            f"a request to the fork server could not be sent: {exc.strerror or exc}",
            reason=Reason.PIPE_CREATION,
        )
        error.__cause__ = exc
        self._refuse(number, error)

    def _refuse(self, number: int, error: CallableDidNotExecuteError) -> None:
        worker = self._requested.pop(number, None)
        if worker is not None:
            worker.close()
            self._on_refusal(error)

    def learn(self, module: str) -> None:
        """Make the server import a module, for children that it forks later."""
        self._importing += 1
        self._send("import", module)

    # Whether the server answers

    def begin(self) -> None:
        """Note that a worker has begun a call."""
        self._busy += 1
        self._kills_before = note_memory()
        if not self._watching:
            self._watch()

    def finish(self) -> None:
        """Note that a worker has ended a call."""
        self._busy -= 1

    def _watch(self) -> None:
        if not self._watching and not self._down:
            self._watching = True
            self._watchdog = eventloop.spawn(self._backend, self._check_answers)

    async def _check_answers(self) -> None:
        """Check whether the server answers, while calls run or children have been requested."""
        try:
            await self._check_until_idle()
        finally:
            # Reset here and not when the task is done, which is a little later.
            self._watching = False

    async def _check_until_idle(self) -> None:
        quiet = 0
        while self._busy or self._requested or (self.silent and self.workers):
            # Count checks instead of seconds: a blocked event loop proves nothing about the server.
            await anyio.sleep(_SILENT_PAUSE if self.silent else self._patience / _CHECKS)
            self._read()  # records that have arrived meanwhile
            if self._down:
                return
            if self.silent:
                self._find_ended()
            elif self._heard:
                self._heard, quiet = False, 0
            elif quiet < (_CHECKS_AT_IMPORT if self._importing else _CHECKS):
                if not quiet:
                    self._send("ping")
                quiet += 1
            else:
                quiet = 0
                self.silent = True
                self._on_silent(self)

    def _find_ended(self) -> None:
        """Find the workers that have ended, since the silent server does not report them."""
        for worker in [worker for worker in self.workers.values() if worker.seems_ended()]:
            del self.workers[worker.pid]
            self._missed.add(worker.pid)
            worker.signal(signal.SIGKILL, group=True)
            worker.end(Status(None))
            self._draining.ended(worker)
        self._check_if_empty()

    def retire(self, on_gone: Callable[[], object]) -> None:
        """Give the server no more work; kill it after its last child's end, and call *on_gone*."""
        self._on_gone = on_gone
        self._send_queue.forget_fds()
        for number in list(self._requested):
            self._requested.pop(number).close()
        self._check_if_empty()

    async def _close_retired(self) -> None:
        await self.aclose()
        if self._on_gone is not None:
            self._on_gone()

    # The methods of WorkerOwner

    def kill(self, pid: int, number: int, *, group: bool) -> None:
        """Make the server send a signal to one of its children."""
        self._send("kill", pid, int(number), group)

    def drain(self, worker: Worker) -> None:
        """Watch a worker that has returned its result until it has ended."""
        self._draining.drain(worker)

    def discard(self, worker: Worker) -> None:
        """Kill a worker that is not needed."""
        worker.signal(signal.SIGKILL, group=True)
        worker.signal(signal.SIGKILL)

    # Records from the server

    def _read(self) -> None:
        try:
            data, descriptors, cut = messages.receive(self._socket, 65536)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors, cut = b"", [], False
        self._received_fds.put(descriptors, cut)
        if not data:
            self._lose()
            return
        self._heard, self.silent, self._may_be_other_program = True, False, False
        for record in self._inbox.feed(data):
            self._handle(record)
        self._send_queue.send()

    def _handle(self, record: Sequence[Any]) -> None:  # noqa: C901 - one case for each record
        match record:
            case ("ended", pid, status, user, system, max_rss):
                self._missed.discard(pid)
                worker = self.workers.pop(pid, None)
                if worker is not None:
                    self._recent.append((pid, time.monotonic()))
                    exit_ = Exit(os.waitstatus_to_exitcode(status))
                    worker.end(Status(exit_, user, system, max_rss * _RSS_UNIT))
                    self._draining.ended(worker)
                    self._check_if_empty()
            case ("child", number, pid, index):
                if index == 0:
                    self._pidfds = self._received_fds.next()
                # A pidfd that did not arrive is treated as none: the server sends the signals.
                pidfd = self._pidfds.pop(0) if index >= 0 and self._pidfds else -1
                self._receive_worker(number, pid, pidfd)
            case ("refused", number, code, text):
                reason = Reason.PIPE_CREATION if code in _NO_DESCRIPTOR else Reason.FORK
                error = CallableDidNotExecuteError(
                    f"the fork server could not fork: {text}",
                    reason=reason,
                    transient=may_pass(code) or reason is Reason.PIPE_CREATION,
                )
                error.__cause__ = OSError(code, text)
                self._refuse(number, error)
            case ("unfit", number, text):
                error = CallableDidNotExecuteError(text, reason=Reason.CHILD_SETUP, transient=False)
                self._refuse(number, error)
            case ("failed", text, number):
                self._failed = True
                self.problem, self._problem_number = str(text).rstrip(), number
                self._ready.set()
            case ("strange", found, trouble):
                self.problem, self.outdated = explain(found, trouble, self._python)
                self._ready.set()
            case ("held", found):
                self._on_held(found)
            case ("imported",):
                self._importing -= 1
            case ("ready", modules, engaged, repeating, encodings):
                self.modules = frozenset(modules)
                self.repeating = repeating
                self.encodings = encodings
                if self._layers is not None:
                    self.problem = why_unconfined(self._layers, engaged)
                self._ready.set()

    def _receive_worker(self, number: int, pid: int, pidfd: int) -> None:
        worker = self._requested.pop(number, None)
        if worker is None:  # no request has this number
            if pidfd >= 0:
                os.close(pidfd)
            self.kill(pid, signal.SIGKILL, group=True)
            self.kill(pid, signal.SIGKILL, group=False)
            return
        worker.adopt(pid, pidfd)
        self.workers[pid] = worker
        if self._on_gone is not None:  # the server is retired, so no call will use the worker
            self.discard(worker)
            return
        self._on_worker(worker)

    def _check_if_empty(self) -> None:
        if self.workers or not self._draining.is_over():
            return
        if self._emptied is not None:
            self._emptied.set()
        elif self._on_gone is not None and not self._down:
            eventloop.spawn(self._backend, self._close_retired)

    def _lose(self) -> None:
        """Handle the end of the server; its children have ended too, or will end soon."""
        if self._down:
            return
        # A server that ends by itself closes its socket last: give it time to end.
        self._process.ended(0.05)
        coming = self._disconnect()
        status = self._reap()
        if not self.problem:
            self.problem = self._why_ended(status)
            self._may_be_other_program &= status.exit is not None and status.exit >= 0
        self._ready.set()
        self._collect_orphans(coming)
        workers, self.workers = self.workers, {}
        for worker in workers.values():
            # The kernel kills the children with their parent, but not processes that they started.
            self.discard(worker)
            worker.end(Status(None), lost=self.problem)
        self._check_if_empty()
        if self._on_gone is not None:
            self._on_gone()
        self._on_lost(self)

    def _why_ended(self, status: Status) -> str:
        if status.exit is None:
            return "it ended"
        killer = memory_killer(None, self._kills_before) if status.exit == -signal.SIGKILL else ""
        return f"it was killed by {killer}" if killer else f"it ended with {status.exit}"

    # The end of the server

    async def aclose(self) -> None:
        """End the server; its children are killed."""
        if not self.is_owned():
            return
        if self._gone is not None:
            with anyio.CancelScope(shield=True):
                await self._gone.wait()
        if self._down:
            return
        self._gone = anyio.Event()
        coming: Iterable[Worker] = ()
        try:
            for worker in list(self.workers.values()):
                self.discard(worker)
            self._emptied = anyio.Event()
            self._check_if_empty()
            await _within(PATIENCE, self._emptied.wait)
            coming = self._disconnect()
            if not self.silent:
                await self._until_ended(PATIENCE)
            self._process.signal(signal.SIGKILL)
            await self._until_ended(_KILL_PATIENCE)
        finally:
            try:
                coming = [*coming, *self._disconnect()]
                self._reap(_BLOCKING_PATIENCE)
                self._collect_orphans(coming)
            finally:
                self._gone.set()

    async def _until_ended(self, seconds: float) -> None:
        if self._process.is_owned():  # the server may have ended and been reaped since
            await _within(seconds, lambda: anyio.wait_readable(self._process.fileno()))

    def kill_now(self) -> None:
        """Kill the server and its children; block for a short time."""
        if self._down or not self.is_owned():
            return
        self._send_queue.close()  # there may be no event loop in which to retry
        for worker in self.workers.values():
            self.discard(worker)
        coming = self._disconnect()
        self._reap()
        self._collect_orphans(coming)
        workers, self.workers = self.workers, {}
        for worker in workers.values():
            worker.end(Status(None), lost=self.problem or "it was killed by this process")
        self._check_if_empty()

    def _disconnect(self) -> list[Worker]:
        """Close the socket, which makes the server end.

        Return the workers that were requested and have no known process yet; they are still open.
        """
        if self._down:
            return []
        self._down = True
        if self._reader is not None:
            self._reader.cancel()
        self._draining.cancel()
        if self._watchdog is not None:
            self._watchdog.cancel()
        if hasattr(self, "_socket"):
            self._socket.detach()
        self._fds.close_all()
        for fd in self._pidfds + self._received_fds.all():
            os.close(fd)
        self._send_queue.close()
        coming, self._requested = self._requested, {}
        return list(coming.values())

    def _collect_orphans(self, coming: Iterable[Worker]) -> None:
        """Collect the children of the dead server, if they are this process's children now.

        They are if this process is a subreaper or pid 1, as servers in containers are.
        *coming* are workers that the server may not have reported; they are closed.
        """
        now = time.monotonic()
        if is_subreaper():
            until = now + _ORPHAN_PATIENCE
            orphans = set(self.workers) | {worker.noted_pid(until) for worker in coming} - {0}
            # The group of a child that ended recently may still exist; later, its number may belong
            # to another group.
            ended = {pid for pid, ended_at in self._recent if now - ended_at < _GROUP_PATIENCE}
            registry.end_adopted(orphans | self._missed, ended, session=self.pid)
        for worker in coming:
            worker.close()

    def _reap(self, seconds: float = _KILL_PATIENCE) -> Status:
        """Kill the process of the server if it has not ended, and reap it.

        Block for at most *seconds*; after that, a thread waits for the process.
        """
        status = Status(None)
        registry.discard(self._process)
        if self._process.is_owned():
            self._process.signal(signal.SIGKILL)
            if self._process.ended(seconds):
                status = self._process.reap()
                self._process.close()
            else:
                registry.watch_on(self._process)
        else:
            self._process.close()  # the process was never started
        return status


async def _within(seconds: float, wait: Callable[[], Awaitable[object]]) -> None:
    """Await ``wait()`` for at most *seconds*, shielded from cancellation."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(seconds):
        await wait()


def _with_last_line_first(problem: str) -> str:
    """Put the last line of a traceback first too, since logs may show only the first line."""
    if not problem.startswith("Traceback"):
        return problem
    lines = problem.splitlines()
    last = max(n for n, line in enumerate(lines) if line.startswith((" ", "Traceback")))
    return f"{(lines[last + 1 :] or lines[-1:])[0]}\n{problem}"
