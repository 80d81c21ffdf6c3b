"""A child process of this one: forking it, signalling it, waiting for it, never mistaking it.

A pid is only safe to use while its process has not been waited for: afterwards the number may
belong to somebody else. A `Process` therefore signals through a pidfd, which keeps naming the
one process that it was opened for, and waits through it too. Where there are no pidfds (an old
kernel, a seccomp filter, macOS), a helper thread waits without collecting the status, so that
the pid stays reserved until `Process.reap` collects it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import struct
import sys
import warnings
from typing import Any, Literal, NamedTuple

from .._outcome import Exit
from . import alive_pipe, imports, resource_trackers, threads, unpatched
from .fds import Descriptors
from .killing import kill_through_descriptor, signal_group
from .prctl import is_subreaper
from .unpatched import select
from .warning_filters import action_for, filters

__all__ = [
    "Process",
    "Status",
    "fork",
    "group_is_gone",
    "has_ended",
    "hush_fork_warning",
    "is_child_of",
    "kill_adopted",
    "reap_adopted",
    "stopped_by",
]

_log = logging.getLogger("aioisolate.call")

# Not every platform has pidfds and waitid; a plan is made only where there is the latter.
_os: Any = os
_signal: Any = signal

_LINUX = sys.platform == "linux"
_GET_INFO = 0xC040FF0B  # PIDFD_GET_INFO: _IOWR(0xFF, 11, struct pidfd_info of 64 bytes)
_INFO_EXIT = 1 << 3  # PIDFD_INFO_EXIT, Linux 6.15
_INFO = struct.Struct("=QQ11Ii")

# maxrss is in bytes on macOS and in KiB elsewhere.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Status(NamedTuple):
    """How a process ended and what it used; None and 0 where somebody else collected it."""

    exit: Exit | None
    user: float = 0.0
    system: float = 0.0
    max_rss: int = 0


# Our own filters of Python's warning, by what they do with it.
_own_filters: dict[str, object] = {}


def fork() -> int:
    """Fork this process: 0 in the child, the child's pid here."""
    imports.finish_own()
    return unpatched.fork()


def hush_fork_warning(*, judged: bool = True) -> None:
    """Hold back Python's own warning about forking a process with threads.

    It is issued once the child exists; under ``-W error`` some versions raise it there, and the
    child would be lost. The caller warns before the fork instead, but after this. Unless *judged*,
    the caller can't tell which threads there are: then it is shown where it would be, and not
    raised.
    """
    # (Python 3.11 has no such warning; there the filter just does nothing.)
    action = "ignore" if judged else _shown()
    # A filter for this one module, first in the list, put there again only if it no longer is.
    # (Not warnings.catch_warnings: leaving it makes Python forget which warnings it has shown.)
    there = filters()
    if not there or there[0] is not _own_filters.get(action):
        module = __name__.replace(".", r"\.") + "$"
        warnings.filterwarnings(action, "This process", DeprecationWarning, module)
        _own_filters[action] = filters()[0]


def _shown() -> Literal["default", "always", "ignore"]:
    own = list(_own_filters.values())
    theirs = [entry for entry in filters() if entry not in own]
    match action_for("This process", DeprecationWarning, __name__, 0, theirs):
        case "ignore":
            return "ignore"
        case "always" | "all":
            return "always"
    return "default"


def group_is_gone(pid: int, pidfd: int) -> bool:
    """Tell whether nobody is left of the group that the process *pid* led, which has ended.

    Dead members that have become children of this process are collected. *pidfd* is -1 if there
    is none.
    """
    try:
        # The signal 0 is sent to nobody. Where the number of the group has to do, that may be
        # another group's by now; then this waits in vain for a while.
        signal_group(pidfd, 0, pid)
        # So there is somebody, and the number is still that group's.
        while is_subreaper() and _os.waitid(os.P_PGID, pid, os.WEXITED | os.WNOHANG) is not None:
            pass
        signal_group(pidfd, 0, pid)
    except (ChildProcessError, PermissionError):
        return False
    except OSError:
        return True
    return False


