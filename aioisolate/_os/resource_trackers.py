"""Processes that remove what others have left in /dev/shm: multiprocessing's resource trackers.

A tracker has the read end of a pipe. Once nobody has the other end any more, it unlinks what is
registered and ends: semaphores, shared memory, joblib's folders. It belongs to the process group of
the child that has started it; killed with that group, it would leave all of it behind.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

__all__ = ["PATIENCE", "SparedTracker", "end_all_others", "find"]

# On the command line of multiprocessing's and of loky's, which is joblib's.
_MARK = b"resource_tracker import main"
_LINUX = sys.platform == "linux"
_SIGKILL, _SIGSTOP, _SIGCONT = map(int, (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT))
# So many are not asked one by one: an event loop waits for this.
_OTHERS_MAX = 200
# So many seconds a tracker that was spared may sleep, and so many it may take in all: on a machine
# with much else to do, the start of its interpreter alone takes longer than the first.
PATIENCE = 2.0
_PATIENCE_MAX = 15.0
# So long, in seconds, one look waits for processes in the middle of execve().
_EXEC_PATIENCE = 0.002


def find(leader: int, *, all_numbers: bool = False) -> tuple[list[int], list[int]]:
    """List the trackers of a process group and its other members, its leader excepted.

    The leader has not been collected: so its number is that of this group. *all_numbers*: look for
    those, too, that were given out before its own: all have been, since.
    """
    trackers: list[int] = []
    others: list[int] = []
    until = time.monotonic() + _EXEC_PATIENCE
    for pid in _members(leader, all_numbers=all_numbers):
        (trackers if _is_tracker(pid, until) else others).append(pid)
        if len(others) > _OTHERS_MAX:
            break
    return trackers, others


def end_all_others(leader: int, *, alive: bool = False) -> list[int]:
    """Kill a group without its trackers and its leader, if it has any; return those.

    Nothing: it has none, or too many others. Then the group is to be killed.

    *alive*: its leader is, so one look tells whether there can be any.
    """
    if not _LINUX or (alive and not _has_children(leader)):
        return []
    trackers, others = find(leader)
    if not trackers or len(others) > _OTHERS_MAX:
        return []
    try:
        # Or there might be such as fork and end all the time, faster than they can be looked for.
        os.killpg(leader, _SIGSTOP)
        trackers, others = find(leader, all_numbers=True)
        if len(others) > _OTHERS_MAX:
            return []
        for pid in others:
            _send(pid, _SIGKILL)
    except OSError:
        return []  # somebody else's, or a filter forbids it: then the whole group is to be killed
    finally:
        for pid in trackers:
            _send(pid, _SIGCONT)
    return trackers


class SparedTracker:
    """The time that a tracker may take that was spared."""

    __slots__ = ("_begun", "_pid", "since")

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._begun = time.monotonic()
        # When the tracker was last seen running.
        self.since = self._begun

    def is_late(self) -> bool:
        """Return whether the tracker has had its time.

        A tracker sleeps only while another process has the other end of its pipe; and those have
        been killed.
        """
        now = time.monotonic()
        if now - self._begun > _PATIENCE_MAX:
            return True
        if now - self.since <= PATIENCE:
            return False
        if _is_running(self._pid):
            self.since = now
            return False
        return True


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split(maxsplit=1)[0] in b"RDT"
    except (OSError, IndexError):
        return False  # the process has ended


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended; or it has another user


def _has_children(pid: int) -> bool:
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                if file.read(1):
                    return True
    except OSError:
        pass  # it has ended; or there is no such file here
    return False


def _members(leader: int, *, all_numbers: bool) -> Iterator[int]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    # Numbers are given out in turn: what the leader has started has one of those since its own.
    # On a host with thousands of processes it would take long to ask all of them.
    last = _last_pid()
    for name in names:
        if not name.isdecimal() or int(name) == leader:
            continue
        if not (all_numbers or _is_between(int(name), leader, last)):
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, _, group, *_ = file.read().rpartition(b")")[2].split(maxsplit=3)
        except (OSError, ValueError):
            continue
        if int(group) == leader and state not in b"ZX":
            yield int(name)


def _is_between(pid: int, first: int, last: int) -> bool:
    """Tell whether a number was given out after *first*, and no later than *last*."""
    return first < pid <= last if first <= last else pid > first or pid <= last


def _last_pid() -> int:
    """Return the process id that was given out last; a number above all if that is not known."""
    try:
        with open("/proc/loadavg", "rb") as file:
            return int(file.read().rsplit(maxsplit=1)[-1])
    except (OSError, ValueError, IndexError):
        return sys.maxsize


def _is_tracker(pid: int, until: float = 0.0) -> bool:
    """Return whether a process is a tracker, or may be about to become one.

    In the middle of execve(), when vfork() has already returned in its parent, a process has no
    command line. One that still has none at the time *until* is taken for a tracker: those that are
    spared are killed a little later if they have not ended.
    """
    while not (line := _command_line(pid)):
        if line is None or time.monotonic() >= until:
            return line is not None
        time.sleep(0.0002)
    return _MARK in line


def _command_line(pid: int) -> bytes | None:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(1 << 16)
    except OSError:
        return None  # the process has ended
