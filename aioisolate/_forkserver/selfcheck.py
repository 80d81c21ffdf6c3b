"""What a fork server knows of itself: its threads, its descriptors."""

from __future__ import annotations

import os

from .._os import fds

__all__ = ["SelfCheck"]


class SelfCheck:
    """Looks at this process through /proc.

    *held*: through descriptors that are opened now, for when /proc is out of reach.
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
                pass  # there is no /proc: nothing counts threads

    def held(self) -> list[int]:
        """Return its own descriptors."""
        return self._held

    def count_threads(self) -> int:
        """Count the threads of this process, native ones included."""
        try:
            return os.stat(self._tasks).st_nlink - 2
        except OSError:
            return 1  # no such directory here: nothing counts them

    def threads(self) -> list[str]:
        """Name the threads."""
        if not os.path.isdir(self._tasks):
            return [""]  # as above
        try:
            return [self._read(f"{task}/comm") for task in os.listdir(self._tasks)]
        except OSError:
            return ["?", "?"]  # one has just ended

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
        """Count the open descriptors; 0: this kernel does not tell so cheaply (Linux 6.2 does)."""
        try:
            return os.stat(self._fds).st_size
        except OSError:
            return 0

    def list_fds(self) -> list[int]:
        """List the open descriptors; one of them, the listing's own, is closed by then."""
        if isinstance(self._fds, int):
            return [int(name) for name in os.listdir(self._fds)]
        return fds.listed()

    def target(self, fd: int) -> str:
        """Say what a descriptor stands for; "" if it is closed by now."""
        at = self._fds
        try:
            if isinstance(at, int):
                return os.readlink(str(fd), dir_fd=at)
            return os.readlink(f"{at}/{fd}")
        except OSError:
            return ""
