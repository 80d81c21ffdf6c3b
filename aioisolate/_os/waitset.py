"""One descriptor that is readable when any of several is: an epoll, or a kqueue.

An event loop watches this descriptor, registered before the fork. Adding and removing the
descriptors of a call then takes a single system call each, with every loop. (After a fork each page
that is written to costs a copy, so the loop's work to register a reader is done before it.)
"""

from __future__ import annotations

import sys

from .fds import ours
from .unpatched import select

__all__ = ["WaitSet"]

if sys.platform == "linux":

    class WaitSet:
        """A set of descriptors to wait for; its own descriptor can be waited for, too."""

        __slots__ = ("_epoll", "_members")

        def __init__(self) -> None:
            self._epoll = select.epoll()
            ours.add(self._epoll.fileno())
            self._members: set[int] = set()

        def fileno(self) -> int:
            """Return the descriptor that is readable when a member of the set is."""
            return self._epoll.fileno()

        def add(self, fd: int) -> None:
            """Add *fd*, to wait until it is readable or at its end."""
            self._epoll.register(fd, select.EPOLLIN)
            self._members.add(fd)

        def remove(self, fd: int) -> None:
            """Remove *fd* if it is in the set; *fd* must still be open."""
            if fd in self._members:
                self._members.remove(fd)
                self._epoll.unregister(fd)

        def poll(self, seconds: float = 0) -> list[int]:
            """Return the readable descriptors; wait at most *seconds* for one."""
            return [fd for fd, _ in self._epoll.poll(seconds)]

        def close(self) -> None:
            """Close the set; the descriptors in it stay open."""
            if not self._epoll.closed:
                ours.discard(self._epoll.fileno())
                self._epoll.close()

else:

    class WaitSet:
        """A set of descriptors to wait for; its own descriptor can be waited for, too."""

        __slots__ = ("_kqueue", "_members")

        def __init__(self) -> None:
            self._kqueue = select.kqueue()
            self._members: set[int] = set()

        def fileno(self) -> int:
            """Return the descriptor that is readable when a member of the set is."""
            return self._kqueue.fileno()

        def add(self, fd: int) -> None:
            """Add *fd*, to wait until it is readable or at its end."""
            self._change(fd, select.KQ_EV_ADD)
            self._members.add(fd)

        def remove(self, fd: int) -> None:
            """Remove *fd* if it is in the set; *fd* must still be open."""
            if fd in self._members:
                self._members.remove(fd)
                self._change(fd, select.KQ_EV_DELETE)

        def poll(self, seconds: float = 0) -> list[int]:
            """Return the readable descriptors; wait at most *seconds* for one."""
            return [event.ident for event in self._kqueue.control(None, 16, seconds)]

        def close(self) -> None:
            """Close the set; the descriptors in it stay open."""
            self._kqueue.close()

        def _change(self, fd: int, flags: int) -> None:
            event = select.kevent(fd, select.KQ_FILTER_READ, flags)
            self._kqueue.control([event], 0)
