"""What tests/environment_check.py has found in an environment, compared with what is expected."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.environments import Environment

__all__ = ["complaints"]

# It may succeed where threads are counted on top of the user's others, and the report says so.
CROWD = "threads in others' place"
_ENDS = {
    "timeout": "TIMEOUT",
    "gone after its timeout": True,
    "gone after its cancellation": True,
    "closing": "CLOSED",
    "gone after closing": True,
    "server gone": True,
}


def complaints(environment: Environment, found: dict[str, Any], stderr: str) -> list[str]:
    """Return what is not as it is expected, one sentence each."""
    return list(_complaints(environment, found, stderr))


def _complaints(environment: Environment, found: dict[str, Any], stderr: str) -> Iterator[str]:
    for name in ("none", "full", "portable", "crash_guard"):
        report = found["reports"].get(name, {})
        # As docs/security.md says: of those that end meanwhile the call may have as many.
        shares = "besides" in report.get("limits.processes", ["", ""])[1]
        for text in _of_preset(environment, name, found[name], shares):
            yield f"{name}: {text}"
    # Without a layer, if need be, and with a warning.
    warned = found["warn"]
    if warned["outcome"] != "works" and environment.crash_guard == "works":
        yield f"with missing='warn': {warned['type']} {warned['reason']} {warned['text'][-1000:]}"
    elif found["full"]["outcome"] != "works" and not warned["warnings"]:
        yield "with missing='warn' there is no warning"
    yield from _of_reports(environment, found)
    yield from _of_advice(found)
    for name, value in found["calls"].items():
        if value != 42 and environment.crash_guard == "works":
            yield f"a call of run_isolated, {name}: {value}"
    if found["left open"]:
        yield f"left open: {found['left open']}"
    if found["left children"]:
        yield "a child or a zombie is left"
    for name, died in found["died with it"].items():
        if died is not True and found[name]["outcome"] == "works":
            yield f"{name}: processes outlive the parent that is killed"
    if stderr.strip():
        yield f"on standard error: {stderr[-2000:]}"


def _of_preset(
    environment: Environment, name: str, found: dict[str, Any], shares: bool
) -> Iterator[str]:
    expected = "works" if name == "none" else getattr(environment, name)
    if name == "none" and environment.crash_guard != "works":
        return  # then nothing that has a fork server works
    if found["outcome"] != "works":
        if expected == "works":
            yield f"refused: {found['type']} {found['reason']} {found['text'][-1000:]}"
        else:
            yield from _of_refusal(expected, found)
        return
    if expected != "works":
        yield f"works, and should be refused: {expected}"
        return
    if found["value"] != 42 or "so" not in found["exception"]:
        yield f"returns {found['value']}, raises {found['exception']}"
    if found["ends"] != _ENDS:
        yield f"ends like this: {found['ends']}"
    attacks = found["attacks"]
    if name in {"full", "portable"}:
        for attack, outcome in attacks.items():
            if outcome != "stopped" and not (attack == CROWD and shares):
                yield f"the attack {attack!r} {outcome}"
        if found["signals"]:
            yield "it has signalled the parent"
    elif name == "none":
        # Otherwise nothing is proved by their being stopped.
        for attack, outcome in attacks.items():
            if outcome != "succeeded" and attack not in environment.vain:
                yield f"the attack {attack!r} does not succeed without a sandbox: {outcome}"


def _of_refusal(expected: str, found: dict[str, Any]) -> Iterator[str]:
    """A refusal is a sentence, before anything is forked."""
    text = found["text"]
    if found["reason"] != "FEATURE_UNAVAILABLE":
        yield f"refused otherwise: {found['type']} {found['reason']} {text[-1000:]}"
    elif "\n" in text or "Traceback" in text or "Errno" in text:
        yield f"not refused by a sentence: {text[-1000:]}"
    elif not re.search(expected, text):
        yield f"the refusal does not say {expected!r}: {text}"


def _of_reports(environment: Environment, found: dict[str, Any]) -> Iterator[str]:
    """What `features.report` says is what has been seen."""
    for name in ("full", "warn", "portable", "crash_guard"):
        report, seen = found["reports"][name], found[name]
        # With missing="warn" it is used without what is missing.
        if name != "warn" and report["sandbox"][0] != (seen["outcome"] == "works"):
            yield f"features.report() of {name}: {report['sandbox']}"
        for finding, (_, detail) in report.items():
            if "Errno" in detail or "\n" in detail:
                yield f"features.report() of {name}, {finding!r}: {detail}"
    full, report = found["full"], found["reports"]["full"]
    if full["outcome"] != "works":
        return
    if report.get("view of files", [False])[0] is full["names"]:
        yield f"the names of all files are visible: {full['names']}, and the report: {report}"
    own = report.get("user", [False, ""])
    if (own[0] and "id" in own[1]) is (full["user"] == found["user"]):
        yield f"fn is user {full['user']}, and the report: {own}"


def _of_advice(found: dict[str, Any]) -> Iterator[str]:
    for name, one in found["advice"]["required"].items():
        if one["outcome"] == "works":
            yield f"require=[{name!r}] is not refused, although that does not hold"
        else:
            for text in _of_refusal("", one):
                yield f"require=[{name!r}]: {text}"
    for name in ("full", "portable"):
        one = found["advice"]["left out"][name]
        if one["outcome"] != "works":
            yield f"{name}: what its refusals say to leave out does not help: {one}"
