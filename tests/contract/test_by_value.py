"""Functions that travel by value keep their file, line and source: faults of issue 9."""

from __future__ import annotations

import linecache
import os
import signal
import textwrap
import traceback

import pytest

from aioisolate import CallableStatusUnknownError, RemoteError, Sandbox
from tests.helpers import isolator, python

pytestmark = [pytest.mark.quick, pytest.mark.dependencies]

HERE = os.path.abspath(__file__)


def stack_in_the_child() -> str:
    return "".join(traceback.format_stack())


@pytest.fixture(autouse=True)
def _no_cell_stays():
    yield
    linecache.cache.pop("/nowhere/cell.py", None)


def from_cell(source: str, name: str) -> object:
    """Define a function as a notebook does: no file, but the lines in linecache."""
    source = textwrap.dedent(source)
    lines = source.splitlines(keepends=True)
    linecache.cache["/nowhere/cell.py"] = (len(source), None, lines, "/nowhere/cell.py")
    namespace = {"__name__": "__main__"}
    exec(compile(source, "/nowhere/cell.py", "exec"), namespace)
    return namespace[name]


async def test_9_0_a_local_function_keeps_its_file(start):
    def broken():
        raise ValueError("here")  # this very line

    async with isolator(start) as iso:
        with pytest.raises(ValueError, match="here") as raised:
            await iso.run(broken)
    last = traceback.extract_tb(raised.value.__traceback__)[-1]
    line = broken.__code__.co_firstlineno + 1
    assert (last.filename, last.lineno) == (HERE, line)
    assert last.line == 'raise ValueError("here")  # this very line'


async def test_9_0_a_crash_report_names_the_file_of_a_lambda(start):
    async with isolator(start) as iso:
        with pytest.raises(CallableStatusUnknownError) as crashed:
            await iso.run(lambda: os.kill(os.getpid(), signal.SIGSEGV))
    assert HERE in crashed.value.crash_traceback
    assert "dynamic-code" not in crashed.value.crash_traceback


async def test_9_0_what_comes_back_by_value_keeps_its_file(start):
    def make():
        return lambda: 1

    async with isolator(start) as iso:
        assert (await iso.run(make)).__code__.co_filename == HERE


async def test_9_0_the_source_of_a_cell_is_there_in_the_child(start):
    inner = from_cell(
        """
        import traceback

        def outer():
            def inner():
                return "".join(traceback.format_stack())
            return inner()  # in a cell
        """,
        "outer",
    )
    async with isolator(start) as iso:
        stack = await iso.run(inner)
    assert '"/nowhere/cell.py", line 7, in outer\n    return inner()  # in a cell' in stack
    assert '"/nowhere/cell.py", line 6, in inner\n    return "".join(' in stack


async def test_9_0_the_source_of_a_file_is_there_in_a_sandbox(loop):
    def broken():
        raise ValueError("here")  # unreadable there

    sandbox = Sandbox.untrusted()
    async with isolator({"start": "zygote", "warm": 1}, sandbox=sandbox) as iso:
        with pytest.raises(RemoteError) as raised:
            await iso.run(broken)
    assert f'File "{HERE}", line' in raised.value.traceback
    assert "# unreadable there" in raised.value.traceback


async def test_9_0_constants_that_marshal_refuses(start):
    """As tools that rewrite bytecode leave them."""
    marker = object

    def plain():
        return "replaced"

    consts = tuple(marker if c == "replaced" else c for c in plain.__code__.co_consts)
    plain.__code__ = plain.__code__.replace(co_consts=consts)
    async with isolator(start) as iso:
        assert await iso.run(plain) is object


@pytest.mark.one_loop
def test_9_0_the_source_of_a_command(loop):
    found = python(
        """
        import asyncio, traceback
        from aioisolate import Isolator

        def look():
            return "".join(traceback.format_stack())  # of -c

        async def main():
            async with Isolator() as iso:
                print(await iso.run(look))

        asyncio.run(main())
        """
    )
    assert '"<string>", line 6, in look' in found.stdout, found.stderr
    assert "format_stack())  # of -c" in found.stdout


@pytest.mark.one_loop
def test_9_0_code_of_exec_gets_no_lines_of_the_command(loop):
    found = python(
        """
        import asyncio
        from aioisolate import Isolator
        space = {"__name__": "__main__"}
        exec("import traceback\\ndef f():\\n    return ''.join(traceback.format_stack())", space)

        async def main():
            async with Isolator() as iso:
                print(await iso.run(space["f"]))

        asyncio.run(main())
        """
    )
    assert '"<string>", line 3, in f\n' in found.stdout, found.stderr
    assert "aioisolate import" not in found.stdout
