"""What this platform offers, found out once by trying."""

from __future__ import annotations

import functools
import os
import sys
from typing import NamedTuple

from . import memfd
from .process import fork, hush_fork_warning

__all__ = ["Containment", "Features", "containment", "current"]


class Features(NamedTuple):
    """What a call can count on here.

    Attributes:
        platform: `sys.platform`.
        waitid: os.waitid exists; without it no reaper is safe.
        memfd: large results can travel through sealed anonymous memory.
        parent_death_signal: the kernel kills children whose parent died.
    """

    platform: str
    waitid: bool
    memfd: bool
    parent_death_signal: bool


@functools.cache
def current() -> Features:
    """Return what this platform offers."""
    return Features(
        platform=sys.platform,
        waitid=hasattr(os, "waitid"),
        memfd=memfd.sealable(),
        parent_death_signal=sys.platform == "linux",
    )


class Containment(NamedTuple):
    """What a sandbox can count on here.

    Attributes:
        platform: `sys.platform`.
        becomes: this process may become another user: it is root, with the privilege.
        namespaces: how it gets namespaces: "privilege", "user" (through a user namespace), or "".
        why_no_namespaces: what the kernel says, if it gets none.
        landlock: the version of Landlock, 0: none.
        seccomp: system calls can be filtered.
        groups: the controllers of control groups that can be made: "memory", "pids".
        processes_by_namespace: a user's processes are counted for each user namespace by itself.
    """

    platform: str
    becomes: bool
    namespaces: str
    why_no_namespaces: str
    landlock: int
    seccomp: bool
    groups: frozenset[str]
    processes_by_namespace: bool


@functools.cache
def containment() -> Containment:
    """Return what a sandbox can count on here; the first time that takes a throw-away child."""
    # Not small, and most programs do without.
    from . import delegation, landlock, rlimit, seccomp, users  # noqa: PLC0415 - as said

    held = users.capabilities()
    way, why = "", ""
    if sys.platform == "linux":
        way = "privilege" if held & users.SYS_ADMIN else "user"
        why = _try_namespaces(way)
    return Containment(
        platform=sys.platform,
        becomes=bool(held & users.SETUID and held & users.SETGID),
        namespaces="" if why else way,
        why_no_namespaces=why,
        landlock=landlock.abi(),
        seccomp=seccomp.available(),
        groups=frozenset(
            name for name, home in delegation.delegated()._asdict().items() if home is not None
        ),
        processes_by_namespace=rlimit.nproc_is_per_namespace(),
    )


def _try_namespaces(way: str) -> str:
    """Leave all namespaces in a throw-away child; return what stands against it, if anything."""
    from . import namespaces  # noqa: PLC0415 - as above

    read, write = os.pipe()
    hush_fork_warning()
    pid = fork()
    if pid == 0:
        try:
            uid, gid = os.getuid(), os.getgid()
            namespaces.unshare(namespaces.ALL | (namespaces.NEWUSER if way == "user" else 0))
            if way == "user":
                namespaces.map_user(uid, gid)
            namespaces.seclude_mounts()
        except OSError as exc:
            os.write(write, str(exc).encode()[:400])
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        why = file.read().decode(errors="replace")
    os.waitpid(pid, 0)
    return why
