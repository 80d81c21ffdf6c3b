"""Landlock: limit a process's access to files, TCP ports and other processes (Linux 5.13).

A ruleset is a descriptor, which a parent may create in advance for its children. A process that
restricts itself by a ruleset enters a domain, which it and its descendants can't leave. A second
domain nests in the first and removes more rights.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import struct
from collections.abc import Iterable
from typing import Any

from .syscalls import syscall

__all__ = ["TRUNCATE_ABI", "abi", "make_ruleset", "refusal", "restrict"]

_os: Any = os

# These numbers are the same on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1  # LANDLOCK_RULE_PATH_BENEATH

# LANDLOCK_ACCESS_FS_*
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_FIRST = (1 << 13) - 1  # all rights of ABI 1
_REFER = 1 << 13  # renaming and linking from one directory to another; ABI 2
_TRUNCATE = 1 << 14
TRUNCATE_ABI = 3  # before ABI 3, a process without the right to write can still truncate
_IOCTL_DEV = 1 << 15  # ABI 5
# The only rights that a rule for a non-directory may have.
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_TCP = 0b11  # LANDLOCK_ACCESS_NET_BIND_TCP and _CONNECT_TCP; ABI 4
_SCOPES = 0b11  # LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and LANDLOCK_SCOPE_SIGNAL; ABI 6

_RULE = struct.Struct("=Qi")  # struct landlock_path_beneath_attr, which is packed
_O_PATH: int = getattr(_os, "O_PATH", 0)


@functools.cache
def _ask() -> tuple[int, int]:
    try:
        return syscall(_CREATE_RULESET, 0, 0, _VERSION), 0
    except OSError as exc:
        return 0, exc.errno or errno.ENOSYS


def abi() -> int:
    """Return the Landlock ABI version of the kernel; 0 if Landlock is missing or off."""
    return _ask()[0]


def refusal() -> int:
    """Return the errno with which the kernel refuses Landlock, or 0 if it works.

    ENOSYS: Landlock is missing (also on other systems), or a filter hides it; EOPNOTSUPP: it is
    off; EPERM: a filter forbids it, for example in a container.
    """
    return _ask()[1]


def make_ruleset(
    read: Iterable[str],
    write: Iterable[str],
    *,
    execute: bool,
    network: bool,
    abi: int | None = None,
) -> int:
    """Create a ruleset and return its descriptor, which is closed on exec.

    Args:
        read: files and directory trees that may be read.
        write: files and directory trees in which everything is allowed, reading included, except
            creating devices.
        execute: whether programs in both may be executed.
        network: whether TCP ports may be bound and connected to. (Landlock restricts nothing else
            of the network.)
        abi: the highest ABI version to use.

    Raises:
        OSError: the ruleset cannot be created; errors about a path name the path.
    """
    version = _version(abi)
    rights = _rights(version)
    allowed = rights if execute else rights & ~_EXECUTE
    reading = allowed & (_READ_FILE | _READ_DIR | _EXECUTE)
    writing = allowed & ~(_MAKE_CHAR | _MAKE_BLOCK)
    ruleset = _create(version, rights, 0 if network else _TCP, _SCOPES)
    try:
        for paths, granted in ((read, reading), (write, writing)):
            for path in paths:
                _allow(ruleset, path, granted)
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def restrict(ruleset: int) -> None:
    """Enter a new domain under *ruleset*, irrevocably, with this thread and all that it starts.

    Needs no_new_privs or CAP_SYS_ADMIN; raises OSError (EPERM) without.
    """
    syscall(_RESTRICT_SELF, ruleset, 0)


def _version(wanted: int | None) -> int:
    """Return the ABI version to use: the kernel's, or *wanted* if that is lower."""
    return abi() if wanted is None else min(wanted, abi())


def _rights(version: int) -> int:
    """Return all file system rights of an ABI version."""
    rights = _FIRST
    if version >= 2:
        rights |= _REFER
    if version >= TRUNCATE_ABI:
        rights |= _TRUNCATE
    if version >= 5:
        rights |= _IOCTL_DEV
    return rights


def _create(version: int, files: int, ports: int, scopes: int) -> int:
    """Create a ruleset that handles *files*, *ports* and *scopes*, as far as *version* has them."""
    words = [files]
    if version >= 4:
        words.append(ports)
    if version >= 6:
        words.append(scopes)
    attributes = struct.pack(f"={len(words)}Q", *words)
    return syscall(_CREATE_RULESET, attributes, len(attributes), 0)


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Grant *rights* at *path* and below."""
    fd = os.open(path, _O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _OF_FILES
        try:
            syscall(_ADD_RULE, ruleset, _PATH_BENEATH, _RULE.pack(rights, fd), 0)
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, path) from None
    finally:
        os.close(fd)
