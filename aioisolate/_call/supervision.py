r"""The supervision of a child from its fork to its end.

`Supervision.step` is called when a descriptor is readable or a time has come; it then reads from
the child, kills it or collects it. None of the methods waits. The loop that waits is in `run`.

    RUNNING --deadline--> DUMPING --> TERMINATING --> KILLING --> (gone)
       |                  (stack)     (only if grace)    ^  \
       +--cancelled, or invalid data on the channel -----+   +--> (given up: stuck in the kernel)
"""

from __future__ import annotations

import enum
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from .._options import CallOptions
from .._os import memfd, resource_trackers
from .._os.fds import Descriptors
from .._os.process import Status, stopped_by
from .._outcome import CallEvent, Progress
from .._wire import safe_text
from .._wire.conversation import State
from .._wire.frames import Kind, parse_layers
from .._wire.shared_constants import MARK_AT, STACK_SIGNAL
from .channel import READ_SIZE, Channel, FaultError, WakeupRateLimiter
from .child import Child
from .crash import StackText
from .deadlines import Deadlines
from .diagnosis import group_killer, memory_killer, note_memory, why_unconfined
from .output import OutputStream
from .plan import name_of
from .unfinished_work import UnfinishedWork
from .verdict import KilledFor

__all__ = ["FIRST_LOOK", "OnItem", "Supervision"]

# Called with the pickle, in pieces, of an item that a generator has yielded, and the descriptors
# that arrived with the pickle, which the callable must close.
OnItem: TypeAlias = Callable[[Sequence[bytes], Sequence[int]], object]

_log = logging.getLogger("aioisolate.call")

# A short call wakes this process once: when its child has ended. The channel of a child is read
# while the child runs only if the child takes longer than this number of seconds. (A child that
# writes more than a pipe holds waits until then.)
FIRST_LOOK = 0.005
# Seconds that a child may take to write its stack, to end after its answer, to end when killed.
_DUMP_PATIENCE = 0.25
_DUMP_POLL = 0.002
_LINGER_PATIENCE = 1.0
_KILL_PATIENCE = 10.0
# The first pause, in seconds, between checks for a stopped child; each one is longer.
_STOP_PAUSE = 1.0
_STOP_PAUSE_MAX = 60.0
# A pipe holds no more than this, so no more is left in it when its child has ended.
_DRAIN_MAX = 1 << 20


class _Phase(enum.Enum):
    RUNNING = enum.auto()
    DUMPING = enum.auto()
    TERMINATING = enum.auto()
    KILLING = enum.auto()


