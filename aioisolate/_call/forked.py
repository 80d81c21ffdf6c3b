"""Fork a child. Everything is prepared before the fork, so that little work is left after it."""

from __future__ import annotations

import errno
import faulthandler
import os
import signal
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import anyio

from .._async_backend import AsyncBackend
from .._child import (
    bootstrap,
    coroutines,
    execution,
    finalization,
    multiprocessing_state,
    random_seeds,
    stdio,
)
from .._child.layers import ConfinementSpec
from .._child.spec import ChildSpec
from .._errors import CallableDidNotExecuteError, CallableStatusUnknownError, Reason, may_pass
from .._os import cstdio, imports, memfd, signals, threads, unpatched
from .._os import fds as os_fds
from .._os.fds import Descriptors
from .._os.killing import kill_through_descriptor
from .._os.process import Process, Status, fork
from .._os.waitset import WaitSet
from .._wire.conversation import Conversation
from .._wire.frames import NONCE_SIZE, Kind, encode
from .._wire.shared_constants import GO
from . import fork_safety, registry
from .child import DescriptorSet
from .deadlines import Deadlines
from .eventloop import AnyioWaiter, AsyncioWaiter, Waiter
from .output import OutputStream, open_streams
from .plan import Plan

if TYPE_CHECKING:
    from .call_cgroup import CallCgroup

__all__ = ["ForkedChild", "draft_spec", "hint", "let_imports_finish", "open_empty"]

_STREAMS = ((1, "__stdout__"), (2, "__stderr__"))
# If more descriptors are open, the child looks for those to replace, not the parent: that takes
# longer (each page that the child touches is copied), but does not block the event loop.
_SEARCHED_HERE_MAX = 128


async def let_imports_finish(deadlines: Deadlines) -> None:
    """Wait while other threads are importing modules.

    A child forked meanwhile would wait for ever if it imports the same module. Raises
    StartTimeoutError if the imports do not finish in time.
    """
    while names := imports.in_progress():
        if not deadlines.left():
            raise deadlines.late(
                f"another thread is still importing {', '.join(names)}, and a child that is forked "
                "now would wait for that import for ever"
            )
        await anyio.sleep(0.002)


