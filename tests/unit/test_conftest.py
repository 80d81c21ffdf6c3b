"""The check that each test leaves nothing behind: it has to find what there is."""

from __future__ import annotations

import re

import pytest

from tests.helpers import python

LEFT = """
    import asyncio, os, uvloop
    import pytest

    kept = []

    def test_nothing():
        async def wait():
            await asyncio.sleep(0)
        asyncio.run(wait())

    @pytest.mark.parametrize("new", [asyncio.new_event_loop, uvloop.new_event_loop])
    def test_task(new):
        loop = new()
        async def wait():
            await loop.create_future()
        async def leave():
            kept.append(loop.create_task(wait()))
            await asyncio.sleep(0)
        loop.run_until_complete(leave())
        loop.close()

    def test_descriptor():
        kept.append(os.open("/dev/null", os.O_RDONLY))

    def test_child():
        import warnings
        warnings.simplefilter("ignore")
        pid = os.fork()
        if not pid:
            os._exit(0)
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("test_nothing", ""),
        ("test_task", "left open: {}, pending: {<Task pending"),
        ("test_descriptor", "'/dev/null'}, pending: set()"),
        ("test_child", "the test left a child or a zombie"),
    ],
)
def test_what_a_test_leaves_is_found(tmp_path, name, said):
    import textwrap

    (tmp_path / "test_left.py").write_text(textwrap.dedent(LEFT))
    result = python(
        """
        import os, sys, pytest
        options = ["-q", "-p", "no:cacheprovider", "-p", "tests.conftest", "--rootdir", sys.argv[1]]
        code = pytest.main([*options, "-k", sys.argv[2], sys.argv[1] + "/test_left.py"])
        sys.stdout.flush()
        os._exit(code)
        """,
        str(tmp_path),
        name,
    )
    tests = 2 if name == "test_task" else 1
    assert f"{tests} passed" in result.stdout, result.stdout + result.stderr
    found = re.search(r"(\d+) error", result.stdout)
    assert int(found[1] if found else 0) == (tests if said else 0)
    assert said in result.stdout
