"""Which test files make which part of the suite, found without importing any; for scripts/test.

python -m tests.selection [--having MARK]... [--without MARK]...             print the files
python -m tests.selection [--having MARK]... [--without MARK]... --parts     one part a line: its
                                                                             name and its files

The marks of a file are those of its `pytestmark` and of its folder; pyproject.toml says what they
mean. A file belongs to the part that its mark names, or else to the part of its folder, so that a
new file is in one by itself.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parent

# The marks that every file of a folder has.
OF_FOLDERS: dict[str, tuple[str, ...]] = {
    "unit": (),
    "contract": (),
    "kernel": ("once",),
    "security": ("once",),
    "apps": ("once",),
}

# The parts that take longest begin first, so that none is left alone at the end.
LONGEST = ("processes", "attacks", "environments", "ordinary_user", "sandbox", "contract", "limits")


def test_files() -> list[Path]:
    return sorted(TESTS.glob("*/test_*.py"))


def folder_of(path: Path) -> str:
    """The folder below tests/ that a file is in; none for a file elsewhere."""
    above = path.parent
    return above.name if above.parent == TESTS else ""


def marks_of(path: Path) -> tuple[set[str], str]:
    """The marks of a whole file, and the part that it belongs to."""
    folder = folder_of(path)
    marks, part = set(OF_FOLDERS.get(folder, ())), folder
    for statement in ast.parse(path.read_text()).body:
        if not isinstance(statement, ast.Assign) or ast.unparse(statement.targets) != "pytestmark":
            continue
        for node in ast.walk(statement.value):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pytest.mark":
                marks.add(node.attr)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.part":
                (name,) = (keyword.value for keyword in node.keywords if keyword.arg == "name")
                part = ast.literal_eval(name)
    return marks, part


def select(having: list[str], without: list[str]) -> dict[str, list[str]]:
    """The files that have all of some marks and none of others, by part."""
    parts: dict[str, list[str]] = {}
    for path in test_files():
        marks, part = marks_of(path)
        if marks.issuperset(having) and marks.isdisjoint(without):
            parts.setdefault(part, []).append(str(path.relative_to(TESTS.parent)))
    order = [*LONGEST, *sorted(set(parts) - set(LONGEST))]
    return {part: parts[part] for part in order if part in parts}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--having", action="append", default=[], metavar="MARK")
    parser.add_argument("--without", action="append", default=[], metavar="MARK")
    parser.add_argument("--parts", action="store_true")
    options = parser.parse_args()
    for part, files in select(options.having, options.without).items():
        print(*([part] if options.parts else []), *files)


if __name__ == "__main__":
    main()
