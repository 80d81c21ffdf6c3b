"""How the limits of a call are enforced, or that they can't be; pure."""

from __future__ import annotations

import math
from typing import Literal

from .._child.layers import CgroupSpec, ConfinementSpec, Enforcement, RlimitSpec, Start
from .._limits import Limits
from .._os.containment import Containment
from ..sandbox import Sandbox
from .missing_features import TO_BECOME, MissingFeature, object_to

__all__ = ["CONTROL_GROUP", "count_by", "plan_limits", "survey_limits"]

CONTROL_GROUP = "control group"
_TO_COUNT = f"{TO_BECOME}, or let it make user namespaces, or give it a pids control group"
# The init of a process namespace, and the process that follows it from outside, unless they
# belong to another user than the call.
_INIT_PROCESSES = 2


def plan_limits(
    limits: Limits | None,
    sandbox: Sandbox | None,
    confinement: ConfinementSpec | None,
    here: Containment,
    start: Start = "fork",
) -> Enforcement:
    """Return how limits are enforced.

    Raises CallableDidNotExecuteError, naming each limit that can't be enforced and what to change;
    with the sandbox's ``missing="warn"`` it warns instead.
    """
    enforcement, missing = survey_limits(limits, sandbox, confinement, here, start)
    object_to(sandbox, missing)
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
            f"limits.memory can't be enforced on {here.platform}, where the size of a process "
            "can't be limited above what it starts with"
        )
        missing.append(MissingFeature("limits.memory", text, "leave out limits.memory"))
        memory = None
    of_group = _memory_of_group(memory, sandbox, here, missing)
    counted, processes, besides = _processes(limits, sandbox, confinement, here, start, missing)
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
    group = None if of_group is None and counted is None else CgroupSpec(of_group, counted)
    if besides and sandbox is not None and "limits.processes" in sandbox.require:
        text = (
            "limits.processes is required, and can be counted only together with the other "
            "processes of this user: for each of those that ends, the call may have one more"
        )
        missing.append(MissingFeature("limits.processes", text, _TO_COUNT))
    if group is None and sandbox is not None and CONTROL_GROUP in sandbox.require:
        missing.append(
            MissingFeature(CONTROL_GROUP, "a control group is required, and this sandbox has none")
        )
    return Enforcement(rlimits, group), missing


def _missing_limits(limits: Limits | None, sandbox: Sandbox) -> list[MissingFeature]:
    """List the limits that are required and that a call does not have."""
    return [
        MissingFeature(name, f"{name} is required, and this call has none")
        for name in sandbox.require
        if name.startswith("limits.")
        and getattr(limits, name.removeprefix("limits."), None) is None
    ]


def _memory_of_group(
    memory: int | None, sandbox: Sandbox | None, here: Containment, missing: list[MissingFeature]
) -> int | None:
    """Return the limit of the memory of all processes of a call together, or None."""
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
            "limits.memory can't be enforced here for all processes of a call together: no "
            "control group with the memory controller can be made for it"
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
    """Return the control group's limit, RLIMIT_NPROC's, and whether that adds to others."""
    processes = limits.processes
    if processes is None:
        return None, None, False
    if confinement is not None and not confinement.threads:
        return None, None, False  # there is one, and can be no other
    way = count_by(sandbox, confinement, here)
    # A fork server's child enters a group when it is given its call; these processes do not.
    init_processes = confinement is not None and confinement.init and confinement.uid < 0
    if init_processes and (way == "alone" or start == "fork"):
        processes += _INIT_PROCESSES
    match way:
        case "alone":
            return None, processes, False
        case "group":
            return processes, None, False
        case "user":
            return None, processes, True
    text = (
        "limits.processes can't be enforced here: a user's processes are counted all "
        "together (and root's not at all), this call has no user id or user namespace of "
        "its own, and no control group with the pids controller can be made for it"
    )
    missing.append(
        MissingFeature("limits.processes", text, f"{_TO_COUNT}; or leave out limits.processes")
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
    # All processes of this user are counted, from their number when the call begins: that suffices
    # for threads, which end with the call, and not for processes, which may not.
    threads_only = confinement is not None and confinement.child_filter and not confinement.execute
    if confinement is not None and threads_only and (confinement.uid > 0 or here.processes_by_user):
        return "user"
    return ""
