"""A fork server that is a copy of this process: its children find everything as it is now."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from .._call.fork_safety import OtherThreads
from .._call.forked import draft_order, open_empty
from .._child import bootstrap
from .._child.environment import difference
from .._child.layers import ConfinementSpec
from .._child.spec import AsyncBackend
from .._os import memfd, signals
from .._os.fds import Descriptors
from .._os.process import fork
from .._wire import ancestry
from .launch import Launch
from .server import serve_copy

__all__ = ["launch_copy"]


def launch_copy(
    backend: AsyncBackend,
    functions: ancestry.Functions,
    others: OtherThreads,
    policy: ConfinementSpec | None,
    *,
    preload: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Launch:
    """Make a launcher of copies of this process, which has *functions* now.

    *others*: the threads that this process has. *policy*: what is to confine the copies.
    *preload*: what they import first, with *environment*.
    """

    def start(fd: int, ends: Sequence[int]) -> int:
        others.warn()
        changes = None if environment is None else difference(environment)
        own = Descriptors()
        try:
            null = own.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            scratch = memfd.create(own)
            empty, confined = open_empty(policy, own)
            keep = frozenset((fd, null, empty, scratch))
            order = draft_order(keep, backend, bool(others), ends, confined=confined)
            order.then = serve_copy
            order.fn, order.args = serve_copy, (policy, preload, changes, bool(ends))
            order.nonce = b"\0" * 8
            order.parent_pid = os.getpid()
            order.channel = fd
            order.scratch = scratch
            order.null = null
            order.empty = empty
            order.stdout = order.stderr = -1
            order.deadline_stack = False
            order.started_mark = b""
            order.quiet = order.streaming = order.progress = False
            mask = signals.block_all()
            try:
                ancestry.known = functions
                pid = fork()
                if pid == 0:
                    bootstrap.main(order)
            finally:
                ancestry.known = {}
                signals.set_mask(mask)
        finally:
            own.close_all()
        return pid

    return Launch(start)
