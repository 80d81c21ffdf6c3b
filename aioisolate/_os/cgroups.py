"""A cgroup for one call: it limits a tree of processes, and can kill all of them.

Only memory that is first touched after entering counts: pages that a forked child shares with its
parent were charged to the parent, and a copied page is charged to the cgroup.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import signal
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Self

from .cgroup_tree import Delegation, Home, delegated, read
from .fds import Descriptors, lift
from .oom import parse_counter

__all__ = ["Cgroup", "Events", "enter", "remove_stale"]

_os: Any = os  # not every platform has pidfds
_signal: Any = signal

_PREFIX = "aioisolate-"
_PAUSE = 0.0005
_numbers = itertools.count()
_tidied: set[str] = set()


class Events(NamedTuple):
    """The counters of a cgroup, including those of its descendants.

    Attributes:
        oom_kills: processes that the OOM killer killed, because of this cgroup's limit or another.
            In version 1 the other processes of the cgroup live on; version 2 kills all of them, and
            may count the process that the kernel selected twice.
        peak: the peak memory usage in bytes, or None if unknown.
    """

    oom_kills: int = 0
    peak: int | None = None


def enter(entrances: Iterable[int]) -> None:
    """Move this process into a cgroup, by the descriptors `Cgroup.entrances`.

    Only for a process with one thread, such as a new child: version 1 moves the calling thread.
    """
    for fd in entrances:
        os.write(fd, b"0")


class Cgroup:
    """A cgroup with its own limits, or one in each of two hierarchies.

    The process that created it calls `remove` when it is empty.

    Attributes:
        homes: the version and the directory of each.
    """

    __slots__ = ("_fds", "_owner_pid", "homes")

    def __init__(self, homes: list[Home]) -> None:
        self.homes: list[Home] = homes
        self._fds = Descriptors()
        self._owner_pid = os.getpid()

    @classmethod
    def create(
        cls, memory: int | None, processes: int | None, within: Delegation | None = None
    ) -> Self:
        """Create a cgroup that limits memory (in bytes), and processes and threads.

        Raises OSError with the file name if a step fails; a failure leaves nothing behind.
        """
        places = delegated() if within is None else within
        wanted = [
            (name, home, limit)
            for name, home, limit in (
                ("memory", places.memory, memory),
                ("pids", places.pids, processes),
            )
            if limit is not None
        ]
        name = f"{_prefix(os.getpid())}-{next(_numbers)}"
        group = cls([])
        try:
            for controller, home, limit in wanted:
                group._limit(controller, home, limit, name)
            for version, directory, _ in group.homes:
                # Moving a process by "cgroup.procs" blocks every fork and exit on the machine, so
                # it waits for an RCU grace period: 10 to 20 ms unless another move has just waited.
                # A thread that moves itself by "tasks" does not wait (Linux 5.16). Version 2 does
                # not allow that between cgroups like these.
                entrance = "tasks" if version == 1 else "cgroup.procs"
                fd = os.open(f"{directory}/{entrance}", os.O_WRONLY | os.O_CLOEXEC)
                lift(group._fds.own(fd), group._fds)
        except BaseException:
            group.remove()
            raise
        return group

    def _limit(self, controller: str, home: Home | None, limit: int, name: str) -> None:
        if home is None:
            raise OSError(errno.ENOTSUP, "No control groups can be created here", controller)
        if home.directory not in _tidied:
            _tidied.add(home.directory)
            remove_stale(home.directory)
        if home.missing:
            _write(f"{home.directory}/cgroup.subtree_control", f"+{' +'.join(home.missing)}")
        directory = f"{home.directory}/{name}"
        made = Home(home.version, directory)
        if made not in self.homes:  # in version 2 one cgroup has both limits
            os.mkdir(directory)
            self.homes.append(made)
        if controller == "pids":
            _write(f"{directory}/pids.max", str(limit))
        elif home.version == 1:
            _write(f"{directory}/memory.limit_in_bytes", str(limit))
            # Memory plus swap; the file is missing if the kernel does not count swap.
            _write(f"{directory}/memory.memsw.limit_in_bytes", str(limit), optional=True)
            # A cgroup inherits this setting, with which a process at the limit would wait for ever.
            if "oom_kill_disable 1" in (read(directory, "memory.oom_control") or ""):
                _write(f"{directory}/memory.oom_control", "0")
        else:
            _write(f"{directory}/memory.max", str(limit))
            _write(f"{directory}/memory.swap.max", "0", optional=True)
            _write(f"{directory}/memory.oom.group", "1", optional=True)

    @property
    def entrances(self) -> list[int]:
        """The descriptors for `enter`; the kernel checks the permissions of the opener."""
        return self._fds.listed()

    def close_entrances(self) -> None:
        """Close the entrances: no further process will enter."""
        self._fds.close_all()

    def events(self) -> Events:
        """Return the cgroup's counters, which are lost when it is removed."""
        kills = 0
        peak = None
        for version, directory, _ in self.homes:
            name = "memory.oom_control" if version == 1 else "memory.events"
            kills += sum(
                parse_counter(read(at, name), "oom_kill") or 0
                for at in _counted(version, directory)
            )
            name = "memory.max_usage_in_bytes" if version == 1 else "memory.peak"
            most = read(directory, name)
            peak = peak if most is None else int(most)
        return Events(kills, peak)

    def kill(self, patience: float = 0.1) -> bool:
        """Kill all processes in the cgroup; wait at most *patience* seconds until it is empty.

        Return False if it is not: a process is still exiting, can't be killed now, or is not
        visible in this pid namespace.
        """
        if self._owner_pid != os.getpid():
            return False
        end = time.monotonic() + patience
        for _, directory, _ in self.homes:
            # Otherwise processes could fork faster than they are killed.
            _write(f"{directory}/pids.max", "0", optional=True)
        while True:
            left = False
            for version, directory, _ in self.homes:
                if version == 1 or not _write(f"{directory}/cgroup.kill", "1", optional=True):
                    left |= _kill_listed(directory)
                else:
                    left |= parse_counter(read(directory, "cgroup.events"), "populated") == 1
            if not left or time.monotonic() >= end:
                return not left
            time.sleep(_PAUSE)

    def remove(self) -> bool:
        """Remove the cgroup and close the entrances.

        Return False if a process is still in the cgroup; try again later. A copy of this object in
        a forked child does nothing.
        """
        if self._owner_pid != os.getpid():
            return False
        self._fds.close_all()
        self.homes = [home for home in self.homes if not _remove(home.directory)]
        return not self.homes


