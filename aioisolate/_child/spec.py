"""What the parent prepares for a child before it forks: everything it needs, ready to use.

After a fork each page that is touched is copied, which costs about as much as a hundred lines of
Python. So the parent computes ahead what it can, and the child only carries it out.
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
    """What a child is to do; the parent sets each attribute.

    Attributes:
        fn, args: the call.
        nonce: marks the frames of this call.
        parent_pid: who must still be the parent.
        ends: the ends of the `alive_pipe` that kills it with its parent; (): a signal does.
        channel: the descriptor to write frames to.
        scratch: the descriptor of the scratch file.
        null: a descriptor of /dev/null.
        empty: what to put in the place of descriptors from 3 on: a descriptor of /dev/null, for
            reading only.
        stdout, stderr: what to put on 1 and 2, or -1 to leave them alone.
        keep: descriptors to leave alone.
        confined: open files are not among what is harmless.
        sever: descriptors to replace by /dev/null, or None: look for them in the child.
        foreign: those that are not this package's, with their inodes, as the parent had them before
            the fork; None: it has not looked.
        snapshots: descriptors to be opened anew, for reading, since other processes have them too.
        strangers: the descriptors that modules of a fork server hold open, which fn must not have;
            None: fn is trusted with them.
        gaps: the ranges of numbers that were free when the server was ready.
        dev: a descriptor of /dev, or -1.
        threaded: the parent had other threads when it was forked.
        signals: signals that are not at their default.
        faulthandler: the parent has its crash reports enabled.
        purge_c_stdout: the C library holds output of the parent's.
        streams: a fresh sys.stdin, sys.stdout and sys.stderr, or None: build them in the child.
        inherited: the parent's streams, kept alive: collecting one writes out what it holds.
        forget_loop: what to call so that no event loop seems to be running.
        disown: what to call so that multiprocessing does not use the parent's helpers.
        backend: the parent's event loop.
        reseed: what to call for random numbers of the child's own.
        deadline_stack: be ready to dump the stack when the parent's deadline passes.
        started_mark: the encoded frame that says that fn is called next.
        quiet: nobody waits for that frame: leave a mark in the scratch file, send it at the end.
        note_pid: write this process's id to the scratch file, before anything else.
        rehearsing: this is no call; nothing is to be marked or limited.
        streaming: fn returns an iterator, whose items are to be sent one by one.
        progress: somebody wants to know how far fn has got.
        floor: close everything from this number on.
        then: what to do when all is set up; returns the exit code.
        policy: what confines it, or None.
        bounds: the limits that it sets for itself, or None.
        exits: how many exit functions are registered before fn is called.
        thread_exits: how many exit functions `threading` has by then.
        weak: what counts the finalizers of weakref, or None: it has not been imported.
        finalizers: the index of one that comes before those of fn. (Of a copy it is looked up
            in the copy: the parent may make some until the fork.)
        exit_timeout: how many seconds the threads that fn leaves may take to end.
        environment: what to remove from the environment and what to set, or None.
        entrances: descriptors of the control groups that it puts itself into.
        codec: how its answer is encoded; see `Sandbox`.
        result_size: how large its answer may be, or None.
        statm: the descriptor of what tells its size, or -1.
        last_word: what to say when there is no memory for an answer, where there are limits.
    """

    __slots__ = (
        "args",
        "backend",
        "bounds",
        "channel",
        "codec",
        "confined",
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
        "last_word",
        "nonce",
        "note_pid",
        "null",
        "parent_pid",
        "policy",
        "progress",
        "purge_c_stdout",
        "quiet",
        "rehearsing",
        "reseed",
        "result_size",
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
    policy: ConfinementSpec | None
    bounds: RlimitSpec | None
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
    last_word: bytes