class Supervision:
    """The state of a running child, and the next action.

    Attributes:
        listens: whether the stages of the call are reported or logged.
        child: the child.
        gone: whether the child has been collected, left or given up, so that no step remains.
        conversation: the frames so far.
        status: how the child ended, once it has.
        ended_at: when the end was noticed, on the clock of time.monotonic.
        left: whether the end was left to the fork server.
        answered_at: when the answer arrived, or None if there is none.
        stack: the stack text of faulthandler in the child.
        killed_for: why the child was killed, or None; the first cause counts.
        detail: details of `killed_for`, such as the fault on the channel.
        seconds: the deadline that passed, if one did.
        out_of_memory: the memory limit that killed the child, if known.
        others_memory: whether the machine or container lacked memory, and not the call's limit.
        stopped_by: the signal that had stopped the child at the last check, or "".
    """

    def __init__(
        self,
        child: Child,
        options: CallOptions,
        deadlines: Deadlines,
        *,
        whole: bool = False,
        on_item: OnItem | None = None,
        fn: object = None,
    ) -> None:
        self._fn = fn
        self.child = child
        self.options = options
        self._on_item = on_item
        self._rate_limiter = WakeupRateLimiter(child, options)
        self._paused = False
        self._marked = False
        self._phase = _Phase.RUNNING
        self.killed_for: KilledFor | None = None
        self.detail = ""
        self.seconds = 0.0
        self.out_of_memory = ""
        self.others_memory = False
        self.stopped_by = ""
        self._stop_pause = _STOP_PAUSE
        self._kills_before = None if options.limits is None else note_memory()
        self._look_due = not child.talks
        self._answered = False
        self._phase_ends = math.inf
        self.listens = options.on_event is not None or _log.isEnabledFor(logging.DEBUG)
        now = time.monotonic()
        self._deadline = deadlines.end
        self._start_deadline = deadlines.start
        self._first_look = now + FIRST_LOOK
        self._next_stop_check = now + _STOP_PAUSE
        self.gone = False
        limits = options.limits
        self._output_left = math.inf
        if limits is not None and limits.output_size is not None:
            self._output_left = limits.output_size
        self._channel = Channel(child, options, items=on_item is not None)
        self.conversation = self._channel.conversation
        self.status = Status(None)
        self.ended_at = now
        self.answered_at: float | None = None
        self.left = False
        self.stack = StackText(child.scratch, trusted=options.codec == "pickle")
        # Created when the child reports unfinished work of fn, which is rare.
        self._unfinished_work: UnfinishedWork | None = None
        # A kill spares resource trackers, but not those of an untrusted child, whose processes may
        # only pretend to be trackers.
        self._spares = options.codec == "pickle" and not child.has_init
        # A call that needs no evidence of the child's end does not wait for it.
        self._leaves_early = not (whole or self.listens or child.streams or child.has_init)
        waits = child.layers is not None  # for `Child.go`
        if self._look_due and (self.listens or on_item or options.on_progress or waits):
            self._watch_channel()

    def announce(self) -> None:
        """Report the "spawn" event. Raises the exceptions of on_event."""
        self._tell("spawn")

    def next_time(self) -> float:
        """Return the time at which `step` must be called even if nothing is readable."""
        return min(self._due(), self._rate_limiter.until)

    def _due(self) -> float:
        if self._phase is not _Phase.RUNNING or self._answered:
            return self._phase_ends
        due = min(self._deadline, self._next_stop_check)
        if not (self.conversation.started or self._marked):
            due = min(due, self._start_deadline)
        return min(due, self._first_look) if self._look_due else due

    def step(self) -> None:
        """Do all work that is due. Raises the exceptions of on_event and the output callable."""
        ended = self.child.has_ended()
        self._rate_limiter.go_on()
        woken, size = False, 0
        for fd in self.child.waitset.poll():
            if fd == self.child.end_fd:
                ended = True
                continue
            woken = True
            if fd == self.child.channel:
                size += self._read_channel()
            else:
                for stream in self.child.streams:
                    if stream.fd == fd:
                        size += self._read_output(stream)
        if woken:  # also without data: a wake-up may be spurious
            self._rate_limiter.heard(size)
        if ended and not self.gone:
            self._collect()
        elif time.monotonic() >= self._due():
            self._on_time()

    def _on_time(self) -> None:
        now = time.monotonic()
        match self._phase:
            case _Phase.RUNNING if self._answered:
                self.kill(KilledFor.LINGERING)
            case _Phase.RUNNING:
                self._on_time_while_running(now)
            case _Phase.DUMPING:
                if self.stack.whole() or now >= self._dump_ends:
                    self.terminate(self.options.grace)
                else:
                    self._phase_ends = now + _DUMP_POLL
            case _Phase.TERMINATING:
                self.kill()
            case _Phase.KILLING:
                self._give_up()

    def _on_time_while_running(self, now: float) -> None:
        if self._look_due:
            self._watch_channel()
        if not self._paused:
            self._read_channel()  # the STARTED frame may be waiting there
        if self._answered or self._phase is not _Phase.RUNNING:
            return
        if now >= self._deadline:
            self._pass_deadline(KilledFor.TIMEOUT, self.options.timeout or 0.0)
        elif now >= self._start_deadline and not self.has_started():
            self._pass_deadline(KilledFor.START_TIMEOUT, self.options.start_timeout or 0.0)
        elif now >= self._next_stop_check:
            self._check_stopped()

    def _check_stopped(self) -> None:
        """Check whether a signal has stopped the child: no event reports that, and it can't end."""
        self._stop_pause = min(2 * self._stop_pause, _STOP_PAUSE_MAX)
        self._next_stop_check = time.monotonic() + self._stop_pause
        before, self.stopped_by = self.stopped_by, stopped_by(self.child.pid)
        if self.stopped_by and not before:
            _log.warning(
                "child %d (%s) has been stopped by %s and waits for SIGCONT",
                self.child.pid,
                name_of(self._fn),
                self.stopped_by,
            )

    def _pass_deadline(self, cause: KilledFor, seconds: float) -> None:
        self._check_stopped()
        self.killed_for = cause
        self.seconds = seconds
        if cause is KilledFor.TIMEOUT and self.has_started():
            self.stack.expect_dump()
            self.child.signal(STACK_SIGNAL)
            self._phase = _Phase.DUMPING
            now = time.monotonic()
            self._dump_ends = now + _DUMP_PATIENCE
            self._phase_ends = now + _DUMP_POLL
        else:
            self.kill()

    def terminate(self, grace: float) -> None:
        """Send SIGTERM to the child, and kill it *grace* seconds later if it has not ended."""
        if grace <= 0:
            self.kill()
        elif self._phase in (_Phase.RUNNING, _Phase.DUMPING):
            self.child.signal_group(signal.SIGTERM)
            self._phase = _Phase.TERMINATING
            self._phase_ends = time.monotonic() + grace
            # The child can't end while it waits for its channel to be read.
            self.resume()

    def kill(self, cause: KilledFor | None = None, detail: str = "") -> None:
        """Kill the child and its process group. The first cause counts."""
        if cause is not None and self.killed_for is None:
            self.killed_for = cause
            self.detail = detail
        if self.gone:
            return
        # The group first, then the child, in case it has left its group.
        if not (self._spares and resource_trackers.end_all_others(self.child.pid, alive=True)):
            self.child.signal_group(signal.SIGKILL)
        self.child.signal(signal.SIGKILL)
        self._phase = _Phase.KILLING
        self._phase_ends = time.monotonic() + _KILL_PATIENCE

    def end(self, cause: KilledFor, grace: float = 0.0) -> None:
        """End the call from outside, for *cause*."""
        if self.gone or self._answered:
            # Unfinished work of fn is not waited for any longer.
            if not self.gone and self.conversation.state is State.ENDING:
                self.kill(KilledFor.LINGERING)
                self.child.waiter.ring()
            return
        if self.killed_for is None:
            self.killed_for = cause
        self.terminate(grace)
        self.child.waiter.ring()

    # The channel

    def pause(self) -> None:
        """Stop reading the channel; the child blocks once the channel is full."""
        ends = self._phase in (_Phase.TERMINATING, _Phase.KILLING)
        if not self._paused and not self._answered and not self.gone and not ends:
            self._paused = True
            self._rate_limiter.remove(self.child.channel)

    def resume(self) -> None:
        """Continue reading the channel."""
        if self._paused:
            self._paused = False
            if not self.gone and not self._answered:
                self._rate_limiter.add(self.child.channel)

    def has_started(self) -> bool:
        """Return whether the child has announced the call of fn, by a frame or by a mark."""
        if not (self.conversation.started or self._marked) and self.child.talks:
            self._marked = memfd.is_marked(self.child.scratch, MARK_AT)
        return self.conversation.started or self._marked

    def _watch_channel(self) -> None:
        self._look_due = False
        self._rate_limiter.add(self.child.channel)

    def _leave_channel(self) -> None:
        self._look_due = False
        self._rate_limiter.remove(self.child.channel)

    def _read_channel(self) -> int:  # noqa: C901, PLR0912 - one `if` per kind of frame
        """Read the channel once; return the number of bytes."""
        conversation = self.conversation
        started = conversation.started
        try:
            size, messages = self._channel.read()
        except BlockingIOError:
            return 0
        except FaultError as exc:
            self._stop_reading(exc)
            return 0
        if not size:
            self._leave_channel()
            return 0
        if conversation.started and not started:
            self._tell("started")
        for kind, body, passed_fds in messages:
            if kind is Kind.READY:
                self._check_layers(body)
            elif kind is Kind.PROGRESS:
                self._report(body)
            elif kind is Kind.LEAVING:
                if self._unfinished_work is None:
                    trusted = self.options.codec == "pickle"
                    self._unfinished_work = UnfinishedWork(trusted=trusted)
                self._unfinished_work.add(body)
            elif self._on_item is not None:
                self._on_item(body, [self._channel.received.release(fd) for fd in passed_fds])
        if conversation.fault is not None:
            self._stop_reading(self._channel.fault())
            return size
        if self._answered and conversation.state is State.DONE:
            # Further data is ignored, so it must not keep this process busy either.
            self._leave_channel()
            if self._phase is _Phase.RUNNING:
                ends = time.monotonic() + _LINGER_PATIENCE
                self._phase_ends = min(self._phase_ends, ends)
        if conversation.answer is not None and not self._answered:
            self._answered = True
            self.answered_at = now = time.monotonic()
            ends = now + _LINGER_PATIENCE
            # Unfinished work of fn may still send reports.
            leaving = conversation.state is not State.DONE
            if leaving:
                ends = min(ends + self.options.exit_timeout, self._deadline)
            else:
                self._leave_channel()
            if self._phase is _Phase.RUNNING:
                self._phase_ends = ends
            self._tell("result")
            # Any answer but a value is reported together with the child's end.
            is_value = conversation.answer[0] is Kind.VALUE
            if is_value and self._leaves_early and not leaving and self.child.leave():
                self.ended_at = time.monotonic()
                self.gone = self.left = True
        return size

    def _stop_reading(self, fault: FaultError) -> None:
        self._leave_channel()
        self.kill(fault.cause, str(fault))

    def _check_layers(self, body: Sequence[bytes]) -> None:
        """Let the child call fn if its layers are as planned."""
        deviation = why_unconfined(self.child.layers or (), parse_layers(body))
        if deviation:
            self.kill(KilledFor.UNCONFINED, deviation)
        else:
            self.child.go()

    def _report(self, body: Sequence[bytes]) -> None:
        on_progress = self.options.on_progress
        if on_progress is not None:
            escaped = self.options.codec != "pickle"
            self._rate_limiter.took_reports(1, sum(map(len, body)))
            on_progress(Progress(*safe_text.load_progress(body, escaped=escaped)))

    def _read_output(self, stream: OutputStream) -> int:
        try:
            data = os.read(stream.fd, READ_SIZE)
        except BlockingIOError:
            return 0
        if not data:
            self._rate_limiter.remove(stream.fd)
            return 0
        self._output_left -= len(data)
        if self._output_left < 0:
            data = data[: int(self._output_left)]
            self.kill(KilledFor.OUTPUT_LIMIT)
            # The child may have ended by itself before the kill. The verdict must not depend on
            # that.
            if self.killed_for in (None, KilledFor.LINGERING):
                self.killed_for = KilledFor.OUTPUT_LIMIT
        stream.feed(data)
        if stream.hands_over:
            ends = data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")
            self._rate_limiter.took_lines(ends)
        return len(data)

    def _collect(self) -> None:
        """Read the rest of an ended child's data, and reap it."""
        self.ended_at = time.monotonic()
        # A child that has sent its answer has waited for its trackers itself.
        finished = self._answered and self.killed_for is None
        self.status = self.child.reap(spare=self._spares and not finished)
        # Without limits, kills were not counted before the call.
        limited = self._kills_before is not None
        lost = self.child.lost
        if limited and self.killed_for is None and (lost or self.status.exit == -signal.SIGKILL):
            self.out_of_memory = group_killer(self.child.group)
            if not self.out_of_memory and not lost:
                self.out_of_memory = memory_killer(None, self._kills_before)
                self.others_memory = bool(self.out_of_memory)
        if lost and self.killed_for is None and not self.out_of_memory:
            self.killed_for = KilledFor.SERVER_DIED
            self.detail = lost
        self.gone = True
        # Processes that the child has left may hold its pipes open, so do not wait for end of file;
        # the pipes already contain all output of the child itself.
        rest = _DRAIN_MAX
        done = State.DONE
        while self.conversation.state is not done and rest > 0 and (size := self._read_channel()):
            rest -= size
        if self._unfinished_work is not None:
            killed = self.killed_for is KilledFor.LINGERING
            self._unfinished_work.warn(self.child.pid, killed=killed)
        for stream in self.child.streams:
            rest = _DRAIN_MAX
            while rest > 0 and (size := self._read_output(stream)):
                rest -= size
            stream.finish()
        self._tell("reaped")

    def _give_up(self) -> None:
        self.killed_for = KilledFor.UNKILLABLE
        self.seconds = _KILL_PATIENCE
        self.ended_at = time.monotonic()
        self.gone = True
        self.child.give_up()

    def _tell(self, name: str) -> None:
        if not self.listens:
            return
        event = CallEvent(name, self.child.pid, time.monotonic() - self.child.forked_at)
        if _log.isEnabledFor(logging.DEBUG):
            function = name_of(self._fn)
            _log.debug("child %d (%s): %s after %.6f s", event.pid, function, name, event.time)
        if self.options.on_event is not None:
            self.options.on_event(event)

    def hand_over(self, fds: Sequence[int]) -> Descriptors:
        """Move received descriptors to a new owner, which closes them."""
        owner = Descriptors()
        for fd in fds:
            owner.own(self._channel.received.release(fd))
        return owner

    def release(self) -> None:
        """Close all resources of the call. The child must be gone."""
        self.stack.forget()
        self._channel.received.close_all()
        self.child.release()