class ForkedChild:
    """A `Child` that is a copy of this process at the time of its launch.

    Attributes:
        process: the child process.
        fds: every descriptor of this call except those of the process and the wait set.
    """

    __slots__ = (
        "_spec",
        "_threaded",
        "channel",
        "end_fd",
        "fds",
        "fork_seconds",
        "forked_at",
        "group",
        "has_init",
        "layers",
        "nonce",
        "pid",
        "process",
        "scratch",
        "streams",
        "suspicion",
        "waiter",
        "waitset",
    )

    waiter: Waiter
    waitset: DescriptorSet
    channel: int
    scratch: int
    nonce: bytes
    streams: tuple[OutputStream, ...]
    _spec: ChildSpec

    # A short call wakes this process up only once, at its end.
    talks = False
    lost = ""

    def __init__(
        self,
        plan: Plan,
        backend: AsyncBackend,
        python_threads: Sequence[str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare everything that a child needs, so that little work is left after the fork.

        *python_threads*: the names of the other Python threads. *environment*: the child's; None:
        this process's.
        Raises CallableDidNotExecuteError if a descriptor can't be opened.
        """
        others = fork_safety.other_threads(python_threads)
        others.warn()
        # A helper thread of this package may import a module, or open a file between the listing of
        # open descriptors and the fork, like any other thread. But its locks are safe.
        self._threaded = bool(others) or threads.has_helpers()
        self.suspicion = others.suspicion()
        self.fds = fds = Descriptors()
        self.process = Process()
        self.group: CallCgroup | None = None
        self.layers: Sequence[str] | None = None
        self.has_init = plan.confinement is not None and plan.confinement.init
        self.pid = 0
        self.end_fd = -1
        self.forked_at = time.monotonic()
        self.fork_seconds = 0.0
        try:
            self._prepare(plan, backend, fds)
            if environment is not None:
                from .._child.environment import difference  # noqa: PLC0415 - rarely needed

                self._spec.environment = difference(environment)
        except BaseException as exc:
            self.close()
            self.process.close()
            if isinstance(exc, OSError):
                raise _refusal(exc, Reason.PIPE_CREATION) from exc
            raise

    def _prepare(  # noqa: PLR0915 - one line for each attribute
        self, plan: Plan, backend: AsyncBackend, fds: Descriptors
    ) -> None:
        null = fds.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        self.channel, channel_write = os_fds.channel(fds)
        self.scratch = scratch = memfd.create(fds)
        self.streams, stdout, stderr = open_streams(
            plan.options.output, null, fds, stdio.encodings()
        )
        self.waitset = waitset = WaitSet()
        if backend.loop is not None:
            self.waiter = AsyncioWaiter(backend.loop, waitset.fileno(), self._abandon)
        else:
            self.waiter = AnyioWaiter(waitset.fileno())
        for stream in self.streams:
            waitset.add(stream.fd)
        keep = plan.options.pass_fds | {channel_write, scratch, null, stdout, stderr}
        if plan.options.stdin == "inherit" and sys.__stdin__ is not None:
            keep |= {0}
        self.nonce = nonce = os.urandom(NONCE_SIZE)
        confinement = plan.confinement
        empty, confined = open_empty(confinement, fds)
        keep |= {empty}
        self._spec = spec = draft_spec(
            keep, backend, self._threaded, self.process.outlast_thread(), confined=confined
        )
        bounded = plan.enforcement.rlimits is not None
        spec.then = execution.work_within if bounded else execution.work
        spec.quiet = False
        spec.streaming = plan.streaming
        spec.progress = plan.options.on_progress is not None
        spec.fn = plan.fn
        spec.args = plan.args
        spec.nonce = nonce
        spec.parent_pid = self.process.owner_pid
        spec.channel = channel_write
        spec.scratch = scratch
        spec.null = null
        spec.empty = empty
        spec.stdout = stdout
        spec.stderr = stderr
        spec.deadline_stack = plan.options.timeout is not None
        spec.started_mark = encode(nonce, Kind.STARTED)
        spec.confinement = confinement
        spec.rlimits = plan.enforcement.rlimits
        spec.codec = plan.options.codec
        spec.exit_timeout = plan.options.exit_timeout
        if plan.options.limits is not None:
            spec.result_size = plan.options.limits.result_size
            if plan.enforcement.group is not None:
                from . import call_cgroup  # noqa: PLC0415 - only with limits

                self.group = call_cgroup.make(plan.enforcement.group)
                spec.entrances = self.group.entrances
        if confinement is not None:
            self.layers = confinement.child_layers
        if confinement is not None or spec.rlimits is not None:
            from .._child import confine  # noqa: PLC0415 - before the fork, for the child

            if confinement is not None:
                confine.get_ready(confinement)

    def go(self) -> None:
        """Let the child call fn: its layers are as planned."""
        os.write(self.channel, GO)

    def launch(self) -> None:
        """Fork this process and let the child carry out its `ChildSpec`.

        Raises CallableDidNotExecuteError if that fails; all resources are then released.
        """
        process = self.process
        registry.register(process)
        try:
            # Until the child has removed the parent's handlers, a signal would run them in the
            # child; and until the child is adopted here, a KeyboardInterrupt would leave an orphan.
            mask = signals.block_all()
            try:
                self.forked_at = start = time.monotonic()
                pid = fork()
                if pid == 0:
                    bootstrap.main(self._spec)
                self.fork_seconds = time.monotonic() - start
                try:
                    process.adopt(pid)
                except OSError as exc:
                    self._disown(pid, exc)
            finally:
                signals.set_mask(mask)
            if self.group is not None:
                self.group.close_entrances()
            self.pid = pid
            self.end_fd = process.fileno()
            self.waitset.add(self.end_fd)
        except BaseException as exc:
            registry.kill_now(process)
            self.close()
            if not process.watched:
                process.close()
            if isinstance(exc, OSError):
                raise _refusal(exc, Reason.FORK) from exc
            raise

    def _disown(self, pid: int, exc: OSError) -> NoReturn:
        """Kill a child that can't be watched. Its pid is not reused before waitpid."""
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # the child has no group of its own yet, or belongs to another user
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            kill_through_descriptor(pid, lambda: False)
        unpatched.waitpid(pid, 0)
        conversation = Conversation(self.nonce)
        try:
            conversation.receive(os.read(self.channel, 65536))
        except BlockingIOError:
            pass  # the child has sent nothing
        if conversation.started:
            raise CallableStatusUnknownError(
                f"the child was killed while fn was running: it could not be watched ({exc})",
                reason=Reason.WAIT,
                pid=pid,
            ) from exc
        raise exc

    def _abandon(self) -> None:
        registry.abandon(self.process, self.fds)

    def signal(self, number: int) -> None:
        """Send the child a signal, if it has not ended."""
        self.process.signal(number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the child's process group."""
        self.process.signal_group(number)

    def has_ended(self) -> bool:
        """Return False: `end_fd` shows the end."""
        return False

    def reap(self, *, spare: bool = False) -> Status:
        """Collect the status of the ended child. *spare*: let its trackers finish their work."""
        status = self.process.reap(spare=spare)
        registry.discard(self.process)
        return status

    def reap_adopted(self) -> bool:
        """Collect the child's orphans that this process adopted; return whether more may remain."""
        if not self.process.trackers_are_gone():
            return True
        more = self.process.reap_adopted()
        # A killed init is the last process of its group: the kernel first ends all other processes
        # of its namespace.
        more |= self.has_init and not self.process.group_is_gone()
        return more or not (self.group is None or self.group.dissolve())

    def waits_for_trackers(self) -> bool:
        """Return whether spared trackers have not finished their work."""
        return not self.process.trackers_are_gone()

    def leave(self) -> bool:
        """Return False: only the caller can collect the child."""
        return False

    def kill_now(self) -> None:
        """Kill the child, and wait for its end, blocking."""
        registry.kill_now(self.process)

    def give_up(self) -> None:
        """Keep watching the child in a thread."""
        registry.discard(self.process)
        registry.watch_on(self.process)

    def release(self) -> None:
        """Close all resources of the call. The child must have ended."""
        self.close()
        if not self.process.watched:
            self.process.close()

    def close(self) -> None:
        """Close everything but the process."""
        # Close the wait set before the descriptors in it: a loop that polls a closed descriptor of
        # which a sibling has a copy would spin.
        if hasattr(self, "waiter"):
            self.waiter.close()
        if hasattr(self, "waitset"):
            self.waitset.close()
        self.fds.close_all()
        if self.group is not None:
            self.group.dissolve()


def open_empty(confinement: ConfinementSpec | None, owner: Descriptors) -> tuple[int, bool]:
    """Open the file that replaces descriptors in a copy; return it, and whether it replaces files.

    It is open for reading only: a write to a replaced pipe or eventfd must fail in the child.
    """
    empty = owner.own(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    if confinement is None:
        return empty, False
    return empty, confinement.codec != "pickle" or confinement.read is not None


def draft_spec(
    keep: frozenset[int],
    backend: AsyncBackend,
    threaded: bool,
    ends: Sequence[int],
    *,
    confined: bool = False,
) -> ChildSpec:
    """Draft the `ChildSpec` of a copy of this process: the parts that do not depend on the call.

    Raises CallableDidNotExecuteError where a copy could not run.

    *keep*: the descriptors to keep. *ends*: the ends of the `alive_pipe` that ties the copy to this
    process, if any. *confined*: open files are replaced, too.
    """
    if obstacle := coroutines.obstacle():
        raise CallableDidNotExecuteError(
            f"{obstacle}: use an Isolator with start='zygote'", reason=Reason.FEATURE_UNAVAILABLE
        )
    if confined:
        from .._child import descriptors  # noqa: F401, PLC0415 - before the fork, for the child
    keep |= {fd for fd, name in _STREAMS if getattr(sys, name) is not None}
    keep = keep.union(ends) if ends else keep
    # One by one: passing twenty names touches twenty strings.
    spec = ChildSpec()
    spec.keep = keep
    spec.ends = ends
    spec.sever, spec.foreign = _severable(keep, threaded, confined)
    spec.confined = confined
    spec.threaded = threaded
    spec.signals = signals.handled()
    spec.faulthandler = faulthandler.is_enabled()
    spec.purge_c_stdout = cstdio.pending()
    spec.streams = stdio.prepared()
    spec.inherited = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    spec.forget_loop = coroutines.steps_to_forget(backend)
    spec.disown = multiprocessing_state.steps_to_disown(keep)
    spec.backend = backend
    spec.reseed = random_seeds.reseeder()
    spec.confinement = spec.rlimits = spec.result_size = None
    spec.entrances = ()
    spec.environment = None
    spec.codec = "pickle"
    spec.exits = -1
    spec.thread_exits = finalization.thread_exits()
    spec.rehearsing = False
    spec.weak = weakref.finalize._index_iter  # type: ignore[attr-defined]
    spec.finalizers = -1
    return spec


def _severable(
    keep: frozenset[int], threaded: bool, confined: bool
) -> tuple[list[int] | None, dict[int, int] | None]:
    # Functions that run after each fork may open files, which a confined child must not have.
    if confined:
        return None, None
    listed = os_fds.listed()
    if len(listed) - len(os_fds.ours) > _SEARCHED_HERE_MAX:
        return None, None
    foreign: dict[int, int] = {}
    sever = os_fds.severable(listed, keep, foreign=foreign)
    # Another thread may open a file between the listing and the fork.
    return None if threaded else sever, foreign


def hint(exc: OSError) -> str:
    """Return advice about an error of a fork, in parentheses; "" if there is none."""
    return {
        errno.EMFILE: " (this process may not open more descriptors: raise RLIMIT_NOFILE, or run "
        "fewer calls at once)",
        errno.ENFILE: " (the system has no descriptor left)",
        errno.EAGAIN: " (too many processes: RLIMIT_NPROC or the pids limit of the container)",
        errno.ENOMEM: " (the kernel refuses to reserve a copy's memory, see vm.overcommit_memory)",
    }.get(exc.errno or 0, "")


def _refusal(exc: OSError, reason: Reason) -> CallableDidNotExecuteError:
    message = f"{reason.value}: {exc.strerror or exc}{hint(exc)}"
    return CallableDidNotExecuteError(message, reason=reason, transient=may_pass(exc.errno))
