"""Threads that Python did not start: who is warned of them before a fork, and who is not."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from textwrap import dedent

import pytest

from tests.helpers import python
from tests.internals import SAFE, native_threads, why_safe

# A real native thread, in a library that nobody has made ready for a fork: it sleeps in SQLite.
SLEEPER = """
    import ctypes, os, sqlite3, sys
    paths = {line.split()[-1] for line in open("/proc/self/maps") if "/libsqlite3" in line}
    if not paths:
        sys.exit("no SQLite library")
    sqlite = ctypes.CDLL(paths.pop())
    libc = ctypes.CDLL(None)
    thread = ctypes.c_size_t()
    minute = ctypes.c_void_p(60_000)
    assert libc.pthread_create(ctypes.byref(thread), None, sqlite.sqlite3_sleep, minute) == 0
    # It has set its list of robust locks before it is asleep.
    tid, = set(os.listdir("/proc/self/task")) - {str(os.getpid())}
    while not open(f"/proc/self/task/{tid}/syscall").read()[:1].isdigit():
        pass
"""

# The interpreter's own end would wait for nobody; but not every thread is fit to see it.
END = "\nimport os, sys; sys.stdout.flush(); os._exit(0)"


def with_sleeper(source, **options):
    result = python(dedent(SLEEPER) + dedent(source) + END, **options)
    if "no SQLite library" in result.stderr:
        pytest.skip("this Python has SQLite inside, so that it can't be told from Python")
    return result


def warnings_in(text):
    return re.findall(r"^.*ForkSafetyWarning: .*$", text, re.MULTILINE)


def test_11_15_a_native_thread_is_told_of_once_for_each_line_and_with_the_deadline():
    result = with_sleeper(
        """
        import asyncio, os, time, warnings
        from aioisolate import run_isolated
        async def main():
            for _ in range(3):
                print(await run_isolated(int))  # here
                with warnings.catch_warnings():  # Python forgets here what it has shown
                    warnings.simplefilter("ignore")
            try:
                await run_isolated(time.sleep, 60, timeout=0.1)  # and there
            except TimeoutError as error:
                print(str(error).splitlines()[0])
        asyncio.run(main())
        """
    )
    assert result.stdout.startswith("0\n" * 3), result.stderr
    first, second = warnings_in(result.stderr)
    assert re.match(r"<string>:\d+: ForkSafetyWarning: forking while 1 other thread\(s\)", first)
    assert first.split(" ")[0] != second.split(" ")[0]
    assert "(libsqlite3.so" in first
    assert 'Isolator(start="zygote", preload=[...])' in first
    assert "DeprecationWarning" not in result.stderr
    late = result.stdout.splitlines()[3]
    assert "took longer than 0.1 s" in late
    assert "libsqlite3.so" in late
    assert 'Isolator(start="zygote", preload=[...])' in late


def test_11_15_a_template_with_native_threads_is_told_of_when_it_is_made():
    result = with_sleeper(
        """
        import asyncio, os, time
        from aioisolate import Isolator
        async def main():
            async with Isolator(start="template") as iso:
                try:
                    await iso.run(time.sleep, 60, timeout=0.3)
                except TimeoutError as error:
                    print(str(error).splitlines()[0])
        asyncio.run(main())
        """
    )
    assert "libsqlite3.so" in result.stdout, result.stderr
    assert len(warnings_in(result.stderr)) == 1


def test_11_15_a_zygote_is_not_concerned():
    result = with_sleeper(
        """
        import asyncio, os, time, warnings
        from aioisolate import Isolator
        warnings.simplefilter("error")
        async def main():
            async with Isolator() as iso:
                try:
                    await iso.run(time.sleep, 60, timeout=0.3)
                except TimeoutError as error:
                    print(str(error).splitlines()[0])
        asyncio.run(main())
        """
    )
    assert "took longer than 0.3 s" in result.stdout, result.stderr
    assert "libsqlite3.so" not in result.stdout


def test_11_15_a_notebook_is_warned_once_though_each_cell_is_another_place():
    result = with_sleeper(
        """
        import asyncio, os
        import aioisolate
        source = "async def main(): await run_isolated(int)\\nasyncio.run(main())"
        notebook = {"__name__": "__main__", "get_ipython": None}
        notebook.update(asyncio=asyncio, run_isolated=aioisolate.run_isolated)
        for number in range(3):
            exec(compile(source, f"/tmp/ipykernel/{number}.py", "exec"), notebook)
        print("whole")
        """
    )
    assert result.stdout == "whole\n", result.stderr
    assert len(warnings_in(result.stderr)) == 1


@pytest.mark.parametrize("filters", ["default", "error"])
def test_11_15_what_nothing_tells_of_is_left_to_pythons_own_warning(filters):
    """Which is shown where it would be, and never raised: the child exists by then."""
    result = with_sleeper(
        """
        import asyncio, os
        from aioisolate import run_isolated
        from tests.internals import native_threads
        native_threads._TASKS = "/proc/self/nowhere"
        async def main():
            for _ in range(2):
                print(await run_isolated(int))
        asyncio.run(main())
        """,
        env={"PYTHONWARNINGS": f"{filters}::DeprecationWarning"},
    )
    assert result.stdout == "0\n" * 2, result.stderr
    assert not warnings_in(result.stderr)
    told = result.stderr.count("DeprecationWarning: This process")
    assert told == (1 if sys.version_info >= (3, 12) else 0)


def test_11_15_a_thread_of_python_that_threading_does_not_know():
    result = python(
        """
        import _thread, asyncio, os, time
        from aioisolate import run_isolated
        _thread.start_new_thread(time.sleep, (60,))
        time.sleep(0.05)
        asyncio.run(run_isolated(int))
        os._exit(0)
        """
    )
    assert "_thread.start_new_thread" in "".join(warnings_in(result.stderr))


HARMLESS = {
    "numpy": """
        import numpy
        half = numpy.random.rand(600, 600)
        half @ half
    """,
    "uvloop": "await asyncio.get_running_loop().getaddrinfo('127.0.0.1', 80)",
    "faulthandler": "import faulthandler; faulthandler.dump_traceback_later(60)",
    "pyarrow": """
        import pyarrow
        import pyarrow.compute
        table = pyarrow.table({"a": list(range(100_000))})
        pyarrow.compute.sort_indices(table, [("a", "descending")])
    """,
    "numexpr": """
        import numexpr
        numexpr.set_num_threads(4)
        numexpr.evaluate("2 * n", {"n": __import__("numpy").arange(1_000_000)})
    """,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_11_15_who_is_ready_for_a_fork_is_not_warned_of(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    if name == "numpy" and len(os.sched_getaffinity(0)) == 1:
        pytest.skip("OpenBLAS starts no thread on a single CPU")
    result = python(
        "async def use():\n"
        + "\n".join(f"    {line}" for line in dedent(HARMLESS[name]).strip().splitlines())
        + dedent(
            """

            import asyncio, os, sys, warnings
            import uvloop
            from aioisolate import run_isolated
            from tests.internals import native_threads
            async def main():
                await use()
                warnings.simplefilter("error")
                there = native_threads.count() - 1
                print(await run_isolated(abs, -1))
                print(await run_isolated(abs, -2))
                print(there, "native")
            uvloop.run(main()) if "NAME" == "uvloop" else asyncio.run(main())
            """
        ).replace("NAME", name)
        + END,
        env={"OPENBLAS_NUM_THREADS": "4"},
    )
    value, again, there = result.stdout.splitlines() or [result.stderr] * 3
    assert (value, again) == ("1", "2")
    assert int(there.split()[0]) >= 1
    assert not result.stderr


def test_11_15_a_thread_that_has_run_python_is_never_thought_safe():
    safe = native_threads.NativeThread("jemalloc_bg_thd", "/somewhere/libjemalloc.so.2")
    assert why_safe(safe)
    assert not why_safe(safe._replace(runs_python=True))
    assert not why_safe(native_threads.NativeThread("", "/usr/lib/libgomp.so.1"))
    assert all(row.reason and (row.library or row.name) for row in SAFE)
