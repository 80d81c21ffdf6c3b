"""From a sandbox and limits to what the kernel will be asked for, or a refusal; pure.

What this machine lacks is refused here, by name, before anything is forked.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import Literal

from .._child.policy import Bounds, Enforcement, Group, Layer, Policy, Start
from .._errors import CallableDidNotExecuteError, Reason, SandboxWarning
from .._limits import Limits
from .._os import namespaces, seccomp
from .._os.features import Containment
from .._os.landlock import TRUNCATE_ABI
from ..sandbox import PYTHON, Sandbox
from .python_paths import python_paths
from .warn import warn

__all__ = ["make_policy", "plan_limits"]

# The init of a process namespace, and who follows it from outside, unless they are of another
# user's than the call.
_KEEPERS = 2


def _refuse(text: str) -> CallableDidNotExecuteError:
    return CallableDidNotExecuteError(text, reason=Reason.FEATURE_UNAVAILABLE)


def make_policy(sandbox: Sandbox, here: Containment, start: Start) -> Policy:
    """Decide which layers a sandbox's children engage.

    Raises CallableDidNotExecuteError, naming each layer that can't be had here; with
    ``missing="warn"`` it warns instead.
    """
    policy, lacking = _decide(sandbox, here, start)
    if lacking:
        text = "this machine can't hold what the sandbox promises: " + "; ".join(lacking)
        if sandbox.missing == "refuse":
            raise _refuse(text)
        warn(text, SandboxWarning)
    return policy


@functools.lru_cache(32)
def _decide(sandbox: Sandbox, here: Containment, start: Start) -> tuple[Policy, tuple[str, ...]]:
    """Return the policy, and what it lacks here."""
    if sandbox.fresh and start != "zygote":
        raise _refuse(
            f"this sandbox is for children of a fresh interpreter, Isolator(start='zygote'): with "
            f"start={start!r} fn would run in a copy of this process, with every secret that it "
            "holds in memory"
        )
    lacking: list[str] = []
    landlock, filtering = _restrictions(sandbox, here, lacking)
    unshare, init = _namespaces(sandbox, here, lacking)
    if isinstance(sandbox.user, int) and not here.becomes:
        lacking.append(f"this process may not become the user {sandbox.user}")
    as_user = bool(unshare) and here.namespaces == "user"
    uid = -1
    if here.becomes and sandbox.user != "keep":
        uid = sandbox.user if isinstance(sandbox.user, int) else 0
    read = _expand(sandbox.read, programs=sandbox.subprocesses)
    write = _expand(sandbox.write, programs=False)
    if read is not None and write is not None:
        write = (*write, *(path for path in ("/dev/null",) if os.path.exists(path)))
    policy = Policy(
        unshare=unshare,
        as_user=as_user,
        uid=uid,
        init=init,
        read=read,
        write=write,
        execute=sandbox.subprocesses,
        network=sandbox.network == "inherit",
        landlock=landlock,
        scratch=sandbox.scratch or 0 if unshare else 0,
        env=None if sandbox.env is None else dict(sandbox.env),
        codec=sandbox.codec,
    )
    if filtering:
        policy = _with_filters(policy, sandbox)
    policy = policy._replace(
        server_layers=_server_layers(policy), child_layers=_child_layers(policy, start)
    )
    return policy, tuple(lacking)


def _restrictions(sandbox: Sandbox, here: Containment, lacking: list[str]) -> tuple[int, bool]:
    """Return the version of Landlock to use, and whether to filter system calls."""
    landlock = here.landlock if sandbox.confines_files else 0
    filtering = sandbox.syscalls != "off" and here.seccomp
    if here.platform != "linux":
        if sandbox.confines_files or sandbox.network == "none":
            lacking.append(f"files and the network can't be closed off on {here.platform}")
    elif sandbox.confines_files and not landlock:
        lacking.append("this kernel has no Landlock, which confines files")
    elif sandbox.confines_files and landlock < TRUNCATE_ABI and not filtering:
        lacking.append(
            f"this kernel's Landlock (version {landlock}) lets any file be emptied, unless system "
            "calls are filtered"
        )
    if sandbox.syscalls != "off" and not here.seccomp:
        lacking.append("system calls can't be filtered here (seccomp)")
    if sandbox.network == "none" and sandbox.syscalls == "off":
        raise ValueError("sandbox.network='none' needs a system call filter, and syscalls='off'")
    return landlock, filtering


def _namespaces(sandbox: Sandbox, here: Containment, lacking: list[str]) -> tuple[int, bool]:
    """Return the namespaces to leave, and whether to have an init."""
    if sandbox.namespaces == "off":
        return 0, False
    if not here.namespaces:
        if sandbox.scratch:
            lacking.append("a scratch directory needs a mount namespace")
        if sandbox.namespaces == "require":
            why = here.why_no_namespaces or f"there are none on {here.platform}"
            lacking.append(f"namespaces can't be had ({why})")
        elif sandbox.subprocesses and sandbox.codec != "pickle":
            lacking.append(
                "without a process namespace programs that it starts could outlive it "
                f"({here.why_no_namespaces})"
            )
        return 0, False
    flags = namespaces.ALL
    if sandbox.network == "inherit":
        flags &= ~namespaces.NEWNET
    return flags, sandbox.subprocesses


def _with_filters(policy: Policy, sandbox: Sandbox) -> Policy:
    kind: Literal["default", "strict"] = "strict" if sandbox.syscalls == "strict" else "default"
    subprocesses, network = sandbox.subprocesses, policy.network
    # As far as Landlock confines files, but does not see that.
    truncate = not 0 < policy.landlock < TRUNCATE_ABI
    writes = sandbox.write != () or bool(policy.scratch)

    def compiled(part: Literal["whole", "base", "final"]) -> bytes:
        return seccomp.compile_filter(
            kind,
            part,
            subprocesses=subprocesses,
            network=network,
            truncate=truncate,
            writes=writes,
        )

    return policy._replace(
        whole_filter=compiled("whole"),
        server_filter=compiled("base"),
        child_filter=compiled("final"),
    )


def _server_layers(policy: Policy) -> tuple[str, ...]:
    layers = [Layer.PRIVILEGES]
    if policy.env is not None:
        layers.append(Layer.ENVIRONMENT)
    if policy.unshare:
        layers.append(Layer.NAMESPACES)
    if policy.server_filter:
        layers.append(Layer.SECCOMP)
    return tuple(sorted(layers))


def _child_layers(policy: Policy, start: Start) -> tuple[str, ...]:
    layers = []
    if start == "fork":
        layers.append(Layer.PRIVILEGES)
        if policy.unshare:
            layers.append(Layer.NAMESPACES)
        if policy.env is not None:
            layers.append(Layer.ENVIRONMENT)
    if policy.scratch:
        layers.append(Layer.SCRATCH)
    if policy.init:
        layers.append(Layer.PROCESSES)
    if policy.uid >= 0 or policy.as_user:
        layers.append(Layer.USER)
    if policy.landlock:
        layers.append(Layer.LANDLOCK)
    if policy.child_filter:
        layers.append(Layer.SECCOMP)
    return tuple(sorted(layers))


def _expand(paths: Sequence[str] | None, *, programs: bool) -> tuple[str, ...] | None:
    if paths is None:
        return None
    expanded: list[str] = []
    for path in paths:
        for one in python_paths(programs=programs) if path == PYTHON else (path,):
            if one not in expanded:
                expanded.append(one)
    return tuple(expanded)


def plan_limits(
    limits: Limits | None,
    sandbox: Sandbox | None,
    policy: Policy | None,
    here: Containment,
    start: Start = "fork",
) -> Enforcement:
    """Decide how limits are held.

    Raises CallableDidNotExecuteError, naming the limit, if one can't be.
    """
    if limits is None:
        return Enforcement()
    if limits.memory is not None and here.platform != "linux":
        raise _refuse(
            f"limits.memory can't be enforced on {here.platform}, where the size of a process "
            "can't be limited above what it starts with"
        )
    group, processes = _group(limits, sandbox, policy, here, start)
    bounds = Bounds(
        limits.memory,
        limits.address_space,
        None if limits.cpu_time is None else math.ceil(limits.cpu_time),
        limits.open_files,
        limits.file_size,
        processes,
        limits.core_size,
        strict=sandbox is not None and sandbox.codec != "pickle",
    )
    return Enforcement(bounds, group)


def _group(
    limits: Limits,
    sandbox: Sandbox | None,
    policy: Policy | None,
    here: Containment,
    start: Start,
) -> tuple[Group | None, int | None]:
    """Decide what a control group is needed for; return it, and the processes left to RLIMIT."""
    setting = "off" if sandbox is None else sandbox.cgroup
    if setting == "require" and not here.groups:
        raise _refuse("this process may not make control groups (sandbox.cgroup='require')")
    memory = counted = None
    processes = limits.processes
    alone = _counts_alone(policy, here)
    # A fork server's child enters a group when it is given its call, and they don't.
    if policy is not None and policy.init and policy.uid < 0 and (alone or start == "fork"):
        processes = processes and processes + _KEEPERS
    if processes is not None and not alone:
        if "pids" not in here.groups or (sandbox is not None and setting == "off"):
            raise _refuse(
                "limits.processes can't be enforced here: a user's processes are counted all "
                "together (and root's not at all), this call has no user id or user namespace of "
                "its own, and no control group with the pids controller can be made for it"
            )
        counted, processes = processes, None
    if limits.memory is not None and sandbox is not None and setting != "off":
        if "memory" in here.groups and (sandbox.subprocesses or setting == "require"):
            memory = limits.memory
        elif sandbox.subprocesses and (setting == "require" or sandbox.codec != "pickle"):
            raise _refuse(
                "limits.memory can't be enforced here for all processes of a call together: no "
                "control group with the memory controller can be made for it"
            )
    if memory is None and counted is None:
        return None, processes
    return Group(memory, counted), processes


def _counts_alone(policy: Policy | None, here: Containment) -> bool:
    """Tell whether the processes of a call are the only ones that are counted for its user."""
    return policy is not None and (
        policy.uid == 0 or (policy.as_user and here.processes_by_namespace)
    )
