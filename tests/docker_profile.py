"""The system call filter that a container runtime makes of Docker's default seccomp profile.

The profile is tests/data/docker-seccomp.json. What runc and libseccomp make of it: the first rule
that fits decides, no rule is EPERM, and a number above the highest that they know is ENOSYS.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tests.helpers import ROOT
from tests.internals import ALLOW, NUMBERS, Check, Rule, assemble, errno_rule, syscalls

__all__ = [
    "DEFAULT_CAPABILITIES",
    "KILLS",
    "NEWUSER",
    "PROFILE",
    "allow_all_but",
    "compile_profile",
]

PROFILE = ROOT / "tests" / "data" / "docker-seccomp.json"

# What a container of Docker's has, unless told otherwise.
DEFAULT_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
)
NEWUSER = 0x10000000
KILLS = 0x80000000  # the process, by SIGSYS

_ARCHES = {"x86_64": {"amd64"}, "aarch64": {"arm64"}}
_ALL = 0xFFFFFFFF
_EPERM = errno_rule(errno.EPERM)
_ENOSYS = errno_rule(errno.ENOSYS)


def _machine() -> str:
    machine = syscalls.machine()
    assert machine, "there are no filters here"
    return machine


def _kernel() -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert found
    return int(found[1]), int(found[2])


def _applies(rule: dict[str, Any], machine: str, capabilities: set[str]) -> bool:
    includes, excludes = rule.get("includes", {}), rule.get("excludes", {})
    if not capabilities.issuperset(includes.get("caps", ())):
        return False
    if "arches" in includes and not _ARCHES[machine] & set(includes["arches"]):
        return False
    if "minKernel" in includes:
        least = tuple(int(part) for part in includes["minKernel"].split("."))
        if _kernel() < least:
            return False
    if capabilities & set(excludes.get("caps", ())):
        return False
    assert "minKernel" not in excludes, "no rule has had this"
    return not _ARCHES[machine] & set(excludes.get("arches", ()))


def _below(argument: int, bound: int, then: Rule, otherwise: Rule) -> Rule:
    """Make ``argument < bound`` of questions about bits: one for each bit that *bound* has."""
    rule = otherwise
    for bit in range(32):
        if bound >> bit & 1:
            prefix = (bound >> bit) - 1 << bit
            mask = _ALL & ~((1 << bit) - 1)
            rule = Check(argument, (prefix,), then=then, otherwise=rule, mask=mask)
    return rule


def _compare(condition: dict[str, Any], then: Rule, otherwise: Rule) -> Rule:
    argument, value = condition["index"], condition["value"]
    operation = condition["op"].removeprefix("SCMP_CMP_")
    if operation in {"NE", "GE", "GT"}:
        then, otherwise = otherwise, then
    match operation:
        case "EQ" | "NE":
            return Check(argument, (value,), then=then, otherwise=otherwise)
        case "MASKED_EQ":
            wanted = condition.get("valueTwo", 0)
            return Check(argument, (wanted,), then=then, otherwise=otherwise, mask=value)
        case "LT" | "GE":
            return _below(argument, value, then, otherwise)
        case "LE" | "GT":
            return _below(argument, value + 1, then, otherwise)
    raise ValueError(f"unknown comparison {operation!r}")


def _action(rule: dict[str, Any], default: int) -> int:
    if rule["action"] == "SCMP_ACT_ALLOW":
        return ALLOW
    assert rule["action"] == "SCMP_ACT_ERRNO", rule["action"]
    return errno_rule(rule.get("errnoRet", default))


def _rules(
    profile: dict[str, Any], machine: str, capabilities: Iterable[str], known: int
) -> dict[int, Rule]:
    """Return what becomes of each call of this machine that the profile names."""
    held = {f"CAP_{name.removeprefix('CAP_')}" for name in capabilities}
    numbers = NUMBERS[machine]
    default = profile["defaultErrnoRet"]
    found: dict[int, Rule] = {}
    # From the last to the first, so that each may ask first.
    for rule in reversed(profile["syscalls"]):
        if not _applies(rule, machine, held):
            continue
        then = _action(rule, default)
        for name in rule["names"]:
            number = numbers.get(name)
            if number is None or number > known:
                continue
            outcome: Rule = then
            for condition in reversed(rule.get("args", ())):
                outcome = _compare(condition, outcome, found.get(number, _EPERM))
            found[number] = outcome
    return found


def compile_profile(
    capabilities: Iterable[str] = DEFAULT_CAPABILITIES,
    changes: Mapping[str, int] | None = None,
    *,
    known: int = 1 << 16,
    machine: str | None = None,
) -> bytes:
    """Make the filter of a container that has *capabilities*, as a program for the kernel.

    Only the lower 32 bits of arguments are compared: the profile asks about no others.

    Args:
        capabilities: Those of the container's bounding set.
        changes: Calls, by name, that are to fail with an errno besides (0: that are allowed).
        known: The highest number that the runtime's libseccomp knows.
        machine: As `uname -m` has it; this one if not given.
    """
    machine = machine or _machine()
    profile = json.loads(PROFILE.read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    rules = _rules(profile, machine, capabilities, known)
    highest = max(rules)
    for number in range(highest):
        rules.setdefault(number, errno_rule(profile["defaultErrnoRet"]))
    for name, code in (changes or {}).items():
        rules[NUMBERS[machine][name]] = errno_rule(code) if code else ALLOW
    return assemble(rules, _ENOSYS, syscalls.ARCHITECTURE[machine])


def allow_all_but(refused: Mapping[str, int], *, user_namespaces: bool = True) -> bytes:
    """Make a filter that has the calls of *refused* fail, each with its errno, or `KILLS`.

    *user_namespaces*: whether new ones may be made; if not, trying is EPERM.
    """
    machine = _machine()
    numbers = NUMBERS[machine]
    rules: dict[int, Rule] = {
        numbers[name]: code if code == KILLS else errno_rule(code) for name, code in refused.items()
    }
    if not user_namespaces:
        for name in ("unshare", "clone"):
            rules[numbers[name]] = Check(0, (0,), ALLOW, _EPERM, mask=NEWUSER)
        rules[numbers["clone3"]] = _ENOSYS  # its flags are in memory
    return assemble(rules, ALLOW, syscalls.ARCHITECTURE[machine])
