"""The parent's decisions about a child's confinement and limits: plain data, sent with marshal."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = [
    "NO_LIMITS",
    "CgroupSpec",
    "ConfinementSpec",
    "Enforcement",
    "Layer",
    "RlimitSpec",
    "Start",
]

Start = Literal["fork", "zygote", "template"]


class Layer:
    """Names of layers, as used in READY frames and errors."""

    NAMESPACES = "namespaces"
    USER = "user"
    PROCESSES = "process namespace"
    PRIVILEGES = "no_new_privs"
    LANDLOCK = "landlock"
    SECCOMP = "seccomp"
    SCRATCH = "scratch"
    ENVIRONMENT = "environment"
    VIEW = "view of files"
    CAPABILITIES = "capabilities"


class ConfinementSpec(NamedTuple):
    """The layers of one sandbox, ready to be engaged.

    Attributes:
        unshare: the namespaces to leave, as flags; 0: none.
        as_user: whether to leave them through a user namespace, and not by privilege.
        uid: -1 keeps the current user id, 0 takes a spare one; any other value is the user id to
            take.
        spare: the first spare id, and the number of spare ids.
        ids: whether the spare ids are mapped in the user namespace, too.
        drop: whether to drop all capabilities, and keep the user id.
        host_name: whether to set another host name.
        view: whether to make a root directory in which only *read* and *write* exist.
        init: whether the child's processes are in a PID namespace, and end with the child.
        read, write: the accessible paths; None: all.
        optional: the paths of *read* that may be missing.
        execute: whether programs may be started.
        threads: whether threads may be started.
        network: whether sockets may be opened.
        landlock: the Landlock ABI version; 0: no rules.
        whole_filter: the system call filter of a direct child.
        server_filter, child_filter: the filters of a fork server and of its children.
        scratch: the size of a private file system in bytes; 0: none.
        env: the environment of a copy of the parent; None: unchanged.
        codec: the encoding of results, for rehearsals.
        server_layers, child_layers: the names of the layers to engage.
    """

    unshare: int = 0
    as_user: bool = False
    uid: int = -1
    spare: tuple[int, int] = (0x70000000, 1 << 22)
    ids: bool = False
    drop: bool = False
    view: bool = False
    host_name: bool = False
    init: bool = False
    read: tuple[str, ...] | None = None
    optional: frozenset[str] = frozenset()
    write: tuple[str, ...] | None = None
    execute: bool = True
    threads: bool = True
    network: bool = True
    landlock: int = 0
    whole_filter: bytes = b""
    server_filter: bytes = b""
    child_filter: bytes = b""
    scratch: int = 0
    env: dict[str, str] | None = None
    codec: str = "pickle"
    server_layers: tuple[str, ...] = ()
    child_layers: tuple[str, ...] = ()


class RlimitSpec(NamedTuple):
    """The limits that a child sets for itself right before it calls fn; see `Limits`.

    Attributes:
        strict: whether fn may be hostile, so that hard limits are set wherever possible.
        besides: whether *processes* is added to the number of processes that the user has.
    """

    memory: int | None = None
    address_space: int | None = None
    cpu_time: int | None = None
    open_files: int | None = None
    file_size: int | None = None
    processes: int | None = None
    core_size: int | None = None
    strict: bool = False
    besides: bool = False


class CgroupSpec(NamedTuple):
    """The limits of a control group to create for one call."""

    memory: int | None
    processes: int | None


class Enforcement(NamedTuple):
    """How the limits of one call are enforced.

    Attributes:
        rlimits: the limits that the child sets for itself, or None.
        group: the control group of the child, or None.
    """

    rlimits: RlimitSpec | None = None
    group: CgroupSpec | None = None


NO_LIMITS = Enforcement()
