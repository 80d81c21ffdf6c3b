"""The specification of a child, which the parent or the fork server prepares before the fork.

After a fork, each page that a process writes to is copied, which costs about as much as a hundred
lines of Python. So as much as possible is computed before the fork.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO, TypeAlias

from .._async_backend import AsyncBackend
from .layers import ConfinementSpec, RlimitSpec
from .stdio import Streams

__all__ = ["ChildSpec", "Step", "Steps"]

# A function, and the arguments to call it with.
Step: TypeAlias = tuple[Callable[..., object], Sequence[Any]]
Steps: TypeAlias = Sequence[Step]


class ChildSpec:
    """The work of one child. The parent or the fork server sets the attributes that it needs.

    Attributes:
        fn, args: the function and its arguments.
        nonce: the marker of the frames of this call.
        parent_pid: the pid that getppid() must return.
        ends: the ends of the `alive_pipe` that kills the child when its parent ends; (): the
            parent-death signal does.
        channel: the descriptor to write frames to.
        scratch: the descriptor of the scratch file.
        null: a descriptor of /dev/null.
        empty: a read-only descriptor of /dev/null, which replaces descriptors from 3 on.
        stdout, stderr: descriptors to duplicate to 1 and 2, or -1 to keep the current ones.
        keep: descriptors to keep.
        confined: whether descriptors of open files are replaced, too.
        sever: descriptors to replace by /dev/null, or None: the child searches for them.
        foreign: the parent's descriptors before the fork that do not belong to this package, with
            their inodes; None: unknown.
        snapshots: descriptors to reopen for reading, since other processes have them, too.
        module_fds: the descriptors that modules of a fork server hold open and that fn must not
            use; None: fn is trusted with them.
        gaps: the ranges of descriptor numbers that were closed when the server was ready.
        dev: a descriptor of /dev, or -1.
        threaded: whether the parent had other threads at the fork.
        signals: signals that are not at their default.
        faulthandler: whether faulthandler is enabled in the parent.
        purge_c_stdout: whether the C library buffers output of the parent.
        streams: new sys.stdin, sys.stdout and sys.stderr, or None: the child builds them.
        inherited: the parent's streams, kept alive: to collect one would write out its buffer.
        forget_loop: calls that make libraries forget the parent's running event loop.
        disown: calls that detach multiprocessing from the parent's helper processes.
        backend: the parent's event loop.
        reseed: the function that reseeds random number generators, or None.
        deadline_stack: whether to prepare a dump of the stack for a passed deadline.
        started_mark: the encoded STARTED frame, which announces the call of fn.
        quiet: whether to mark the scratch file before fn and send the STARTED frame with the
            answer; otherwise the frame is sent before fn.
        note_pid: whether to write the child's pid to the scratch file, before all other steps.
        rehearsing: whether this is a rehearsal, not a call; nothing is marked or limited.
        streaming: whether fn returns an iterable whose items are sent one by one.
        progress: whether the caller expects progress reports.
        floor: the descriptor number from which on the child closes all descriptors.
        then: the function to call after the setup; returns the exit code.
        confinement: the confinement, or None.
        rlimits: the limits that the child sets for itself, or None.
        exits: the number of exit functions registered before fn is called.
        thread_exits: the number of exit functions of `threading` at that time.
        weak: the counter of weakref finalizers, or None if weakref is not imported.
        finalizers: the index of a finalizer that precedes those of fn. (A copy of the parent
            determines it after the fork: the parent may create finalizers until then.)
        exit_timeout: how many seconds the unfinished work of fn may take to end.
        environment: the variables to remove and to set, or None.
        entrances: descriptors of files in the control groups that the child joins.
        codec: the encoding of the answer; see `Sandbox`.
        result_size: the maximum size of the answer, or None.
        statm: the descriptor of /proc/self/statm, or -1.
        memory_error_frame: the answer to send if memory runs out, if there are limits.
    """

    __slots__ = (
        "args",
        "backend",
        "channel",
        "codec",
        "confined",
        "confinement",
        "deadline_stack",
        "dev",
        "disown",
        "empty",
        "ends",
        "entrances",
        "environment",
        "exit_timeout",
        "exits",
        "faulthandler",
        "finalizers",
        "floor",
        "fn",
        "foreign",
        "forget_loop",
        "gaps",
        "inherited",
        "keep",
        "memory_error_frame",
        "module_fds",
        "nonce",
        "note_pid",
        "null",
        "parent_pid",
        "progress",
        "purge_c_stdout",
        "quiet",
        "rehearsing",
        "reseed",
        "result_size",
        "rlimits",
        "scratch",
        "sever",
        "signals",
        "snapshots",
        "started_mark",
        "statm",
        "stderr",
        "stdout",
        "streaming",
        "streams",
        "then",
        "thread_exits",
        "threaded",
        "weak",
    )

    fn: Callable[..., Any]
    args: Sequence[Any]
    nonce: bytes
    parent_pid: int
    ends: Sequence[int]
    channel: int
    scratch: int
    null: int
    empty: int
    stdout: int
    stderr: int
    keep: frozenset[int]
    sever: Sequence[int] | None
    foreign: dict[int, int] | None
    confined: bool
    snapshots: list[int]
    module_fds: list[int] | None
    gaps: list[tuple[int, int]]
    dev: int
    threaded: bool
    signals: Sequence[int]
    faulthandler: bool
    purge_c_stdout: bool
    streams: Streams | None
    inherited: Sequence[object]
    forget_loop: Steps
    disown: Steps
    backend: AsyncBackend
    reseed: Callable[[], object] | None
    deadline_stack: bool
    started_mark: bytes
    quiet: bool
    note_pid: bool
    rehearsing: bool
    streaming: bool
    progress: bool
    floor: int
    then: Callable[[ChildSpec, Sequence[TextIO]], int]
    confinement: ConfinementSpec | None
    rlimits: RlimitSpec | None
    exits: int
    thread_exits: int
    weak: Iterator[int] | None
    finalizers: int
    exit_timeout: float
    entrances: Sequence[int]
    environment: tuple[Sequence[str], Sequence[tuple[str, str]]] | None
    codec: str
    result_size: int | None
    statm: int
    memory_error_frame: bytes
