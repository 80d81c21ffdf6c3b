"""The three event loops, and the check that every test leaves nothing behind.

An `async def` test runs on asyncio, on uvloop and on trio, each time in a loop of its own; marked
`asyncio` it belongs to pytest-asyncio and runs on asyncio and on uvloop.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import signal
import sys
import time
from collections.abc import Generator
from typing import Any

import anyio
import hypothesis  # it does not find what is frozen when it is imported
import pytest
import uvloop

from tests import selection

# No deadlines, nor anything else that depends on how busy the machine is.
hypothesis.settings.register_profile(
    "here", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("here")


@hypothesis.settings(max_examples=1, database=None)
@hypothesis.given(hypothesis.strategies.none())
def _first(_: None) -> None:
    """Make hypothesis find its own random numbers while it can: it warns once they are frozen."""


LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


# Where other interpreters run the same tests, each may take one of the loops.
CHOSEN = [
    name
    for name in LOOPS
    if {name, "all"}.intersection(os.environ.get("AIOISOLATE_LOOPS", "all").split(","))
]

# Every way of starting a child.
STARTS: dict[str, dict[str, Any]] = {
    "fork": {"start": "fork"},
    "zygote": {"start": "zygote"},
    "template": {"start": "template"},
    "warm": {"start": "zygote", "warm": 2},
}


@pytest.fixture(params=STARTS)
def start(request: pytest.FixtureRequest) -> dict[str, Any]:
    return STARTS[request.param]


# Run in the background of a shell, the tests and all that they start would have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)


async def _nothing() -> None: ...


# libuv opens a pipe of its own with the first loop of a process and keeps it.
anyio.run(_nothing, backend="asyncio", backend_options={"use_uvloop": True})


def run_on(loop: str, fn: Any, *args: Any) -> Any:
    """Run an async function in a fresh loop of the named kind."""
    backend, options = LOOPS[loop]
    return anyio.run(fn, *args, backend=backend, backend_options=options)


def pytest_asyncio_loop_factories() -> dict[str, Any]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "loop" in metafunc.fixturenames:
        one = metafunc.definition.get_closest_marker("one_loop")
        loops = ["asyncio"] if one else CHOSEN
        metafunc.parametrize("loop", loops, indirect=False)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: Any) -> None:
    """Give each async test of ours the argument that `pytest_generate_tests` fills in."""
    if inspect.iscoroutinefunction(obj) and name.startswith("test_"):
        own = [mark.name for mark in getattr(obj, "pytestmark", ())]
        if "asyncio" not in own and "loop" not in inspect.signature(obj).parameters:
            pytest.mark.usefixtures("loop")(obj)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give each test the marks of its folder, and the part of the suite if its file names none."""
    folder = selection.folder_of(item.path)
    for name in selection.OF_FOLDERS.get(folder, ()):
        item.add_marker(name)
    if folder and item.get_closest_marker("part") is None:
        item.add_marker(pytest.mark.part(name=folder))


@pytest.fixture
def loop() -> str:
    raise AssertionError("parametrized by pytest_generate_tests")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test that no plugin claims."""
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function) or pyfuncitem.get_closest_marker("asyncio"):
        return None
    wanted = inspect.signature(function).parameters
    arguments = {name: value for name, value in pyfuncitem.funcargs.items() if name in wanted}

    async def call() -> None:
        await function(**arguments)

    run_on(pyfuncitem.funcargs["loop"], call)
    return True


def pytest_collection_finish() -> None:
    _first()
    # What is there by now stays; so the collections after each test need not look through it.
    gc.collect()
    gc.freeze()


def descriptors() -> dict[int, str]:
    """What this process has open, number and target."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own
    return found


def has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _unfinished_tasks() -> set[Any]:
    if sys.version_info >= (3, 14):
        # What lists them is in C, and tells only of those of one loop.
        tasks = [task for task in gc.get_objects() if issubclass(type(task), asyncio.Task)]
    else:
        tasks = getattr(asyncio.tasks, "_scheduled_tasks", None)
        if tasks is None:
            tasks = asyncio.tasks._all_tasks
    return {task for task in tasks if not task.done()}


_before = pytest.StashKey[tuple[dict[int, str], set[Any]]]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    item.stash[_before] = descriptors(), _unfinished_tasks()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test that leaves a child, a zombie, a descriptor, a memfd or a pending task.

    A hook rather than a fixture: it looks before the first fixture begins and after the last ended.
    """
    result = yield
    if _before not in item.stash:
        return result
    before, tasks = item.stash[_before]
    assert not has_children(), "the test left a child or a zombie"
    until = time.monotonic() + 2
    while True:
        gc.collect()
        left = {fd: to for fd, to in descriptors().items() if before.get(fd) != to}
        pending = _unfinished_tasks() - tasks
        # A thread of the test's own may be closing its last one.
        if not left and not pending:
            return result
        assert time.monotonic() < until, f"left open: {left}, pending: {pending}"
        time.sleep(0.01)
