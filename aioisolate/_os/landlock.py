"""Landlock: what a process may do with files, TCP ports and its fellow processes (Linux 5.13).

A ruleset is a descriptor and may be made ahead, by a parent for its children. Whoever restricts
itself by it enters a domain, which it and its descendants can't leave; a second one nests in the
first and takes away more.
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

# The same on every machine.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1  # LANDLOCK_RULE_PATH_BENEATH

# LANDLOCK_ACCESS_FS_*
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_FIRST = (1 << 13) - 1  # all that the first version knew
_REFER = 1 << 13  # renaming and linking from one directory to another; ABI 2
_TRUNCATE = 1 << 14
TRUNCATE_ABI = 3  # before, whoever may not write to a file can still cut it off
_IOCTL_DEV = 1 << 15  # ABI 5
# A rule on anything but a directory may have these only.
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
    """Return the highest version of Landlock that the kernel has; 0 if none, or it is off."""
    return _ask()[0]


def refusal() -> int:
    """Return with which error the kernel refuses Landlock; 0: it does not.

    ENOSYS, also on other systems: there is none, or a filter hides it; EOPNOTSUPP: it is off;
    EPERM: a filter forbids it, in a container for example.
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
    """Make a ruleset and return its descriptor, which is closed on exec.

    Args:
        read: Files, and directories with all below, that may be read.
        write: Files, and directories with all below, where everything is allowed but making
            devices, and reading too.
        execute: Whether programs may be run from both.
        network: Whether TCP ports may be bound and connected to. (Nothing else of the network is
            Landlock's business.)
        abi: Use no more than this version of Landlock offers.

    Raises:
        OSError: It cannot be made; FileNotFoundError and others name the path they are about.
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
    """Enter a new domain under *ruleset*, for good; it applies to this thread and what it starts.

    Needs no_new_privs (or the right to administrate the system), otherwise OSError (EPERM).
    """
    syscall(_RESTRICT_SELF, ruleset, 0)


def _version(wanted: int | None) -> int:
    """Return the version to use: the kernel's, or a lower one that is asked for."""
    return abi() if wanted is None else min(wanted, abi())


def _rights(version: int) -> int:
    """Return all rights on files that a version knows."""
    rights = _FIRST
    if version >= 2:
        rights |= _REFER
    if version >= TRUNCATE_ABI:
        rights |= _TRUNCATE
    if version >= 5:
        rights |= _IOCTL_DEV
    return rights


def _create(version: int, files: int, ports: int, scopes: int) -> int:
    """Create a ruleset that takes away *files*, *ports* and *scopes*, as far as there are these."""
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
