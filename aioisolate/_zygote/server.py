"""A fork server: it forks a child whenever it is asked to, and tells how each has ended.

It runs in a process of its own: either a fresh interpreter (`main`) or a copy of the parent taken
earlier (`serve_copy`). It has one thread, no event loop, and few descriptors; before each fork it
checks that this is still so. It never looks at what a call is about: the parent speaks with the
children directly.

It imports little, here and in what it forks: each page is a copy later.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C part of signal; it has no stubs
import _socket
import faulthandler
import gc
import os
import select
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .._child import bootstrap, stdio
from .._child.order import AsyncBackend, Order
from .._child.serve import serve
from .._os import fds, memfd, messages, signals
from .._os.prctl import set_parent_death_signal
from .._wire import relation
from . import control

__all__ = ["main", "serve_copy"]

_raw: Any = _signal
_os: Any = os  # not every platform has all of it
_SIGKILL = int(_raw.SIGKILL)
_LINUX = sys.platform == "linux"


def main(fd: int) -> NoReturn:
    """Be a fork server, with *fd* the control socket; the program of a fresh interpreter."""
    status = 1
    try:
        set_parent_death_signal(_SIGKILL)
        relation.is_copy = False
        channel = _socket.socket(fileno=fd)
        setup = _await_setup(channel)
        if os.getppid() != setup.parent_pid:
            os._exit(1)
        try:
            _prepare(setup, fd)
            server = Server(channel)
        except BaseException:  # noqa: BLE001 - importing runs anything
            import traceback  # noqa: PLC0415 - rarely needed, and not small

            _tell(channel, ("failed", traceback.format_exc()))
            os._exit(1)
        server.run()
        status = 0
    finally:
        os._exit(status)


def serve_copy(order: Order, streams: Sequence[object]) -> int:
    """Be a fork server in a forked copy of the parent; `Order.then` of such a copy."""
    del streams
    Server(_socket.socket(fileno=order.channel)).run()
    return 0


def _await_setup(channel: _socket.socket) -> control.Setup:
    channel.setblocking(True)
    inbox = control.Inbox()
    while True:
        data, _ = messages.receive(channel, 65536)
        if not data:
            os._exit(1)
        for record in inbox.feed(data):
            return control.Setup(*record[1:])


def _prepare(setup: control.Setup, fd: int) -> None:
    """Become like the parent, as far as it wants that."""
    os.chdir(setup.cwd)
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    # Whatever the parent had marked as inheritable for somebody else is not for us.
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in fds.listed():
        if number > 2 and number not in (fd, null):
            try:
                os.close(number)
            except OSError:
                pass  # the listing's own
    os.close(null)
    sys.path[:] = setup.path
    for name in setup.preload:
        _import(name)


def _import(name: str) -> None:
    __import__(name)


class Server:
    """The loop of a fork server."""

    def __init__(self, channel: _socket.socket) -> None:
        self._channel = channel
        self._own = own = fds.Descriptors()
        channel.setblocking(False)
        self._null = fds.lift(own.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)), own)
        self._wake, wake_write = fds.pipe(own)
        os.set_blocking(wake_write, False)
        self._wake_write = wake_write
        _raw.signal(_raw.SIGCHLD, _pass)
        _raw.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._children: dict[int, int] = {}
        self._inbox = control.Inbox()
        self._outbox: list[tuple[Any, ...]] = []
        self._passing: list[int] = []
        self._streams = stdio.prepared()
        self._poll = select.poll()
        self._poll.register(channel.fileno(), select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        self._settle()

    def _settle(self) -> None:
        """Take the descriptors of now for granted, and make what exists cheap to fork."""
        gc.collect()
        # A collection in a child would touch, so copy, everything that is here.
        gc.freeze()
        self._known = set(fds.listed())
        self._count = _count_fds()

    def run(self) -> None:
        """Serve until the parent closes the control socket."""
        problem = self._problem()
        if problem and len(_threads()) > 1:
            # Thread pools of numerical libraries end when the process is forked, and come back
            # only when they are used.
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            problem = self._problem()
        if problem:
            _tell(self._channel, ("failed", problem))
            return
        self._outbox.append(("ready", sorted(sys.modules)))
        try:
            while self._flush():
                ready = [fd for fd, _ in self._poll.poll()]
                if self._wake in ready:
                    os.read(self._wake, 4096)
                    self._reap()
                    # Who ended is told before more are forked: somebody is waiting for it.
                    self._flush()
                if self._channel.fileno() in ready and not self._obey():
                    break
        finally:
            for pid in self._children:
                _kill(pid, _SIGKILL, group=True)

    def _obey(self) -> bool:
        """Carry out what the parent wants; False if it wants no more."""
        try:
            data, _ = messages.receive(self._channel, 65536)
        except BlockingIOError:
            return True
        if not data:
            return False
        for record in self._inbox.feed(data):
            match record:
                case ("fork", int(count)):
                    for _ in range(count):
                        self._fork()
                case ("kill", int(pid), int(number), group):
                    if pid in self._children:
                        _kill(pid, number, group=bool(group))
                case ("import", str(name)):
                    self._learn(name)
        return True

    def _learn(self, name: str) -> None:
        try:
            _import(name)
        except Exception:  # noqa: BLE001 - a child that needs it will say what is wrong
            return
        self._settle()

    def _fork(self) -> None:
        problem = self._problem()
        if problem:
            self._outbox.append(("unfit", problem))
            return
        own = fds.Descriptors()
        try:
            here, there = _socket.socketpair()
            theirs = fds.lift(own.own(there.detach()), own)
            ours = own.own(here.detach())
            scratch = memfd.create(own)
            order = self._order(theirs, scratch, [ours])
            mask = signals.block_all()
            try:
                pid = os.fork()
                if pid == 0:
                    bootstrap.main(order)
            finally:
                signals.set_mask(mask)
        except OSError as exc:
            own.close_all()
            self._outbox.append(("refused", exc.errno or 0, exc.strerror or str(exc)))
            return
        own.close(theirs)
        self._passing += [ours, scratch]
        pidfd = _pidfd(pid)
        if pidfd >= 0:
            self._passing.append(pidfd)
        self._children[pid] = 1
        self._outbox.append(("child", pid, pidfd >= 0))
        if len(self._passing) > messages.FDS_MAX - 3:
            self._flush()

    def _order(self, channel: int, scratch: int, more: list[int]) -> Order:
        order = Order()
        order.fn = serve
        order.args = ()
        order.nonce = b"\0" * 8
        order.parent_pid = os.getpid()
        order.channel = channel
        order.scratch = scratch
        order.null = self._null
        order.stdout = order.stderr = -1
        order.keep = frozenset((channel, scratch, self._null, 0, 1, 2))
        order.sever = [self._channel.fileno(), self._wake, self._wake_write, *more, *self._passing]
        order.threaded = False
        order.signals = [int(_raw.SIGCHLD)]
        order.faulthandler = faulthandler.is_enabled()
        order.purge_c_stdout = False
        order.streams = self._streams
        order.inherited = ()
        order.forget_loop = ()
        order.backend = AsyncBackend("asyncio")
        numpy_random = sys.modules.get("numpy.random")
        order.reseed = None if numpy_random is None else numpy_random.seed
        order.deadline_stack = True
        order.started_mark = b""
        order.quiet = True
        order.streaming = order.progress = False
        order.then = serve
        return order

    def _reap(self) -> None:
        """Collect whoever has ended, and what is left of their groups."""
        while True:
            try:
                info = _os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None:
                return
            pid = info.si_pid
            if pid in self._children:
                # While the leader is not collected, nobody else can have the group's number.
                _kill(pid, _SIGKILL, group=True)
            _, status, used = os.wait4(pid, 0)
            if self._children.pop(pid, None):
                self._outbox.append(
                    ("ended", pid, status, used.ru_utime, used.ru_stime, used.ru_maxrss)
                )

    def _flush(self) -> bool:
        """Send what there is to say; False if nobody listens any more."""
        if not self._outbox:
            return True
        data = control.encode(*self._outbox)
        passing, self._passing = self._passing, []
        self._outbox = []
        self._channel.setblocking(True)  # a slow parent is waited for, and nothing is lost
        try:
            sent = messages.send(self._channel, data, passing)
            while sent < len(data):
                sent += self._channel.send(data[sent:])
        except OSError:
            return False
        finally:
            self._channel.setblocking(False)
            for fd in passing:
                fds.ours.discard(fd)
                os.close(fd)
        return True

    def _problem(self) -> str:
        """Say what makes it unsafe to fork this process, if anything does."""
        threads = _threads() if _count_threads() != 1 else [""]
        if len(threads) > 1:
            return (
                f"the fork server has {len(threads)} threads ({', '.join(sorted(set(threads)))}); "
                "a lock that one of them holds would stay locked in every child. One of the "
                "preloaded modules has started them"
            )
        expected = self._count + len(self._passing)
        if self._count and _count_fds() == expected:
            return ""
        more = set(fds.listed()) - self._known - set(self._passing)
        strange = sorted(f"{fd} ({target})" for fd in more if (target := _target(fd)))
        if strange:
            return (
                f"the fork server has descriptors that it should not have: {', '.join(strange)}; "
                "every child would share them"
            )
        return ""


def _pass(number: int, frame: object) -> None:
    """Handle a signal that is only there to wake up the loop."""


def _tell(channel: _socket.socket, record: tuple[Any, ...]) -> None:
    channel.setblocking(True)
    try:
        channel.sendall(control.encode(record))
    except OSError:
        pass  # the parent is gone, and nobody wants to know


def _kill(pid: int, number: int, *, group: bool) -> None:
    try:
        if group:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it has not got as far as having a group; or what is left has changed its user


def _pidfd(pid: int) -> int:
    try:
        pidfd: int = _os.pidfd_open(pid)
    except (OSError, AttributeError):
        return -1  # then the parent signals through us
    return pidfd


def _count_threads() -> int:
    """Count the threads of this process, native ones included; 0: unknown."""
    try:
        return os.stat("/proc/self/task").st_nlink - 2
    except OSError:
        return 1  # no such directory here: Python's own count is all there is


def _threads() -> list[str]:
    names = []
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/comm") as file:
                names.append(file.read().strip())
    except OSError:
        pass  # one has just ended
    return names


def _count_fds() -> int:
    """Count the open descriptors; 0: this kernel does not tell so cheaply (Linux 6.2 does)."""
    try:
        return os.stat("/proc/self/fd").st_size
    except OSError:
        return 0


def _target(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""  # the listing's own, closed by now
