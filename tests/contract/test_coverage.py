"""Coverage sees the children of a fork server as it sees those of a direct fork."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT

coverage = pytest.importorskip("coverage", minversion="7.10")

MAIN = """
import asyncio
import measured
from aioisolate import Isolator, run_isolated

async def main():
    await run_isolated(measured.direct)
    # The last call of each: its child is not to be killed while it writes down what it has seen.
    for name, options in {
        "zygote": {}, "warm": {"warm": 1}, "template": {"start": "template"}
    }.items():
        async with Isolator(**options) as iso:
            await iso.run(getattr(measured, name))

asyncio.run(main())
"""
FUNCTIONS = "".join(
    f"def {name}():\n    return {name!r}\n" for name in ("direct", "zygote", "warm", "template")
)


@pytest.mark.skipif(sys.platform != "linux", reason="there are no fork servers elsewhere to see")
def test_11_23_coverage_sees_every_child(tmp_path):
    (tmp_path / "main.py").write_text(MAIN)
    (tmp_path / "measured.py").write_text(FUNCTIONS)
    (tmp_path / "settings").write_text("[run]\npatch = subprocess, fork, _exit\nsource = .\n")
    environment = {key: value for key, value in os.environ.items() if "COV" not in key}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "coverage", *arguments],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("run", "--rcfile=settings", "main.py")
    assert "errored" not in run("combine", "--rcfile=settings")
    report = run("report", "--rcfile=settings", "--show-missing", "--include=measured.py")
    assert "100%" in report, report
