"""A control group for one call: limits for a whole tree of processes, and an end to all of them.

Only memory that is touched after entering counts: what a forked child shares with its parent was
charged to the parent, and a copied page is charged to the group.
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

from .cgroup_delegation import Delegation, Home, delegated
from .cgroup_tree import read
from .fds import Descriptors, lift
from .oom import count

__all__ = ["Cgroup", "Events", "enter", "remove_stale"]

_os: Any = os  # not every platform has pidfds
_signal: Any = signal

_PREFIX = "aioisolate-"
_PAUSE = 0.0005
_numbers = itertools.count()
_tidied: set[str] = set()


class Events(NamedTuple):
    """What has happened in a group, processes further down included.

    Attributes:
        oom_kills: processes that the kernel killed for want of memory, by this group's limit or
            another. In version 1 the others of the group live on; version 2 kills them all, and
            may count the one that it chose twice.
        peak: the most memory that was in use at once, in bytes; None: not known.
    """

    oom_kills: int = 0
    peak: int | None = None


def enter(entrances: Iterable[int]) -> None:
    """Move this process into the group that these are the entrances of.

    For a freshly forked child, which has one thread: in version 1 others would not come along.
    """
    for fd in entrances:
        os.write(fd, b"0")


class Cgroup:
    """A group of processes with limits of its own, or one in each of two hierarchies.

    To be removed by who made it, once nobody is in it any more.

    Attributes:
        homes: the groups: version, directory.
    """

    __slots__ = ("_fds", "_owner_pid", "homes")

    def __init__(self, homes: list[Home]) -> None:
        self.homes = homes
        self._fds = Descriptors()
        self._owner_pid = os.getpid()

    @classmethod
    def create(
        cls, memory: int | None, processes: int | None, within: Delegation | None = None
    ) -> Self:
        """Make a group with limits of memory, in bytes, and of processes and threads.

        Raises OSError, naming the file, if a part of it can't be done; nothing is left then.
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
                # Moving a process by "cgroup.procs" shuts out every fork and exit on the machine
                # and so waits for an RCU grace period, 10 to 20 ms unless somebody else has just
                # done so. One thread that moves itself does not have to (Linux 5.16). Version 2
                # doesn't allow that between groups like these.
                entrance = "tasks" if version == 1 else "cgroup.procs"
                fd = os.open(f"{directory}/{entrance}", os.O_WRONLY | os.O_CLOEXEC)
                lift(group._fds.own(fd), group._fds)
        except BaseException:
            group.remove()
            raise
        return group

    def _limit(self, controller: str, home: Home | None, limit: int, name: str) -> None:
        if home is None:
            raise OSError(errno.ENOTSUP, "No control groups can be made here", controller)
        if home.directory not in _tidied:
            _tidied.add(home.directory)
            remove_stale(home.directory)
        if home.missing:
            _write(f"{home.directory}/cgroup.subtree_control", f"+{' +'.join(home.missing)}")
        directory = f"{home.directory}/{name}"
        made = Home(home.version, directory)
        if made not in self.homes:  # in version 2 both limits are the same group's
            os.mkdir(directory)
            self.homes.append(made)
        if controller == "pids":
            _write(f"{directory}/pids.max", str(limit))
        elif home.version == 1:
            _write(f"{directory}/memory.limit_in_bytes", str(limit))
            # Memory and swap together; not there if the kernel does not count swap.
            _write(f"{directory}/memory.memsw.limit_in_bytes", str(limit), optional=True)
            # Inherited: whoever is at the limit would wait for ever.
            if "oom_kill_disable 1" in (read(directory, "memory.oom_control") or ""):
                _write(f"{directory}/memory.oom_control", "0")
        else:
            _write(f"{directory}/memory.max", str(limit))
            _write(f"{directory}/memory.swap.max", "0", optional=True)
            _write(f"{directory}/memory.oom.group", "1", optional=True)

    @property
    def entrances(self) -> list[int]:
        """What a child has to pass to `enter`; whether it may is decided by who opened them."""
        return self._fds.listed()

    def close_entrances(self) -> None:
        """Close them: nobody else will enter."""
        self._fds.close_all()

    def events(self) -> Events:
        """Tell what has happened in it. It has forgotten once it is removed."""
        kills = 0
        peak = None
        for version, directory, _ in self.homes:
            name = "memory.oom_control" if version == 1 else "memory.events"
            kills += sum(
                count(read(at, name), "oom_kill") or 0 for at in _counted(version, directory)
            )
            name = "memory.max_usage_in_bytes" if version == 1 else "memory.peak"
            most = read(directory, name)
            peak = peak if most is None else int(most)
        return Events(kills, peak)

    def kill(self, patience: float = 0.1) -> bool:
        """Kill everybody in it, and wait that many seconds at most until nobody is left.

        False: somebody is, who is still dying, can't be killed now, or can't be seen from here.
        """
        if self._owner_pid != os.getpid():
            return False
        end = time.monotonic() + patience
        for _, directory, _ in self.homes:
            # From here on nobody can outrun the killing by forking.
            _write(f"{directory}/pids.max", "0", optional=True)
        while True:
            left = False
            for version, directory, _ in self.homes:
                if version == 1 or not _write(f"{directory}/cgroup.kill", "1", optional=True):
                    left |= _kill_listed(directory)
                else:
                    left |= count(read(directory, "cgroup.events"), "populated") == 1
            if not left or time.monotonic() >= end:
                return not left
            time.sleep(_PAUSE)

    def remove(self) -> bool:
        """Remove it, and close the entrances; False if somebody is still in it: try again later.

        A copy of it in a forked child does nothing.
        """
        if self._owner_pid != os.getpid():
            return False
        self._fds.close_all()
        self.homes = [home for home in self.homes if not _remove(home.directory)]
        return not self.homes


