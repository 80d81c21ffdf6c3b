"""Features of a sandbox or limits that a machine lacks: their names, and remedies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .._errors import CallableDidNotExecuteError, Reason, SandboxWarning
from ..sandbox import Sandbox
from .caller_warnings import warn

__all__ = ["NAMESPACE_REMEDY", "SETUID_REMEDY", "MissingFeature", "refusal", "refuse_or_warn"]

SETUID_REMEDY = "give the container the capabilities SETUID, SETGID and KILL"
NAMESPACE_REMEDY = "let the container make user namespaces, or give it the capability SYS_ADMIN"


class MissingFeature(NamedTuple):
    """A feature of a sandbox or of limits that this machine lacks.

    Attributes:
        name: the name of the layer or limit, as in `Sandbox.require`.
        text: the missing feature, and the reason.
        remedy: a change that the user can make.
        hard: whether the sandbox is refused without the feature.
    """

    name: str
    text: str
    remedy: str = ""
    hard: bool = True

    def __str__(self) -> str:
        return f"{self.text} ({self.remedy})" if self.remedy else self.text


def refusal(text: str) -> CallableDidNotExecuteError:
    """Return the error for missing features."""
    return CallableDidNotExecuteError(text, reason=Reason.FEATURE_UNAVAILABLE)


def refuse_or_warn(sandbox: Sandbox | None, missing: Sequence[MissingFeature]) -> None:
    """Refuse the call if features are missing, or warn, as the sandbox demands."""
    if not missing:
        return
    subject = "the limits of the call" if sandbox is None else "the sandbox"
    text = f"this machine can't enforce {subject}: {'; '.join(map(str, missing))}"
    required = sandbox is not None and any(feature.name in sandbox.require for feature in missing)
    if sandbox is None or sandbox.missing == "refuse" or required:
        raise refusal(text)
    warn(text, SandboxWarning)
