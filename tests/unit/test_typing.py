"""What the type checkers say of right and of wrong uses."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.once


def check(*command):
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.fixture(autouse=True)
def _mypy():
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is installed for one interpreter only")


def test_right_uses_are_accepted():
    result = check("mypy", "--strict", "tests/typing_ok.py")
    assert result.returncode == 0, result.stdout


def test_wrong_uses_are_found():
    result = check("mypy", "--strict", "tests/typing_bad.py")
    reported = {
        int(found[1]) for found in re.finditer(r"typing_bad\.py:(\d+): error", result.stdout)
    }
    lines = (ROOT / "tests" / "typing_bad.py").read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert reported == wrong, result.stdout


def test_pyright_accepts_right_uses():
    result = check("pyright", "--pythonpath", sys.executable, "tests/typing_ok.py")
    if "pyright" in result.stderr and result.returncode not in (0, 1):
        pytest.skip(f"pyright cannot run here: {result.stderr[-200:]}")
    assert result.returncode == 0, result.stdout