@functools.cache
def _prefix(pid: int) -> str:
    """Return the beginning of the names of this process's groups.

    Its number says something in its pid namespace only, and containers may share a hierarchy.
    """
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    return f"{_PREFIX}{namespace}-{pid}"


def remove_stale(home: str) -> None:
    """Remove what is left there of groups whose makers are no more, unless somebody is in it.

    Those of another pid namespace are let alone: whether their makers live can't be seen.
    """
    prefix = _prefix(0).removesuffix("0")
    for name in os.listdir(home):
        if name.startswith(prefix):
            pid = name.removeprefix(prefix).partition("-")[0]
            if pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
                try:
                    _remove(f"{home}/{name}")
                except OSError:
                    pass  # somebody else's


def _remove(directory: str) -> bool:
    """Remove a group and those that were made below it; False if there is somebody in one."""
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
    """Yield the groups that have been made right below one."""
    try:
        if os.stat(directory).st_nlink == 2:
            return  # each one below has a link to it: there are none, the usual case
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
    """Give the groups whose counters have to be added up: version 2 has done so."""
    return _tree(directory) if version == 1 else (directory,)


def _kill_listed(directory: str) -> bool:
    """Kill whoever is listed in a group and those below it; False if nobody is."""
    pids = _listed(directory)
    if not pids:
        return False
    owner = Descriptors()
    try:
        opened = {}
        for pid in pids - {0}:  # 0: not in this pid namespace
            try:
                opened[pid] = owner.own(_os.pidfd_open(pid))
            except (OSError, AttributeError) as exc:
                # -1: there is no such call here, or a filter forbids it; then the number has to do.
                # Else it has ended; or there are no more descriptors: the next round's.
                if isinstance(exc, AttributeError) or exc.errno in (errno.ENOSYS, errno.EPERM):
                    opened[pid] = -1
        # Who is still listed is who was opened, and nobody else that has got its number since.
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
                pass  # a filter forbids this call, perhaps, and not the other
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass  # it has ended, or is not ours to kill


def _listed(directory: str) -> set[int]:
    found: set[int] = set()
    for group in _tree(directory):
        found.update(map(int, (read(group, "cgroup.procs") or "").split()))
    return found


def _write(path: str, text: str, *, optional: bool = False) -> bool:
    """Write to a control file; False if there is none and it is *optional*."""
    try:
        # Never created: in a directory that is no group this is an error, and not a file.
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
