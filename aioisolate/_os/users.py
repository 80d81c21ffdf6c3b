"""Users and privileges (Linux): becoming somebody who owns nothing."""

from __future__ import annotations

import ctypes
import os
import struct

__all__ = [
    "FIRST_SPARE",
    "SETGID",
    "SETUID",
    "SYS_ADMIN",
    "become",
    "capabilities",
    "drop_capabilities",
    "spare_id",
]

# CAP_... as bits.
SETGID = 1 << 6
SETUID = 1 << 7
SYS_ADMIN = 1 << 21

# Ids that nobody has been given: 0x70000000 up to 0x7fffffff are unused by systemd's plan of user
# and group ids, which containers' and DynamicUser's ranges follow, too.
FIRST_SPARE = 0x70000000
# Pids are below 2**22.
_PIDS = 1 << 22

_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def capabilities() -> int:
    """Return this process's effective capabilities, as bits; 0 where there are none."""
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("CapEff:"):
                    return int(line.split()[1], 16)
    except OSError:
        pass  # no /proc, or no such thing here: then nothing may be counted on
    return 0


def spare_id(pid: int) -> int:
    """Return a user and group id for the process *pid*, of which no other living one has any."""
    return FIRST_SPARE + pid % _PIDS


def become(uid: int, gid: int) -> None:
    """Give up the user, the group and all further groups for *uid* and *gid*, for good."""
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)  # as root all three of them


def drop_capabilities() -> None:
    """Give up every capability that this process has."""
    _libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_CLEAR_ALL), 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, bytes(24)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "capset")
