"""The life of an Isolator: entering, closing, both at once, again, or never."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import inspect
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Generator
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from aioisolate import CallableDidNotExecuteError, Isolator, Reason, Sandbox
from tests.conftest import CHOSEN, has_children, run_on
from tests.helpers import ROOT, alive, error_of, python, until, wait_until

pytestmark = pytest.mark.part(name="lifetime")

# Modules that take a moment to import, if they are not there yet, so that entering takes a while.
PRELOAD = ("wave", "colorsys")


class Interrupted:
    """Await *coro*, and call *at_point* when it waits for the *number*-th time."""

    def __init__(self, coro: Any, number: int, at_point: Any) -> None:
        self.coro, self.left, self.at_point = coro, number, at_point

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self.coro.__await__()
        value, failure = None, None
        while True:
            try:
                waits_for = steps.throw(failure) if failure else steps.send(value)
            except StopIteration as stop:
                return stop.value
            self.left -= 1
            if not self.left:
                self.at_point()
            try:
                value, failure = (yield waits_for), None
            except BaseException as exc:
                value, failure = None, exc


async def interrupt(start: dict[str, Any], act: Any) -> None:
    """Enter Isolators, each interrupted one wait later, until there is none left.

    *act(iso, group, scope)* is called at that point, where a call waits.
    """
    for number in range(1, 100):
        iso = Isolator(**start, preload=PRELOAD)
        refused: list[Any] = []
        seen: list[Any] = []

        async def call(iso=iso, refused=refused):
            refused.append(await error_of(iso.run(time.sleep, 60)))

        async with anyio.create_task_group() as group:
            scope = anyio.CancelScope()

            def at_point(iso=iso, group=group, scope=scope, seen=seen):
                seen.append("interrupted")
                group.start_soon(call)
                act(iso, group, scope)

            with scope:
                try:
                    await Interrupted(iso.__aenter__(), number, at_point)
                    seen.append("entered")  # at the very moment, perhaps
                    await iso.aclose(cancel=True)
                except CallableDidNotExecuteError as error:
                    seen.append(error.reason)
        assert iso._service.state == "closed"
        assert not iso.jobs()
        assert not has_children()
        if seen == ["entered"]:
            assert number > 1
            return
        assert [error.reason for error in refused] == [Reason.CLOSED]
        assert scope.cancelled_caught or seen[1] in ("entered", Reason.CLOSED)
    pytest.fail("it never came to an end")


async def test_11_24_cancelled_at_every_point_of_entering(start):
    await interrupt(start, lambda iso, group, scope: scope.cancel())


async def test_11_24_closed_at_every_point_of_entering(start):
    closed = []

    def close(iso, group, scope):
        async def run():
            # Twice: the second one waits as well until nothing is left.
            async with anyio.create_task_group() as both:
                both.start_soon(iso.aclose)
                both.start_soon(iso.aclose)
            closed.append(iso._service.state)

        group.start_soon(run)

    await interrupt(start, close)
    assert set(closed) == {"closed"}


@pytest.mark.one_loop
async def test_11_24_closing_does_not_wait_for_what_is_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "takes_long.py").write_text("import time; time.sleep(60)\n")
    iso = Isolator(preload=["takes_long"])
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            entering = Interrupted(iso.__aenter__(), 1, lambda: group.start_soon(iso.aclose))
            assert (await error_of(entering)).reason is Reason.CLOSED
    assert not has_children()


async def test_11_24_calls_made_while_entering_fails_get_the_failure(start):
    preload = [*PRELOAD, "json", "csv", "no_such_module"]
    iso = Isolator(**start, preload=preload, max_concurrency=1)
    errors = []

    async def call():
        errors.append(await error_of(iso.run(abs, 1)))  # the second one waits for its turn

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:

            def at_point():
                group.start_soon(call)
                group.start_soon(call)

            errors.append(await error_of(Interrupted(iso.__aenter__(), 1, at_point)))
    assert len(errors) == 3
    for error in errors:
        assert type(error) is CallableDidNotExecuteError
        assert error.reason is Reason.CHILD_SETUP
        assert "No module named 'no_such_module'" in str(error).partition("\n")[0]
        assert "ModuleNotFoundError" in error.crash_traceback
        assert not error.transient
    assert len(set(map(id, errors))) == 3
    assert (await error_of(iso.run(abs, 1))).reason is Reason.CLOSED


async def test_11_24_calls_made_while_it_is_entered_wait_for_that(start):
    iso = Isolator(**start, preload=PRELOAD)
    results = []

    async def call():
        await until(lambda: iso._service.state == "entering")
        results.append(await iso.run(abs, -1))

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await iso.__aenter__()
    assert results == [1]
    await iso.aclose()


@pytest.mark.one_loop
async def test_11_24_what_each_state_allows():
    iso = Isolator(preload=PRELOAD, warm=1)
    await iso.aclose()  # new: nothing to close, and it can be entered afterwards
    assert (await error_of(iso.run(abs, 1))).reason is Reason.CLOSED
    assert iso.jobs() == []
    async with anyio.create_task_group() as group:
        group.start_soon(iso.__aenter__)
        await until(lambda: iso._service.state == "entering")
        with pytest.raises(RuntimeError, match="being entered already"):
            await iso.__aenter__()
        assert iso.statistics().submitted == 1 - 1
        iso.executor()
        await until(lambda: iso._service.state == "open")
        with pytest.raises(RuntimeError, match="is entered already"):
            await iso.__aenter__()
        group.start_soon(iso.run, time.sleep, 0.2)
        await until(lambda: iso.jobs() and iso.jobs()[0].pid)
        group.start_soon(iso.aclose)
        await until(lambda: iso._service.state == "closing")
        with pytest.raises(RuntimeError, match="being closed already"):
            await iso.__aenter__()
        assert (await error_of(iso.run(abs, 1))).reason is Reason.CLOSED
        with pytest.raises(CallableDidNotExecuteError, match="closing"):
            iso.executor()
    await iso.aclose()  # closed: nothing


@pytest.mark.parametrize("end", ["asyncio.run(iso.aclose())", "throw_away(task.get_coro())"])
def test_11_24_a_loop_that_is_closed_while_it_is_entered(end):
    """The coroutine is thrown away: it may not wait for anything any more."""
    source = f"""
        import asyncio
        from aioisolate import Isolator
        from tests.conftest import has_children

        def throw_away(coroutine):
            try:
                coroutine.close()
            except RuntimeError as exc:  # of anyio's scopes
                assert "ignored GeneratorExit" not in str(exc)
            assert iso._service.state == "closed"

        loop = asyncio.new_event_loop()
        iso = Isolator(preload=["wave"], warm=1)
        task = loop.create_task(iso.__aenter__())
        loop.run_until_complete(asyncio.sleep(0))
        call = loop.create_task(iso.run(abs, 1))
        loop.run_until_complete(asyncio.sleep(0))
        assert iso._service.state == "entering" and has_children()
        print(iso._service._source._pool._starting_server.pid)
        loop.close()
        {end}

        assert not has_children()
    """
    result = python(source)
    assert result.returncode == 0, result.stderr
    assert "ignored GeneratorExit" not in result.stderr
    assert not alive(int(result.stdout))


@pytest.mark.asyncio
async def test_11_24_tasks_that_are_cancelled_again_and_again():
    """As asyncio's may be, whatever shields them."""
    for point in range(1, 6):
        iso = Isolator(warm=1)
        loop = asyncio.get_running_loop()

        def cancel(task, times=5, loop=loop):
            if times and not task.done():
                task.cancel()
                loop.call_soon(cancel, task, times - 1)

        async def enter(iso=iso, point=point):
            task = asyncio.current_task()
            await Interrupted(iso.__aenter__(), point, lambda: cancel(task))
            iso.executor().submit(time.sleep, 60)  # which is drained, too
            await until(lambda: iso.jobs() and iso.jobs()[0].pid)
            await Interrupted(iso.aclose(), 1, lambda: cancel(task))

        task = loop.create_task(enter())
        await asyncio.wait([task])
        assert iso._service.state == "closed"
        assert not has_children()
        await until(lambda iso=iso: not iso.jobs())


