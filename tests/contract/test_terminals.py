"""Calls under a terminal, standard input, and children that are stopped: fault 4 of issue 9."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import select
import signal
import subprocess
import sys
import time

import anyio
import pytest

from aioisolate import Isolator, Sandbox, capture_isolated, run_isolated, stream_isolated
from tests.conftest import LOOPS
from tests.functions import everything_typed, stop
from tests.helpers import ROOT, Stages, isolator, until

pytestmark = pytest.mark.part(name="processes")

PROGRAM = """
import getpass, json, os, subprocess, sys, warnings
import anyio
from aioisolate import Isolator

start, (backend, options), more = json.loads(sys.argv[1])

def stty():
    return subprocess.run(["stty", "-echo"], capture_output=True).returncode != 0

def read_in_a_shell():
    return subprocess.run(["sh", "-c", "read x"], capture_output=True).returncode != 0

def ask():
    try:
        return input("name? ")
    except EOFError:
        return True

def ask_secretly():
    warnings.simplefilter("ignore")  # that it may be echoed
    try:
        return getpass.getpass()
    except EOFError:
        return True

def debug():
    import bdb
    def with_breakpoint():
        breakpoint()
        return False
    try:
        return with_breakpoint()
    except (bdb.BdbQuit, SystemExit):  # the latter from 3.14 on
        return True

def has_no_terminal():
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return os.getsid(0) == os.getpid()
    return False

%s

anyio.run(main, backend=backend, backend_options=options)
"""

ALL = """
async def main():
    assert os.isatty(0)
    async with Isolator(**start, timeout=10) as iso:
        for fn in (has_no_terminal, stty, read_in_a_shell, ask, ask_secretly, debug):
            assert await iso.run(fn) is True, fn
    print("done")
"""

ECHO = """
async def main():
    async with Isolator(**start, timeout=20) as iso:
        print("got", await iso.run(lambda: (input("name? "), sys.stdin.isatty()), stdin="inherit"))
        assert await iso.run(ask) is True
        print("got", await iso.run(lambda: subprocess.run(
            ["sh", "-c", "read x; echo $x"], capture_output=True, text=True).stdout,
            stdin="inherit"))
        assert await iso.run(lambda: subprocess.run(["stty", "-a"], capture_output=True).returncode,
            stdin="inherit") == 0
    print("done")
"""


def under_a_terminal(source, start, loop, typed=()):
    """Run a program on a terminal of its own, as its session's leader; return what it prints."""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(ROOT)
        os.environ["PYTHONPATH"] = str(ROOT)
        argument = json.dumps([start, LOOPS[loop], None])
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM % source, argument])
    shown = b""
    typed = list(typed)
    until = time.monotonic() + 60
    try:
        while time.monotonic() < until:
            if not select.select([terminal], [], [], 1)[0]:
                continue
            try:
                data = os.read(terminal, 65536)
            except OSError:  # it has ended
                break
            shown += data
            if typed and typed[0][0] in shown.rpartition(b"got")[2]:
                os.write(terminal, typed.pop(0)[1])
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(terminal)
        status = os.waitpid(pid, 0)[1]
    text = shown.decode()
    assert status == 0, text
    return text


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_9_4_a_child_is_never_stopped_by_the_terminal(start, loop):
    assert "done" in under_a_terminal(ALL, start, loop)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_9_4_a_child_reads_from_the_terminal_if_it_may(start, loop):
    typed = [(b"name? ", b"Ada\r"), (b"True)", b"Grace\r")]
    shown = under_a_terminal(ECHO, start, loop, typed)
    assert "got ('Ada', True)" in shown
    assert "got Grace" in shown
    assert "done" in shown


@pytest.fixture
def typed(tmp_path):
    """Have standard input be a file, of which Python has read ahead."""
    (tmp_path / "input").write_text("first\nsecond\n")
    kept = os.dup(0)
    fd = os.open(tmp_path / "input", os.O_RDONLY)
    os.dup2(fd, 0)
    os.close(fd)
    before = sys.stdin, sys.__stdin__
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    assert sys.stdin.readline() == "first\n"
    os.lseek(0, 6, os.SEEK_SET)
    yield
    sys.stdin, sys.__stdin__ = before
    os.dup2(kept, 0)
    os.close(kept)


async def test_9_4_standard_input_is_empty_or_inherited(start, typed, tmp_path):
    async with isolator(start, "tests.functions") as iso:
        assert await iso.run(everything_typed) == ("", True, "/dev/null")
        text, same, name = await iso.run(everything_typed, stdin="inherit")
        assert (text, same, name) == ("second\n", True, str(tmp_path / "input"))
        os.lseek(0, 6, os.SEEK_SET)
        assert await iso.run(everything_typed) == ("", True, "/dev/null")
        shown = await iso.run(subprocess.check_output, ["cat"], stdin="inherit")
        assert shown == b"second\n"
    os.lseek(0, 6, os.SEEK_SET)
    async with isolator(start, "tests.functions", stdin="inherit") as iso:
        assert (await iso.run(everything_typed))[0] == "second\n"
        assert await iso.run(everything_typed, stdin="null") == ("", True, "/dev/null")


async def test_9_4_standard_input_of_the_other_calls(typed):
    assert (await run_isolated(everything_typed))[0] == ""
    assert (await capture_isolated(everything_typed, stdin="inherit")).value[0] == "second\n"
    os.lseek(0, 6, os.SEEK_SET)
    async with stream_isolated(lambda: iter(sys.stdin), stdin="inherit") as lines:
        assert [line async for line in lines] == ["second\n"]


async def test_9_4_standard_input_that_is_closed(start):
    kept = os.dup(0)
    os.close(0)
    before = sys.stdin, sys.__stdin__
    sys.stdin = sys.__stdin__ = None
    try:
        async with isolator(start, "tests.functions") as iso:
            assert await iso.run(everything_typed) == ("", True, "/dev/null")
            assert await iso.run(everything_typed, stdin="inherit") == ("", True, "/dev/null")
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        sys.stdin, sys.__stdin__ = before


@pytest.mark.one_loop
async def test_9_4_what_stdin_can_not_be():
    with pytest.raises(ValueError, match="stdin must be 'null' or 'inherit', not 'pipe'"):
        await run_isolated(abs, 1, stdin="pipe")
    with pytest.raises(ValueError, match="stdin='inherit' can't be used with this sandbox"):
        Isolator(sandbox=Sandbox.untrusted(), stdin="inherit")


async def test_9_4_a_stopped_child_is_told_of(start, caplog):
    caplog.set_level(logging.WARNING, "aioisolate")
    async with isolator(start, "tests.functions") as iso:
        with pytest.raises(TimeoutError, match=r"longer than 1 s; .* had stopped it") as late:
            await iso.run(stop, timeout=1)
        if start["start"] == "fork":
            assert "SIGSTOP" in str(late.value)
        caplog.clear()
        # Without a deadline, too; and it is not killed for it.
        stages = Stages()
        async with anyio.create_task_group() as tasks:
            results = []

            async def call():
                results.append(await iso.run(stop, on_event=stages))

            tasks.start_soon(call)
            pid = await stages.reached("started")
            await until(lambda: f"child {pid} (stop) has been stopped" in caplog.text)
            os.kill(pid, signal.SIGCONT)
        assert results == ["went on"]
