"""Users and privileges (Linux): switch to an unused user id, and drop capabilities."""

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
        first: the lowest id.
        size: the number of ids.
    """

    first: int
    size: int


# Unused ids: systemd's allocation of user and group ids, which the ranges of containers and
# DynamicUser follow, leaves 0x70000000 to 0x7fffffff free. There are as many ids as pids, which are
# below 2**22, so two living processes never have the same id.
SPARE = Ids(0x70000000, 1 << 22)
# For a user namespace of 65536 ids, as container engines create them: above the ids that
# distributions assign to system users and persons, below those of systemd services (DynamicUser).
_SPARE_OF_FEW = Ids(32768, 60000 - 32768)


def capabilities() -> int:
    """Return this process's permitted capabilities as a bit mask; 0 on other systems."""
    if not hasattr(_libc, "capget"):
        return 0
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(_WORDS.size)
    if _libc.capget(header, data) != 0:
        return _capabilities_from_proc()  # a filter forbids capget
    words: tuple[int, ...] = _WORDS.unpack(data.raw)
    return words[1] | words[4] << 32


def _capabilities_from_proc() -> int:
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"CapPrm:"):
                    return int(line.split()[1], 16)
    except OSError:
        pass
    return _ALL if os.geteuid() == 0 else 0  # unknown: assume all, since they will be dropped


def spare_ids() -> Ids | None:
    """Return unused ids that exist in this user namespace, or None."""
    for ids in (SPARE, _SPARE_OF_FEW):
        if all(_is_mapped(f"/proc/self/{name}", ids) for name in ("uid_map", "gid_map")):
            return ids
    return None


def _is_mapped(path: str, ids: Ids) -> bool:
    try:
        with open(path) as file:
            extents = [tuple(map(int, line.split())) for line in file]
    except OSError:
        return ids is SPARE  # unknown: an attempt will tell
    return any(
        first <= ids.first and ids.first + ids.size <= first + count for first, _, count in extents
    )


def spare_id(pid: int, ids: Ids = SPARE) -> int:
    """Return one of *ids* as user and group id for the process *pid*."""
    return ids.first + pid % ids.size


def become(uid: int, gid: int) -> None:
    """Switch to *uid* and *gid* irrevocably, and drop the supplementary groups and capabilities.

    Raises OSError: EPERM without the privilege, EINVAL if the id does not exist in this user
    namespace.
    """
    os.setgroups([])
    # Not setuid(): it changes all three ids only with the privilege.
    _os.setresgid(gid, gid, gid)
    _os.setresuid(uid, uid, uid)
    # Changing the ids clears root's capabilities only, and not even those with PR_SET_KEEPCAPS.
    drop_capabilities()


def drop_capabilities() -> None:
    """Drop all capabilities of this process. Raises OSError."""
    _libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_CLEAR_ALL), 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, bytes(_WORDS.size)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "capset")
