"""Print constraints: the package's requirements at their lowest, all else as a lock has it, if any.

    python scripts/lowest.py [requirements/locked-3.11.txt]

In pyproject.toml each requirement of the package and of its extras has to be of the form
`name>=version`.
"""

from __future__ import annotations

import itertools
import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def normal(name: str) -> str:
    """Give a distribution's name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lowest() -> dict[str, str]:
    """Read the lowest version that pyproject.toml allows of each requirement."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"].values()
    requirements = itertools.chain(project["dependencies"], *extras)
    found = {}
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
        if match is None:
            raise SystemExit(f"{PYPROJECT.name}: {requirement!r} is not of the form name>=version")
        found[normal(match[1])] = match[2]
    return found


def constraints(*locks: Path) -> list[str]:
    """Merge the lowest versions into the locked ones."""
    found = lowest()
    locked = [line for lock in locks for line in lock.read_text().splitlines() if "==" in line]
    others = [line for line in locked if normal(line.partition("==")[0]) not in found]
    return [*(f"{name}=={version}" for name, version in found.items()), *others]


if __name__ == "__main__":
    print("\n".join(constraints(*map(Path, sys.argv[1:]))))
