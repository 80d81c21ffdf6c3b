"""Decide how the limits of a call are enforced, or refuse the call; pure functions."""

from __future__ import annotations

import math
from typing import Literal

from .._child.layers import CgroupSpec, ConfinementSpec, Enforcement, RlimitSpec, Start
from .._limits import Limits
from .._os.containment import Containment
from ..sandbox import Sandbox
from .missing_features import SETUID_REMEDY, MissingFeature, refuse_or_warn

__all__ = ["CONTROL_GROUP", "count_by", "plan_limits", "survey_limits"]

CONTROL_GROUP = "control group"
_COUNT_REMEDY = f"{SETUID_REMEDY}, or let it make user namespaces, or give it a pids control group"
# The init of a process namespace, and the follower outside of it (see _child/pid_namespace.py).
# They count unless they belong to another user than the call.
_INIT_PROCESSES = 2


def plan_limits(
    limits: Limits | None,
    sandbox: Sandbox | None,
    confinement: ConfinementSpec | None,
    here: Containment,
    start: Start = "fork",
) -> Enforcement:
    """Return how limits are enforced.

    Raises CallableDidNotExecuteError, whose message names each limit that can't be enforced and a
    remedy; with the sandbox's ``missing="warn"`` it warns instead.
    """
    enforcement, missing = survey_limits(limits, sandbox, confinement, here, start)
    refuse_or_warn(sandbox, missing)
    return enforcement


def survey_limits(
    limits: Limits | None,
    sandbox: Sandbox | None,
    confinement: ConfinementSpec | None,
    here: Containment,
    start: Start = "fork",
) -> tuple[Enforcement, list[MissingFeature]]:
    """Return how limits are enforced, and which ones can't be."""
    missing = [] if sandbox is None else _missing_limits(limits, sandbox)
    if limits is None:
        return Enforcement(), missing
    memory = limits.memory
    if memory is not None and here.platform != "linux":
        text = (
            f"limits.memory can't be enforced on {here.platform}, where the growth of a process "
            "can't be limited"
        )
        missing.append(MissingFeature("limits.memory", text, "leave out limits.memory"))
        memory = None
    group_memory = _group_memory(memory, sandbox, here, missing)
    group_processes, processes, besides = _processes(
        limits, sandbox, confinement, here, start, missing
    )
    rlimits = RlimitSpec(
        memory,
        limits.address_space,
        None if limits.cpu_time is None else math.ceil(limits.cpu_time),
        limits.open_files,
        limits.file_size,
        processes,
        limits.core_size,
        strict=sandbox is not None and sandbox.codec != "pickle",
        besides=besides,
    )
    group = None
    if group_memory is not None or group_processes is not None:
        group = CgroupSpec(group_memory, group_processes)
    if besides and sandbox is not None and "limits.processes" in sandbox.require:
        text = (
            "limits.processes is required, and the processes of the call can be counted only "
            "together with the other processes of this user: for each of those that ends, the "
            "call may have one more"
        )
        missing.append(MissingFeature("limits.processes", text, _COUNT_REMEDY))
    if group is None and sandbox is not None and CONTROL_GROUP in sandbox.require:
        missing.append(
            MissingFeature(CONTROL_GROUP, "a control group is required, and this sandbox has none")
        )
    return Enforcement(rlimits, group), missing


def _missing_limits(limits: Limits | None, sandbox: Sandbox) -> list[MissingFeature]:
    """List the limits that the sandbox requires and that a call does not have."""
    return [
        MissingFeature(name, f"{name} is required, and this call has none")
        for name in sandbox.require
        if name.startswith("limits.")
        and getattr(limits, name.removeprefix("limits."), None) is None
    ]


def _group_memory(
    memory: int | None, sandbox: Sandbox | None, here: Containment, missing: list[MissingFeature]
) -> int | None:
    """Return the limit for the memory of all processes of a call together, or None."""
    setting = "off" if sandbox is None else sandbox.cgroup
    if setting == "require" and not here.groups:
        text = "this process may not make control groups (sandbox.cgroup='require')"
        missing.append(MissingFeature(CONTROL_GROUP, text, "delegate one, or set cgroup='auto'"))
    if memory is None or sandbox is None or setting == "off":
        return None
    if "memory" in here.groups and (sandbox.subprocesses or setting == "require"):
        return memory
    if sandbox.subprocesses and (setting == "require" or sandbox.codec != "pickle"):
        text = (
            "limits.memory can't be enforced here for all processes of a call together: this "
            "process can't make a control group with the memory controller"
        )
        remedy = "delegate a control group, set cgroup='off', or leave out limits.memory"
        missing.append(MissingFeature("limits.memory", text, remedy))
    return None


def _processes(  # noqa: PLR0917 - it is one step of `survey_limits`
    limits: Limits,
    sandbox: Sandbox | None,
    confinement: ConfinementSpec | None,
    here: Containment,
    start: Start,
    missing: list[MissingFeature],
) -> tuple[int | None, int | None, bool]:
    """Return the limit for the control group, RLIMIT_NPROC, and `RlimitSpec.besides`."""
    processes = limits.processes
    if processes is None:
        return None, None, False
    if confinement is not None and not confinement.threads:
        return None, None, False  # the child can't start threads or processes
    method = count_by(sandbox, confinement, here)
    # A fork server's child enters a group when it is given its call; these processes do not.
    init_processes = confinement is not None and confinement.init and confinement.uid < 0
    if init_processes and (method == "alone" or start == "fork"):
        processes += _INIT_PROCESSES
    match method:
        case "alone":
            return None, processes, False
        case "group":
            return processes, None, False
        case "user":
            return None, processes, True
    text = (
        "limits.processes can't be enforced here: the kernel counts all processes of a user "
        "together (and those of root not at all), this call has no user id or user namespace of "
        "its own, and this process can't make a control group with the pids controller"
    )
    missing.append(
        MissingFeature("limits.processes", text, f"{_COUNT_REMEDY}; or leave out limits.processes")
    )
    return None, None, False


def count_by(
    sandbox: Sandbox | None, confinement: ConfinementSpec | None, here: Containment
) -> Literal["alone", "group", "user", ""]:
    """Return how the processes and threads of a call can be counted; "" if they can't be."""
    if confinement is not None:
        by_namespace = confinement.as_user and confinement.uid < 0 and here.processes_by_namespace
        if confinement.uid == 0 or by_namespace:
            return "alone"
    if "pids" in here.groups and (sandbox is None or sandbox.cgroup != "off"):
        return "group"
    # The limit is added to the number of this user's processes when the call begins. That suffices
    # for threads, which end with the call, but not for processes, which may outlive it.
    threads_only = confinement is not None and confinement.child_filter and not confinement.execute
    if confinement is not None and threads_only and (confinement.uid > 0 or here.processes_by_user):
        return "user"
    return ""
