"""What docs/usage.md says: what reaches a child, and how tests and servers use it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from aioisolate import Isolator, run_isolated
from tests import inherited_state
from tests.helpers import ROOT

TEXT = (ROOT / "docs" / "usage.md").read_text()

# The rows of the table, in order, by the names of tests/inherited_state.py.
ROWS = ["global", "context", "thread", "environ", "cwd", "path", "limit", "logging", "warnings"]
COLUMNS = ["direct", "template", "zygote"]


@pytest.fixture
def change(monkeypatch, tmp_path):
    """Return a function that changes all that `inherited_state.state` tells of."""
    logger = logging.getLogger("aioisolate-reach")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    limit, level = sys.getrecursionlimit(), logger.level

    def change(name: str, number: int) -> dict[str, object]:
        monkeypatch.setattr(inherited_state, "setting", name)
        inherited_state.variable.set(name)
        inherited_state.local.value = name
        monkeypatch.setenv("AIOISOLATE_REACH", name)
        (tmp_path / name).mkdir()
        os.chdir(tmp_path / name)
        sys.path.append(str(tmp_path / name))
        sys.setrecursionlimit(limit + number)
        logger.setLevel(number)
        warnings.filterwarnings("ignore", name, inherited_state.ReachWarning)
        return inherited_state.state()

    with warnings.catch_warnings():
        yield change
    inherited_state.local.__dict__.clear()
    sys.setrecursionlimit(limit)
    logger.setLevel(level)


def as_documented(start: str) -> dict[str, str]:
    section = TEXT.partition("## What reaches the child\n")[2].partition("\n## ")[0]
    lines = section.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")][2:]
    return {name: row[1 + COLUMNS.index(start)] for name, row in zip(ROWS, rows, strict=True)}


@pytest.mark.one_loop
@pytest.mark.parametrize("start", [*COLUMNS, "fork"])
async def test_11_31_what_reaches_a_child(start, change):
    entry = change("entry", 11)
    if start == "direct":
        now = change("now", 12)
        there = await run_isolated(inherited_state.state)
    else:
        async with Isolator(start) as iso:
            now = change("now", 12)
            there = await iso.run(inherited_state.state)
    found = {
        name: "now" if value == now[name] else "at the entry" if value == entry[name] else "fresh"
        for name, value in there.items()
    }
    assert found == as_documented("direct" if start == "fork" else start)


def blocks(name: str) -> list[str]:
    """Return the programs of docs/usage.md that say they are the file *name*."""
    return [
        code
        for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
        if f"# {name}\n" in code
    ]


@pytest.mark.one_loop
@pytest.mark.parametrize("plugin", [0, 1], ids=["pytest-asyncio", "anyio"])
def test_11_31_the_fixtures(plugin, tmp_path):
    (tmp_path / "conftest.py").write_text(blocks("conftest.py")[plugin])
    (tmp_path / "test_parse.py").write_text(blocks("test_parse.py")[plugin])
    # The plugin that is not meant must not be what runs the test.
    others = ["-p", "no:anyio"] if plugin == 0 else ["-p", "no:asyncio"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *others, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.one_loop
@pytest.mark.parametrize("start", ["direct", "zygote"])
async def test_11_31_capfd_has_the_output_of_children(start, capfd):
    if start == "direct":
        await run_isolated(inherited_state.say)
    else:
        async with Isolator() as iso:
            await iso.run(inherited_state.say)
    assert capfd.readouterr().out == "from Python\nfrom C\n"


@pytest.mark.one_loop
async def test_11_31_a_server_without_lifespan():
    """daphne and Django, stood in for by what matters: requests that come at the same time."""
    namespace: dict[str, object] = {}
    source = blocks("isolation.py")[0].replace('preload=["myapp.parsers"]', "preload=[]")
    exec(compile(source, "isolation.py", "exec"), namespace)
    isolator = namespace["isolator"]
    ones = await asyncio.gather(*(isolator() for _ in range(5)))
    try:
        assert len(set(map(id, ones))) == 1
        assert await ones[0].run(Path.cwd) == Path.cwd()
    finally:
        await ones[0].aclose()


@pytest.mark.one_loop
async def test_11_31_an_application_with_a_lifespan_around_it():
    sent: list[dict[str, str]] = []
    namespace: dict[str, object] = {}
    source = blocks("asgi.py")[0].replace('preload=["myapp.parsers"]', "preload=[]")
    source = source.replace("from django.core.asgi import get_asgi_application", "")
    namespace["get_asgi_application"] = lambda: None
    exec(compile(source, "asgi.py", "exec"), namespace)
    application, iso = namespace["application"], namespace["iso"]
    steps = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, str]:
        step = next(steps)
        if step == "lifespan.shutdown":
            assert sent == [{"type": "lifespan.startup.complete"}]
            assert await iso.run(Path.cwd) == Path.cwd()
        return {"type": step}

    async def send(message: dict[str, str]) -> None:
        sent.append(message)

    await application({"type": "lifespan"}, receive, send)
    assert sent[-1] == {"type": "lifespan.shutdown.complete"}


@pytest.mark.one_loop
def test_11_31_a_server_without_a_loop():
    exec(compile(blocks("wsgi.py")[0], "wsgi.py", "exec"), {})
