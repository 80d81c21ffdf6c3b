"""One fork server, seen from the user's process: starting it, talking to it, ending it."""

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

# The groups of the last 64 killed children may still exist for up to 2 seconds.
_RECENT = 64
_GROUP_PATIENCE = 2.0
# Seconds that all children together have to end after their server died.
_ORPHAN_PATIENCE = 0.5
# Number of checks, within the time that a server has to answer, whether it has answered.
_LOOKS = 4
# A server that imports a module cannot answer meanwhile, so it has more checks.
_LOOKS_AT_IMPORT = 100
# Seconds between checks for ended children of a server that does not answer.
_SILENT_PAUSE = 0.05
# Seconds to block when the event loop cannot wait any more.
_MOMENT = 0.1
# Seconds that a killed server has to end before a thread waits for it instead.
_KILL_PATIENCE = 5.0
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
# errnos that mean the server is out of file descriptors, or its limit was lowered below their
# number.
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
        on_ward: Callable[[Worker], object],
        on_refusal: Callable[[CallableDidNotExecuteError], object],
        on_lost: Callable[[ForkServer], object],
        on_silent: Callable[[ForkServer], object],
        on_held: Callable[[Sequence[tuple[int, str, str | None]]], object],
        patience: float,
    ) -> None:
        """Prepare a server; *on_silent* is called when it has not answered for *patience* seconds.

        *on_held* is called with what the server's modules have open and its children will not have.
        """
        self._backend = backend
        self._on_ward = on_ward
        self._on_refusal = on_refusal
        self._on_lost = on_lost
        self._on_silent = on_silent
        self._on_held = on_held
        self._patience = patience
        self.silent = False
        # The process has sent nothing at all: it may be another program.
        self._is_strange = True
        self._named = ""
        # Whether the server has sent anything since the last check; the number of running calls.
        self._heard = False
        self._importing = 0
        self._kills_before: Kills | None = None
        self._busy = 0
        self._watching = False
        self._watchdog: eventloop.Background | None = None
        # Set when the server gets no more work; called when the server has gone.
        self._on_gone: Callable[[], object] | None = None
        # Created when the server is being closed; set when the server has gone.
        self._gone: anyio.Event | None = None
        self._process = Process()
        self._fds = Descriptors()
        self._inbox = protocol.Inbox()
        self._parcels = protocol.ReceivedFds()
        self._pidfds: list[int] = []
        self._send_queue = SendQueue(backend)
        # Workers that were requested and do not exist yet, by the number of the request.
        self._coming: dict[int, Worker] = {}
        self._numbers = itertools.count(1)
        self._reader: eventloop.Background | None = None
        self._ready = anyio.Event()
        self._draining = DrainingWorkers(backend, self._look_if_empty)
        self._emptied: anyio.Event | None = None
        self._down = False
        self._layers: Sequence[str] | None = None
        self._socket: _socket.socket
        self.workers: dict[int, Worker] = {}
        # Children that seem to have ended, and were not collected by the server, which is silent.
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
        self._layers, self._named = layers, launch.python
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
            if self._is_strange and launch.hint is not None:
                self.problem += f": {launch.hint()}"
            self.kill_now()
            raise self.error()

    def error(self) -> CallableDidNotExecuteError:
        """Return the error that describes the problem of this server."""
        what = _sentence(self.problem)
        error = CallableDidNotExecuteError(
            what if self.outdated else f"the fork server can't be used: {what}",
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
            told = setup._replace(tied=bool(ends))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server has ended
                self._socket.sendall(protocol.encode(("setup", *told)))
        self._socket.setblocking(False)
        self._send_queue.open(self._socket)
        self._reader = eventloop.watch(self._backend, ours, self._listen)

    def is_owned(self) -> bool:
        """Return whether this process, and not the one it was forked from, started the server."""
        return self._process.owner_pid == os.getpid()

    def _say(self, *record: Any) -> None:
        if not self._down and self.is_owned():
            self._send_queue.put(protocol.encode(record))

    def request(self, count: int, *, ahead: bool) -> None:
        """Request *count* children; each is passed to *on_ward*, or a refusal to *on_refusal*.

        *ahead*: no call waits for them yet, so they have time to rehearse.
        """
        if self._down or not self.is_owned():
            return  # the caller is about to be told
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
            self._coming[number] = worker
            self._send_queue.pass_on(
                protocol.encode(("fork", number, ahead, is_subreaper())),
                worker.to_pass(),
                worker.passed,
                functools.partial(self._not_asked, number),
            )

    def _not_asked(self, number: int, exc: OSError) -> None:
        error = CallableDidNotExecuteError(
            f"could not ask the fork server for a child: {exc.strerror or exc}",
            reason=Reason.PIPE_CREATION,
        )
        error.__cause__ = exc
        self._refuse(number, error)

    def _refuse(self, number: int, error: CallableDidNotExecuteError) -> None:
        worker = self._coming.pop(number, None)
        if worker is not None:
            worker.close()
            self._on_refusal(error)

    def learn(self, module: str) -> None:
        """Make the server import a module, for the children to come."""
        self._importing += 1
        self._say("import", module)

    # Whether the server answers

    def begin(self) -> None:
        """Note that a call has begun in one of the workers."""
        self._busy += 1
        self._kills_before = note_memory()
        if not self._watching:
            self._watch()

    def finish(self) -> None:
        """Note that a call has ended in one of the workers."""
        self._busy -= 1

    def _watch(self) -> None:
        if not self._watching and not self._down:
            self._watching = True
            self._watchdog = eventloop.spawn(self._backend, self._look_for_answers)

    async def _look_for_answers(self) -> None:
        """Check, while anything is expected of the server, whether the server still answers."""
        try:
            await self._look_until_idle()
        finally:
            # Reset here and not when the task is done, which is a little later.
            self._watching = False

    async def _look_until_idle(self) -> None:
        quiet = 0
        while self._busy or self._coming or (self.silent and self.workers):
            # Count checks instead of seconds: a blocked event loop proves nothing about the server.
            await anyio.sleep(_SILENT_PAUSE if self.silent else self._patience / _LOOKS)
            self._listen()  # what has arrived meanwhile
            if self._down:
                return
            if self.silent:
                self._look_for_ends()
            elif self._heard:
                self._heard, quiet = False, 0
            elif quiet < (_LOOKS_AT_IMPORT if self._importing else _LOOKS):
                if not quiet:
                    self._say("ping")
                quiet += 1
            else:
                quiet = 0
                self.silent = True
                self._on_silent(self)

    def _look_for_ends(self) -> None:
        """Find the workers that have ended, since the silent server does not report them."""
        for worker in [worker for worker in self.workers.values() if worker.seems_ended()]:
            del self.workers[worker.pid]
            self._missed.add(worker.pid)
            worker.signal(signal.SIGKILL, group=True)
            worker.end(Status(None))
            self._draining.ended(worker)
        self._look_if_empty()

    def retire(self, on_gone: Callable[[], object]) -> None:
        """Give the server no more work; kill it after its last child's end, and call *on_gone*."""
        self._on_gone = on_gone
        self._send_queue.forget_fds()
        for number in list(self._coming):
            self._coming.pop(number).close()
        self._look_if_empty()

    async def _go(self) -> None:
        await self.aclose()
        if self._on_gone is not None:
            self._on_gone()

    # The methods of WorkerOwner

    def kill(self, pid: int, number: int, *, group: bool) -> None:
        """Make the server send a signal to one of its children."""
        self._say("kill", pid, int(number), group)

    def drain(self, worker: Worker) -> None:
        """Watch a worker that has returned its result until it has ended."""
        self._draining.drain(worker)

    def discard(self, worker: Worker) -> None:
        """Kill a worker that is not needed."""
        worker.signal(signal.SIGKILL, group=True)
        worker.signal(signal.SIGKILL)

    # Records from the server

    def _listen(self) -> None:
        try:
            data, descriptors, cut = messages.receive(self._socket, 65536)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors, cut = b"", [], False
        self._parcels.put(descriptors, cut)
        if not data:
            self._lose()
            return
        self._heard, self.silent, self._is_strange = True, False, False
        for record in self._inbox.feed(data):
            self._hear(record)
        self._send_queue.send()

    def _hear(self, record: Sequence[Any]) -> None:  # noqa: C901 - one arm for each record
        match record:
            case ("ended", pid, status, user, system, max_rss):
                self._missed.discard(pid)
                worker = self.workers.pop(pid, None)
                if worker is not None:
                    self._recent.append((pid, time.monotonic()))
                    exit_ = Exit(os.waitstatus_to_exitcode(status))
                    worker.end(Status(exit_, user, system, max_rss * _RSS_UNIT))
                    self._draining.ended(worker)
                    self._look_if_empty()
            case ("child", number, pid, index):
                if index == 0:
                    self._pidfds = self._parcels.next()
                # A pidfd that did not arrive is treated as none: the server sends the signals.
                pidfd = self._pidfds.pop(0) if index >= 0 and self._pidfds else -1
                self._receive(number, pid, pidfd)
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
            case ("failed" | "strange" as how, what, more):
                self._fail(how, what, more)
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

    def _fail(self, how: str, what: Any, more: Any) -> None:
        if how == "strange":
            self.problem, self.outdated = explain(what, more, self._named)
        else:
            self.problem, self._problem_number = str(what).rstrip(), more
            self._failed = True
        self._ready.set()

    def _receive(self, number: int, pid: int, pidfd: int) -> None:
        worker = self._coming.pop(number, None)
        if worker is None:  # no request has this number
            if pidfd >= 0:
                os.close(pidfd)
            self.kill(pid, signal.SIGKILL, group=True)
            self.kill(pid, signal.SIGKILL, group=False)
            return
        worker.adopt(pid, pidfd)
        self.workers[pid] = worker
        if self._on_gone is not None:  # the server is retired: too late
            self.discard(worker)
            return
        self._on_ward(worker)

    def _look_if_empty(self) -> None:
        if self.workers or not self._draining.is_over():
            return
        if self._emptied is not None:
            self._emptied.set()
        elif self._on_gone is not None and not self._down:
            eventloop.spawn(self._backend, self._go)

    def _lose(self) -> None:
        """Handle the end of the server: its children have ended too, or are about to."""
        if self._down:
            return
        # A server that ends by itself closes its socket last: give it time to end.
        self._process.ended(0.05)
        coming = self._hang_up()
        status = self._bury()
        if not self.problem:
            self.problem = self._why_ended(status)
            self._is_strange &= status.exit is not None and status.exit >= 0
        self._ready.set()
        self._collect_orphans(coming)
        workers, self.workers = self.workers, {}
        for worker in workers.values():
            # The kernel kills the children with their parent, but not the processes they started.
            self.discard(worker)
            worker.end(Status(None), lost=self.problem)
        self._look_if_empty()
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
            self._look_if_empty()
            await _within(PATIENCE, self._emptied.wait)
            coming = self._hang_up()
            if not self.silent:
                await self._until_ended(PATIENCE)
            self._process.signal(signal.SIGKILL)
            await self._until_ended(_KILL_PATIENCE)
        finally:
            try:
                coming = [*coming, *self._hang_up()]
                self._bury(_MOMENT)
                self._collect_orphans(coming)
            finally:
                self._gone.set()

    async def _until_ended(self, seconds: float) -> None:
        if self._process.is_owned():  # the server may have been lost since
            await _within(seconds, lambda: anyio.wait_readable(self._process.fileno()))

    def kill_now(self) -> None:
        """Kill the server and its children; block for a short time."""
        if self._down or not self.is_owned():
            return
        self._send_queue.close()  # there may be no event loop from here on to retry in
        for worker in self.workers.values():
            self.discard(worker)
        coming = self._hang_up()
        self._bury()
        self._collect_orphans(coming)
        workers, self.workers = self.workers, {}
        for worker in workers.values():
            worker.end(Status(None), lost=self.problem or "it was killed by this process")
        self._look_if_empty()

    def _hang_up(self) -> list[Worker]:
        """Close the socket; the server ends when it sees that.

        Return the workers that were requested and have no known process yet, still open.
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
        for fd in self._pidfds + self._parcels.all():
            os.close(fd)
        self._send_queue.close()
        coming, self._coming = self._coming, {}
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
            # The group of a child that has just ended may still exist; soon its number may
            # belong to another group.
            ended = {pid for pid, ended_at in self._recent if now - ended_at < _GROUP_PATIENCE}
            registry.end_adopted(orphans | self._missed, ended, session=self.pid)
        for worker in coming:
            worker.close()

    def _bury(self, seconds: float = _KILL_PATIENCE) -> Status:
        """Collect the process of the server, after killing it if it has not ended.

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
    """Wait for *wait*, for at most *seconds*, shielded from cancellation."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(seconds):
        await wait()


def _sentence(problem: str) -> str:
    """Put the last line of a traceback in front of it: logs may show only the first line."""
    if not problem.startswith("Traceback"):
        return problem
    lines = problem.splitlines()
    last = max(n for n, line in enumerate(lines) if line.startswith((" ", "Traceback")))
    return f"{(lines[last + 1 :] or lines[-1:])[0]}\n{problem}"
