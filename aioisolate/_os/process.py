"""Fork a child process, signal it and wait for it, without confusing it with another process.

A pid is safe to use only until its process has been waited for: afterwards the number may belong
to another process. A `Process` therefore signals and waits through a pidfd, which always refers to
the one process that it was opened for. Where there are no pidfds (an old kernel, a seccomp filter,
macOS), a helper thread waits without collecting the status, so that the pid stays reserved until
`Process.reap` collects it.
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
    "is_child_of",
    "kill_adopted",
    "reap_adopted",
    "stopped_by",
    "suppress_fork_warning",
]

_log = logging.getLogger("aioisolate.call")

# Not every platform has pidfds and waitid. `make_plan` refuses platforms without waitid.
_os: Any = os
_signal: Any = signal

_LINUX = sys.platform == "linux"
_GET_INFO = 0xC040FF0B  # PIDFD_GET_INFO: _IOWR(0xFF, 11, struct pidfd_info of 64 bytes)
_INFO_EXIT = 1 << 3  # PIDFD_INFO_EXIT, Linux 6.15
_INFO = struct.Struct("=QQ11Ii")

# maxrss is in bytes on macOS and in KiB elsewhere.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Status(NamedTuple):
    """How a process ended and what it used; None and 0 if other code reaped it."""

    exit: Exit | None
    user: float = 0.0
    system: float = 0.0
    max_rss: int = 0


# The warning filters that this module has installed, by action.
_own_filters: dict[str, object] = {}


def fork() -> int:
    """Fork this process: 0 in the child, the child's pid here."""
    imports.run_own_lazy_imports()
    return unpatched.fork()


def suppress_fork_warning(*, judged: bool = True) -> None:
    """Suppress Python's warning about forking a process with threads.

    Python issues it when the child exists; under ``-W error`` some versions raise it then, and the
    child would be lost. The caller warns itself, after this call and before the fork. If *judged*
    is false, the caller doesn't know the threads: Python's warning is shown if the filters say so,
    but not raised.
    """
    # (Python 3.11 has no such warning; there the filter has no effect.)
    action = "ignore" if judged else _user_action()
    # A filter for this module, first in the list, inserted again only if it is no longer first.
    # (Not warnings.catch_warnings: its exit resets the registry of warnings already shown.)
    there = filters()
    if not there or there[0] is not _own_filters.get(action):
        module = __name__.replace(".", r"\.") + "$"
        warnings.filterwarnings(action, "This process", DeprecationWarning, module)
        _own_filters[action] = filters()[0]


def _user_action() -> Literal["default", "always", "ignore"]:
    own = list(_own_filters.values())
    theirs = [entry for entry in filters() if entry not in own]
    match action_for("This process", DeprecationWarning, __name__, 0, theirs):
        case "ignore":
            return "ignore"
        case "always" | "all":
            return "always"
    return "default"


def group_is_gone(pid: int, pidfd: int) -> bool:
    """Return whether the process group of the ended process *pid* has no members left.

    Dead members that have become children of this process are reaped. *pidfd* is -1 if there is
    none.
    """
    try:
        # Signal 0 affects no process. Without a pidfd the id may be another group's by now, so that
        # the caller waits longer.
        signal_group(pidfd, 0, pid)
        # The group has members, so its id has not been reused.
        while is_subreaper() and _os.waitid(os.P_PGID, pid, os.WEXITED | os.WNOHANG) is not None:
            pass
        signal_group(pidfd, 0, pid)
    except (ChildProcessError, PermissionError):
        return False
    except OSError:
        return True
    return False


def has_ended(pidfd: int, seconds: float = 0) -> bool:
    """Return whether the process of a pidfd has ended; wait at most *seconds* for that."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on. Raises OSError."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def is_child_of(parent: int, pid: int) -> bool:
    """Return whether a process is running and a child of *parent* (Linux; elsewhere True)."""
    if not _LINUX:
        return True
    try:
        state, ppid, *_ = _stat(pid)
    except OSError:
        return False
    return state not in "ZX" and int(ppid) == parent


def kill_adopted(pid: int, session: int) -> bool:
    """Kill and reap a process and kill its group, if it has become a child of this process.

    The process is in *session*, whose leader is dead, or leads a session itself. Return whether it
    has not ended yet.
    """
    try:
        # Its pid can't be reused before it is reaped.
        _os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if os.getsid(pid) not in (pid, session):
            return False  # another process with that pid
        for kill in (os.killpg, os.kill):
            try:
                kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass  # it has no group of its own yet, or has changed its user
        return _os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is None
    except (ChildProcessError, ProcessLookupError):
        return False  # not a child of this process, or other code has reaped it


def reap_adopted(leader: int) -> bool:
    """Kill and reap orphans in the session of the ended child *leader*.

    This process adopts orphans if it is a subreaper or pid 1, as servers in containers are. The
    members of the leader's group were killed with it; this function kills those that made their own
    group. (A process that made its own session is a daemon, and lives on.) Return whether more may
    follow.
    """
    if leader <= 0 or not is_subreaper():
        return False
    more = _reap_group(leader)
    for pid, group in _adopted(leader):
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue  # other code has reaped it, or it has changed its user
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
    """Return pid and group of the children in *session* that are not in the leader's group."""
    found = []
    try:
        # The main thread adopts orphans.
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            for pid in map(int, file.read().split()):
                group, belongs_to = (-1, -1) if pid in _owned else _group_and_session(pid)
                if belongs_to == session != group:
                    found.append((pid, group))
    except OSError:
        pass  # this system has no such file
    return found


