"""The children of a fork server, and their orphans: waiting for their ends, and collecting them.

The server is the subreaper of its children: what fn has started and left behind becomes a child of
the server, not of the user's process, where it would stay a zombie. So SIGCHLD, and not a pidfd for
each child, tells that a process has ended. A child is collected only after its process group has
been killed, while its number is still taken.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C part of signal; it has no stubs
import os
import resource  # noqa: F401 - os.wait4 imports it: from where, that is decided before
import time
from collections import deque
from typing import Any

from .._os import resource_trackers, unpatched
from .._os.prctl import set_subreaper
from .._os.unpatched import select

__all__ = ["End", "Reaper"]

_raw: Any = _signal
_os: Any = os  # not every platform has all of it
_SIGKILL = int(_raw.SIGKILL)
# At the end of the server: how long those who were killed may take to be gone.
_PATIENCE = 0.5
_PAUSE = 10  # in milliseconds
# How often, in seconds, to look for trackers that take longer than usual.
_TRACKERS_PAUSE = 0.1
# So many are collected before it is looked what the parent wants.
_AT_ONCE = 128
# So many of the last groups that were killed may not be gone yet.
_RECENT = 64

# pid, wait status, user seconds, system seconds, peak resident size in the platform's unit
End = tuple[int, int, float, float, int]


class Reaper:
    """Waits for children, kills them, and collects whatever becomes a child of this process."""

    def __init__(self, *, spares: bool = False) -> None:
        """Become a subreaper, and take over SIGCHLD. Raises OSError.

        *spares*: the trackers of children are left to do their work.
        """
        try:
            set_subreaper()
        except OSError:
            pass  # refused by an older kernel or a filter: orphans go where they always went
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
        # Trackers of children that have ended, and the group of each.
        self._spared: dict[int, tuple[resource_trackers.SparedTracker, int]] = {}

    def fds(self) -> tuple[int, ...]:
        """Return the descriptors that a child must lose."""
        return self._read, self._write

    def watch(self, fd: int) -> None:
        """Wait for *fd*, too."""
        self._poll.register(fd, select.POLLIN)

    def wait(self, fd: int) -> tuple[bool, list[End]]:
        """Wait; tell whether *fd* is readable, and collect the children that have ended."""
        ready = [ready for ready, _ in self._poll.poll(self._patience())]
        return fd in ready, self._collect_all() if self._read in ready else []

    def adopt(self, pid: int) -> int:
        """Wait for a child from now on; return a pidfd for the parent, or -1."""
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
        """Kill the trackers that are late; tell how long the next one has, in milliseconds."""
        if not self._spared:
            return None
        now = time.monotonic()
        for pid, (tracker, _) in list(self._spared.items()):
            if tracker.is_late():
                self._end_spared(pid)
        first = min((tracker.since for tracker, _ in self._spared.values()), default=now)
        return int(max(first + resource_trackers.PATIENCE - now, _TRACKERS_PAUSE) * 1000) + 1

    def _see_to_group(self, pid: int) -> None:
        """Kill what is left of the group of a child that has failed, without its trackers."""
        found = resource_trackers.end_all_others(pid)
        try:
            for tracker in found:
                # Not its child where it is no subreaper; then it can't see to its end.
                _os.waitid(os.P_PID, tracker, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            found = []
        for tracker in found:
            self._spared[tracker] = resource_trackers.SparedTracker(tracker), pid
        if not found:
            _kill(pid, _SIGKILL, True)

    def _end_spared(self, pid: int) -> None:
        """Kill a tracker, which has not been collected, and, with the last one, its group.

        A tracker forks nobody. What only looks like one may have.
        """
        _, group = self._spared.pop(pid)
        _kill(pid, _SIGKILL, False)
        last = all(other != group for _, other in self._spared.values())
        # As long as it is there and in the group, nobody else has that number.
        if last and _group_of(pid) == group:
            _kill(group, _SIGKILL, True)

    def _spared_are_late(self) -> bool:
        return all(tracker.is_late() for tracker, _ in self._spared.values())

    def end_all(self) -> None:
        """Kill every child and its group, and collect what becomes of that within a moment."""
        for pid in self._pids:
            _kill(pid, _SIGKILL, True)
            _kill(pid, _SIGKILL, False)
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        until = time.monotonic() + _PATIENCE
        while self._collect_all() or self._pids or any(map(_is_there, self._groups)):
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
            pass  # it is empty; whoever ends from here on writes to it again
        ended: list[End] = []
        for _ in range(_AT_ONCE):
            try:
                # Looked at first, since a child's group is killed before it is collected.
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
                    self._see_to_group(pid)
                else:
                    _kill(pid, _SIGKILL, True)
                ended.append(_collect(pid))
            else:
                if pid in self._spared:
                    self._end_spared(pid)
                unpatched.waitpid(pid, 0)  # an orphan of some child
        # There may be more: a child that leaves orphans faster than they can be collected must not
        # keep the server from its work.
        os.write(self._write, b"\0")
        return ended


def _wake(number: int, frame: object) -> None:
    """Handle a signal that is only there to wake up the loop."""


def _kill(pid: int, number: int, group: bool) -> None:
    try:
        if group:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it has not got as far as having a group; or what is left has changed its user


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return -1


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True


def _collect(pid: int) -> End:
    """Collect a child that has ended."""
    _, status, used = os.wait4(pid, 0)
    return pid, status, used.ru_utime, used.ru_stime, used.ru_maxrss
