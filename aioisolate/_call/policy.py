"""From a sandbox and limits to what the kernel will be asked for, or a refusal; pure.

What this machine lacks is refused here, by name, before anything is forked.
"""

from __future__ import annotations

import functools
import math
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from .._child.policy import Bounds, Enforcement, Group, Layer, Policy, Start
from .._errors import CallableDidNotExecuteError, Reason, SandboxWarning
from .._limits import Limits
from .._os import namespaces, seccomp
from .._os.features import Containment
from .._os.landlock import TRUNCATE_ABI
from ..sandbox import PYTHON, Sandbox
from .warn import warn

__all__ = ["Lack", "make_policy", "plan_limits", "python_paths", "survey", "survey_limits"]

# The init of a process namespace, and who follows it from outside, unless they are of another
# user's than the call.
_KEEPERS = 2


class Lack(NamedTuple):
    """Something that a sandbox promises, or would have, and that can't be had here.

    Attributes:
        name: the layer's or the limit's, as in `Sandbox.require`.
        text: what is missing, and why.
        remedy: what to change.
        hard: without it the sandbox is refused.
    """

    name: str
    text: str
    remedy: str = ""
    hard: bool = True

    def __str__(self) -> str:
        return f"{self.text} ({self.remedy})" if self.remedy else self.text


def _refuse(text: str) -> CallableDidNotExecuteError:
    return CallableDidNotExecuteError(text, reason=Reason.FEATURE_UNAVAILABLE)


def make_policy(sandbox: Sandbox, here: Containment, start: Start) -> Policy:
    """Decide which layers a sandbox's children engage.

    Raises CallableDidNotExecuteError, naming each layer that can't be had here and what to change;
    with ``missing="warn"`` it warns instead.
    """
    policy, lacks = survey(sandbox, here, start)
    _object(sandbox, [lack for lack in lacks if lack.hard or lack.name in sandbox.require])
    return policy


def _add_required(sandbox: Sandbox, policy: Policy, here: Containment, lacks: list[Lack]) -> None:
    """Add what is required and neither engaged nor known to be lacking."""
    known = {lack.name for lack in lacks} | {*policy.server_layers, *policy.child_layers}
    if policy.uid >= 0 or policy.as_user or not here.capable:
        known.add(Layer.CAPABILITIES)  # they go with the user id, or there are none
    lacks += [
        Lack(name, f"{name!r} is required, and this sandbox does without")
        for name in sandbox.require
        if name not in known and name != CONTROL_GROUP and not name.startswith("limits.")
    ]


def _object(sandbox: Sandbox | None, lacks: Sequence[Lack]) -> None:
    """Refuse what lacks something, or warn."""
    if not lacks:
        return
    text = f"this machine can't hold what the sandbox promises: {'; '.join(map(str, lacks))}"
    required = sandbox is not None and any(lack.name in sandbox.require for lack in lacks)
    if sandbox is None or sandbox.missing == "refuse" or required:
        raise _refuse(text)
    warn(text, SandboxWarning)


CONTROL_GROUP = "control group"
_TO_BECOME = "give the container the capabilities SETUID, SETGID and KILL"
_TO_UNSHARE = "let the container make user namespaces, or give it the capability SYS_ADMIN"


