"""What holds where: the tables of docs/containers.md, found by running the checks.

python -m tests.environment_table              print them
python -m tests.environment_table --write      put all of them into docs/containers.md
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from tests.environments import GROUPS, Environment, missing, results, run
from tests.helpers import ROOT

__all__ = ["LAYERS", "PATH", "begin", "cells", "end", "rows_of_page"]

PATH = ROOT / "docs" / "containers.md"
# Those that can be missing where the rest is there.
LAYERS = ("landlock", "seccomp", "user", "namespaces", "view of files")
_COLUMNS = (
    "environment",
    "`untrusted()`",
    '`level="portable"`',
    "`crash_guard()`",
    "threads",
    "missing layers",
)


def begin(group: str) -> str:
    return f"<!-- environments: {group}: begin -->"


def end(group: str) -> str:
    return f"<!-- environments: {group}: end -->"


def _outcome(found: dict[str, Any]) -> str:
    return "works" if found["outcome"] == "works" else "refused"


def cells(environment: Environment, found: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    outcomes = [_outcome(found[name]) for name in ("full", "portable", "crash_guard")]
    report = found["reports"]["full"]
    lacking = [name for name in LAYERS if not report.get(name, [False])[0]]
    return [environment.title, *outcomes, _threads(report), ", ".join(lacking) or "-"]


def _threads(report: dict[str, Any]) -> str:
    """Tell how the threads of a call are limited."""
    holds, detail = report["limits.processes"]
    if not holds:
        return "not limited"
    if "no thread" in detail:
        return "none"
    return "with the user's others" if "besides" in detail else "counted alone"


def table(group: str) -> str:
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    for environment in GROUPS[group]:
        if why := missing(environment):
            sys.exit(f"{environment.name}: {why}")
        with tempfile.TemporaryDirectory(prefix="environment-") as place:
            found = results(run(environment, place))
        lines.append("| " + " | ".join(cells(environment, found)) + " |")
        print(lines[-1], file=sys.stderr)
    return "\n".join(lines)


def rows_of_page(group: str) -> dict[str, list[str]]:
    """Return the rows that the page has, by the environments' titles."""
    _, _, rest = PATH.read_text().partition(begin(group))
    lines = rest.partition(end(group))[0].strip().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    return {row[0]: row for row in rows}


def main() -> None:
    page = PATH.read_text() if PATH.exists() else ""
    for group in GROUPS:
        text = table(group)
        if "--write" not in sys.argv:
            print(text)
            continue
        head, _, rest = page.partition(begin(group))
        _, _, tail = rest.partition(end(group))
        page = f"{head}{begin(group)}\n\n{text}\n\n{end(group)}{tail}"
        PATH.write_text(page)


if __name__ == "__main__":
    main()
