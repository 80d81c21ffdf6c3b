"""The registry of running children; it kills those that no task can wait for any more."""

from __future__ import annotations

import atexit
import logging
import signal
import threading
import time
from collections.abc import Iterable

from .._os import unpatched
from .._os.fds import Descriptors
from .._os.process import Process, kill_adopted, reap_adopted

__all__ = [
    "abandon",
    "collect_adopted",
    "discard",
    "end_adopted",
    "kill_now",
    "register",
    "watch_on",
]

_log = logging.getLogger("aioisolate.call")
_live: set[Process] = set()
# Seconds to wait for the end of a killed child.
_PATIENCE = 5.0
# Killed processes end soon, and the kernel reports no event, so poll: the number of checks, and the
# pause between them in seconds.
_CHECKS = 200
_PAUSE = 0.001


def register(process: Process) -> None:
    """Add a child; the interpreter kills it at exit unless it is discarded before."""
    _live.add(process)


def discard(process: Process) -> None:
    """Remove a child."""
    _live.discard(process)


def kill_now(process: Process) -> None:
    """Kill a child, if there is one, and collect it, blocking."""
    discard(process)
    if not process.is_owned():
        return
    process.signal_group(signal.SIGKILL)
    process.signal(signal.SIGKILL)
    if process.ended(_PATIENCE):
        process.reap()
        collect_adopted([process.pid])
        process.close()
    else:
        watch_on(process)


def collect_adopted(leaders: Iterable[int]) -> None:
    """Collect the orphans of ended children that this process adopted, blocking."""
    leaders = list(leaders)
    for _ in range(_CHECKS):
        leaders = [pid for pid in leaders if reap_adopted(pid)]
        if not leaders:
            return
        time.sleep(_PAUSE)


def end_adopted(pids: Iterable[int], ended: Iterable[int], *, session: int) -> None:
    """Kill and collect the children of a dead process that this process adopted, blocking.

    *pids* are its running children; *ended* are ended children whose process groups may still have
    members; *session* is the session that the dead process led.
    """
    running, groups = set(pids), {*pids, *ended}
    for _ in range(_CHECKS):
        running = {pid for pid in running if kill_adopted(pid, session)}
        groups = {pid for pid in groups if reap_adopted(pid)} | running
        if not groups:
            return
        time.sleep(_PAUSE)
    for pid in running:
        _log.error("process %d was killed and has not ended; it is still watched", pid)
        threading.Thread(
            target=_wait_for, args=(pid,), name="aioisolate-watch", daemon=True
        ).start()


def _wait_for(pid: int) -> None:
    try:
        unpatched.waitpid(pid, 0)
    except ChildProcessError:
        pass  # it has been collected elsewhere


def abandon(process: Process, fds: Descriptors) -> None:
    """Kill a child whose loop was closed during its call, and close the call's descriptors."""
    if not process.is_owned():  # a copy of the loop, collected in a forked child
        return
    _log.warning("an event loop was closed while child %d was running: killed", process.pid)
    kill_now(process)
    fds.close_all()


def watch_on(process: Process) -> None:
    """Wait, in a thread, for a child that was killed and has not ended."""
    _log.error("process %d was killed and has not ended; it is still watched", process.pid)
    process.watched = True

    def wait() -> None:
        while not process.ended(3600):
            pass
        process.reap()
        process.close()
        _log.warning("process %d, which was killed some time ago, has ended", process.pid)

    threading.Thread(target=wait, name="aioisolate-watch", daemon=True).start()


@atexit.register
def _kill_all() -> None:
    # Kill the children and wait for their ends, but do not collect them: the thread of each call
    # does that if it still runs, and otherwise the system.
    live = [process for process in _live if process.is_owned()]  # in a forked copy: none
    for process in live:
        process.signal_group(signal.SIGKILL)
        process.signal(signal.SIGKILL)
    for process in live:
        try:
            process.ended(_PATIENCE)
        except (OSError, ValueError):
            pass  # collected meanwhile