@functools.lru_cache(32)
def survey(sandbox: Sandbox, here: Containment, start: Start) -> tuple[Policy, tuple[Lack, ...]]:
    """Return the policy, and what it lacks here. Raises CallableDidNotExecuteError."""
    if sandbox.fresh and start != "zygote":
        raise _refuse(
            f"this sandbox is for children of a fresh interpreter, Isolator(start='zygote'): with "
            f"start={start!r} fn would run in a copy of this process, with every secret that it "
            "holds in memory"
        )
    if not here.dumpable and start != "zygote" and here.namespaces == "user":
        why = "this process is not dumpable, as after os.setuid(), so a copy of it may not map ids"
        here = here._replace(namespaces="", why_no_namespaces=why, ids_in_namespace=False)
    lacks: list[Lack] = []
    landlock, filtering = _restrictions(sandbox, here, lacks)
    unshare, init, view = _namespaces(sandbox, here, lacks)
    uid = _user(sandbox, here, lacks)
    as_user = bool(unshare) and here.namespaces == "user"
    read = _expand(sandbox.read)
    write = _expand(sandbox.write)
    if read is not None and write is not None:
        write = (*write, *(path for path in ("/dev/null",) if os.path.exists(path)))
    policy = Policy(
        unshare=unshare,
        as_user=as_user,
        uid=uid,
        spare=(uid, 1) if uid > 0 else here.spare,
        ids=as_user and uid >= 0,
        drop=uid < 0 and not as_user and sandbox.user != "keep" and here.capable,
        view=view,
        init=init,
        read=read,
        write=write,
        execute=sandbox.subprocesses,
        network=sandbox.network == "inherit",
        landlock=landlock,
        scratch=sandbox.scratch or 0 if view else 0,
        env=None if sandbox.env is None else dict(sandbox.env),
        codec=sandbox.codec,
    )
    if filtering:
        way = _count_by(sandbox, policy._replace(child_filter=b"?"), here)
        limits = sandbox.limits
        if not way and not sandbox.subprocesses and limits is not None and limits.processes:
            policy = policy._replace(threads=False)
        policy = _with_filters(policy, sandbox, counting=way == "user")
    policy = policy._replace(
        server_layers=_server_layers(policy), child_layers=_child_layers(policy, start)
    )
    _add_required(sandbox, policy, here, lacks)
    return policy, tuple(lacks)


def _restrictions(sandbox: Sandbox, here: Containment, lacks: list[Lack]) -> tuple[int, bool]:
    """Return the version of Landlock to use, and whether to filter system calls."""
    landlock = here.landlock if sandbox.confines_files else 0
    filtering = sandbox.syscalls != "off" and here.seccomp
    if here.platform != "linux":
        if sandbox.confines_files or sandbox.network == "none":
            text = f"files and the network can't be closed off on {here.platform}"
            lacks.append(Lack(Layer.LANDLOCK, text))
    elif sandbox.confines_files and not landlock:
        why = here.why_no_landlock or "this kernel has no Landlock"
        remedy = "or leave out read and write: without=['landlock']"
        lacks.append(Lack(Layer.LANDLOCK, f"files can't be confined: {why}", remedy))
    elif sandbox.confines_files and landlock < TRUNCATE_ABI and not filtering:
        text = (
            f"this kernel's Landlock (version {landlock}) lets any file be emptied, unless system "
            "calls are filtered"
        )
        lacks.append(Lack(Layer.LANDLOCK, text))
    if sandbox.syscalls != "off" and not here.seccomp:
        text = f"system calls can't be filtered here: {here.why_no_seccomp or 'no seccomp'}"
        remedy = "or leave that out: without=['seccomp']"
        lacks.append(Lack(Layer.SECCOMP, text, remedy))
    if sandbox.network == "none" and sandbox.syscalls == "off":
        raise ValueError("sandbox.network='none' needs a system call filter, and syscalls='off'")
    return landlock, filtering


def _namespaces(sandbox: Sandbox, here: Containment, lacks: list[Lack]) -> tuple[int, bool, bool]:
    """Return the namespaces to leave, whether to have an init, and whether to have a view."""
    if sandbox.namespaces == "off":
        return 0, False, False
    why = here.why_no_namespaces or f"there are none on {here.platform}"
    if not here.namespaces:
        hard = sandbox.namespaces == "require"
        lacks.append(Lack(Layer.NAMESPACES, f"namespaces can't be had ({why})", _TO_UNSHARE, hard))
        if sandbox.scratch:
            text = f"a scratch directory needs a mount namespace ({why})"
            lacks.append(Lack(Layer.SCRATCH, text, f"{_TO_UNSHARE}, or leave out scratch"))
        if sandbox.subprocesses and sandbox.codec != "pickle":
            text = f"without a process namespace programs that it starts could outlive it ({why})"
            remedy = f"{_TO_UNSHARE}, or set subprocesses=False"
            lacks.append(Lack(Layer.PROCESSES, text, remedy, not hard))
        return 0, False, False
    flags = namespaces.ALL
    if sandbox.network == "inherit":
        flags &= ~namespaces.NEWNET
    view = sandbox.confines_files and here.view
    if sandbox.confines_files and not view:
        text = f"names of files can be seen: there can be no other root ({here.why_no_view})"
        remedy = "let the container's seccomp profile and its security module pass mount"
        lacks.append(Lack(Layer.VIEW, text, remedy, hard=False))
        if sandbox.scratch:
            text = f"a scratch directory needs another root directory ({here.why_no_view})"
            lacks.append(Lack(Layer.SCRATCH, text, f"{remedy}, or leave out scratch"))
    if not view:
        flags &= ~namespaces.NEWNS
    return flags, sandbox.subprocesses, view


