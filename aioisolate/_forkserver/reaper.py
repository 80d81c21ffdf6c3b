"""Wait for the children of a fork server and their orphans, and reap them.

The server is the subreaper of its children: processes that fn started and left behind become
children of the server, not of the user's process, where they would stay zombies. So SIGCHLD, and
not a pidfd for each child, reports that a process has ended. A child is reaped only after its
process group has been killed, as long as no other group can have its number.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C part of signal; it has no stubs
import os
import resource  # noqa: F401 - os.wait4 imports it: import it while the search path is known
import time
from collections import deque
from typing import Any

from .._os import resource_trackers, unpatched
from .._os.prctl import set_subreaper
from .._os.unpatched import select

__all__ = ["End", "Reaper"]

_raw: Any = _signal
_os: Any = os  # not every platform has all its functions
_SIGKILL = int(_raw.SIGKILL)
# Seconds that killed processes have to end when the server ends.
_PATIENCE = 0.5
_PAUSE = 10  # in milliseconds
# Seconds between checks for trackers that take longer than usual.
_TRACKERS_PAUSE = 0.1
# The number of processes that are reaped before the parent's requests are read.
_AT_ONCE = 128
# Number of killed groups that may still exist.
_RECENT = 64

# pid, wait status, user seconds, system seconds, peak resident size in the platform's unit
End = tuple[int, int, float, float, int]


class Reaper:
    """Waits for children, kills them, and reaps all children of this process."""

    def __init__(self, *, spares: bool = False) -> None:
        """Become a subreaper, and install a handler for SIGCHLD. Raises OSError.

        *spares*: let the resource trackers of children finish their work.
        """
        try:
            set_subreaper()
        except OSError:
            pass  # an older kernel or a filter refuses: orphans go to init, as before
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        _raw.signal(_raw.SIGCHLD, _wake)
        _raw.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)
        self._pids: set[int] = set()
        self._groups: deque[int] = deque(maxlen=_RECENT)
        self._spares = spares
        # Trackers of children that have ended, each with its group.
        self._spared: dict[int, tuple[resource_trackers.SparedTracker, int]] = {}

    def fds(self) -> tuple[int, ...]:
        """Return the descriptors that a child must close."""
        return self._read, self._write

    def watch(self, fd: int) -> None:
        """Wait for *fd*, too."""
        self._poll.register(fd, select.POLLIN)

    def wait(self, fd: int) -> tuple[bool, list[End]]:
        """Wait; return whether *fd* is readable, and the children that have ended."""
        ready = [ready for ready, _ in self._poll.poll(self._patience())]
        return fd in ready, self._collect_all() if self._read in ready else []

    def adopt(self, pid: int) -> int:
        """Add a child to wait for; return a pidfd for the parent, or -1."""
        self._pids.add(pid)
        try:
            pidfd: int = _os.pidfd_open(pid)
        except (OSError, AttributeError):  # not compiled in, ENOSYS, EPERM, EMFILE...
            return -1
        return pidfd

    def kill(self, pid: int, number: int, group: bool) -> None:
        """Send a signal to a child or its group, if it has not been collected."""
        if pid in self._pids:
            _kill(pid, number, group)

    def _patience(self) -> int | None:
        """Kill the late trackers; return the time left for the next one, in milliseconds."""
        if not self._spared:
            return None
        now = time.monotonic()
        for pid, (tracker, _) in list(self._spared.items()):
            if tracker.is_late():
                self._end_spared(pid)
        first = min((tracker.since for tracker, _ in self._spared.values()), default=now)
        return int(max(first + resource_trackers.PATIENCE - now, _TRACKERS_PAUSE) * 1000) + 1

    def _kill_all_but_trackers(self, pid: int) -> None:
        """Kill the rest of the group of a child that has failed, except its trackers."""
        found = resource_trackers.end_all_others(pid)
        try:
            for tracker in found:
                # Without a subreaper the tracker is not this process's child: do not spare it.
                _os.waitid(os.P_PID, tracker, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            found = []
        for tracker in found:
            self._spared[tracker] = resource_trackers.SparedTracker(tracker), pid
        if not found:
            _kill(pid, _SIGKILL, True)

    def _end_spared(self, pid: int) -> None:
        """Kill a tracker that has not been collected, and its group if it was the last there.

        A tracker forks no processes. A process that only looks like a tracker may have.
        """
        _, group = self._spared.pop(pid)
        _kill(pid, _SIGKILL, False)
        last = all(other != group for _, other in self._spared.values())
        # As long as the tracker exists and is in the group, no other group has that number.
        if last and _group_of(pid) == group:
            _kill(group, _SIGKILL, True)

    def _spared_are_late(self) -> bool:
        return all(tracker.is_late() for tracker, _ in self._spared.values())

    def end_all(self) -> None:
        """Kill every child and its group, and reap the processes that end in a short time."""
        for pid in self._pids:
            _kill(pid, _SIGKILL, True)
            _kill(pid, _SIGKILL, False)
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        until = time.monotonic() + _PATIENCE
        while self._collect_all() or self._pids or any(map(_group_exists, self._groups)):
            if time.monotonic() >= until and self._spared_are_late():
                for pid in list(self._spared):
                    self._end_spared(pid)
                return
            poll.poll(_PAUSE)

    def _collect_all(self) -> list[End]:
        try:
            while os.read(self._read, 4096):
                pass
        except BlockingIOError:
            pass  # the pipe is empty; processes that end from here on write to it again
        ended: list[End] = []
        for _ in range(_AT_ONCE):
            try:
                # WNOWAIT, since a child's group must be killed before the child is reaped.
                found = _os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return ended
            if found is None:
                return ended
            pid = found.si_pid
            if pid in self._pids:
                self._pids.remove(pid)
                self._groups.append(pid)
                if self._spares and found.si_status:
                    self._kill_all_but_trackers(pid)
                else:
                    _kill(pid, _SIGKILL, True)
                ended.append(_collect(pid))
            else:
                if pid in self._spared:
                    self._end_spared(pid)
                unpatched.waitpid(pid, 0)  # an orphan of some child
        # More processes may have ended. The loop has a limit and runs again later: a child that
        # leaves orphans faster than the loop reaps them must not block the server.
        os.write(self._write, b"\0")
        return ended


def _wake(number: int, frame: object) -> None:
    """Do nothing: the signal only has to wake up the loop."""


def _kill(pid: int, number: int, group: bool) -> None:
    try:
        if group:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # the child has no group yet; or the remaining processes have changed their user


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return -1


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True


def _collect(pid: int) -> End:
    """Collect a child that has ended."""
    _, status, used = os.wait4(pid, 0)
    return pid, status, used.ru_utime, used.ru_stime, used.ru_maxrss
