"""Users and privileges (Linux): becoming somebody who owns nothing."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any, NamedTuple

__all__ = [
    "SPARE",
    "Ids",
    "become",
    "capabilities",
    "drop_capabilities",
    "spare_id",
    "spare_ids",
]

_os: Any = os  # not every platform has all of it
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_ALL = (1 << 64) - 1
_WORDS = struct.Struct("=6I")  # effective, permitted, inheritable: the lower half, then the upper

_libc = ctypes.CDLL(None, use_errno=True)


class Ids(NamedTuple):
    """A range of user and group ids.

    Attributes:
        first: the lowest.
        size: how many there are.
    """

    first: int
    size: int


# Ids that nobody has been given: 0x70000000 up to 0x7fffffff are unused by systemd's plan of user
# and group ids, which containers' and DynamicUser's ranges follow, too. As many as there are pids,
# which are below 2**22: two living processes never have the same one.
SPARE = Ids(0x70000000, 1 << 22)
# In a user namespace of 65536 ids, as containers' engines make them: above what distributions give
# to system users and to persons, below what systemd gives to services (DynamicUser).
_SPARE_OF_FEW = Ids(32768, 60000 - 32768)


def capabilities() -> int:
    """Return this process's permitted capabilities, as bits; 0 where there are none."""
    if not hasattr(_libc, "capget"):
        return 0
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(_WORDS.size)
    if _libc.capget(header, data) != 0:
        return _capabilities_as_told()  # a filter forbids it
    words: tuple[int, ...] = _WORDS.unpack(data.raw)
    return words[1] | words[4] << 32


def _capabilities_as_told() -> int:
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"CapPrm:"):
                    return int(line.split()[1], 16)
    except OSError:
        pass
    return _ALL if os.geteuid() == 0 else 0  # nothing tells: those that are to be given up


def spare_ids() -> Ids | None:
    """Return ids that nobody has been given and that exist in this user namespace, or None."""
    for ids in (SPARE, _SPARE_OF_FEW):
        if all(_is_mapped(f"/proc/self/{name}", ids) for name in ("uid_map", "gid_map")):
            return ids
    return None


def _is_mapped(path: str, ids: Ids) -> bool:
    try:
        with open(path) as file:
            extents = [tuple(map(int, line.split())) for line in file]
    except OSError:
        return ids is SPARE  # nothing tells: it is tried out
    return any(
        first <= ids.first and ids.first + ids.size <= first + count for first, _, count in extents
    )


def spare_id(pid: int, ids: Ids = SPARE) -> int:
    """Return a user and group id for the process *pid*, of those that are to be had."""
    return ids.first + pid % ids.size


def become(uid: int, gid: int) -> None:
    """Give up the user, the group and all further groups for *uid* and *gid*, for good.

    Raises OSError: EPERM without the privilege, EINVAL if the id does not exist in this user
    namespace.
    """
    os.setgroups([])
    # Not setuid(): that changes all three ids only with the privilege.
    _os.setresgid(gid, gid, gid)
    _os.setresuid(uid, uid, uid)
    # Only root loses them by that, and not even root if it has been told to keep them.
    drop_capabilities()


def drop_capabilities() -> None:
    """Give up every capability that this process has. Raises OSError."""
    _libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_CLEAR_ALL), 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, bytes(_WORDS.size)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "capset")