# Again


async def test_11_21_entered_again(start):
    iso = Isolator(**start)
    for number in range(3):
        async with iso:
            executor = iso.executor()
            assert await iso.run(abs, -number) == number
            assert iso.statistics().submitted == 1  # of this life
            with pytest.raises(RuntimeError, match="is entered already"):
                await iso.__aenter__()
        assert iso.statistics().outcomes == {"returned": 1}
        assert (await error_of(iso.run(abs, 1))).reason is Reason.CLOSED
    async with iso:
        # That one was of a life before.
        with pytest.raises(RuntimeError, match="is closed"):
            executor.submit(abs, 1).result()


@pytest.mark.parametrize("kind", ["fork", "zygote"])
def test_11_21_entered_again_in_another_loop(kind):
    iso = Isolator(kind, warm=1)

    async def use(loop):
        async with iso:
            assert await iso.run(len, loop) == len(loop)

    for loop in [*CHOSEN, *CHOSEN]:
        run_on(loop, use, loop)


@pytest.mark.one_loop
async def test_11_21_after_it_could_not_be_entered(tmp_path, monkeypatch, start):
    """Whether that failed or was cancelled."""
    monkeypatch.syspath_prepend(tmp_path)
    iso = Isolator(**start, preload=["comes_later"])
    assert (await error_of(iso.__aenter__())).reason is Reason.CHILD_SETUP
    (tmp_path / "comes_later.py").write_text("")
    importlib.invalidate_caches()
    with anyio.CancelScope() as scope:
        await Interrupted(iso.__aenter__(), 1, scope.cancel)
    await iso.aclose()
    async with iso:
        assert await iso.run(abs, -1) == 1
    sys.modules.pop("comes_later", None)


