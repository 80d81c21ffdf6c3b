"""Imports that are put off until their name is used (PEP 810, Python 3.15)."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
import threading

import pytest

from aioisolate import CallableDidNotExecuteError, capture_isolated, run_isolated
from tests.helpers import ROOT, isolator, until
from tests.internals import CodePickler, by_value, imports

pytestmark = [
    pytest.mark.part(name="start"),
    pytest.mark.skipif(
        imports.LazyImport is None, reason="Python 3.15 and newer have lazy imports"
    ),
]


def defined(source, name, module="__main__"):
    """Define a function as a program or a notebook does; return it and its globals."""
    namespace = {"__name__": module}
    exec(textwrap.dedent(source), namespace)
    return namespace[name], namespace


def is_lazy(namespace, name):
    return type(namespace[name]) is imports.LazyImport


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write modules for here and for fork servers; they are forgotten in the end."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(modules):
        for name, source in modules.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run_lazily(source, *, mode="all", flag=False, path=ROOT):
    """Run a program with all imports lazy; return what it prints as JSON."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{path}"}
    command = [sys.executable, "-c", textwrap.dedent(source)]
    if flag:
        command[1:1] = ["-X", f"lazy_imports={mode}"]
    else:
        environment["PYTHON_LAZY_IMPORTS"] = mode
    options = {"text": True, "capture_output": True, "timeout": 60}
    done = subprocess.run(command, check=False, env=environment, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Functions that travel

SOURCE = """
    lazy import tabnanny
    lazy import xml.dom.pulldom
    lazy import xml.dom.expatbuilder as builder
    lazy from cgitb_or_so import nothing
    lazy from sched import scheduler as Scheduler

    def use():
        if tabnanny.__name__ == "":
            nothing()
        return [
            tabnanny.__name__,
            xml.dom.pulldom.__name__,
            builder.__name__,
            Scheduler.__qualname__,
        ]
"""
USED = ["tabnanny", "xml.dom.pulldom", "xml.dom.expatbuilder", "scheduler"]
MODULES = {"tabnanny", "xml.dom.pulldom", "xml.dom.expatbuilder", "sched"}


async def test_globals_that_are_not_imported_yet(start):
    use, namespace = defined(SOURCE, "use")
    names = ["tabnanny", "xml", "builder", "nothing", "Scheduler"]
    assert all(is_lazy(namespace, name) for name in names)
    before = MODULES & sys.modules.keys()
    async with isolator(start) as iso:
        assert await iso.run(use) == USED
    # And this process has done without them.
    assert all(is_lazy(namespace, name) for name in names)
    assert MODULES & sys.modules.keys() == before


async def test_a_function_comes_back_with_globals_that_are_not_imported_yet(start):
    def make():
        return defined(SOURCE, "use")[0]

    async with isolator(start) as iso:
        use = await iso.run(make)
    assert is_lazy(use.__globals__, "tabnanny")
    assert is_lazy(use.__globals__, "nothing")
    assert use() == USED


async def test_what_is_missing_is_told_by_who_uses_it(start):
    use, _ = defined(
        """
        lazy from nowhere_to_be_found import something

        def use():
            return something()
        """,
        "use",
    )
    async with isolator(start) as iso:
        with pytest.raises(ImportError, match="nowhere_to_be_found"):
            await iso.run(use)


async def test_relative_imports(start, package):
    package(
        {
            "lazy_family/__init__": "",
            "lazy_family/child": """
                lazy from . import sibling
                lazy from .sibling import value

                def make():
                    def use():
                        return value, sibling.value
                    return use
            """,
            "lazy_family/sibling": "value = 7",
        }
    )
    use = importlib.import_module("lazy_family.child").make()
    async with isolator(start) as iso:
        assert await iso.run(use) == (7, 7)
    assert "lazy_family.sibling" not in sys.modules


async def test_a_function_that_travels_by_name(start, package):
    package(
        {
            "lazy_user": """
                import sys
                lazy import lazy_used

                def use():
                    return lazy_used.value, "lazy_used" in sys.modules
            """,
            "lazy_used": "value = 8",
        }
    )
    module = importlib.import_module("lazy_user")
    async with isolator(start) as iso:
        assert await iso.run(module.use) == (8, True)
    assert "lazy_used" not in sys.modules


async def test_a_coroutine_function(start):
    use, _ = defined("lazy import stat\nasync def use():\n    return stat.S_ISDIR(0o40000)", "use")
    async with isolator(start) as iso:
        assert await iso.run(use) is True


def test_what_tells_nothing_of_itself_is_imported_here(monkeypatch):
    """The way out if Python changes what `by_value` looks at."""
    _, namespace = defined("lazy from colorsys import rgb_to_hsv\ndef use(): rgb_to_hsv", "use")
    monkeypatch.setattr(by_value, "repr", lambda _: "<lazy>", raising=False)
    file = __import__("io").BytesIO()
    CodePickler(file, 5).dump([namespace["rgb_to_hsv"]])
    assert pickle.loads(file.getvalue())[0].__name__ == "rgb_to_hsv"


# Fork servers

FAMILY = {
    "lazy_parent/__init__": "lazy from . import first\nlazy import lazy_friend",
    "lazy_parent/first": "lazy from .second import value",
    "lazy_parent/second": "lazy import nowhere_to_be_found\nvalue = 1",
    "lazy_friend": "lazy import lazy_stranger",
    "lazy_stranger": "",
}


def members():
    return sorted(name for name in sys.modules if name.startswith("lazy_"))


@pytest.mark.parametrize("warm", [0, 1])
async def test_what_is_preloaded_is_whole(package, warm):
    package(FAMILY)
    options = {"start": "zygote", "warm": warm}
    async with isolator(options, preload=["lazy_parent"]) as iso:
        # What lies outside the preloaded package keeps its own.
        assert await iso.run(members) == [
            "lazy_friend",
            "lazy_parent",
            "lazy_parent.first",
            "lazy_parent.second",
        ]


PROGRAM = """
    import asyncio, json, sys
    from aioisolate import Isolator, Limits, Sandbox, run_isolated
    import decimal, textwrap

    def look(before):
        # What this function needs itself counts for nothing.
        more = set(sys.modules) - set(before)
        return sorted(more), sys.get_lazy_imports(), textwrap.dedent("  x")

    def names():
        return sorted(sys.modules)

    def fail():
        raise ValueError("here")

    async def of(iso):
        before = await iso.run(names)
        return await iso.run(look, before)

    async def main():
        answers = {}
        await run_isolated(names)
        answers["direct"] = await run_isolated(look, list(sys.modules))
        for start in ("fork", "template", "zygote"):
            more = {"preload": ["decimal"]} if start == "zygote" else {}
            async with Isolator(start=start, **more) as iso:
                answers[start] = await of(iso)
                if start == "zygote":
                    answers["there"] = "_decimal" in await iso.run(names)
        print(json.dumps(answers))

    asyncio.run(main())
"""


@pytest.mark.parametrize("flag", [False, True], ids=["environment", "flag"])
def test_all_imports_lazy(flag):
    """Children are as lazy as their parent, but nothing is left for each of them to import."""
    answers = run_lazily(PROGRAM, flag=flag)
    assert answers.pop("there")
    assert set(answers) == {"direct", "fork", "template", "zygote"}
    for start, (more, mode, result) in answers.items():
        assert mode == "all", start
        assert result == "x", start
        # Where it is a copy, `textwrap` is imported by the function itself, in the child.
        assert not [name for name in more if name.startswith(("aioisolate", "anyio"))], start
        assert "gc" not in more, start


NEWS = """
    import asyncio, json, sys
    from aioisolate import Isolator, Limits
    from lazy_hook import news

    def news_by_value():
        return sys.modules["lazy_hook"].news()

    async def main():
        answers = {}
        async with Isolator(start="zygote", preload=["lazy_hook"]) as iso:
            answers["by name"] = await iso.run(news)
            await iso.run(news_by_value)  # so the server learns what such functions need
            answers["by value"] = await iso.run(news_by_value)
            answers["bounds"] = await iso.run(news, limits=Limits(open_files=50))
            answers["bounds"] = await iso.run(news, limits=Limits(open_files=50))
        print(json.dumps(answers))

    asyncio.run(main())
"""


def test_a_fork_servers_children_import_no_more_than_elsewhere(package, tmp_path):
    package(
        {
            "lazy_hook": """
                import os, sys
                at_fork = []
                os.register_at_fork(after_in_child=lambda: at_fork.append(set(sys.modules)))

                def news():
                    return sorted(set(sys.modules) - at_fork[-1])
            """
        }
    )
    eager = run_lazily(NEWS, mode="normal", path=tmp_path)
    assert not [name for names in eager.values() for name in names if "cloudpickle" in name]
    assert run_lazily(NEWS, path=tmp_path) == eager


def test_the_first_fork_finds_this_package_imported():
    missing = run_lazily("""
        import asyncio, json, os, sys
        from aioisolate import run_isolated
        names = []
        os.register_at_fork(before=lambda: names.append(sorted(sys.modules)))
        inside = asyncio.run(run_isolated(lambda: sorted(sys.modules)))
        print(json.dumps(sorted(set(inside) - set(names[0]))))
    """)
    assert missing == []


@pytest.mark.parametrize("start", ["fork", "zygote"])
@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_a_child_without_files(start, codec):
    """It could import nothing any more."""
    answers = run_lazily(f"""
        import asyncio, json, sys
        from aioisolate import Isolator, IsolationError, Limits, RemoteError, Sandbox, features

        def fine(number):
            return [number, "text"]

        def fail():
            raise LookupError("here")

        async def main():
            sandbox = Sandbox(read=(), write=(), limits=Limits(open_files=50), codec={codec!r})
            # What functions of __main__ need, which travel by value.
            more = {{"preload": ["cloudpickle"]}} if {start!r} == "zygote" else {{}}
            async with Isolator(start={start!r}, sandbox=sandbox, **more) as iso:
                value = await iso.run(fine, 3)
                try:
                    await iso.run(fail)
                except RemoteError as error:
                    return value, error.type_name
                except LookupError as error:
                    return value, type(error).__name__

        print(json.dumps(asyncio.run(main())))
    """)
    assert answers == [[3, "text"], "LookupError"]


def test_where_it_can_not_work_its_import_is_refused_at_once():
    said = run_lazily("""
        import json, sys
        sys.abiflags += "t"
        try:
            import aioisolate
            aioisolate
        except ImportError as error:
            print(json.dumps(str(error)))
    """)
    assert "free-threaded" in said


# Other threads

SLOW = """
    import lazy_gate
    lazy_gate.entered.set()
    assert lazy_gate.free.wait(60)
"""


@pytest.fixture
def in_the_middle(package):
    """Have a thread in the middle of an import that began when a name was used."""
    package(
        {
            "lazy_gate": "import threading\nentered, free = threading.Event(), threading.Event()",
            "lazy_slow": SLOW,
            "lazy_hasty": "lazy import lazy_slow\ndef use(): return lazy_slow.__name__",
        }
    )
    gate = importlib.import_module("lazy_gate")
    hasty = importlib.import_module("lazy_hasty")
    thread = threading.Thread(target=hasty.use)
    thread.start()
    assert gate.entered.wait(20)
    yield gate
    gate.free.set()
    thread.join()


def test_an_import_under_way_is_seen(in_the_middle):
    assert "lazy_slow" in imports.in_progress()
    in_the_middle.free.set()


@pytest.mark.filterwarnings("ignore:forking while:aioisolate.ForkSafetyWarning")
async def test_a_call_waits_for_it(in_the_middle):
    with pytest.raises(CallableDidNotExecuteError, match="lazy_slow"):
        await run_isolated(int, start_timeout=0.2)
    in_the_middle.free.set()
    await until(lambda: not imports.in_progress())
    assert (await capture_isolated(int)).value == 0
