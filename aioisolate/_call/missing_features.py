"""What a machine lacks of what a sandbox or limits promise: told by name, with what to change."""

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


def refusal(text: str) -> CallableDidNotExecuteError:
    """Make the error of what can't be had here."""
    return CallableDidNotExecuteError(text, reason=Reason.FEATURE_UNAVAILABLE)


def object_to(sandbox: Sandbox | None, lacks: Sequence[MissingFeature]) -> None:
    """Refuse what lacks something, or warn."""
    if not lacks:
        return
    what = "the limits of the call" if sandbox is None else "what the sandbox promises"
    text = f"this machine can't hold {what}: {'; '.join(map(str, lacks))}"
    required = sandbox is not None and any(lack.name in sandbox.require for lack in lacks)
    if sandbox is None or sandbox.missing == "refuse" or required:
        raise refusal(text)
    warn(text, SandboxWarning)
