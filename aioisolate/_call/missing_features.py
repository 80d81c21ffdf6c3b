"""Features of a sandbox or limits that a machine lacks: their names, and what to change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .._errors import CallableDidNotExecuteError, Reason, SandboxWarning
from ..sandbox import Sandbox
from .caller_warnings import warn

__all__ = ["TO_BECOME", "TO_UNSHARE", "MissingFeature", "object_to", "refusal"]

TO_BECOME = "give the container the capabilities SETUID, SETGID and KILL"
TO_UNSHARE = "let the container make user namespaces, or give it the capability SYS_ADMIN"


class MissingFeature(NamedTuple):
    """A feature of a sandbox or of limits that this machine lacks.

    Attributes:
        name: the name of the layer or limit, as in `Sandbox.require`.
        text: what is missing, and why.
        remedy: what to change, for the user.
        hard: whether the sandbox is refused without it.
    """

    name: str
    text: str
    remedy: str = ""
    hard: bool = True

    def __str__(self) -> str:
        return f"{self.text} ({self.remedy})" if self.remedy else self.text


def refusal(text: str) -> CallableDidNotExecuteError:
    """Return the error about missing features."""
    return CallableDidNotExecuteError(text, reason=Reason.FEATURE_UNAVAILABLE)


def object_to(sandbox: Sandbox | None, lacks: Sequence[MissingFeature]) -> None:
    """Refuse the call if features are missing, or warn."""
    if not lacks:
        return
    what = "the limits of the call" if sandbox is None else "the sandbox"
    text = f"this machine can't enforce {what}: {'; '.join(map(str, lacks))}"
    required = sandbox is not None and any(lack.name in sandbox.require for lack in lacks)
    if sandbox is None or sandbox.missing == "refuse" or required:
        raise refusal(text)
    warn(text, SandboxWarning)
