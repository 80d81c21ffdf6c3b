"""A fork server: it forks a child for each request, and reports the end of each child.

The server runs in a process of its own: either a fresh interpreter (`main`) or a copy of the
parent taken earlier (`serve_copy`). It has one thread, no event loop, and few descriptors; before
each fork it checks that this is still so. It never reads calls: the parent sends them to the
children directly.

The server imports few modules: its children copy each page of them that they write to.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C part of signal; it has no stubs
import _socket
import errno
import faulthandler
import gc
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from .._child import (
    attached_memory,
    bootstrap,
    coroutines,
    finalization,
    multiprocessing_state,
    random_seeds,
    stdio,
)
from .._child.layers import ConfinementSpec
from .._child.prefork import serve
from .._child.spec import ChildSpec
from .._os import fds, imports, memfd, messages, shared_mappings, signals, unpatched
from .._os.prctl import set_parent_death_signal
from .._wire import ancestry
from .._wire.frames import NONCE_SIZE
from .._wire.shared_constants import STACK_SIGNAL
from . import preparation, protocol, random_generators, selfcheck
from .reaper import Reaper

if TYPE_CHECKING:
    from .._child import confine

__all__ = ["main", "serve_copy"]

_raw: Any = _signal
_os: Any = os  # not every platform has all its functions
_SIGKILL = int(_raw.SIGKILL)
_LINUX = sys.platform == "linux"
# Seconds to wait for threads that end at a fork.
_THREADS_PATIENCE = 0.5
# Seconds between attempts to send a message for which the kernel has no memory.
_PAUSE = 0.02


def main(fd: int) -> NoReturn:
    """Run a fork server with the control socket *fd*: the program of a fresh interpreter."""
    status = 1
    try:
        ancestry.mark_as_no_copy()
        channel = _socket.socket(fileno=fd)
        setup = _await_setup(channel)
        # Until here the server waits for the parent, and ends with it.
        if not setup.tied:
            set_parent_death_signal(_SIGKILL)
        if os.getppid() != setup.parent_pid:
            os._exit(1)
        try:
            bootstrap.set_oom_score_adj()  # inherited by every child
            opened = preparation.prepare(setup, fd)
            faulthandler.disable()  # enabled again in the children
            # Children must not have Python's handler of SIGINT, or handlers that imports installed.
            signals.reset(signals.handled())
            confinement = None if setup.confinement is None else ConfinementSpec(*setup.confinement)
            repeating = random_generators.find(setup.preload) if setup.preload else []
            server = Server(channel, confinement, opened, repeating, tied=setup.tied)
        except BaseException as exc:  # noqa: BLE001 - an import can raise anything
            _tell_failure(channel, exc)
            os._exit(1)
        _run(server, channel)
        status = 0
    finally:
        os._exit(status)


def serve_copy(spec: ChildSpec, streams: Sequence[object]) -> int:
    """Run a fork server in a forked copy of the parent; `ChildSpec.then` of such a copy."""
    del streams
    faulthandler.disable()  # enabled again in the children
    for fd in {spec.null, spec.empty, spec.scratch}:
        os.close(fd)
    channel = _socket.socket(fileno=spec.channel)
    confinement, preload, changes, tied = spec.args
    try:
        try:
            if changes is not None:
                from .._child.environment import change  # noqa: PLC0415 - rarely needed; imported

                change(*changes)
            preparation.preload(preload)
            server = Server(channel, confinement, None, random_generators.find(preload), tied=tied)
        except BaseException as exc:
            _tell_failure(channel, exc)
            raise
        _run(server, channel)
    finally:
        channel.detach()  # otherwise there might be a ResourceWarning
    return 0


def _run(server: Server, channel: _socket.socket) -> None:
    try:
        server.run()
    except BaseException as exc:
        _tell_failure(channel, exc)
        raise


def _tell_failure(channel: _socket.socket, exc: BaseException) -> None:
    with preparation.library_first():
        import traceback  # noqa: PLC0415 - rarely needed, and large

        text = traceback.format_exc()  # imports more modules
    number = exc.errno if isinstance(exc, OSError) else None
    _tell(channel, ("failed", text, number or 0))


def _await_setup(channel: _socket.socket) -> protocol.Setup:
    channel.setblocking(True)
    inbox = protocol.Inbox()
    while True:
        data, _, _ = messages.receive(channel, 4096)
        if not data:
            os._exit(1)
        for record in inbox.feed(data):
            return protocol.Setup(*record[1:])


class Server:
    """The loop of a fork server."""

    def __init__(
        self,
        control_channel: _socket.socket,
        confinement: ConfinementSpec | None = None,
        opened: Mapping[int, str] | None = None,
        repeating: Sequence[random_generators.Found] = (),
        *,
        tied: bool = False,
    ) -> None:
        """Prepare the server; with *confinement*, engage the layers that its children share.

        *opened*: which module opened which descriptor; None: this process is a copy of the parent.
        *repeating*: the random generators that each child will have a copy of.
        *tied*: an `alive_pipe` kills the server with its parent, not a parent-death signal.
        """
        self._repeating = repeating
        self._selfcheck = selfcheck.SelfCheck(held=confinement is not None)
        self._channel = control_channel
        self._own = own = fds.Descriptors()
        memfd.sealable()  # cache the answer, which a confined child may not be able to find out
        null = fds.lift(own.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)), own)
        # Every child has its channel and its scratch file under these numbers, so objects that
        # depend on the numbers are prepared once here, and not in each child.
        self._null = self._empty = null
        self._channel_at = own.own(fds.duplicate(null))
        self._scratch_at = own.own(fds.duplicate(null))
        self._reaper = Reaper(spares=confinement is None or confinement.codec == "pickle")
        self._inbox = protocol.Inbox()
        self._received_fds = protocol.ReceivedFds()
        # The descriptors of the child that is forked next.
        self._given: list[int] = []
        self._outbox: list[tuple[Any, ...]] = []
        self._opened = opened
        # Why this process may not serve untrusted code: memory that its modules share; or "".
        self._shared = ""
        # The pidfds that are sent with the pending records.
        self._passing: list[int] = []
        self._spec = self._make_spec()
        faulthandler.enable(self._scratch_at)
        faulthandler.register(STACK_SIGNAL, self._scratch_at)
        control_channel.setblocking(False)
        self._reaper.watch(control_channel.fileno())
        self._sever = (control_channel.fileno(), *self._reaper.fds())
        self._prepared_layers: confine.PreparedLayers | None = None
        self._engaged: list[str] = []
        if confinement is not None:
            self._end_threads()  # only a process with a single thread may enter a user namespace
            if confinement.codec != "pickle":
                self._empty = fds.lift(
                    own.own(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)), own
                )
                self._spec.module_fds = []
                self._spec.dev = self._open_dev()
                self._find_held()  # before a mount namespace changes the paths
            self._confine(confinement, tied)
        attached_memory.watch_for_module()
        imports.restore_lazy_imports()  # for the children
        self._settle()

    def _confine(self, confinement: ConfinementSpec, tied: bool) -> None:
        from .._child import confine, rlimits  # noqa: F401, PLC0415 - only with a sandbox

        if confinement.codec != "pickle":
            # Output is not read either, unless it is captured.
            os.dup2(self._null, 1)
            os.dup2(self._null, 2)
        confine.get_ready(confinement)
        self._spec.confinement = confinement
        self._spec.codec = confinement.codec
        self._prepared_layers = confine.PreparedLayers()
        self._engaged = confine.enter_server(confinement, self._prepared_layers, tied=tied)

    def _open_dev(self) -> int:
        try:
            path: int = getattr(os, "O_PATH", os.O_RDONLY)
            return self._own.own(os.open("/dev", path | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError:
            return -1  # there is no /dev: children share this process's descriptor of /dev/null

    def _find_held(self) -> None:
        """Find and report the descriptors and memory that untrusted code must not get."""
        from . import module_resources  # noqa: PLC0415 - only for untrusted code

        copied, ground, spec = self._opened is None, self._prepared_layers, self._spec
        proc = None if ground is None else ground.proc
        if copied:
            shared_mappings.unmap_io_uring_rings(proc)
        self._shared = module_resources.why_shared(shared_mappings.shared(proc), copied=copied)
        if not copied:
            module_resources.seal(fds.kept)
        own = {0, 1, 2, self._null, self._empty, self._channel_at, self._scratch_at, spec.dev}
        own.update(self._sever, self._selfcheck.held(), fds.kept, self._given, self._passing)
        own.update(self._received_fds.all(), () if ground is None else ground.fds())
        # The descriptor of the listing itself is closed by now.
        found = [fd for fd in self._selfcheck.list_fds() if fd not in own and fds.is_open(fd)]
        told = [
            (
                fd,
                module_resources.describe(fd, self._selfcheck.target(fd)),
                (self._opened or {}).get(fd),
            )
            for fd in found
            if fd not in (spec.module_fds or ()) and not module_resources.is_null(fd, self._null)
        ]
        if told:
            self._outbox.append(("held", told))
        spec.module_fds, spec.snapshots, spec.empty = found, list(fds.kept), self._empty

    def _make_spec(self) -> ChildSpec:
        """Return the spec that all children have in common."""
        spec = ChildSpec()
        spec.parent_pid = os.getpid()
        spec.channel = self._channel_at
        spec.scratch = self._scratch_at
        spec.null = spec.empty = self._null
        spec.module_fds = None
        spec.dev = -1
        spec.snapshots = []
        spec.deadline_stack = True
        spec.reseed = random_seeds.reseeder()
        spec.forget_loop = [
            *coroutines.steps_to_forget_hub(),
            *multiprocessing_state.steps_for_server(),
        ]
        # A fork server writes no output, so the buffers of its streams are empty.
        spec.streams = streams = stdio.build()
        sys.stdin, sys.stdout, sys.stderr = streams
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = streams  # type: ignore[misc]
        spec.nonce = b"\0" * NONCE_SIZE
        spec.confinement = spec.rlimits = spec.result_size = None
        spec.codec = "pickle"
        spec.statm = -1
        spec.weak = None
        spec.finalizers = -1
        return spec

    def _settle(self) -> None:
        """Note the descriptors that are open now, and freeze the existing objects."""
        finalization.set_mark(self._spec)
        gc.collect()
        # A collection in a child would touch, and so copy, every object that exists now.
        gc.freeze()
        given = self._given + self._received_fds.all()
        # Leave out the children's descriptors, which are temporary, and that of the listing itself.
        now_open = filter(fds.is_open, self._selfcheck.list_fds())
        self._known = set(now_open) - set(self._passing) - set(given)
        count = self._selfcheck.count_fds()
        self._count = count and count - len(given) - len(self._passing)
        # Temporary descriptors are above all permanent ones, so a child closes them in one call.
        self._spec.floor = max(self._known) + 1
        if self._spec.module_fds is not None:
            from .._child import descriptors  # noqa: PLC0415 - only if untrusted; children inherit it

            self._spec.gaps = descriptors.gaps(self._known)

    def run(self) -> None:
        """Serve until the parent closes the control socket."""
        problem = self._problem()
        if problem:
            self._end_threads()
            problem = self._problem()
        if problem:
            _tell(self._channel, ("failed", problem, 0))
            return
        encodings = tuple(stream.encoding for stream in (sys.stdout, sys.stderr))
        ready = ("ready", sorted(sys.modules), self._engaged, self._repeating, encodings)
        self._outbox.append(ready)
        control_fd = self._channel.fileno()
        try:
            while self._flush():
                has_message, ended = self._reaper.wait(control_fd)
                for end in ended:
                    self._outbox.append(("ended", *end))
                if has_message:
                    # Report ends before further forks: a call is waiting for them.
                    self._flush()
                    if not self._handle_requests():
                        break
        finally:
            self._reaper.end_all()

    def _end_threads(self) -> None:
        """Make the thread pools of numerical libraries end.

        The pools end when the process is forked, and start again only when they are used.
        """
        if len(self._selfcheck.threads()) == 1:
            return
        pid = unpatched.fork()
        if pid == 0:
            os._exit(0)
        unpatched.waitpid(pid, 0)
        # A thread that has ended, and been joined, is still listed for a moment.
        until = time.monotonic() + _THREADS_PATIENCE
        while len(self._selfcheck.threads()) > 1 and time.monotonic() < until:
            time.sleep(0.001)

    def _handle_requests(self) -> bool:
        """Carry out the parent's requests; return False when the parent has closed the socket."""
        try:
            data, descriptors, cut = messages.receive(self._channel, 4096)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False  # the parent has closed the socket without reading the last records
        if not data:
            return False
        self._received_fds.put(descriptors, cut)
        for record in self._inbox.feed(data):
            kind = record[0]
            if kind == "fork":
                self._fork_for(*record[1:])
            elif kind == "kill":
                self._reaper.kill(*record[1:])
            elif kind == "ping":
                self._outbox.append(("pong",))
            elif kind == "import":
                self._import(record[1])
                self._outbox.append(("imported",))
        return True

    def _fork_for(self, number: int, ahead: bool, note_pid: bool) -> None:
        self._given = self._received_fds.next()
        self._spec.note_pid = note_pid
        try:
            self._fork(number, ahead)
        except OSError as exc:
            why = exc.errno or 0, exc.strerror or str(exc)
            self._outbox.append(("refused", number, *why))
        finally:
            for fd in self._given:
                os.close(fd)
            self._given = []

    def _import(self, name: str) -> None:
        try:
            with preparation.library_first():
                imports.import_at_once(name)  # its lazy imports may never be needed
            if self._spec.module_fds is not None:
                self._find_held()
            self._settle()
        except Exception:  # noqa: BLE001 - a child that needs the module will report the error
            return

    def _fork(self, number: int, ahead: bool) -> None:
        """Fork a child with its descriptors; a child forked *ahead* rehearses. Raises OSError."""
        problem = self._problem()
        if problem:
            self._outbox.append(("unfit", number, problem))
            return
        if len(self._given) < 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        channel, scratch = self._given
        channel_at, scratch_at, null = self._channel_at, self._scratch_at, self._null
        os.dup2(channel, channel_at, False)
        os.dup2(scratch, scratch_at, False)
        pid = pidfd = -1
        try:
            pid = unpatched.fork()
            if pid == 0:
                unneeded = self._given + self._received_fds.all() + self._selfcheck.held()
                unneeded += self._passing
                serve(self._spec, self._sever, unneeded, ahead, self._prepared_layers)
            # Close these two descriptors first: the pidfd may need their numbers.
            while self._given:
                os.close(self._given.pop())
            pidfd = self._reaper.adopt(pid)
        finally:
            if pid == 0:
                os._exit(1)  # never reached: `serve` does not return
            try:
                os.dup2(null, channel_at, False)
                os.dup2(null, scratch_at, False)
            except OSError:  # the limit was just lowered; the child ends when its channel is closed
                if pidfd >= 0:
                    os.close(pidfd)
                raise
        self._outbox.append(("child", number, pid, len(self._passing) if pidfd >= 0 else -1))
        if pidfd >= 0:
            self._passing.append(pidfd)
        if not ahead or len(self._passing) >= messages.FDS_MAX:
            self._flush()  # a call waits for this child

    def _flush(self) -> bool:
        """Send the pending records; return False if the parent has closed the socket."""
        if not self._outbox:
            return True
        records, self._outbox = self._outbox, []
        fds = passing = self._passing
        data = protocol.encode(*records)
        self._channel.setblocking(True)  # wait for a slow parent, so that no record is lost
        try:
            while data:
                try:
                    data = data[messages.send(self._channel, data, fds) :]
                except (BrokenPipeError, ConnectionResetError):
                    return False
                except OSError:
                    if fds:
                        # The kernel limits a user's descriptors in flight.
                        # No byte has been sent: send no pidfd; this process signals the child.
                        data = protocol.encode(*map(_without_pidfd, records))
                    else:
                        time.sleep(_PAUSE)
                fds = []
        finally:
            self._channel.setblocking(False)
            self._passing = []
            for fd in passing:
                os.close(fd)
        return True

    def _problem(self) -> str:
        """Return why forking this process is not safe, or ""."""
        if self._shared:
            return self._shared
        check = self._selfcheck
        threads = check.threads() if check.count_threads() != 1 else [""]
        if len(threads) > 1:
            return (
                f"the fork server has {len(threads)} threads ({', '.join(sorted(set(threads)))}); "
                "a lock that one of them holds would stay locked in every child. One of the "
                "preloaded modules has started them"
            )
        given = self._given + self._received_fds.all()
        temporary = len(given) + len(self._passing)
        if self._count and check.count_fds() == self._count + temporary:
            return ""
        more = set(check.list_fds()) - self._known - set(given) - set(self._passing)
        unknown = sorted(f"{fd} ({target})" for fd in more if (target := check.target(fd)))
        if unknown:
            return (
                f"the fork server has descriptors that it should not have: {', '.join(unknown)}; "
                "every child would share them"
            )
        return ""


def _without_pidfd(record: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*record[:-1], -1) if record[0] == "child" else record


def _tell(channel: _socket.socket, record: tuple[Any, ...]) -> None:
    channel.setblocking(True)
    try:
        channel.sendall(protocol.encode(record))
    except OSError:
        pass  # the parent has ended