def _user(sandbox: Sandbox, here: Containment, lacks: list[Lack]) -> int:
    """Return whose user id to take, as `Policy.uid` has it."""
    wanted = sandbox.user
    if wanted in ("keep", "unprivileged"):
        return -1
    if isinstance(wanted, int):
        if here.becomes:
            return wanted
        text = f"this process may not become the user {wanted} ({here.why_not_becomes})"
        lacks.append(Lack(Layer.USER, text, f"{_TO_BECOME}, or leave out user"))
        return -1
    if here.becomes:
        return 0
    if here.platform == "linux" and here.capable:
        text = f"it stays this user, without capabilities ({here.why_not_becomes})"
        lacks.append(Lack(Layer.USER, text, _TO_BECOME, hard=False))
    return -1


def _with_filters(policy: Policy, sandbox: Sandbox, *, counting: bool) -> Policy:
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
            threads=policy.threads,
            counting=counting,
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
    layers += _shared(policy)
    if policy.server_filter:
        layers.append(Layer.SECCOMP)
    return tuple(sorted(layers))


def _shared(policy: Policy) -> list[str]:
    layers = [Layer.NAMESPACES] if policy.unshare else []
    return [*layers, Layer.VIEW] if policy.view else layers


def _child_layers(policy: Policy, start: Start) -> tuple[str, ...]:
    layers = []
    if start == "fork":
        layers.append(Layer.PRIVILEGES)
        layers += _shared(policy)
        if policy.env is not None:
            layers.append(Layer.ENVIRONMENT)
    if policy.scratch:
        layers.append(Layer.SCRATCH)
    if policy.init:
        layers.append(Layer.PROCESSES)
    if policy.uid >= 0 or policy.as_user:
        layers.append(Layer.USER)
    elif policy.drop:
        layers.append(Layer.CAPABILITIES)
    if policy.landlock:
        layers.append(Layer.LANDLOCK)
    if policy.child_filter:
        layers.append(Layer.SECCOMP)
    return tuple(sorted(layers))


def _expand(paths: Sequence[str] | None) -> tuple[str, ...] | None:
    if paths is None:
        return None
    expanded: list[str] = []
    for path in paths:
        for one in python_paths() if path == PYTHON else (path,):
            if one not in expanded:
                expanded.append(one)
    return tuple(expanded)


# What every dynamically linked program reads, and devices that give and take nothing.
_SYSTEM = (
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
)