def test_11_21_whose_loop_ended_without_closing_it():
    # In a process of its own: tasks of a loop that has ended may stay.
    done = python("""
        import asyncio, os, warnings
        from aioisolate import Isolator

        iso = Isolator(warm=1)
        asyncio.run(iso.__aenter__())

        async def again():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                async with iso:
                    assert await iso.run(abs, -1) == 1
            assert any("was not closed" in str(found.message) for found in caught)

        asyncio.run(again())
        asyncio.run(iso.__aenter__())
        asyncio.run(iso.aclose())
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            print("done")
    """)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.one_loop
async def test_11_21_closing_it_in_another_loop():
    async with Isolator() as iso:

        async def elsewhere():
            with pytest.raises(RuntimeError, match="belongs to the event loop"):
                await iso.aclose()

        await anyio.to_thread.run_sync(anyio.run, elsewhere)
        assert await iso.run(abs, -1) == 1


def test_11_21_a_module_level_isolator_in_a_test_client():
    testclient = pytest.importorskip("starlette.testclient")
    iso = Isolator(warm=1)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with iso:
            yield

    async def answer(request):
        return PlainTextResponse(str(await iso.run(abs, -7)))

    app = Starlette(routes=[Route("/", answer)], lifespan=lifespan)
    for _ in range(2):
        with testclient.TestClient(app) as client:
            assert client.get("/").text == "7"


