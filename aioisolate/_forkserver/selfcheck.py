"""The threads and descriptors of a fork server, which it checks itself."""

from __future__ import annotations

import os

from .._os import fds

__all__ = ["SelfCheck"]


class SelfCheck:
    """Reads the state of this process from /proc.

    *held*: open descriptors of the directories now, since /proc will not be accessible later.
    """

    def __init__(self, *, held: bool = False) -> None:
        self._tasks: str | int = "/proc/self/task"
        self._fds: str | int = "/proc/self/fd"
        self._held: list[int] = []
        if held:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            try:
                self._tasks = os.open("/proc/self/task", flags)
                self._held.append(self._tasks)
                self._fds = os.open("/proc/self/fd", flags)
                self._held.append(self._fds)
            except FileNotFoundError:
                pass  # no /proc: threads cannot be counted

    def held(self) -> list[int]:
        """Return the descriptors of this object."""
        return self._held

    def count_threads(self) -> int:
        """Return the number of threads of this process, native ones included."""
        try:
            return os.stat(self._tasks).st_nlink - 2
        except OSError:
            return 1  # no such directory here: threads cannot be counted

    def threads(self) -> list[str]:
        """Return the names of the threads."""
        if not os.path.isdir(self._tasks):
            return [""]  # threads cannot be counted
        try:
            return [self._read(f"{task}/comm") for task in os.listdir(self._tasks)]
        except OSError:
            return ["?", "?"]  # a thread has just ended

    def _read(self, name: str) -> str:
        at = self._tasks
        held = isinstance(at, int)
        fd = os.open(
            name if held else f"{at}/{name}",
            os.O_RDONLY | os.O_CLOEXEC,
            dir_fd=at if isinstance(at, int) else None,
        )
        try:
            return os.read(fd, 64).decode(errors="replace").strip()
        finally:
            os.close(fd)

    def count_fds(self) -> int:
        """Return the number of open descriptors; 0 before Linux 6.2, where counting is slow."""
        try:
            return os.stat(self._fds).st_size
        except OSError:
            return 0

    def list_fds(self) -> list[int]:
        """List the open descriptors; one of them, of the listing itself, is closed on return."""
        if isinstance(self._fds, int):
            return [int(name) for name in os.listdir(self._fds)]
        return fds.listed()

    def target(self, fd: int) -> str:
        """Return the target of a descriptor; "" if the descriptor is closed."""
        at = self._fds
        try:
            if isinstance(at, int):
                return os.readlink(str(fd), dir_fd=at)
            return os.readlink(f"{at}/{fd}")
        except OSError:
            return ""
