"""Forking a child: everything is prepared before, so that almost nothing is left for after."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
import warnings
from dataclasses import dataclass

from .._child import bootstrap, stdio
from .._child.order import AsyncBackend, Order
from .._errors import (
    CallableDidNotExecuteError,
    CallableStatusUnknownError,
    ForkSafetyWarning,
    Reason,
)
from .._os import cstdio, memfd, signals, threads
from .._os import fds as os_fds
from .._os.fds import Descriptors
from .._os.process import Process, fork
from .._os.waitset import WaitSet
from .._wire.frames import NONCE_SIZE, Kind, encode
from .._wire.state import Conversation
from . import registry
from .output import OutputStream
from .plan import Plan
from .waiter import AnyioWaiter, AsyncioWaiter, Waiter

__all__ = ["Child", "spawn"]

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
# With more descriptors than this the child looks through them itself: that takes longer there
# (each page it touches is copied), but it does not hold up the event loop.
_LOOK_HERE_MAX = 128


@dataclass(slots=True)
class Child:
    """A running child and all that belongs to it on this side.

    Attributes:
        process: the child process; None only while it is being forked.
        fds: every descriptor of this call except those of the process and the wait set.
        waitset: what the call waits for.
        waiter: how it waits.
        channel: where the child's frames arrive.
        scratch: the scratch file.
        nonce: what its frames are marked with.
        streams: its output streams, stdout and stderr, if they are read here.
        forked_at: when, on the clock of time.monotonic.
        fork_seconds: how long the fork itself took.
    """

    fds: Descriptors
    waitset: WaitSet
    waiter: Waiter
    channel: int
    scratch: int
    nonce: bytes
    streams: tuple[OutputStream, ...]
    process: Process
    forked_at: float
    fork_seconds: float


def spawn(plan: Plan, backend: AsyncBackend, first_look: float) -> Child:
    """Fork this process and let the child call fn.

    The waiter is armed to wake up *first_look* seconds from now. Raises
    CallableDidNotExecuteError if there is no child; then nothing is left behind.
    """
    others = threads.others()
    if others:
        _warn_about(others)
    fds = Descriptors()
    reason = Reason.PIPE_CREATION
    waiter: Waiter | None = None
    waitset: WaitSet | None = None
    lost: list[Process] = []
    try:
        null = os_fds.lift(fds.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)), fds)
        channel, channel_write = os_fds.pipe(fds)
        scratch = memfd.create(fds)
        streams, stdout, stderr = _output(plan, null, fds)
        waitset = WaitSet()
        if backend.loop is not None:

            def on_loss() -> None:
                for process in lost:
                    registry.abandon(process, fds)

            waiter = AsyncioWaiter(backend.loop, waitset.fileno(), on_loss)
        else:
            waiter = AnyioWaiter(waitset.fileno())
        waiter.arm(time.monotonic() + first_look)
        for stream in streams:
            waitset.add(stream.fd)

        stdio.prepare()
        keep = plan.options.pass_fds | {channel_write, scratch, null}
        order = Order(
            fn=plan.fn,
            args=plan.args,
            nonce=(nonce := os.urandom(NONCE_SIZE)),
            parent_pid=os.getpid(),
            channel=channel_write,
            scratch=scratch,
            null=null,
            stdout=stdout,
            stderr=stderr,
            keep=keep,
            sever=_severable(keep, bool(others)),
            signals=signals.handled(),
            purge_c_stdout=cstdio.pending(),
            backend=backend,
            deadline_stack=plan.options.timeout is not None,
            started_mark=encode(nonce, Kind.STARTED),
        )
        reason = Reason.FORK
        # Until the child has shed the parent's handlers, a signal would run them there, too; and
        # until it is registered here, a KeyboardInterrupt would leave an orphan.
        mask = signals.block_all()
        try:
            start = time.monotonic()
            pid = fork(threaded=bool(others))
            if pid == 0:
                bootstrap.main(order)
            end = time.monotonic()
            # These were the child's; and now that they are free, the pidfd cannot fail for
            # want of a descriptor.
            fds.close(channel_write)
            fds.close(null)
            for write in {stdout, stderr} - {-1, null}:
                fds.close(write)
            process = _adopt(pid, channel, nonce)
            lost.append(process)
            registry.register(process)
        finally:
            signals.set_mask(mask)
        waitset.add(process.fileno())
    except BaseException as exc:
        for process in lost:
            registry.put_down(process)
        if waiter is not None:
            waiter.close()
        if waitset is not None:
            waitset.close()
        fds.close_all()
        if isinstance(exc, OSError):
            raise CallableDidNotExecuteError(_explain(exc, reason), reason=reason) from exc
        raise
    return Child(
        fds=fds,
        waitset=waitset,
        waiter=waiter,
        channel=channel,
        scratch=scratch,
        nonce=nonce,
        streams=streams,
        process=process,
        forked_at=start,
        fork_seconds=end - start,
    )


def _severable(keep: frozenset[int], threaded: bool) -> list[int] | None:
    if threaded:  # another thread may open something between the look and the fork
        return None
    listed = os_fds.listed()
    return os_fds.severable(listed, keep) if len(listed) <= _LOOK_HERE_MAX else None


def _output(
    plan: Plan, null: int, fds: Descriptors
) -> tuple[tuple[OutputStream, ...], int, int]:
    """Open what the child's output needs: what is read here, and what it gets as 1 and 2."""
    output = plan.options.output
    if output == "inherit":
        return (), -1, -1
    if output == "null":
        return (), null, null
    on_line = output if callable(output) else None
    out_read, out_write = os_fds.pipe(fds)
    err_read, err_write = os_fds.pipe(fds)
    streams = OutputStream("stdout", out_read, on_line), OutputStream("stderr", err_read, on_line)
    return streams, out_write, err_write


def _adopt(pid: int, channel: int, nonce: bytes) -> Process:
    try:
        return Process(pid)
    except OSError as exc:
        # Nothing can watch it, so it must not be left alone. Until waitpid its pid is its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        conversation = Conversation(nonce)
        with contextlib.suppress(BlockingIOError):
            conversation.receive(os.read(channel, 65536))
        if conversation.started:
            raise CallableStatusUnknownError(
                f"the child was killed while fn was running, since it could not be watched: "
                f"{exc.strerror or exc}",
                reason=Reason.WAIT,
                pid=pid,
            ) from exc
        raise


def _warn_about(names: list[str]) -> None:
    depth = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
        depth += 1
    warnings.warn(
        f"forking while {len(names)} other thread(s) run ({', '.join(names[:3])}"
        f"{', ...' if len(names) > 3 else ''}): a lock that one of them holds now stays locked "
        "in the child for ever. Make such calls before threads are started, or keep fn to code "
        "that shares no lock with them; a child that hangs before fn is killed after "
        "start_timeout.",
        ForkSafetyWarning,
        stacklevel=depth,
    )


def _explain(exc: OSError, reason: Reason) -> str:
    hint = {
        errno.EMFILE: " (this process may not open more descriptors: raise RLIMIT_NOFILE, or run "
        "fewer calls at once)",
        errno.ENFILE: " (the system has no descriptor left)",
        errno.EAGAIN: " (too many processes: RLIMIT_NPROC or the pids limit of the container)",
        errno.ENOMEM: " (the kernel will not promise the memory of a second copy)",
    }.get(exc.errno or 0, "")
    return f"{reason.value}: {exc.strerror or exc}{hint}"
