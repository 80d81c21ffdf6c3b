"""Namespaces and mounts (Linux): a private network, host name and view of the file system."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from . import unpatched
from .syscalls import machine

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
    "keep_access_times",
    "make_mounts_private",
    "make_root",
    "make_root_read_only",
    "map_user",
    "mount_tmpfs",
    "set_host_name",
    "unshare",
    "unshare_with_ids",
]

NEWNS = 0x00020000
NEWCGROUP = 0x02000000
NEWUTS = 0x04000000
NEWIPC = 0x08000000
NEWUSER = 0x10000000
NEWPID = 0x20000000
NEWNET = 0x40000000
# All namespaces that a process can enter without forking. (User namespaces are used separately.)
ALL = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWNET

_MS_RDONLY = 1
_MS_NOSUID = 2
_MS_NODEV = 4
_MS_REMOUNT = 32
_MS_BIND = 4096
_MS_MOVE = 8192
_MS_REC = 16384
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
# The same number on all architectures; since Linux 5.12.
_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_NOATIME, _ANY_ATIME = 0x10, 0x70  # MOUNT_ATTR_*
_ATTRIBUTES = struct.Struct("=4Q")  # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
# System call numbers of pivot_root, which has no function in the C library.
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """Move this process into new namespaces, given by *flags*; NEWPID affects its children only.

    Raises OSError: EPERM without the privilege (or where a container forbids it), EINVAL for
    unknown flags, ENOSPC or EUSERS if there are too many namespaces.
    """
    if not hasattr(_libc, "unshare"):
        raise OSError(errno.ENOSYS, f"there are no namespaces on {sys.platform}")
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def map_user(uid: int, gid: int, proc: int | None = None) -> None:
    """Map only the user's own ids into a new user namespace, unchanged.

    *proc* is a descriptor of procfs, needed where it is not mounted at /proc.
    """
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        _write_map("self", name, text, proc)


def _write_map(pid: str, name: str, text: str, proc: int | None) -> None:
    # A single system call: these files accept only one write.
    path = f"/proc/{pid}/{name}" if proc is None else f"{pid}/{name}"
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def unshare_with_ids(flags: int, uid: int, gid: int, first: int, count: int) -> None:
    """Enter new namespaces, including a user namespace with more ids than the user's own.

    It maps *count* ids from *first* on, unchanged, and the user's own. Only a process outside that
    has the privilege to become any user may map more than one id, so this function forks one.
    Raises OSError.
    """
    request_read, request_write = os.pipe()
    answer_read, answer_write = os.pipe()
    own = str(os.getpid())
    pid = unpatched.fork()
    if pid == 0:
        code = errno.EPERM
        try:
            os.close(request_write)
            os.close(answer_read)
            if os.read(request_read, 1):
                _write_map(own, "uid_map", f"{uid} {uid} 1\n{first} {first} {count}\n", None)
                _write_map(own, "gid_map", f"{gid} {gid} 1\n{first} {first} {count}\n", None)
                code = 0
        except OSError as exc:
            code = exc.errno or errno.EPERM
        finally:
            os.write(answer_write, bytes([code & 0xFF]))
            os._exit(0)
    os.close(request_read)
    os.close(answer_write)
    try:
        unshare(flags | NEWUSER)
        os.write(request_write, b"?")
        answer = os.read(answer_read, 1)
        if answer != b"\0":
            code = answer[0] if answer else errno.EPERM
            raise OSError(code, os.strerror(code), "uid_map")
    finally:
        os.close(request_write)
        os.close(answer_read)
        try:
            unpatched.waitpid(pid, 0)
        except ChildProcessError:
            pass  # SIGCHLD is ignored, so the kernel has reaped it


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    result = _libc.mount(
        *arguments, ctypes.c_ulong(flags), None if options is None else options.encode()
    )
    _check(result, target)


def make_mounts_private() -> None:
    """Stop the propagation of mounts between this mount namespace and others."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)


def set_host_name(name: str) -> None:
    """Set the host name of this process's UTS namespace, and clear its domain name."""
    text = name.encode()
    _check(_libc.sethostname(text, ctypes.c_size_t(len(text))), "host name")
    _check(_libc.setdomainname(b"", ctypes.c_size_t(0)), "domain name")


def mount_tmpfs(target: str, options: str) -> None:
    """Mount an empty tmpfs at *target*."""
    _mount("aioisolate", target, "tmpfs", _MS_NOSUID | _MS_NODEV, options)


def bind(source: str, target: str) -> None:
    """Bind-mount *source*, with all mounts below it, at *target*."""
    _mount(source, target, None, _MS_BIND | _MS_REC)


def make_root_read_only() -> None:
    """Make the mount at / read-only, but not the mounts below it."""
    _mount(None, "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def keep_access_times(root: str) -> bool:
    """Stop updates of access times at *root* and all mounts below it.

    Processes that may only read could exchange data through access times. Return False if the
    kernel refuses: options of mounts from an outer user namespace may be locked.
    """
    wanted = _ATTRIBUTES.pack(_NOATIME, _ANY_ATIME, 0, 0)
    arguments = os.fsencode(root), ctypes.c_uint(_AT_RECURSIVE), wanted
    size = ctypes.c_size_t(len(wanted))
    number, here = ctypes.c_long(_MOUNT_SETATTR), ctypes.c_int(_AT_FDCWD)
    return bool(_libc.syscall(number, here, *arguments, size) == 0)


def make_root(directory: str, spare: str) -> None:
    """Make the mount at *directory* the root, and make the old root unreachable.

    *spare* is the name of a directory in it, which is removed. Where pivot_root is forbidden, as
    in containers, or impossible, the mount is moved over the old root instead. Then a process that
    has a directory of the old root open, and may call chroot, could still reach the old root.
    """
    os.chdir(directory)
    try:
        _pivot(directory, f"{directory}/{spare}")
    except OSError:
        _mount(".", "/", None, _MS_MOVE)
        _check(_libc.chroot(b"."), "chroot")
        os.chdir("/")
    else:
        detach(f"/{spare}")
    os.rmdir(f"/{spare}")


def _pivot(new: str, old: str) -> None:
    number = _PIVOT_ROOT.get(machine() or "")
    if number is None:
        raise OSError(
            errno.ENOSYS, f"the number of pivot_root is not known for {os.uname().machine}"
        )
    result = _libc.syscall(ctypes.c_long(number), os.fsencode(new), os.fsencode(old))
    _check(result, new)
    os.chdir("/")


def detach(target: str) -> None:
    """Detach a mount and all mounts below it; the kernel unmounts them when they are unused."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW), target)
