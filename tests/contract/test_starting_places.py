"""Processes that start children and fork servers under odd circumstances."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from aioisolate import CallableDidNotExecuteError, Isolator, Reason, run_isolated
from tests.helpers import error_of, python

# Starts a child each way, and tells what came of it.
PROGRAM = """
import asyncio, json, os, resource, signal, sys, warnings
from aioisolate import Isolator, run_isolated

def add(x):
    return x + 1

async def main():
    found = [await run_isolated(add, 1)]
    for start in ("zygote", "template", "fork"):
        async with Isolator(start) as iso:
            found.append(await iso.run(add, 1))
    return found

if __name__ == "__main__":
    PREPARE
    print(json.dumps(asyncio.run(main())))
"""

WAYS = {
    "a descriptor above the limit": (
        "os.dup2(0, 900); resource.setrlimit(resource.RLIMIT_NOFILE, (600, 600))"
    ),
    "a socket above the limit": (
        "import socket; s = socket.socket(); os.dup2(s.fileno(), 70); "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"
    ),
    "few descriptors": "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
    "no current directory": "os.mkdir(sys.argv[1]); os.chdir(sys.argv[1]); os.rmdir(sys.argv[1])",
    "no arguments": "del sys.argv",
    "a mask that forbids everything": "os.umask(0o777)",
    "ends that nobody collects": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "an empty environment": "os.environ.clear()",
    "no space for files": "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))",
    "little address space": "resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))",
    "strange paths": "sys.path[:0] = ['', 'rel', 'rel', b'/bytes', None, '/\\udcff']",
}


@pytest.mark.parametrize("way", WAYS)
def test_11_17_children_can_be_started(way, tmp_path):
    done = python(PROGRAM.replace("PREPARE", WAYS[way]), str(tmp_path / "gone"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [2] * 4
    assert not done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_11_17_without_standard_streams(closed, tmp_path):
    source = PROGRAM.replace("print(", "open(sys.argv[1], 'w').write(").replace("PREPARE", "pass")
    done = python(source, str(tmp_path / "answer"), prefix=closed)
    assert json.loads((tmp_path / "answer").read_text()) == [2] * 4, done


def test_11_17_a_directory_whose_name_is_no_text(tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(folder)
    done = python(PROGRAM.replace("PREPARE", "pass"), cwd=folder, env={"LC_ALL": "C"})
    assert json.loads(done.stdout) == [2] * 4, done.stderr


@pytest.mark.one_loop
async def test_11_17_a_path_that_can_not_be_one(monkeypatch):
    """Here it fails only what is looked for as far as there; in a child it would be more."""
    monkeypatch.setattr(sys, "path", [*sys.path, "nul\0"])
    async with Isolator() as iso:
        assert await iso.run(importlib.util.find_spec, "no_such_module") is None


async def refusal(**options):
    error = await error_of(Isolator(**options).__aenter__())
    assert isinstance(error, CallableDidNotExecuteError)
    return error


@pytest.mark.one_loop
async def test_11_17_a_program_that_is_not_there_is_named(monkeypatch, tmp_path):
    program = str(tmp_path / "python")
    monkeypatch.setattr(sys, "executable", program)
    error = await refusal()
    assert str(error) == (
        f"the fork server could not be started: {program} can't be executed: No such file or "
        "directory. Name the interpreter, Isolator(python='/path/to/python'), or use "
        "start='template' or 'fork'"
    )
    assert error.reason is Reason.FORK
    assert isinstance(error.__cause__, FileNotFoundError)
    (tmp_path / "python").write_text("")
    assert "can't be executed: Permission denied" in str(await refusal())
    (tmp_path / "python").chmod(0o755)
    assert "can't be executed: Exec format error" in str(await refusal())


@pytest.mark.one_loop
@pytest.mark.parametrize("named", [False, True])
async def test_11_17_a_program_that_is_no_python(monkeypatch, tmp_path, named):
    program = tmp_path / "app"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    if not named:
        monkeypatch.setattr(sys, "executable", str(program))
    error = await refusal(python=program if named else None, warm=1)
    version = ".".join(map(str, sys.version_info[:2]))
    assert str(error).startswith(
        f"the fork server can't be used: it ended with exit code 3: is {program} Python {version}? "
        "Name the interpreter"
    )
    assert error.reason is Reason.CHILD_SETUP


@pytest.mark.one_loop
async def test_11_17_a_path_object_as_sys_executable(monkeypatch):
    monkeypatch.setattr(sys, "executable", Path(sys.executable))
    async with Isolator() as iso:
        assert await iso.run(abs, -1) == 1


@pytest.mark.one_loop
@pytest.mark.parametrize("kind", [str, Path])
async def test_11_17_python_names_the_interpreter(monkeypatch, tmp_path, kind):
    """A frozen application has none of its own."""
    link = tmp_path / "my-python"
    link.symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setattr(sys, "executable", None)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    async with Isolator(python=kind(link)) as iso:
        assert await iso.run(executable) == str(link)
    async with Isolator("fork", python=kind(link)) as iso:  # has no need of it
        assert await iso.run(executable) is None


def executable():
    return sys.executable


@pytest.mark.one_loop
async def test_11_17_python_of_another_build_is_refused(monkeypatch):
    """It says of itself what it is, before anything is loaded."""
    build = sys.implementation.cache_tag + sys.abiflags
    program = sys.executable
    monkeypatch.setattr(sys, "abiflags", "d")
    error = await refusal(python=program)
    assert str(error) == (
        f"{program} is Python {build}, and this process is {build}d: python= must name an "
        "interpreter of the same version and build"
    )


@pytest.mark.parametrize(
    "wrong", ["python3", "./python", "", "/a\0b", b"/usr/bin/python3", 3, True]
)
def test_11_17_python_must_be_an_absolute_path(wrong):
    expected = TypeError if isinstance(wrong, (bytes, int)) else ValueError
    with pytest.raises(expected, match="python must be"):
        Isolator(python=wrong)


@pytest.mark.one_loop
async def test_11_17_what_is_above_the_limit_is_closed_in_the_child():
    resource = pytest.importorskip("resource")
    read, write = os.pipe()
    high = 700
    os.dup2(read, high)
    os.close(read)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
    try:
        assert await run_isolated(os.path.exists, f"/proc/self/fd/{high}") is False
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(high)
        os.close(write)