def look_at_environment(module):
    """What Python and C find, and what the module found when it was imported."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    preloaded = sys.modules.get(module)
    assert preloaded is not None
    return dict(os.environ), [getenv(b"NEW"), getenv(b"OLD")], preloaded.FOUND


@pytest.mark.one_loop
@pytest.mark.parametrize("sandbox", [None, Sandbox.crash_guard()])
@pytest.mark.parametrize("kind", ["fork", "zygote", "template"])
async def test_11_21_every_start_takes_the_same_options(kind, sandbox, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OLD", "of the parent")
    name = f"preloaded_{kind}"
    (tmp_path / f"{name}.py").write_text("import os\nFOUND = os.environ.get('NEW')\n")
    env = {"NEW": "a value", "PATH": os.environ["PATH"]}
    async with Isolator(kind, warm=1, preload=[name], env=env, sandbox=sandbox) as iso:
        here = dict(os.environ)
        environ, of_c, found = await iso.run(look_at_environment, name)
        assert dict(os.environ) == here
    own = ("LC_CTYPE", "MALLOC_ARENA_MAX", "HOME", "TMPDIR")
    assert {key: value for key, value in environ.items() if key not in own} == env
    assert of_c == [b"a value", None]
    # With "fork" it is this process that imports it, which keeps its environment.
    assert found == (None if kind == "fork" else "a value")
    assert (name in sys.modules) == (kind == "fork")
    sys.modules.pop(name, None)


@pytest.mark.one_loop
async def test_11_21_what_has_no_meaning_is_told(caplog):
    with caplog.at_level(logging.DEBUG, "aioisolate.service"):
        async with Isolator("fork", warm=2):
            pass
    assert "warm=2 is ignored" in caplog.text


@pytest.mark.one_loop
async def test_11_21_calls_of_a_fork_wait_for_its_preload(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    names = [f"preloaded_later_{number}" for number in range(5)]
    for name in names:
        (tmp_path / f"{name}.py").touch()
    iso = Isolator("fork", preload=names)
    found = []
    async with anyio.create_task_group() as group:

        async def call():
            found.extend(await iso.run(lambda: [name for name in names if name in sys.modules]))

        await Interrupted(iso.__aenter__(), 1, lambda: group.start_soon(call))
    await iso.aclose()
    assert found == names
    for name in names:
        del sys.modules[name]


# Closing while work goes on


async def detach(iso, *seconds):
    """Begin calls that nobody awaits."""
    executor = iso.executor()
    futures = [executor.submit(time.sleep, number) for number in seconds]
    await until(
        lambda: iso.statistics().submitted == len(futures) and all(job.pid for job in iso.jobs())
    )
    return futures


async def test_11_8_work_that_does_not_end_is_ended(start, caplog):
    async with Isolator(**start, drain=0.1, max_concurrency=3) as iso:
        *slow, _ = await detach(iso, 60, 61, 0.02)
        pids = [job.pid for job in iso.jobs()]
    assert [future.exception().reason for future in slow] == [Reason.CLOSED] * 2
    assert not any(map(alive, pids))
    (record,) = [r for r in caplog.records if r.name == "aioisolate.service"]
    assert record.levelname == "WARNING"
    assert re.search(r"waited for \d\.\d s: ended 2 calls: sleep \(2\)", record.getMessage())


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": 0.05}, {"cancel": True}])
async def test_11_8_a_second_closing_that_waits_less(options):
    async with anyio.create_task_group() as group:
        async with Isolator(drain=None) as iso:
            (future,) = await detach(iso, 60)
            group.start_soon(iso.aclose)
            await until(lambda: iso._service.state == "closing")
            with anyio.fail_after(10):
                await iso.aclose(**options)
            assert future.exception().reason is Reason.CLOSED


@pytest.mark.one_loop
async def test_11_8_as_long_as_is_said():
    async with Isolator("fork", drain=0.01) as iso:
        (future,) = await detach(iso, 0.3)
        await iso.aclose(timeout=None)
        assert future.result() is None
    for drain in (None, 20):
        async with Isolator("fork", drain=drain) as iso:
            (future,) = await detach(iso, 0.1)
        assert future.result() is None
    with pytest.raises(ValueError, match="timeout"):
        await iso.aclose(timeout=-1)
    with pytest.raises(TypeError, match="timeout"):
        await iso.aclose(timeout="1")
    # Not for ever, unless that is said.
    assert inspect.signature(Isolator).parameters["drain"].default == 20


async def test_11_8_a_closing_that_is_cancelled_ends_what_it_waits_for(start):
    async with Isolator(**start) as iso:
        (future,) = await detach(iso, 60)
        with anyio.CancelScope() as scope:
            await Interrupted(iso.aclose(), 1, scope.cancel)
        assert scope.cancelled_caught
        assert iso._service.state == "closed"
        assert future.exception().reason is Reason.CLOSED


@pytest.mark.one_loop
async def test_11_8_a_second_closing_that_is_cancelled_ends_it_as_well():
    async with anyio.create_task_group() as group:
        async with Isolator(drain=None) as iso:
            (future,) = await detach(iso, 60)
            group.start_soon(iso.aclose)
            await until(lambda: iso._service.state == "closing")
            with anyio.CancelScope() as scope:
                await Interrupted(iso.aclose(), 1, scope.cancel)
            await until(future.done)
    assert future.exception().reason is Reason.CLOSED


SERVER = """
    import contextlib, logging, time, uvicorn
    from starlette.applications import Starlette
    from aioisolate import Isolator
    from tests.helpers import until

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with Isolator(drain=0.3) as iso:
            iso.executor().submit(time.sleep, 60)
            await until(lambda: iso.jobs() and iso.jobs()[0].pid)
            print(iso.jobs()[0].pid, iso._service._source._pool.pid, flush=True)
            yield
        print("closed", flush=True)

    logging.basicConfig()
    uvicorn.run(Starlette(lifespan=lifespan), port=0, log_level="warning")
