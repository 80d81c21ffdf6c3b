"""The policies that are tried in each environment."""

from __future__ import annotations

from typing import Any

from aioisolate import Sandbox, features

# "warn" comes after "full".
NAMES = ("none", "full", "warn", "portable", "crash_guard")


def make(name: str) -> Sandbox | None:
    """Return a policy; None: there is none, which shows that the attacks would succeed."""
    match name:
        case "none":
            return None
        case "full":
            return Sandbox.untrusted()
        case "warn":
            return Sandbox.untrusted(missing="warn")
        case "portable":
            return Sandbox.untrusted(level="portable")
        case "crash_guard":
            return Sandbox.crash_guard()
    raise ValueError(name)


def reports() -> dict[str, Any]:
    """Return what `features.report` says of each, and `features.probe` of the machine."""
    made = {name: make(name) for name in NAMES}
    return {
        "probe": features.probe(),
        **{name: features.report(one) for name, one in made.items() if one is not None},
    }
