"""The resource trackers of multiprocessing and loky, which clean up /dev/shm.

A tracker has the read end of a pipe. When all write ends are closed, it unlinks what is registered
(semaphores, shared memory, joblib's folders) and ends. It belongs to the process group of the child
that started it; a tracker that is killed with that group leaves all of this behind.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

__all__ = ["PATIENCE", "SparedTracker", "end_all_others", "find"]

# In the command lines of multiprocessing's tracker and of loky's, which joblib uses.
_MARK = b"resource_tracker import main"
_LINUX = sys.platform == "linux"
_SIGKILL, _SIGSTOP, _SIGCONT = map(int, (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT))
# The maximum number of members of a group that are examined, which blocks the event loop.
_OTHERS_MAX = 200
# The seconds for which a spared tracker may sleep, and for which it may run in total: on a busy
# machine, the start of its interpreter alone takes longer than the former.
PATIENCE = 2.0
_PATIENCE_MAX = 15.0
# The seconds for which one search waits for processes in the middle of execve().
_EXEC_PATIENCE = 0.002


def find(leader: int, *, all_numbers: bool = False) -> tuple[list[int], list[int]]:
    """Return the trackers of a process group and its other members, except the leader.

    The leader must not have been reaped, so that its pid is the id of this group. If *all_numbers*
    is true, also examine pids that are not between the leader's and the last one: pids may have
    wrapped around completely.
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
    """If a group has trackers, kill its other members except the leader; return the trackers.

    Return [] if the group has no trackers or too many other members; then the caller must kill the
    whole group.

    *alive*: the leader is alive; then the group can have trackers only if the leader has children.
    """
    if not _LINUX or (alive and not _has_children(leader)):
        return []
    trackers, others = find(leader)
    if not trackers or len(others) > _OTHERS_MAX:
        return []
    try:
        # Otherwise members could fork and exit faster than they can be listed.
        os.killpg(leader, _SIGSTOP)
        trackers, others = find(leader, all_numbers=True)
        if len(others) > _OTHERS_MAX:
            return []
        for pid in others:
            _send(pid, _SIGKILL)
    except OSError:
        return []  # another user's, or a filter forbids it: the caller must kill the whole group
    finally:
        for pid in trackers:
            _send(pid, _SIGCONT)
    return trackers


class SparedTracker:
    """The time limit of a spared tracker."""

    __slots__ = ("_begun", "_pid", "since")

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._begun = time.monotonic()
        # When the tracker was last seen running.
        self.since = self._begun

    def is_late(self) -> bool:
        """Return whether the tracker has exceeded its time.

        A tracker sleeps only while another process has the write end of its pipe; those processes
        have been killed.
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
        pass  # it has ended, or has another user


def _has_children(pid: int) -> bool:
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                if file.read(1):
                    return True
    except OSError:
        pass  # it has ended, or this system has no such file
    return False


def _members(leader: int, *, all_numbers: bool) -> Iterator[int]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    # The kernel assigns pids in sequence: processes that the leader started have pids after its
    # own. Examining all of them takes long on a host with thousands of processes.
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
    """Return whether a pid was assigned after *first*, and not after *last*."""
    return first < pid <= last if first <= last else pid > first or pid <= last


def _last_pid() -> int:
    """Return the pid that was assigned last, or a number above all pids if it is unknown."""
    try:
        with open("/proc/loadavg", "rb") as file:
            return int(file.read().rsplit(maxsplit=1)[-1])
    except (OSError, ValueError, IndexError):
        return sys.maxsize


def _is_tracker(pid: int, until: float = 0.0) -> bool:
    """Return whether a process is a tracker, or may be about to become one.

    In the middle of execve(), when vfork() has already returned in its parent, a process has no
    command line. A process that still has none at the time *until* counts as a tracker: spared
    processes are killed a little later if they have not ended.
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
