"""The children of a fork server: waiting for their ends, and for what the parent says.

By pidfds in an epoll; where there are none, by SIGCHLD and a pipe. A child is collected only after
its process group has been killed, while its number is still taken.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C part of signal; it has no stubs
import fcntl
import os
import resource  # noqa: F401 - os.wait4 imports it: from where, that is decided before
import select
from typing import Any, Protocol

__all__ = ["End", "Reaper", "make"]

_raw: Any = _signal
_os: Any = os  # not every platform has all of it
_SIGKILL = int(_raw.SIGKILL)

# pid, wait status, user seconds, system seconds, peak resident size in the platform's unit
End = tuple[int, int, float, float, int]


class Reaper(Protocol):
    """Waits for children, and kills them.

    Attributes:
        floor: where its pidfds are to be, and above.
    """

    floor: int

    def fds(self) -> tuple[int, ...]:
        """Return the descriptors that a child must lose, but for pidfds."""
        ...

    def pidfds(self) -> set[int]:
        """Return the descriptors that name children."""
        ...

    def count_fds(self) -> int:
        """Return how many of them there are."""
        ...

    def watch(self, fd: int) -> None:
        """Wait for *fd*, too."""

    def wait(self, fd: int) -> tuple[bool, list[End]]:
        """Wait; tell whether *fd* is readable, and collect the children that have ended."""
        ...

    def adopt(self, pid: int) -> int:
        """Wait for a child from now on; return a pidfd for the parent, or -1.

        Raises OSError if it can't be waited for; then it has been killed and collected.
        """
        ...

    def kill(self, pid: int, number: int, group: bool) -> None:
        """Send a signal to a child or its group, if it has not been collected."""

    def kill_all(self) -> None:
        """Kill every child and its group."""


def _kill(pid: int, number: int, group: bool) -> None:
    try:
        if group:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it has not got as far as having a group; or what is left has changed its user


def _collect(pid: int) -> End:
    """Collect a child that has ended, and what is left of its group."""
    _kill(pid, _SIGKILL, True)
    _, status, used = os.wait4(pid, 0)
    return pid, status, used.ru_utime, used.ru_stime, used.ru_maxrss


class PidfdReaper:
    """Waits for pidfds."""

    floor = 3

    def __init__(self) -> None:
        self._epoll = _Any.epoll()
        self._pids: dict[int, int] = {}
        self._fd_of: dict[int, int] = {}

    def fds(self) -> tuple[int, ...]:
        return (self._epoll.fileno(),)

    def pidfds(self) -> set[int]:
        return set(self._pids)

    def count_fds(self) -> int:
        return len(self._pids)

    def watch(self, fd: int) -> None:
        self._epoll.register(fd, _Any.EPOLLIN)

    def wait(self, fd: int) -> tuple[bool, list[End]]:
        readable = False
        ended = []
        for ready, _ in self._epoll.poll():
            if ready == fd:
                readable = True
            else:
                pid = self._pids.pop(ready)
                del self._fd_of[pid]
                ended.append(_collect(pid))
                # By hand: a close takes out only what nobody else has a duplicate of.
                self._epoll.unregister(ready)
                os.close(ready)
        return readable, ended

    def adopt(self, pid: int) -> int:
        opened = pidfd = -1
        try:
            opened = _os.pidfd_open(pid)
            pidfd = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, self.floor)
            self._epoll.register(pidfd, _Any.EPOLLIN)
        except OSError:
            if pidfd >= 0:
                os.close(pidfd)
            _kill(pid, _SIGKILL, False)
            _collect(pid)
            raise
        finally:
            if opened >= 0:
                os.close(opened)
        self._pids[pidfd] = pid
        self._fd_of[pid] = pidfd
        return pidfd

    def kill(self, pid: int, number: int, group: bool) -> None:
        if pid in self._fd_of:
            _kill(pid, number, group)

    def kill_all(self) -> None:
        for pid in self._fd_of:
            _kill(pid, _SIGKILL, True)
            _kill(pid, _SIGKILL, False)


class SignalReaper:
    """Waits for SIGCHLD."""

    floor = 3

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        _raw.signal(_raw.SIGCHLD, _wake)
        _raw.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)
        self._pids: set[int] = set()

    def fds(self) -> tuple[int, ...]:
        return self._read, self._write

    def pidfds(self) -> set[int]:
        return set()

    def count_fds(self) -> int:
        return 0

    def watch(self, fd: int) -> None:
        self._poll.register(fd, select.POLLIN)

    def wait(self, fd: int) -> tuple[bool, list[End]]:
        ready = [ready for ready, _ in self._poll.poll()]
        ended = []
        if self._read in ready:
            os.read(self._read, 4096)
            for pid in list(self._pids):
                # Looked at first, since its group is killed before it is collected.
                if _os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    self._pids.remove(pid)
                    ended.append(_collect(pid))
        return fd in ready, ended

    def adopt(self, pid: int) -> int:
        self._pids.add(pid)
        return -1

    def kill(self, pid: int, number: int, group: bool) -> None:
        if pid in self._pids:
            _kill(pid, number, group)

    def kill_all(self) -> None:
        for pid in self._pids:
            _kill(pid, _SIGKILL, True)
            _kill(pid, _SIGKILL, False)


_Any: Any = select  # not every platform has epoll


def _wake(number: int, frame: object) -> None:
    """Handle a signal that is only there to wake up the loop."""


def make() -> Reaper:
    """Make the reaper that works here."""
    try:
        os.close(_os.pidfd_open(os.getpid()))
        return PidfdReaper()
    except (OSError, AttributeError):
        return SignalReaper()
