"""Where gevent or eventlet has replaced what waits in the standard library."""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from aioisolate import CallableDidNotExecuteError, Isolator, Reason, run_isolated
from tests.helpers import error_of, python
from tests.internals import threads

pytestmark = pytest.mark.once

PROGRAM = """
import asyncio, json, os, posix, select, sys, warnings
warnings.simplefilter("ignore")

BEFORE
import aioisolate
from aioisolate import Isolator, run_isolated
AFTER

def add(x):
    if not posix.fork():  # an orphan, which the fork server has to collect
        os.setsid()
        os._exit(0)
    return x + 1

async def main():
    found = [await run_isolated(FUNCTION, 1), len(await run_isolated(bytes, 5_000_000))]
    for start in ("fork", "template", "zygote"):
        async with Isolator(start) as iso:
            found.append(await iso.run(FUNCTION, 1))
            found.append([x async for x in iso.map(add, range(2))])
    try:
        await run_isolated(__import__("time").sleep, 20, timeout=0.2)
    except TimeoutError:
        found.append("timeout")
    return found

print(json.dumps(asyncio.run(main())))
"""

# As gevent leaves the modules: no epoll, and what waits does so in a loop of its own.
PATCH = """
def refuse(*args):
    raise RuntimeError("this is not the library's business")

del select.epoll
select.poll = select.select = refuse
os.fork = os.waitpid = os.forkpty = refuse
"""


def result(program, before="", after="", function="add"):
    program = program.replace("BEFORE", before).replace("AFTER", after)
    done = python(program.replace("FUNCTION", function))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("when", ["before", "after"])
def test_11_18_functions_that_wait_may_have_been_replaced(when):
    found = result(PROGRAM, **{when: PATCH})
    assert found == [2, 5_000_000, *[2, [1, 2]] * 3, "timeout"]


# What a child of a process with greenlets must be able to do, and what must not happen there.
GEVENT = """
from gevent import monkey; monkey.patch_all()
"""
GREENLETS = """
import gevent, threading, time, subprocess, socket
ran = []

def beat():
    while True:
        time.sleep(0.01)
        ran.append(os.getpid())

def work(x):
    ran.clear()
    time.sleep(0.1)
    thread = threading.Thread(target=ran.append, args=("thread",))
    thread.start()
    thread.join()
    assert subprocess.run(["echo", "hi"], capture_output=True).stdout == b"hi\\n"
    assert socket.getaddrinfo("localhost", 80)
    assert gevent.get_hub().threadpool.apply(len, ([1],)) == 1
    return ran

gevent.get_hub().threadpool.apply(len, ([],))
gevent.spawn(beat)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_11_18_gevent(when):
    pytest.importorskip("gevent")
    early, late = (GEVENT, "") if when == "before" else ("", GEVENT)
    found = result(PROGRAM, early, late + GREENLETS, function="work")
    assert found == [["thread"], 5_000_000, *[["thread"], [1, 2]] * 3, "timeout"]


@pytest.mark.one_loop
async def test_11_18_a_thread_of_the_library_ends_with_something_to_read():
    """The end of a pipe or socket alone does not wake up gevent's selectors."""
    helper = threads.Helper("test", lambda: None)
    helper.done()
    assert os.read(helper.fileno(), 2) == b"\0"
    helper.close()


def test_11_18_gevent_without_anything_else_to_wake_it_up():
    pytest.importorskip("gevent")
    program = PROGRAM.replace('("fork", "template", "zygote")', '("template",)')
    assert result(program, GEVENT) == [2, 5_000_000, 2, [1, 2], "timeout"]


class Hub:
    """What of gevent's is looked at."""

    def __init__(self, kind):
        self._threadpool = self._resolver = self.periodic_monitoring_thread = "the parent's"
        self.loop = type("loop", (), {"__module__": f"gevent.{kind}"})()
        self.seen = []

    def destroy(self, with_loop):
        assert with_loop
        self.seen = [self._threadpool, self._resolver, self.periodic_monitoring_thread]


def pretend(monkeypatch, name, **content):
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def what_hub_has_seen():
    return sys.modules["gevent._hub_local"].get_hub_if_exists().seen


@pytest.mark.one_loop
@pytest.mark.parametrize("start", ["fork", "template"])
async def test_11_18_a_child_has_no_part_in_gevents_loop(monkeypatch, start):
    hub = Hub("libev.corecext")
    pretend(monkeypatch, "gevent._hub_local", get_hub_if_exists=lambda: hub)
    async with Isolator(start) as iso:
        assert await iso.run(what_hub_has_seen) == [None] * 3
    assert hub.seen == []
    assert hub._threadpool == "the parent's"


@pytest.mark.one_loop
async def test_11_18_nor_in_that_of_a_preloaded_module(monkeypatch, tmp_path):
    (tmp_path / "with_a_hub.py").write_text(
        "import sys, types\n"
        "from tests.contract.test_monkey_patched import Hub\n"
        "hub = Hub('libev.corecext')\n"
        "module = types.SimpleNamespace(get_hub_if_exists=lambda: hub)\n"
        "sys.modules['gevent._hub_local'] = module\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    async with Isolator(preload=["with_a_hub"]) as iso:
        assert await iso.run(what_hub_has_seen) == [None] * 3


@pytest.mark.one_loop
@pytest.mark.parametrize("library", ["eventlet", "libuv"])
async def test_11_18_what_can_not_be_copied_is_said_in_a_sentence(monkeypatch, library):
    if library == "eventlet":
        pretend(monkeypatch, "eventlet.patcher", already_patched={"os": True})
        expected = "eventlet.monkey_patch() has replaced functions that a copy of the process needs"
    else:
        hub = SimpleNamespace(get_hub_if_exists=lambda: Hub("libuv.loop"))
        pretend(monkeypatch, "gevent._hub_local", **vars(hub))
        expected = "gevent's libuv loop ends a copy of this process (set GEVENT_LOOP=libev-cext)"
    for call in (run_isolated(abs, -1), Isolator("template").__aenter__()):
        error = await error_of(call)
        assert isinstance(error, CallableDidNotExecuteError)
        assert str(error) == f"{expected}: use an Isolator with start='zygote'"
        assert error.reason is Reason.FEATURE_UNAVAILABLE
    async with Isolator() as iso:
        assert await iso.run(abs, -1) == 1
