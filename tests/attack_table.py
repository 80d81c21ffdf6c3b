"""Which layer alone stops which attack: the table of docs/security.md, found by trying.

python -m tests.attack_table            print it
python -m tests.attack_table --write    put it into docs/security.md
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from aioisolate import ForkSafetyWarning, Limits, Sandbox, SandboxWarning
from aioisolate.sandbox import PYTHON
from tests.attacks import ATTACKS, Attack, Scene
from tests.helpers import ROOT
from tests.internals import platform_features

PATH = ROOT / "docs" / "security.md"
BEGIN, END = "<!-- attacks: begin -->", "<!-- attacks: end -->"

_OFF: dict[str, Any] = {
    "read": None,
    "write": None,
    "network": "inherit",
    "subprocesses": True,
    "namespaces": "off",
    "syscalls": "off",
    "user": "keep",
    "cgroup": "off",
    "env": None,
    "codec": "pickle",
}
_CLOSED: dict[str, Any] = {
    "read": (PYTHON,),
    "write": (),
    "network": "none",
    "syscalls": "default",
    "missing": "warn",
}
# Each by itself: what the sandbox is asked for, and what this machine is made to lack.
LAYERS: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "fresh": (None, {}),
    "env": ({"env": {}}, {}),
    "user": ({"user": "auto"}, {}),
    "landlock": (_CLOSED | {"subprocesses": False}, {"seccomp": False}),
    "seccomp": (_CLOSED | {"subprocesses": False}, {"landlock": 0}),
    "namespaces": (_CLOSED | {"namespaces": "require"}, {"seccomp": False, "landlock": 0}),
    "limits": ({"limits": Sandbox.untrusted().limits, "cgroup": "auto"}, {}),
    "codec": ({"codec": "msgspec", "limits": Limits(result_size="16 MiB")}, {}),
}


async def stopped(attack: Attack, layer: str) -> bool:
    """Tell whether an attack fails where this layer alone is engaged."""
    from tests.security.test_attacks import attempt, succeeded

    asked, lacking = LAYERS[layer]
    sandbox = None if asked is None else Sandbox(**(_OFF | asked))
    here = platform_features.containment()
    more = {"limits": Limits(**attack.limits)} if layer == "limits" else {}
    with pytest.MonkeyPatch.context() as patch, Scene() as scene:
        patch.setattr(platform_features, "containment", lambda: here._replace(**lacking))
        await attempt(attack, scene, sandbox=sandbox, output="null", more=more)
        return not succeeded(attack, scene)


def rows() -> Iterator[tuple[Attack, dict[str, bool]]]:
    for attack in ATTACKS:
        if attack.off != "success" or attack.needs() or (attack.needs_root and os.geteuid()):
            continue
        yield attack, {layer: asyncio.run(stopped(attack, layer)) for layer in LAYERS}


def table() -> str:
    """Make the table, of those attacks that succeed here without a sandbox."""
    names = list(LAYERS)
    lines = ["| attack | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    group = ""
    for attack, results in rows():
        if attack.group != group:
            group = attack.group
            lines.append(f"| **{group}** |" + " |" * len(names))
        marks = " | ".join("●" if results[name] else "" for name in names)
        lines.append(f"| {attack.name} | {marks} |")
        print(lines[-1], file=sys.stderr)
    return "\n".join(lines)


def main() -> None:
    for kind in (ForkSafetyWarning, SandboxWarning, DeprecationWarning):
        warnings.simplefilter("ignore", kind)
    text = table()
    if "--write" not in sys.argv:
        sys.stdout.write(text + "\n")
        return
    page = PATH.read_text()
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PATH.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")


if __name__ == "__main__":
    main()