def _group_and_session(pid: int) -> tuple[int, int]:
    try:
        _, _, group, session, *_ = _stat(pid)
    except OSError:
        return -1, -1
    return int(group), int(session)


def stopped_by(pid: int) -> str:
    """Return the name of the signal that has stopped a running process; "" if none has."""
    try:
        options = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        info = _os.waitid(os.P_PID, pid, options)
        return "" if info is None else signal.Signals(info.si_status).name
    except (ChildProcessError, AttributeError):
        pass  # not a child of this process
    try:
        state, *_ = _stat(pid)
    except OSError:
        return ""
    return "a signal" if state in "Tt" else ""


# The children that have a `Process`; `_adopted` skips them.
_owned: set[int] = set()


class Process:
    """The sole owner of a forked child, until it is closed.

    A copy of it in another process does nothing. (A forked child has copies of its siblings'
    owners.)

    Attributes:
        pid: the child's pid, or 0 before the fork.
        owner_pid: the process that forked the child.
        watched: a thread waits for the child's late end, and will close this object.
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
        """Prepare for a child that must outlive the calling thread, which will fork it.

        Return the ends of an `alive_pipe`; () if the parent-death signal suffices. Raises OSError.
        """
        if alive_pipe.is_needed(self.owner_pid):
            self._ends = alive_pipe.open_pipe(self._fds)
        return self._ends

    def adopt(self, pid: int) -> None:
        """Take ownership of the child *pid*; raise OSError if its end can't be watched."""
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
            pass  # SIGCHLD is ignored, or other code has reaped it: it has ended anyway

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the process has ended."""
        return self._wait_fd

    def is_owned(self) -> bool:
        """Return whether this process has forked the child and not called `close`."""
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
                    pass  # a filter may forbid this call but not os.kill
            if not self._reaped:  # until then no other process can have its pid
                os.kill(self.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            if number == signal.SIGKILL and not kill_through_descriptor(self.pid, self.ended):
                _log.error("no permission to kill process %d, which may still be running", self.pid)

    def signal_group(self, number: int) -> None:
        """Send a signal to the process group that the child leads, if it leads one."""
        if not self.is_owned():
            return
        # No other process or group can have its number until it has been reaped.
        pid = 0 if self._reaped else self.pid
        try:
            signal_group(self._wait_fd if self._is_pidfd else -1, number, pid)
        except (ProcessLookupError, PermissionError):
            pass  # the remaining members have changed their user: this process may not kill them
        except OSError as exc:
            if exc.errno != errno.EINVAL or pid:
                raise

    def ended(self, seconds: float = 0) -> bool:
        """Return whether the process has ended; wait at most *seconds* for that."""
        if self._reaped:
            return True
        return has_ended(self._wait_fd, seconds)

    def reap(self, *, spare: bool = False) -> Status:
        """Reap the process, which must have ended, and return its status.

        First kill the remaining members of its process group, while its id is still reserved. If
        *spare* is true, its resource trackers live on to clean up.
        """
        if not (spare and self._spare()):
            self.signal_group(signal.SIGKILL)
        status = self._collect()
        _owned.discard(self.pid)
        self._reaped = True
        return status

    def _spare(self) -> bool:
        """Kill the group except its trackers; return False if it has none."""
        if self.is_owned() and self._is_pidfd:
            try:
                for tracker in resource_trackers.end_all_others(self.pid):
                    pidfd = self._fds.own(_os.pidfd_open(tracker))
                    self._spared[pidfd] = resource_trackers.SparedTracker(tracker)
            except OSError:  # it has just ended, or no descriptor is free
                pass
        return bool(self._spared)

    def trackers_are_gone(self, *, kill: bool = False) -> bool:
        """Return whether the spared trackers have ended; kill those that are late.

        If *kill* is true, kill all of them.
        """
        spared = bool(self._spared)
        for pidfd, tracker in list(self._spared.items()):
            late = kill or tracker.is_late()
            if late and not has_ended(pidfd):
                try:
                    _signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except OSError:
                    pass  # it has just ended, or a filter forbids this call
            if late or has_ended(pidfd):
                del self._spared[pidfd]
                self._fds.close(pidfd)
        if spared and not self._spared and self._wait_fd >= 0:
            # A tracker does not fork, but a process that only looked like one may have forked.
            # (Without a pidfd the signal could reach another group that reuses the id.)
            try:
                signal_group(self._wait_fd, signal.SIGKILL)
            except OSError:
                pass  # the group is empty, or before Linux 6.9
        return not self._spared

    def _collect(self) -> Status:
        kind, ident = (_os.P_PIDFD, self._wait_fd) if self._is_pidfd else (os.P_PID, self.pid)
        try:
            # Check first: if other code has reaped the child, its pid may belong to another child
            # of this process, whose status wait4 would take.
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
        """Return the exit status of a process that other code reaped, by its pidfd (Linux 6.15)."""
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
        """Kill and reap members of the child's session that this process has adopted.

        Return whether more may follow.
        """
        return reap_adopted(self.pid)

    def group_is_gone(self) -> bool:
        """Return whether the child's process group has no members left."""
        pidfd = self._wait_fd if self._is_pidfd else -1
        return not self.is_owned() or group_is_gone(self.pid, pidfd)

    def close(self) -> None:
        """Release the process; afterwards no method of this object affects any process."""
        if not self._closed:
            self._closed = True
            if self.owner_pid == os.getpid():
                self.trackers_are_gone(kill=True)
            self._wait_fd = -1
            if self.owner_pid == os.getpid():
                self._fds.close_all()
                if self._helper is not None:
                    self._helper.close()