def python_paths() -> tuple[str, ...]:
    """Return what the interpreter reads: what `PYTHON` stands for here."""
    paths: list[str] = []
    found = sysconfig.get_paths()
    candidates: Iterable[str | None] = (
        *(found[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        os.path.join(sys.base_prefix, "lib"),
        os.path.join(sys.base_exec_prefix, "lib"),
        os.path.join(sys.prefix, "pyvenv.cfg"),
        site.getusersitepackages() if site.ENABLE_USER_SITE else None,
        *_SYSTEM,
    )
    for path in candidates:
        if path and path not in paths and os.path.exists(path):
            paths.append(path)
    return tuple(paths)


def plan_limits(
    limits: Limits | None,
    sandbox: Sandbox | None,
    policy: Policy | None,
    here: Containment,
    start: Start = "fork",
) -> Enforcement:
    """Decide how limits are held.

    Raises CallableDidNotExecuteError, naming each limit that can't be and what to change; with
    the sandbox's ``missing="warn"`` it warns instead.
    """
    enforcement, lacks = survey_limits(limits, sandbox, policy, here, start)
    _object(sandbox, lacks)
    return enforcement


def survey_limits(
    limits: Limits | None,
    sandbox: Sandbox | None,
    policy: Policy | None,
    here: Containment,
    start: Start = "fork",
) -> tuple[Enforcement, list[Lack]]:
    """Decide how limits are held; return that, and which ones can't be."""
    lacks = [] if sandbox is None else _missing_limits(limits, sandbox)
    if limits is None:
        return Enforcement(), lacks
    memory = limits.memory
    if memory is not None and here.platform != "linux":
        text = (
            f"limits.memory can't be enforced on {here.platform}, where the size of a process "
            "can't be limited above what it starts with"
        )
        lacks.append(Lack("limits.memory", text, "leave out limits.memory"))
        memory = None
    of_group = _memory_of_group(memory, sandbox, here, lacks)
    counted, processes, besides = _processes(limits, sandbox, policy, here, start, lacks)
    bounds = Bounds(
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
    group = None if of_group is None and counted is None else Group(of_group, counted)
    if group is None and sandbox is not None and CONTROL_GROUP in sandbox.require:
        lacks.append(Lack(CONTROL_GROUP, "a control group is required, and this sandbox has none"))
    return Enforcement(bounds, group), lacks


def _missing_limits(limits: Limits | None, sandbox: Sandbox) -> list[Lack]:
    """List the limits that are required and that a call has not."""
    return [
        Lack(name, f"{name} is required, and this call has none")
        for name in sandbox.require
        if name.startswith("limits.")
        and getattr(limits, name.removeprefix("limits."), None) is None
    ]


def _memory_of_group(
    memory: int | None, sandbox: Sandbox | None, here: Containment, lacks: list[Lack]
) -> int | None:
    """Return the memory that all processes of a call may have together, if that is limited."""
    setting = "off" if sandbox is None else sandbox.cgroup
    if setting == "require" and not here.groups:
        text = "this process may not make control groups (sandbox.cgroup='require')"
        lacks.append(Lack(CONTROL_GROUP, text, "delegate one, or set cgroup='auto'"))
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
        lacks.append(Lack("limits.memory", text, remedy))
    return None


def _processes(  # noqa: PLR0917 - it is one step of `survey_limits`
    limits: Limits,
    sandbox: Sandbox | None,
    policy: Policy | None,
    here: Containment,
    start: Start,
    lacks: list[Lack],
) -> tuple[int | None, int | None, bool]:
    """Decide who counts processes: the control group's number, RLIMIT_NPROC's, how that counts."""
    processes = limits.processes
    if processes is None:
        return None, None, False
    if policy is not None and not policy.threads:
        return None, None, False  # there is one, and can be no other
    way = _count_by(sandbox, policy, here)
    # A fork server's child enters a group when it is given its call, and they don't.
    keepers = policy is not None and policy.init and policy.uid < 0
    if keepers and (way == "alone" or start == "fork"):
        processes += _KEEPERS
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
    remedy = (
        f"{_TO_BECOME}, or let it make user namespaces, or give it a pids control group; or leave "
        "out limits.processes"
    )
    lacks.append(Lack("limits.processes", text, remedy))
    return None, None, False


def _count_by(
    sandbox: Sandbox | None, policy: Policy | None, here: Containment
) -> Literal["alone", "group", "user", ""]:
    """Tell by what the processes and threads of a call can be counted."""
    if policy is not None:
        by_namespace = policy.as_user and policy.uid < 0 and here.processes_by_namespace
        if policy.uid == 0 or by_namespace:
            return "alone"
    if "pids" in here.groups and (sandbox is None or sandbox.cgroup != "off"):
        return "group"
    # Together with all others of this user, whose number is known when the call begins: so it is
    # good enough for threads, which end with the call, and not for processes, which may not.
    threads_only = policy is not None and policy.child_filter and not policy.execute
    if policy is not None and threads_only and (policy.uid > 0 or here.processes_by_user):
        return "user"
    return ""
