"""The sandbox layers and limits that this machine can enforce, probed in throw-away children.

Example::

    log.info("%s", features.probe())
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ._call.confinement import survey
from ._call.enforcement import CONTROL_GROUP, survey_limits
from ._call.missing_features import MissingFeature
from ._child.layers import ConfinementSpec, Enforcement, Layer, Start
from ._os import unpatched
from ._os.platform_features import Containment, containment
from ._os.process import fork, suppress_fork_warning
from ._os.signals import reset_child_signal
from ._probes import run_probes
from .sandbox import Sandbox

__all__ = ["Finding", "Report", "probe", "report"]


class Finding(NamedTuple):
    """The result of one probe.

    Attributes:
        name: the name of the probe.
        holds: whether the layer or limit works.
        detail: how the layer or limit works, or why it does not.
        promises: the consequence for sandboxes and limits if the layer or limit does not work.
    """

    name: str
    holds: bool
    detail: str
    promises: str


class Report(NamedTuple):
    """The layers and limits that this machine can enforce.

    Attributes:
        platform: the system and its version.
        user: the user of this process; other users may have more or fewer privileges.
        findings: one for each probe.

    Example::

        report = probe()
        if not report.holds("Sandbox.untrusted()"):
            raise SystemExit(str(report))
    """

    platform: str
    user: str
    findings: tuple[Finding, ...]

    def holds(self, name: str) -> bool:
        """Return whether the finding of that name holds. Raises KeyError if there is none."""
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
            if not finding.holds and finding.promises:
                lines.append(f"       {'':{width}}  without it: {finding.promises}")
        return "\n".join(lines)


def probe() -> Report:
    """Try each layer of the sandbox in a throw-away child, and report which ones work.

    This blocks for about half a second, and forks this process a few times (some of its children
    fork, too), so call it at the start of a program, or in a program of its own.

    Raises:
        OSError: no process could be forked.

    Example::

        from aioisolate import features

        log.info("%s", features.probe())
    """
    suppress_fork_warning()
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    try:
        pid = fork()
    except OSError:
        os.close(read)
        os.close(write)
        raise
    if pid == 0:
        try:
            reset_child_signal()  # the probes collect their children
            os.close(read)
            results = list(run_probes())
            with open(write, "w") as file:
                json.dump(results, file)
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as file:
        text = file.read()
    try:
        unpatched.waitpid(pid, 0)
    except ChildProcessError:
        pass  # SIGCHLD is ignored, so there is nothing to collect
    findings = [Finding(*entry) for entry in json.loads(text or "[]")]
    return Report(_platform(), _user(), (*findings, *_presets()))


def report(sandbox: Sandbox, start: Start = "zygote") -> Report:
    """Report which layers and limits of a sandbox this machine can enforce.

    Args:
        sandbox: the sandbox to report on.
        start: how its children are started; see `Isolator`.

    Returns:
        a finding for the sandbox as a whole, with the name "sandbox", and one for each of its
        layers and limits, with the names that `Sandbox.require` takes. Missing layers are included.
        A finding that does not hold says what to change.

    The first call forks this process a few times, which takes some 30 ms.

    Raises:
        CallableDidNotExecuteError: the sandbox does not allow this *start*.
        OSError: no process could be forked.
        ValueError: network="none" with syscalls="off", which contradict each other.

    Example::

        found = features.report(Sandbox.untrusted())
        if not found.holds("namespaces"):
            log.warning("%s", found)
    """
    here = containment()
    confinement, layers = survey(sandbox, here, start)
    enforcement, limits = survey_limits(sandbox.limits, sandbox, confinement, here, start)
    refused = [feature for feature in layers if feature.hard or feature.name in sandbox.require]
    refused += limits
    text = "; ".join(map(str, refused)) or "the sandbox can be used here"
    findings = [Finding("sandbox", not refused, text, _consequence(sandbox, refused))]
    findings += [
        Finding(name, True, detail, "") for name, detail in _layers(sandbox, confinement, here)
    ]
    missing = {feature.name: feature for feature in (*layers, *limits)}
    findings += [
        Finding(name, name not in missing, detail, "")
        for name, detail in _limits(sandbox, confinement, enforcement)
        if name not in missing
    ]
    if enforcement.group is not None:
        findings.append(Finding(CONTROL_GROUP, True, "one for each call", ""))
    findings += [
        Finding(
            feature.name,
            False,
            str(feature),
            _consequence(sandbox, [feature]) if feature in refused else "the sandbox lacks it",
        )
        for feature in missing.values()
    ]
    return Report(_platform(), _user(), tuple(findings))


def _consequence(sandbox: Sandbox, missing: Sequence[MissingFeature]) -> str:
    required = any(feature.name in sandbox.require for feature in missing)
    if required or sandbox.missing == "refuse":
        return "the sandbox is refused"
    return "the sandbox lacks it, with a warning"


def _platform() -> str:
    system = os.uname()
    return f"{system.sysname} {system.release} {system.machine}"


def _user() -> str:
    return "root" if os.geteuid() == 0 else f"user {os.geteuid()}"


def _layers(
    sandbox: Sandbox, confinement: ConfinementSpec, here: Containment
) -> Iterator[tuple[str, str]]:
    how = "by privilege" if here.namespaces == "privilege" else "through a user namespace"
    threads = "" if confinement.threads else ", no new threads"
    details = {
        Layer.NAMESPACES: how + ("" if confinement.host_name else "; the host's name is visible"),
        Layer.VIEW: "a root directory that contains only the paths of the sandbox",
        Layer.USER: "a user id of its own"
        if confinement.uid >= 0
        else "a user namespace of its own",
        Layer.CAPABILITIES: "this user, without any capability",
        Layer.LANDLOCK: f"version {confinement.landlock}",
        Layer.SECCOMP: f"system calls: {sandbox.syscalls}{threads}",
        Layer.PRIVILEGES: "programs gain no privileges",
        Layer.ENVIRONMENT: "an environment of its own",
        Layer.SCRATCH: f"{confinement.scratch} bytes",
        Layer.PROCESSES: "a process namespace with an init",
    }
    engaged = {*confinement.server_layers, *confinement.child_layers}
    for name, detail in details.items():
        if name in engaged:
            yield name, detail


def _limits(
    sandbox: Sandbox, confinement: ConfinementSpec, enforcement: Enforcement
) -> Iterator[tuple[str, str]]:
    limits, (bounds, group) = sandbox.limits, enforcement
    if limits is None or bounds is None:
        return
    for name in limits.__slots__:
        value = getattr(limits, name)
        if value is None:
            continue
        how = "a resource limit"
        if name in ("result_size", "output_size"):
            how = "counted by this process while it reads"
        elif group is not None and getattr(group, name, None) is not None:
            how = "a control group"
        elif name == "processes" and not confinement.threads:
            how = "no other process, and no thread, can be started"
        elif name == "processes" and bounds.besides:
            how = "a resource limit, besides the processes that this user has when the call begins"
        yield f"limits.{name}", f"{value}: {how}"


def _presets() -> Iterator[Finding]:
    for name, sandbox in (
        ("Sandbox.crash_guard()", Sandbox.crash_guard()),
        ("Sandbox.untrusted()", Sandbox.untrusted()),
        ("Sandbox.untrusted(level='portable')", Sandbox.untrusted(level="portable")),
    ):
        found = report(sandbox)
        whole = found.findings[0]
        layers = [finding.name for finding in found.findings[1:] if finding.holds]
        detail = ", ".join(layers) if whole.holds else whole.detail
        yield Finding(name, whole.holds, detail, whole.promises)
