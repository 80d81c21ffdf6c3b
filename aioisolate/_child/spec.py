"""The specification of a child, which the parent prepares before the fork.

After a fork each page that is touched is copied, which costs about as much as a hundred lines of
Python. So the parent computes as much as possible before the fork.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO, TypeAlias

from .._async_backend import AsyncBackend
from .layers import ConfinementSpec, RlimitSpec

__all__ = ["ChildSpec", "Steps"]

Steps: TypeAlias = Sequence[tuple[Callable[..., object], Sequence[Any]]]


class ChildSpec:
    """The work of one child; the parent sets each attribute.

    Attributes:
        fn, args: the call.
        nonce: marks the frames of this call.
        parent_pid: the pid that getppid() must return.
        ends: the ends of the `alive_pipe` that kills it with its parent; (): a signal does.
        channel: the descriptor to write frames to.
        scratch: the descriptor of the scratch file.
        null: a descriptor of /dev/null.
        empty: a read-only descriptor of /dev/null, which replaces descriptors from 3 on.
        stdout, stderr: descriptors to duplicate to 1 and 2, or -1 to keep the current ones.
        keep: descriptors to keep.
        confined: open files are not harmless to this child.
        sever: descriptors to replace by /dev/null, or None: look for them in the child.
        foreign: those that are not this package's, with their inodes, as the parent had them before
            the fork; None: it has not looked.
        snapshots: descriptors to be opened anew, for reading, since other processes have them too.
        strangers: the descriptors that modules of a fork server hold open, which fn must not use;
            None: fn is trusted with them.
        gaps: the ranges of numbers that were free when the server was ready.
        dev: a descriptor of /dev, or -1.
        threaded: the parent had other threads when it was forked.
        signals: signals that are not at their default.
        faulthandler: the parent has its crash reports enabled.
        purge_c_stdout: the C library holds output of the parent's.
        streams: a fresh sys.stdin, sys.stdout and sys.stderr, or None: build them in the child.
        inherited: the parent's streams, kept alive: collecting one writes out what it holds.
        forget_loop: calls that make libraries forget the parent's running event loop.
        disown: calls that make multiprocessing not use the parent's helpers.
        backend: the parent's event loop.
        reseed: the function that reseeds random number generators, or None.
        deadline_stack: be ready to dump the stack when the parent's deadline passes.
        started_mark: the encoded frame that says that fn is called next.
        quiet: the parent does not wait for that frame: mark the scratch file, send it at the end.
        note_pid: write this process's id to the scratch file, before anything else.
        rehearsing: this is a rehearsal, not a call; nothing is marked or limited.
        streaming: fn returns an iterator, whose items are sent one by one.
        progress: the caller wants progress reports.
        floor: close all descriptors from this number on.
        then: the function to call after the setup; returns the exit code.
        confinement: the confinement, or None.
        rlimits: the limits that the child sets for itself, or None.
        exits: the number of exit functions registered before fn is called.
        thread_exits: the number of exit functions of `threading` at that time.
        weak: the counter of weakref finalizers, or None if weakref is not imported.
        finalizers: the index of a finalizer that precedes those of fn. (A copy of the parent looks
            it up itself: the parent may make finalizers until the fork.)
        exit_timeout: how many seconds the threads that fn leaves may take to end.
        environment: the variables to remove and to set, or None.
        entrances: descriptors of the control groups that the child joins.
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
        "strangers",
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
    strangers: list[int] | None
    gaps: list[tuple[int, int]]
    dev: int
    threaded: bool
    signals: Sequence[int]
    faulthandler: bool
    purge_c_stdout: bool
    streams: tuple[io.TextIOWrapper, io.TextIOWrapper, io.TextIOWrapper] | None
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