@functools.cache
def _prefix(pid: int) -> str:
    """Return the prefix of the names of this process's cgroups.

    It names the pid namespace as well: containers may share a hierarchy, and a pid is unique only
    in its namespace.
    """
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    return f"{_PREFIX}{namespace}-{pid}"


def remove_stale(home: str) -> None:
    """Remove empty cgroups in *home* whose creators have ended.

    Those of another pid namespace stay: their creators are not visible here.
    """
    prefix = _prefix(0).removesuffix("0")
    for name in os.listdir(home):
        if name.startswith(prefix):
            pid = name.removeprefix(prefix).partition("-")[0]
            if pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
                try:
                    _remove(f"{home}/{name}")
                except OSError:
                    pass  # another user's


def _remove(directory: str) -> bool:
    """Remove a cgroup and its descendants; return False if one of them has a process."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
    else:
        return True
    below = list(_below(directory))
    if not below or not all(_remove(group) for group in below):
        return False
    try:
        os.rmdir(directory)
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        return False
    return True


def _below(directory: str) -> Iterator[str]:
    """Yield the child cgroups of *directory*."""
    try:
        if os.stat(directory).st_nlink == 2:
            return  # each child directory adds a link: there are none, the usual case
        with os.scandir(directory) as entries:
            found = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    yield from found


def _tree(directory: str) -> Iterator[str]:
    yield directory
    for group in _below(directory):
        yield from _tree(group)


def _counted(version: int, directory: str) -> Iterable[str]:
    """Return the cgroups whose counters have to be added up; version 2 includes descendants."""
    return _tree(directory) if version == 1 else (directory,)


def _kill_listed(directory: str) -> bool:
    """Kill the processes of a cgroup and its descendants; return False if there are none."""
    pids = _listed(directory)
    if not pids:
        return False
    owner = Descriptors()
    try:
        opened = {}
        for pid in pids - {0}:  # 0: a process outside this pid namespace
            try:
                opened[pid] = owner.own(_os.pidfd_open(pid))
            except (OSError, AttributeError) as exc:
                # -1: pidfd_open is missing or a filter forbids it; the pid is used instead. With
                # other errors the process has ended, or no descriptor is free: the next round
                # tries again.
                if isinstance(exc, AttributeError) or exc.errno in (errno.ENOSYS, errno.EPERM):
                    opened[pid] = -1
        # A pid that is still listed is the process that was opened, not one that reuses the pid.
        for pid in _listed(directory) & opened.keys():
            _try_kill(pid, opened[pid])
    finally:
        owner.close_all()
    return True


def _try_kill(pid: int, pidfd: int) -> None:
    try:
        if pidfd >= 0:
            try:
                _signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                return
            except PermissionError:
                pass  # a filter may forbid this call but not os.kill
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass  # it has ended, or this process has no permission


def _listed(directory: str) -> set[int]:
    found: set[int] = set()
    for group in _tree(directory):
        found.update(map(int, (read(group, "cgroup.procs") or "").split()))
    return found


def _write(path: str, text: str, *, optional: bool = False) -> bool:
    """Write to a control file; return False if it is *optional* and missing."""
    try:
        # Without O_CREAT: in a directory that is no cgroup this fails instead of creating a file.
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if optional:
            return False
        raise
    try:
        os.write(fd, text.encode())
    except OSError as exc:
        raise OSError(exc.errno, os.strerror(exc.errno or 0), path) from None
    finally:
        os.close(fd)
    return True
