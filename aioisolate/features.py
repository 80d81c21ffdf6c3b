"""What this machine can enforce, found out by doing it in throw-away children.

Example::

    log.info("%s", features.probe())
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

from ._attempts import findings as attempt_all
from ._call.policy import make_policy, plan_limits
from ._errors import IsolationError
from ._os.features import containment
from ._os.process import fork, hush_fork_warning
from .sandbox import Sandbox

__all__ = ["Finding", "Report", "probe"]


class Finding(NamedTuple):
    """One thing that was tried.

    Attributes:
        name: what was tried.
        holds: it does here what it should.
        detail: what was seen, or what stands against it.
        promises: what a sandbox or a limit makes of it.
    """

    name: str
    holds: bool
    detail: str
    promises: str


class Report(NamedTuple):
    """What this machine can enforce.

    Attributes:
        platform: the system and its version.
        user: as whom this was found out; others may be able to do more or less.
        findings: one for each thing that was tried.

    Example::

        report = probe()
        if not report.holds("Sandbox.untrusted()"):
            raise SystemExit(str(report))
    """

    platform: str
    user: str
    findings: tuple[Finding, ...]

    def holds(self, name: str) -> bool:
        """Tell whether the finding of that name holds. Raises KeyError if there is none."""
        for finding in self.findings:
            if finding.name == name:
                return finding.holds
        raise KeyError(name)

    def __str__(self) -> str:
        width = max(len(finding.name) for finding in self.findings)
        lines = [f"{self.platform}, as {self.user}"]
        for finding in self.findings:
            mark = "yes" if finding.holds else "NO "
            lines.append(f"  {mark}  {finding.name:{width}}  {finding.detail}")
            if not finding.holds:
                lines.append(f"       {'':{width}}  without it: {finding.promises}")
        return "\n".join(lines)


def probe() -> Report:
    """Try each layer of the sandbox in a throw-away child, and tell what holds here.

    It blocks, for about half a second, and forks this process once (its children fork on), so it
    belongs to the start of a program, or into a program of its own.

    Raises:
        OSError: not even a process could be forked.

    Example::

        from aioisolate import features

        log.info("%s", features.probe())
    """
    hush_fork_warning()
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = fork()
    if pid == 0:
        try:
            os.close(read)
            found = list(attempt_all())
            with open(write, "w") as file:
                json.dump(found, file)
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as file:
        text = file.read()
    os.waitpid(pid, 0)
    findings = [Finding(*entry) for entry in json.loads(text or "[]")]
    system = os.uname()
    return Report(
        f"{system.sysname} {system.release} {system.machine}",
        "root" if os.geteuid() == 0 else f"user {os.geteuid()}",
        (*findings, *_presets()),
    )


def _presets() -> Iterator[Finding]:
    here = containment()
    for name, sandbox in (
        ("Sandbox.crash_guard()", Sandbox.crash_guard()),
        ("Sandbox.untrusted()", Sandbox.untrusted()),
    ):
        try:
            policy = make_policy(sandbox, here, "zygote")
            plan_limits(sandbox.limits, sandbox, policy, here)
        except IsolationError as refusal:
            yield Finding(name, False, str(refusal), "it is refused")
        else:
            layers = sorted({*policy.server_layers, *policy.child_layers})
            yield Finding(name, True, ", ".join(layers), "it is refused")