"""


def test_11_8_a_server_with_a_detached_job_ends():
    command = [sys.executable, "-c", textwrap.dedent(SERVER)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as server:
        pids = [int(pid) for pid in server.stdout.readline().split()]
        began = time.monotonic()
        server.terminate()
        out, err = server.communicate(timeout=20)
    assert len(pids) == 2, err
    assert out == "closed\n"
    assert "ended 1 call: sleep" in err
    assert "Traceback" not in err
    assert time.monotonic() - began < 10
    assert not any(map(alive, pids))


# Never closed

FORGETFUL = """
    import asyncio, os, sys, threading
    from aioisolate import Isolator

    kind, how = sys.argv[1:]
    iso = Isolator(kind, warm=0 if kind == "fork" else 1)

    async def use():
        await iso.__aenter__()
        print(await iso.run(os.getppid if kind != "fork" else os.getpid), flush=True)

    if how == "circle":
        iso.itself = iso
    if how == "trio":
        import trio
        trio.run(use)
    elif how == "open":
        loop = asyncio.new_event_loop()
        loop.run_until_complete(use())
    elif how == "thread":
        used = threading.Event()
        async def stay():
            await use()
            used.set()
            await asyncio.sleep(60)
        threading.Thread(target=lambda: asyncio.run(stay()), daemon=True).start()
        used.wait()
    else:
        asyncio.run(use())
    print("end", flush=True)
"""


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *[(kind, "closed") for kind in ("fork", "zygote", "template")],
        *[("zygote", how) for how in ("open", "circle", "thread", "trio", "error")],
        ("template", "open"),
    ],
)
def test_11_19_one_that_is_never_closed(kind, how):
    source = FORGETFUL
    if how == "error":
        source = "import warnings; warnings.simplefilter('error')\n" + textwrap.dedent(source)
    result = python(source, kind, how, env={"PYTHONWARNINGS": "default::ResourceWarning"})
    pid, end = result.stdout.split()
    assert (end, result.returncode) == ("end", 0)
    assert result.stderr.count("an Isolator was not closed (created at <string>:") == 1
    assert "use `async with`, or await aclose()" in result.stderr
    assert "Exception ignored in: <" not in result.stderr
    if how != "error":  # which is what was asked for
        assert "Traceback" not in result.stderr
    wait_until(lambda: not alive(int(pid)))
    rest = [line for line in result.stderr.splitlines() if "unclosed event loop" not in line]
    assert how == "error" or len(rest) == 1


def test_11_19_warnings_that_are_errors_leave_nothing():
    """A warning that is an error does not keep an Isolator from being put down."""
    # In a process of its own: tasks of a loop that has ended may stay.
    done = python("""
        import asyncio, os, warnings
        from aioisolate import Isolator

        iso = Isolator(warm=1)
        asyncio.run(iso.__aenter__())
        warnings.simplefilter("error")
        try:
            iso.__del__()
        except ResourceWarning as exc:
            assert "was not closed" in str(exc)
            print("warned")
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            print("done")
    """)
    assert done.stdout == "warned\ndone\n", done.stderr


@pytest.mark.one_loop
async def test_11_19_collected_in_another_thread():
    """As garbage is: it is put down where its loop runs."""
    iso = Isolator(warm=1)
    await iso.__aenter__()
    service = iso._service

    def collect():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            iso.__del__()

    thread = threading.Thread(target=collect)
    thread.start()
    thread.join()  # without the loop
    assert service.state == "open"
    await until(lambda: service.state == "closed")
    assert not has_children()
