"""What the parent has decided about a child's confinement: plain data, which travels by marshal."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = [
    "NOTHING",
    "CgroupSpec",
    "ConfinementSpec",
    "Enforcement",
    "Layer",
    "RlimitSpec",
    "Start",
]

Start = Literal["fork", "zygote", "template"]


class Layer:
    """Names of layers, as children report them and errors name them."""

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
        as_user: they are had through a user namespace, not by privilege.
        uid: whose user id to take: -1 one's own, 0 a spare one, else that one.
        spare: the first spare id, and how many there are.
        ids: in the user namespace these can be had, too.
        drop: all capabilities are given up, with the user id that there is.
        host_name: it sees another host name.
        view: a root directory in which nothing but *read* and *write* exists.
        init: what it starts lives in a process namespace, and ends with it.
        read, write: the paths that may be reached, or None: all.
        optional: those of *read* that need not be there (any more).
        execute: programs may be started.
        threads: threads may be started.
        network: sockets may be opened.
        landlock: the rules' version, 0: none are made.
        filters: the system call filters: whole, or for a server and for its children.
        scratch: bytes of a file system of its own; 0: none.
        env: its environment, for a copy of the parent; None: as it is.
        codec: how results are encoded, for rehearsals.
        server_layers, child_layers: the names of all that are to be engaged.
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
        strict: fn may be hostile, so no limit is left for it to raise that need not be.
        besides: *processes* come on top of those that this user has by then.
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
    """A control group to be made for one call."""

    memory: int | None
    processes: int | None


class Enforcement(NamedTuple):
    """How the limits of one call are held.

    Attributes:
        bounds: what the child sets for itself, or None.
        group: the control group that it is put into, or None.
    """

    bounds: RlimitSpec | None = None
    group: CgroupSpec | None = None


NOTHING = Enforcement()