def has_ended(pidfd: int, seconds: float = 0) -> bool:
    """Tell whether the process that a pidfd names has ended, blocking at most *seconds* for it."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def is_child_of(parent: int, pid: int) -> bool:
    """Tell whether a process has not ended and is a child of *parent* (Linux; elsewhere: True)."""
    if not _LINUX:
        return True
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, ppid, *_ = file.read().rpartition(")")[2].split()
    except OSError:
        return False
    return state not in "ZX" and int(ppid) == parent


def kill_adopted(pid: int, session: int) -> bool:
    """Kill a process with its group, if it has become a child of this process; collect it.

    It is one of a dead process that led *session*, or leads a session itself. Return whether it has
    not ended yet.
    """
    try:
        # While it has not been collected its number is its own.
        _os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if os.getsid(pid) not in (pid, session):
            return False  # somebody else's, with that number
        for kill in (os.killpg, os.kill):
            try:
                kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass  # it has not got as far as having a group; or it has changed its user
        return _os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is None
    except (ChildProcessError, ProcessLookupError):
        return False  # no child of this process, or somebody else has collected it


def reap_adopted(leader: int) -> bool:
    """Collect what the child *leader*, which has ended, left in its session and this process got.

    That happens where this process is a subreaper or pid 1, as servers in containers are. Those in
    the group have been killed with the leader; here those are that made a group of their own. (Who
    made a session of its own is a daemon, and lives on.) Return whether there may be more to come.
    """
    if leader <= 0 or not is_subreaper():
        return False
    more = _reap_group(leader)
    for pid, group in _adopted(leader):
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue  # somebody else has collected it; or it has changed its user
        more |= _reap_group(group)
    return more


def _reap_group(group: int) -> bool:
    try:
        while _os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG) is not None:
            pass
    except ChildProcessError:
        return False
    return True


def _adopted(session: int) -> list[tuple[int, int]]:
    """List the children of this process that belong to a session but lead or share other groups."""
    found = []
    try:
        # Orphans go to the main thread.
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            for pid in map(int, file.read().split()):
                group, belongs_to = (-1, -1) if pid in _owned else _group_and_session(pid)
                if belongs_to == session != group:
                    found.append((pid, group))
    except OSError:
        pass  # no such file here
    return found


def _group_and_session(pid: int) -> tuple[int, int]:
    try:
        with open(f"/proc/{pid}/stat") as file:
            _, _, group, session, *_ = file.read().rpartition(")")[2].split()
    except OSError:
        return -1, -1
    return int(group), int(session)


def stopped_by(pid: int) -> str:
    """Name the signal that has stopped a process, which has not ended; "" if none has."""
    try:
        options = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        info = _os.waitid(os.P_PID, pid, options)
        return "" if info is None else signal.Signals(info.si_status).name
    except (ChildProcessError, AttributeError):
        pass  # not a child of this process
    try:
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""
    return "a signal" if state in "Tt" else ""


# The children that have a `Process`; there is no need to look at those.
_owned: set[int] = set()


class Process:
    """The one owner of a forked child, until it is closed.

    A copy of it in another process (a forked child has copies of all its siblings' owners) does
    nothing.

    Attributes:
        pid: the child, or 0 before there is one.
        owner_pid: the process that forked it.
        watched: a thread waits for its late end, and will close it.
    """

    __slots__ = (
        "_closed",
        "_ends",
        "_fds",
        "_helper",
        "_is_pidfd",
        "_reaped",
        "_spared",
        "_wait_fd",
        "owner_pid",
        "pid",
        "watched",
    )

    def __init__(self) -> None:
        self.pid = 0
        self.owner_pid = os.getpid()
        self.watched = False
        self._reaped = False
        self._spared: dict[int, resource_trackers.SparedTracker] = {}  # by pidfd
        self._closed = False
        self._fds = Descriptors()
        self._ends: tuple[int, ...] = ()
        self._helper: threads.Helper | None = None
        self._is_pidfd = False
        self._wait_fd = -1

    def outlast_thread(self) -> tuple[int, ...]:
        """Get ready for a child that is to outlive the thread that forks it: the calling one.

        Returns the ends of an `alive_pipe` to tie it to; () if its parent-death signal will do.
        Raises OSError.
        """
        if alive_pipe.is_needed(self.owner_pid):
            self._ends = alive_pipe.open_pipe(self._fds)
        return self._ends

    def adopt(self, pid: int) -> None:
        """Begin to own the child *pid*, or raise OSError if it can't be watched."""
        self.pid = pid
        if self._ends:
            alive_pipe.keep(self._ends, self._fds)
        _owned.add(pid)
        try:
            self._wait_fd = self._fds.own(_os.pidfd_open(pid))
            self._is_pidfd = True
        except (OSError, AttributeError):  # not compiled in, ENOSYS, EPERM, EMFILE...
            try:
                self._helper = threads.Helper("wait", self._await_exit)
                self._wait_fd = self._helper.fileno()
            except OSError:
                _owned.discard(pid)
                self.pid = 0
                raise

    def _await_exit(self) -> None:
        try:
            _os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            pass  # SIGCHLD is ignored, or somebody else waited for it: it is gone all the same

    def fileno(self) -> int:
        """Return a descriptor that is readable once the process has ended."""
        return self._wait_fd

    def is_owned(self) -> bool:
        """Tell whether there is a child, it is this process's, and nobody has let it go."""
        return self.pid > 0 and not self._closed and self.owner_pid == os.getpid()

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it has not ended."""
        if not self.is_owned():
            return
        try:
            if self._is_pidfd:
                try:
                    _signal.pidfd_send_signal(self._wait_fd, number)
                    return
                except PermissionError:
                    pass  # a filter forbids this call, perhaps, and not the other
            if not self._reaped:  # while it is not, nobody else can have its number
                os.kill(self.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            if number == signal.SIGKILL and not kill_through_descriptor(self.pid, self.ended):
                _log.error("process %d may not be killed by this one", self.pid)

    def signal_group(self, number: int) -> None:
        """Send a signal to every process of the group that the child leads, if it leads one."""
        if not self.is_owned():
            return
        # Its number is nobody else's until it has been reaped.
        pid = 0 if self._reaped else self.pid
        try:
            signal_group(self._wait_fd if self._is_pidfd else -1, number, pid)
        except (ProcessLookupError, PermissionError):
            pass  # what is left of the group has changed its user: not ours to kill any more
        except OSError as exc:
            if exc.errno != errno.EINVAL or pid:
                raise

    def ended(self, seconds: float = 0) -> bool:
        """Tell whether the process has ended, blocking at most *seconds* for it."""
        if self._reaped:
            return True
        return has_ended(self._wait_fd, seconds)

    def reap(self, *, spare: bool = False) -> Status:
        """Collect the status of the process, which must have ended.

        Whatever remains of its process group is killed first, while its number is still taken; but
        for its trackers, which have something to do now, if they are to be *spared*.
        """
        if not (spare and self._spare()):
            self.signal_group(signal.SIGKILL)
        status = self._collect()
        _owned.discard(self.pid)
        self._reaped = True
        return status

    def _spare(self) -> bool:
        """Kill the group without its trackers; False if it has none."""
        if self.is_owned() and self._is_pidfd:
            try:
                for tracker in resource_trackers.end_all_others(self.pid):
                    pidfd = self._fds.own(_os.pidfd_open(tracker))
                    self._spared[pidfd] = resource_trackers.SparedTracker(tracker)
            except OSError:  # it has just ended; or no descriptor is left
                pass
        return bool(self._spared)

    def trackers_are_gone(self, *, kill: bool = False) -> bool:
        """Return whether the trackers that were spared have ended; kill those that are late.

        *kill*: all of them.
        """
        spared = bool(self._spared)
        for pidfd, tracker in list(self._spared.items()):
            late = kill or tracker.is_late()
            if late and not has_ended(pidfd):
                try:
                    _signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except OSError:
                    pass  # it has ended by now; or a filter forbids this call
            if late or has_ended(pidfd):
                del self._spared[pidfd]
                self._fds.close(pidfd)
        if spared and not self._spared and self._wait_fd >= 0:
            # A tracker forks nobody. What only looked like one may have. (Not by its number: if
            # nobody is left of the group, somebody else may have that.)
            try:
                signal_group(self._wait_fd, signal.SIGKILL)
            except OSError:
                pass  # nobody is left; or before Linux 6.9
        return not self._spared

    def _collect(self) -> Status:
        kind, ident = (_os.P_PIDFD, self._wait_fd) if self._is_pidfd else (os.P_PID, self.pid)
        try:
            # Look first: if somebody else has collected the child, its pid may by now be that
            # of another child of ours, whose status wait4 would take.
            info = _os.waitid(kind, ident, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return Status(self._exit_from_pidfd())
        if info is None:
            raise OSError(errno.EBUSY, "the process has not ended")
        try:
            _, code, used = os.wait4(self.pid, os.WNOHANG)
        except ChildProcessError:
            exited = info.si_code == os.CLD_EXITED
            return Status(Exit(info.si_status if exited else -info.si_status))
        return Status(
            Exit(os.waitstatus_to_exitcode(code)),
            used.ru_utime,
            used.ru_stime,
            used.ru_maxrss * _RSS_UNIT,
        )

    def _exit_from_pidfd(self) -> Exit | None:
        """Ask the pidfd how a process ended that somebody else waited for (Linux 6.15)."""
        if not self._is_pidfd:
            return None
        buffer = bytearray(_INFO.size)
        _INFO.pack_into(buffer, 0, _INFO_EXIT, *[0] * 13)
        try:
            fcntl.ioctl(self._wait_fd, _GET_INFO, buffer)
        except OSError:
            return None
        mask, *_, code = _INFO.unpack(buffer)
        return Exit(os.waitstatus_to_exitcode(code)) if mask & _INFO_EXIT else None

    def reap_adopted(self) -> bool:
        """Collect members of the child's session that have become children of this process.

        Return whether there may be more to come.
        """
        return reap_adopted(self.pid)

    def group_is_gone(self) -> bool:
        """Tell whether nobody is left of its process group."""
        pidfd = self._wait_fd if self._is_pidfd else -1
        return not self.is_owned() or group_is_gone(self.pid, pidfd)

    def close(self) -> None:
        """Forget the process; afterwards nothing done here can reach any process."""
        if not self._closed:
            self._closed = True
            if self.owner_pid == os.getpid():
                self.trackers_are_gone(kill=True)
            self._wait_fd = -1
            if self.owner_pid == os.getpid():
                self._fds.close_all()
                if self._helper is not None:
                    self._helper.close()
