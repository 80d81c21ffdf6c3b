"""Derive the layers to engage from a sandbox, or refuse the call; pure functions.

A call that needs a layer that this machine lacks is refused here, before any fork, and the message
names the layer.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from .._child.layers import ConfinementSpec, Layer, Start
from .._os import namespaces, seccomp
from .._os.containment import Containment
from .._os.landlock import TRUNCATE_ABI
from ..sandbox import PYTHON, Sandbox
from .enforcement import CONTROL_GROUP, count_by
from .missing_features import (
    NAMESPACE_REMEDY,
    SETUID_REMEDY,
    MissingFeature,
    refusal,
    refuse_or_warn,
)
from .python_paths import python_paths

__all__ = ["make_confinement", "survey"]

_Layers: TypeAlias = tuple[tuple[str, Callable[[ConfinementSpec], object]], ...]

# Each layer, and the function that returns whether it is engaged. A fork server engages the layers
# of the first table once, for all its children; a direct child engages all layers.
_OF_SERVER: _Layers = (
    (Layer.PRIVILEGES, lambda _: True),
    (Layer.NAMESPACES, lambda confinement: confinement.unshare),
    (Layer.VIEW, lambda confinement: confinement.view),
    (Layer.ENVIRONMENT, lambda confinement: confinement.env is not None),
)
_SERVER_FILTER = (Layer.SECCOMP, lambda confinement: confinement.server_filter)
_OF_CHILD: _Layers = (
    (Layer.SCRATCH, lambda confinement: confinement.scratch),
    (Layer.PROCESSES, lambda confinement: confinement.init),
    (Layer.USER, lambda confinement: confinement.uid >= 0 or confinement.as_user),
    # A change of the user id drops the capabilities, too.
    (Layer.CAPABILITIES, lambda confinement: confinement.drop),
    (Layer.LANDLOCK, lambda confinement: confinement.landlock),
    (Layer.SECCOMP, lambda confinement: confinement.child_filter),
)


def make_confinement(sandbox: Sandbox, here: Containment, start: Start) -> ConfinementSpec:
    """Decide which layers a sandbox's children engage.

    Raises CallableDidNotExecuteError, whose message names each missing layer and a remedy; with
    ``missing="warn"`` it warns instead.
    """
    confinement, missing = survey(sandbox, here, start)
    refuse_or_warn(
        sandbox, [feature for feature in missing if feature.hard or feature.name in sandbox.require]
    )
    return confinement


def _add_required(
    sandbox: Sandbox, confinement: ConfinementSpec, here: Containment, missing: list[MissingFeature]
) -> None:
    """Add the required layers that are neither engaged nor known to be missing."""
    known = {feature.name for feature in missing} | {
        *confinement.server_layers,
        *confinement.child_layers,
    }
    if confinement.uid >= 0 or confinement.as_user or not here.capable:
        known.add(Layer.CAPABILITIES)  # dropped with the user id, or there are none
    missing += [
        MissingFeature(name, f"{name!r} is required, and this sandbox does not have it")
        for name in sandbox.require
        if name not in known and name != CONTROL_GROUP and not name.startswith("limits.")
    ]


@functools.lru_cache(32)
def survey(
    sandbox: Sandbox, here: Containment, start: Start
) -> tuple[ConfinementSpec, tuple[MissingFeature, ...]]:
    """Return the confinement, and its missing features. Raises CallableDidNotExecuteError."""
    if sandbox.fresh and start != "zygote":
        raise refusal(
            f"this sandbox is for children of a fresh interpreter, Isolator(start='zygote'): with "
            f"start={start!r} fn would run in a copy of this process, with every secret that this "
            "process has in memory"
        )
    missing: list[MissingFeature] = []
    here = _as_started(here, start)
    confinement = _without_filters(sandbox, here, missing)
    if sandbox.syscalls != "off" and here.seccomp:
        method = count_by(sandbox, confinement._replace(child_filter=b"?"), here)
        limits = sandbox.limits
        if not method and not sandbox.subprocesses and limits is not None and limits.processes:
            confinement = confinement._replace(threads=False)
        confinement = _with_filters(confinement, sandbox, counting=method == "user")
    in_child = (*_OF_SERVER, *_OF_CHILD) if start == "fork" else _OF_CHILD
    confinement = confinement._replace(
        server_layers=_engaged((*_OF_SERVER, _SERVER_FILTER), confinement),
        child_layers=_engaged(in_child, confinement),
    )
    _add_required(sandbox, confinement, here, missing)
    return confinement, tuple(missing)


def _as_started(here: Containment, start: Start) -> Containment:
    """Return the sandbox features of this machine for children with this start method."""
    if not here.dumpable and start != "zygote" and here.namespaces == "user":
        why = "this process is not dumpable, as after os.setuid(), so a copy of it may not map ids"
        return here._replace(namespaces="", why_no_namespaces=why)
    return here


def _without_filters(
    sandbox: Sandbox, here: Containment, missing: list[MissingFeature]
) -> ConfinementSpec:
    """Return the confinement without its system call filters and the names of its layers."""
    landlock = _restrictions(sandbox, here, missing)
    unshare, init, view = _namespaces(sandbox, here, missing)
    as_user = bool(unshare) and here.namespaces == "user"
    uid = _user(sandbox, here, missing, as_user=as_user)
    read = _expand(sandbox.read, programs=sandbox.subprocesses)
    write = _expand(sandbox.write, programs=False)
    if read is not None and write is not None:
        write = (*write, *(path for path in ("/dev/null",) if os.path.exists(path)))
    return ConfinementSpec(
        unshare=unshare,
        as_user=as_user,
        uid=uid,
        spare=(uid, 1) if uid > 0 else here.spare,
        ids=as_user and uid >= 0,
        drop=uid < 0 and not as_user and sandbox.user != "keep" and here.capable,
        host_name=bool(unshare) and here.host_name,
        view=view,
        init=init,
        read=read,
        optional=frozenset(python_paths(programs=sandbox.subprocesses))
        if sandbox.read is not None and PYTHON in sandbox.read
        else frozenset(),
        write=write,
        execute=sandbox.subprocesses,
        network=sandbox.network == "inherit",
        landlock=landlock,
        scratch=sandbox.scratch or 0 if view else 0,
        env=None if sandbox.env is None else dict(sandbox.env),
        codec=sandbox.codec,
    )


def _restrictions(sandbox: Sandbox, here: Containment, missing: list[MissingFeature]) -> int:
    """Return the version of Landlock to use, or 0."""
    landlock = here.landlock if sandbox.confines_files else 0
    filtering = sandbox.syscalls != "off" and here.seccomp
    if here.platform != "linux":
        if sandbox.confines_files or sandbox.network == "none":
            text = f"files and the network can't be confined on {here.platform}"
            missing.append(MissingFeature(Layer.LANDLOCK, text))
    elif sandbox.confines_files and not landlock:
        why = here.why_no_landlock or "this kernel has no Landlock"
        remedy = "or leave out read and write: without=['landlock']"
        missing.append(MissingFeature(Layer.LANDLOCK, f"files can't be confined: {why}", remedy))
    elif sandbox.confines_files and landlock < TRUNCATE_ABI and not filtering:
        text = (
            f"this kernel's Landlock (version {landlock}) lets any file be truncated, unless "
            "system calls are filtered"
        )
        missing.append(MissingFeature(Layer.LANDLOCK, text))
    if sandbox.syscalls != "off" and not here.seccomp:
        text = f"system calls can't be filtered here: {here.why_no_seccomp or 'no seccomp'}"
        remedy = "or go without the filter, with an open network: without=['seccomp']"
        missing.append(MissingFeature(Layer.SECCOMP, text, remedy))
    if sandbox.network == "none" and sandbox.syscalls == "off":
        raise ValueError("sandbox.network='none' needs a system call filter, and syscalls='off'")
    return landlock


def _namespaces(
    sandbox: Sandbox, here: Containment, missing: list[MissingFeature]
) -> tuple[int, bool, bool]:
    """Return the namespaces to enter, whether to start an init, and whether to make a view."""
    if sandbox.namespaces == "off":
        return 0, False, False
    why = here.why_no_namespaces or f"there are none on {here.platform}"
    if not here.namespaces:
        hard = sandbox.namespaces == "require"
        remedy = NAMESPACE_REMEDY if here.platform == "linux" else ""
        missing.append(
            MissingFeature(Layer.NAMESPACES, f"namespaces can't be made ({why})", remedy, hard)
        )
        if sandbox.confines_files:
            text = (
                f"the names of all files are visible: the root directory can't be replaced ({why})"
            )
            missing.append(MissingFeature(Layer.VIEW, text, remedy, hard=False))
        if sandbox.scratch:
            text = f"a scratch directory needs a mount namespace ({why})"
            missing.append(
                MissingFeature(Layer.SCRATCH, text, f"{NAMESPACE_REMEDY}, or leave out scratch")
            )
        if sandbox.subprocesses and sandbox.codec != "pickle":
            text = f"without a process namespace its subprocesses could outlive the call ({why})"
            remedy = f"{NAMESPACE_REMEDY}, or set subprocesses=False"
            missing.append(MissingFeature(Layer.PROCESSES, text, remedy, not hard))
        return 0, False, False
    flags = namespaces.ALL
    if sandbox.network == "inherit":
        flags &= ~namespaces.NEWNET
    view = _view(sandbox, here, missing)
    if not view:
        flags &= ~namespaces.NEWNS
    return flags, sandbox.subprocesses, view


def _view(sandbox: Sandbox, here: Containment, missing: list[MissingFeature]) -> bool:
    """Return whether to make another root directory, in a mount namespace."""
    if not sandbox.confines_files:
        return False
    if "/" in (*(sandbox.read or ()), *(sandbox.write or ())):
        why = "'/' is among its paths"
        remedy = "name the directories below '/' instead"
    elif not here.view:
        why = here.why_no_view
        remedy = "let the container's seccomp profile and its security module pass mount"
    else:
        return True
    text = f"the names of all files are visible: the root directory can't be replaced ({why})"
    missing.append(MissingFeature(Layer.VIEW, text, remedy, hard=False))
    if sandbox.scratch:
        text = f"a scratch directory needs another root directory ({why})"
        missing.append(MissingFeature(Layer.SCRATCH, text, f"{remedy}, or leave out scratch"))
    return False


def _user(
    sandbox: Sandbox, here: Containment, missing: list[MissingFeature], *, as_user: bool
) -> int:
    """Return the user id for the children, as in `ConfinementSpec.uid`."""
    user = sandbox.user
    if user in ("keep", "unprivileged"):
        return -1
    if isinstance(user, int):
        if here.becomes:
            return user
        text = f"this process may not become the user {user} ({here.why_not_becomes})"
        missing.append(MissingFeature(Layer.USER, text, f"{SETUID_REMEDY}, or leave out user"))
        return -1
    if here.becomes:
        return 0
    if here.platform == "linux" and not as_user:
        text = f"children keep this user id, without capabilities ({here.why_not_becomes})"
        missing.append(MissingFeature(Layer.USER, text, SETUID_REMEDY, hard=False))
    return -1


def _with_filters(
    confinement: ConfinementSpec, sandbox: Sandbox, *, counting: bool
) -> ConfinementSpec:
    kind: Literal["default", "strict"] = "strict" if sandbox.syscalls == "strict" else "default"
    subprocesses, network = sandbox.subprocesses, confinement.network
    # Landlock before this version confines files, but not truncate().
    truncate = not 0 < confinement.landlock < TRUNCATE_ABI
    writes = sandbox.write != () or bool(confinement.scratch)

    def compiled(part: Literal["whole", "base", "final"]) -> bytes:
        return seccomp.compile_filter(
            kind,
            part,
            subprocesses=subprocesses,
            network=network,
            truncate=truncate,
            threads=confinement.threads,
            counting=counting,
            writes=writes,
        )

    return confinement._replace(
        whole_filter=compiled("whole"),
        server_filter=compiled("base"),
        child_filter=compiled("final"),
    )


def _engaged(layers: _Layers, confinement: ConfinementSpec) -> tuple[str, ...]:
    return tuple(sorted(layer for layer, is_engaged in layers if is_engaged(confinement)))


def _expand(paths: Sequence[str] | None, *, programs: bool) -> tuple[str, ...] | None:
    if paths is None:
        return None
    expanded: list[str] = []
    for path in paths:
        for one in python_paths(programs=programs) if path == PYTHON else (path,):
            if one not in expanded:
                expanded.append(one)
    return tuple(expanded)
