"""One fork server, seen from the process that it works for: starting, talking to, and ending it."""

from __future__ import annotations

import _socket
import errno
import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import anyio

from .._call import loops, registry
from .._call.causes import why_unconfined
from .._child.order import AsyncBackend
from .._errors import CallableDidNotExecuteError, Reason
from .._os import fds as os_fds
from .._os import messages
from .._os.fds import Descriptors
from .._os.prctl import is_subreaper
from .._os.process import Process, Status, children_of_session
from .._outcome import Exit
from . import control
from .backlog import Backlog
from .farewell import PATIENCE, Farewell
from .launch import Launch, explain
from .ward import Ward

__all__ = ["Zygote"]

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
# What the server hears when it is at its limit of descriptors, or was put below what it has.
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE, errno.EBADF, errno.EINVAL})


class Zygote:
    """A running fork server.

    Attributes:
        wards: its children that have not ended, by pid.
        problem: why it is not of any use (any more), or "".
        modules: what it had imported when it was ready.
        outdated: it is of another version than this process, and so will the next one be.
    """

    def __init__(
        self,
        backend: AsyncBackend,
        *,
        on_ward: Callable[[Ward], object],
        on_refusal: Callable[[CallableDidNotExecuteError], object],
        on_lost: Callable[[Zygote], object],
    ) -> None:
        self._backend = backend
        self._on_ward = on_ward
        self._on_refusal = on_refusal
        self._on_lost = on_lost
        self._process = Process()
        self._fds = Descriptors()
        self._inbox = control.Inbox()
        self._parcels = control.Parcels()
        self._pidfds: list[int] = []
        self._backlog = Backlog(backend)
        # Asked for and not yet there, by the numbers of the requests.
        self._coming: dict[int, Ward] = {}
        self._numbers = itertools.count(1)
        self._reader: loops.Background | None = None
        self._ready = anyio.Event()
        self._farewell = Farewell(backend, self._look_if_empty)
        self._emptied: anyio.Event | None = None
        self._down = False
        self._layers: Sequence[str] | None = None
        self._socket: _socket.socket
        self.wards: dict[int, Ward] = {}
        self.problem = ""
        self.outdated = False
        self._problem_number = 0
        self.modules: frozenset[str] = frozenset()

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    async def start(
        self,
        launch: Launch,
        setup: control.Setup | None,
        patience: float,
        layers: Sequence[str] | None = None,
    ) -> None:
        """Start the server and wait until it is ready, and confined by *layers* if there are any.

        Raises CallableDidNotExecuteError, with what the server says, if it is not after
        *patience* seconds.
        """
        self._layers = layers
        try:
            self._launch(launch, setup)
            with anyio.move_on_after(patience):
                await self._ready.wait()
            if not self._ready.is_set():
                self.problem = f"it was not ready after {patience:g} s"
        except BaseException as exc:
            self.put_down()
            if isinstance(exc, OSError):
                raise CallableDidNotExecuteError(
                    f"the fork server could not be started: {exc.strerror or exc}",
                    reason=Reason.FORK,
                ) from exc
            raise
        if self.problem:
            self.put_down()
            raise self.error()

    def error(self) -> CallableDidNotExecuteError:
        """Make the error that says what is wrong with this server."""
        error = CallableDidNotExecuteError(
            self.problem if self.outdated else f"the fork server can't be used: {self.problem}",
            reason=Reason.CHILD_SETUP,
            pid=self.pid or None,
            crash_traceback=self.problem if "Traceback" in self.problem else "",
        )
        if self._problem_number:
            error.__cause__ = OSError(self._problem_number, self.problem.rpartition("\n")[2])
        return error

    def _launch(self, launch: Launch, setup: control.Setup | None) -> None:
        own = self._fds
        here, there = _socket.socketpair()
        theirs = os_fds.lift(own.own(there.detach()), own)
        ours = os_fds.lift(own.own(here.detach()), own)
        self._socket = _socket.socket(fileno=ours)
        registry.register(self._process)
        self._process.adopt(launch(theirs))
        own.close(theirs)
        if setup is not None:
            self._socket.sendall(control.encode(("setup", *setup)))
        self._socket.setblocking(False)
        self._backlog.open(self._socket)
        self._reader = loops.watch(self._backend, ours, self._listen)

    def _say(self, *record: Any) -> None:
        if not self._down:
            self._backlog.put(control.encode(record))

    def request(self, count: int, *, ahead: bool) -> None:
        """Ask for so many children; each comes to *on_ward*, or a refusal to *on_refusal*.

        *ahead* of need: they have time to rehearse.
        """
        if self._down:
            return  # whoever asks is about to hear of it
        for _ in range(count):
            try:
                ward = Ward(self)
            except OSError as exc:
                error = CallableDidNotExecuteError(
                    f"{Reason.PIPE_CREATION.value}: {exc.strerror}", reason=Reason.PIPE_CREATION
                )
                error.__cause__ = exc
                self._on_refusal(error)
                continue
            number = next(self._numbers)
            self._coming[number] = ward
            self._backlog.pass_on(
                control.encode(("fork", number, ahead)),
                ward.to_pass(),
                ward.passed,
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
        ward = self._coming.pop(number, None)
        if ward is not None:
            ward.close()
            self._on_refusal(error)

    def learn(self, module: str) -> None:
        """Have the server import a module, for the children to come."""
        self._say("import", module)

    # Keeper of its wards

    def kill(self, pid: int, number: int, *, group: bool) -> None:
        """Have the server send a signal to one of its children."""
        self._say("kill", pid, int(number), group)

    def see_off(self, ward: Ward) -> None:
        """Watch a ward that has given its answer until it is gone."""
        self._farewell.see_off(ward)

    def discard(self, ward: Ward) -> None:
        """Kill a ward that nobody wants."""
        ward.signal(signal.SIGKILL, group=True)
        ward.signal(signal.SIGKILL)

    # What the server says

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
        for record in self._inbox.feed(data):
            self._hear(record)
        self._backlog.send()

    def _hear(self, record: Sequence[Any]) -> None:
        match record:
            case ("ended", pid, status, user, system, max_rss):
                ward = self.wards.pop(pid, None)
                if ward is not None:
                    exit_ = Exit(os.waitstatus_to_exitcode(status))
                    ward.end(Status(exit_, user, system, max_rss * _RSS_UNIT))
                    self._farewell.ended(ward)
                    self._look_if_empty()
            case ("child", number, pid, index):
                if index == 0:
                    self._pidfds = self._parcels.next()
                # One that was lost for want of room is as one that never was: the server signals.
                pidfd = self._pidfds.pop(0) if index >= 0 and self._pidfds else -1
                self._receive(number, pid, pidfd)
            case ("refused", number, code, text):
                reason = Reason.PIPE_CREATION if code in _NO_DESCRIPTOR else Reason.FORK
                error = CallableDidNotExecuteError(
                    f"the fork server could not fork: {text}", reason=reason
                )
                error.__cause__ = OSError(code, text)
                self._refuse(number, error)
            case ("unfit", number, text):
                self._refuse(number, CallableDidNotExecuteError(text, reason=Reason.CHILD_SETUP))
            case ("failed" | "strange" as how, what, more):
                self._fail(how, what, more)
            case ("ready", modules, engaged):
                self.modules = frozenset(modules)
                if self._layers is not None:
                    self.problem = why_unconfined(self._layers, ",".join(engaged).encode())
                self._ready.set()

    def _fail(self, how: str, what: Any, more: Any) -> None:
        if how == "strange":
            self.problem, self.outdated = explain(what, more)
        else:
            self.problem, self._problem_number = str(what).rstrip(), more
        self._ready.set()

    def _receive(self, number: int, pid: int, pidfd: int) -> None:
        ward = self._coming.pop(number, None)
        if ward is None:  # nobody has asked for it
            if pidfd >= 0:
                os.close(pidfd)
            self.kill(pid, signal.SIGKILL, group=True)
            self.kill(pid, signal.SIGKILL, group=False)
            return
        ward.adopt(pid, pidfd)
        self.wards[pid] = ward
        self._on_ward(ward)

    def _look_if_empty(self) -> None:
        if self._emptied is not None and not self.wards and self._farewell.is_over():
            self._emptied.set()

    def _lose(self) -> None:
        """The server has gone: so have its children, or will in a moment."""
        if self._down:
            return
        self._hang_up()
        # Closing the socket is the last that a server does by itself: let it.
        self._process.ended(0.05)
        status = self._bury()
        self._collect_orphans(self.wards.values())
        if not self.problem:
            self.problem = f"it ended with {status.exit}" if status.exit is not None else "it ended"
        self._ready.set()
        wards, self.wards = self.wards, {}
        for ward in wards.values():
            # The kernel kills them with their parent, but not what they have started.
            self.discard(ward)
            ward.end(Status(None), lost=True)
        self._look_if_empty()
        self._on_lost(self)

    # The end

    async def aclose(self) -> None:
        """End the server; whatever children it has are killed."""
        if self._down:
            return
        for ward in list(self.wards.values()):
            self.discard(ward)
        self._emptied = anyio.Event()
        self._look_if_empty()
        with anyio.CancelScope(shield=True), anyio.move_on_after(PATIENCE):
            await self._emptied.wait()
        self._hang_up()
        if self._process.is_owned():  # it has not died just now
            with anyio.CancelScope(shield=True), anyio.move_on_after(PATIENCE):
                await anyio.wait_readable(self._process.fileno())
        self._bury()

    def put_down(self) -> None:
        """Kill the server, and with it its children; blocking, but not for long."""
        if self._down:
            return
        self._backlog.close()  # from here on there may be no loop to try anything again
        wards, self.wards = self.wards, {}
        for ward in wards.values():
            self.discard(ward)
        self._hang_up()
        self._bury()
        self._collect_orphans(wards.values())
        for ward in wards.values():
            ward.end(Status(None), lost=True)
        self._look_if_empty()

    def _hang_up(self) -> None:
        """Say no more and hear no more: the server ends when it sees that."""
        self._down = True
        if self._reader is not None:
            self._reader.cancel()
        self._farewell.cancel()
        if hasattr(self, "_socket"):
            self._socket.detach()
        self._fds.close_all()
        for fd in self._pidfds + self._parcels.all():
            os.close(fd)
        for ward in self._coming.values():
            ward.close()
        self._coming.clear()
        self._backlog.close()

    def _collect_orphans(self, wards: Iterable[Ward]) -> None:
        """Collect the children of a server that is dead, where they have become this process's.

        That is so where this process is a subreaper or pid 1, as servers in containers are.
        """
        if not is_subreaper():
            return
        for ward in wards:
            ward.signal(signal.SIGKILL)
        # The server led a session of its own, so this finds those, too, that it had forked and
        # not told of. (A template does not: its group was made for it.)
        for pid in {ward.pid for ward in wards} | children_of_session(self.pid):
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass  # it was collected before its server died

    def _bury(self) -> Status:
        """Collect the server's process, which is killed if it has not ended."""
        status = Status(None)
        registry.discard(self._process)
        if self._process.is_owned():
            self._process.signal(signal.SIGKILL)
            if self._process.ended(5):
                status = self._process.reap()
                self._process.close()
            else:
                registry.watch_on(self._process)
        return status
