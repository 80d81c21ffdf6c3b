"""Namespaces and mounts (Linux): a network, a host name, a view of the files of one's own."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = [
    "ALL",
    "NEWCGROUP",
    "NEWIPC",
    "NEWNET",
    "NEWNS",
    "NEWPID",
    "NEWUSER",
    "NEWUTS",
    "bind",
    "detach",
    "map_user",
    "mount_tmpfs",
    "pivot",
    "seal_root",
    "seclude_mounts",
    "set_host_name",
    "unshare",
]

NEWNS = 0x00020000
NEWCGROUP = 0x02000000
NEWUTS = 0x04000000
NEWIPC = 0x08000000
NEWUSER = 0x10000000
NEWPID = 0x20000000
NEWNET = 0x40000000
# What can be had without a process more.
ALL = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWNET

_MS_RDONLY = 1
_MS_NOSUID = 2
_MS_NODEV = 4
_MS_NOEXEC = 8
_MS_REMOUNT = 32
_MS_BIND = 4096
_MS_REC = 16384
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
# Of pivot_root, which the C library has no function for.
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """Leave the namespaces that *flags* name for new ones; a process one is for children.

    Raises OSError: EPERM without the privilege (or where a container forbids it), EINVAL for
    what the kernel does not know, ENOSPC or EUSERS if there are too many.
    """
    if not hasattr(_libc, "unshare"):
        raise OSError(38, f"there are no namespaces on {sys.platform}")
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def map_user(uid: int, gid: int, proc: int | None = None) -> None:
    """In a new user namespace be who one was outside; nobody else exists there.

    *proc* is a descriptor of /proc, where that is not in its place.
    """
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        # One system call: these files take a single write.
        path = f"/proc/self/{name}" if proc is None else f"self/{name}"
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    result = _libc.mount(
        *arguments, ctypes.c_ulong(flags), None if options is None else options.encode()
    )
    _check(result, target)


def seclude_mounts() -> None:
    """Have no later mount seen outside this namespace, nor one from outside seen here."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)


def set_host_name(name: str) -> None:
    """Give the host name namespace that this process is in a name, and no domain."""
    text = name.encode()
    _check(_libc.sethostname(text, ctypes.c_size_t(len(text))), "host name")
    _check(_libc.setdomainname(b"", ctypes.c_size_t(0)), "domain name")


def mount_tmpfs(target: str, options: str, *, nodev: bool = True) -> None:
    """Mount an empty file system in memory."""
    _mount("aioisolate", target, "tmpfs", _MS_NOSUID | (_MS_NODEV if nodev else 0), options)


def bind(source: str, target: str) -> None:
    """Have *source*, with all that is mounted below it, appear at *target*, too."""
    _mount(source, target, None, _MS_BIND | _MS_REC)


def seal_root() -> None:
    """Make the file system at / read-only, without what is mounted below."""
    _mount(None, "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def pivot(new: str, old: str) -> None:
    """Make the mount at *new* the root; the old one appears at *old*, a directory in it."""
    number = _PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(38, f"pivot_root is not known for {os.uname().machine}")
    result = _libc.syscall(ctypes.c_long(number), os.fsencode(new), os.fsencode(old))
    _check(result, new)
    os.chdir("/")


def detach(target: str) -> None:
    """Take a mount away, with all below it; what is in use of it stays until it no longer is."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW), target)
