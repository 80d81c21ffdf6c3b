"""Reap workers that have already returned their result, and empty their control groups."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

import anyio

from .._async_backend import AsyncBackend
from .._call import eventloop
from .worker import Worker

__all__ = ["PATIENCE", "DrainingWorkers"]

# Seconds that a child may run after it has returned its result.
PATIENCE = 1.0
_FIRST_PAUSE = 0.001
_log = logging.getLogger("aioisolate.zygote")


class DrainingWorkers:
    """Drains the workers of one server whose calls have ended."""

    def __init__(self, backend: AsyncBackend, on_over: Callable[[], object]) -> None:
        """Call *on_over* when the control groups of all workers reported as ended are empty."""
        self._backend = backend
        self._on_over = on_over
        self._leaving: dict[Worker, float] = {}
        # Workers that have ended, and whose control groups are not empty yet.
        self._dying: list[Worker] = []
        self._tasks: dict[str, eventloop.Background] = {}

    def drain(self, worker: Worker) -> None:
        """Watch a worker until it has ended, and kill it if that takes too long."""
        if not worker.ended and not worker.lost:
            self._leaving[worker] = time.monotonic() + PATIENCE
            # The pidfd of the worker is closed after the call; from then on the server signals it.
            if "sweep" not in self._tasks:
                self._tasks["sweep"] = eventloop.spawn(self._backend, self._sweep)

    def ended(self, worker: Worker) -> None:
        """Note that any worker of this server has ended."""
        self._leaving.pop(worker, None)
        if worker.group is not None:
            self._dying.append(worker)
            if "tidy" not in self._tasks:
                self._tasks["tidy"] = eventloop.spawn(self._backend, self._tidy)

    def is_over(self) -> bool:
        """Return whether the control groups of all workers reported as ended are empty."""
        return not self._dying

    def cancel(self) -> None:
        """Stop watching: the server has ended, and its children with it."""
        self._leaving.clear()
        self._dying.clear()
        for task in self._tasks.values():
            task.cancel()

    async def _sweep(self) -> None:
        while self._leaving:
            await anyio.sleep(max(0.0, min(self._leaving.values()) - time.monotonic()))
            now = time.monotonic()
            for worker, until in list(self._leaving.items()):
                if until <= now:
                    _log.warning("child %d kept running after its answer: killed", worker.pid)
                    worker.owner.kill(worker.pid, signal.SIGKILL, group=True)
                    worker.owner.kill(worker.pid, signal.SIGKILL, group=False)
                    self._leaving[worker] = now + PATIENCE
        del self._tasks["sweep"]

    async def _tidy(self) -> None:
        # The kernel reports no event when a control group becomes empty, so poll.
        pause = _FIRST_PAUSE
        while self._dying:
            await anyio.sleep(pause)
            pause = min(2 * pause, PATIENCE)
            self._dying = [worker for worker in self._dying if not worker.dissolve()]
        del self._tasks["tidy"]
        self._on_over()
