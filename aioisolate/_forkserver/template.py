"""A fork server that is a copy of this process: its children have the objects that exist now."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from .._async_backend import AsyncBackend
from .._call.fork_safety import OtherThreads
from .._call.forked import draft_spec, open_empty
from .._child import bootstrap
from .._child.environment import difference
from .._child.layers import ConfinementSpec
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
    confinement: ConfinementSpec | None,
    *,
    preload: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Launch:
    """Return a launcher of copies of this process, which has *functions* now.

    *others*: the other threads of this process. *confinement*: the layers that the copies engage.
    *preload*: the modules that the copies import first. *environment*: their environment, or None.
    """

    def start(fd: int, ends: Sequence[int]) -> int:
        others.warn()
        changes = None if environment is None else difference(environment)
        own = Descriptors()
        try:
            null = own.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            scratch = memfd.create(own)
            empty, confined = open_empty(confinement, own)
            keep = frozenset((fd, null, empty, scratch))
            spec = draft_spec(keep, backend, bool(others), ends, confined=confined)
            spec.then = serve_copy
            spec.fn, spec.args = serve_copy, (confinement, preload, changes, bool(ends))
            spec.nonce = b"\0" * 8
            spec.parent_pid = os.getpid()
            spec.channel = fd
            spec.scratch = scratch
            spec.null = null
            spec.empty = empty
            spec.stdout = spec.stderr = -1
            spec.deadline_stack = False
            spec.started_mark = b""
            spec.quiet = spec.streaming = spec.progress = False
            mask = signals.block_all()
            try:
                ancestry.set_known(functions)
                pid = fork()
                if pid == 0:
                    bootstrap.main(spec)
            finally:
                ancestry.set_known({})
                signals.set_mask(mask)
        finally:
            own.close_all()
        return pid

    return Launch(start)
