"""What this library uses of others that is not public: if one goes away, its test says which."""

from __future__ import annotations

import ast
import asyncio
import concurrent.futures.process
import concurrent.futures.thread
import functools
import importlib._bootstrap
import importlib.util
import inspect
import io
import linecache
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import subprocess
import sys
import threading
import types
import warnings
import weakref
from concurrent.futures import Future, wait
from queue import Full

import anyio
import anyio._core._eventloop
import cloudpickle
import numpy as np
import pytest
import sniffio
import trio
import trio._core._run_context
import uvloop
from tblib import Traceback

from tests.helpers import ROOT, python
from tests.internals import imports

pytestmark = pytest.mark.quick

# Modules of the standard library's in C, which are as good as public: those above import little.
IN_C = {"_frozen_importlib", "_signal", "_socket", "_thread"}
# What named tuples have, and what os and sys document.
DOCUMENTED = {"_asdict", "_current_frames", "_replace", "_exit", "_getframe"}
# Every other one, and where it is found below.
KNOWN = {
    "_afterfork_registry": "multiprocessing",
    "_children": "multiprocessing",
    "_exit_function": "multiprocessing",
    "_index_iter": "weakref",
    "_ncallbacks": "atexit",
    "_python_exit": "concurrent.futures",
    "_parent_pid": "multiprocessing",
    "_registry": "weakref",
    "_run_exitfuncs": "atexit",
    "_threading_atexits": "threading",
    "_threads_queues": "concurrent.futures",
    "_threads_wakeups": "concurrent.futures",
    "_args_from_interpreter_flags": "subprocess",
    "_ArrayMemoryError": "numpy",
    "_bootstrap": "importlib",
    "_condition": "concurrent.futures",
    "_finalizer_registry": "multiprocessing",
    "_forkserver": "multiprocessing",
    "_forkserver_pid": "multiprocessing",
    "_get_running_loop": "asyncio",
    "_leave_task": "asyncio",
    "_local": "asyncio, before 3.12",
    "_resource_tracker": "multiprocessing",
    "_sem": "multiprocessing",
    "_set_running_loop": "asyncio",
    "_writer": "multiprocessing",
    # by getattr or sys.modules
    "_clear_cache": "functools",
    "_core": "anyio and trio",
    "_event_loop_policy": "asyncio, before 3.12",
    "_get_filters": "warnings, from 3.14 on",
    "_getlines_from_code": "linecache, from 3.13 or 3.14 on",
    "_module_locks": "importlib",
    "_run_context": "trio",
    "_stdlib_dir": "sys",
    "_waiters": "concurrent.futures",
    "_eventloop": "anyio",
    "_resolver": "gevent",
    "_threadpool": "gevent",
}


def used():
    """List the private names that the library uses and does not define, and private modules."""
    own, attributes, modules = set(), {}, {}
    for path in sorted((ROOT / "aioisolate").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    own.add(node.name)
                case ast.Name(ctx=ast.Store()):
                    own.add(node.id)
                case ast.Attribute():
                    if isinstance(node.ctx, ast.Store):
                        own.add(node.attr)
                    elif node.attr.startswith("_") and not node.attr.startswith("__"):
                        attributes.setdefault(node.attr, where)
                case ast.Constant(value=str(text)) if text.startswith("_") and text.isidentifier():
                    if not text.startswith("__"):
                        attributes.setdefault(text, where)
                case ast.Import():
                    for name in node.names:
                        modules.setdefault(name.name, where)
                case ast.ImportFrom(level=0):
                    modules.setdefault(node.module, where)
    slots = {
        "_condition",
        "_waiters",
    }  # of concurrent.futures, though own code has some of the name
    attributes = {name: at for name, at in attributes.items() if name not in own - slots}
    private = {
        name: at for name, at in modules.items() if any(p.startswith("_") for p in name.split("."))
    }
    return attributes, {name: at for name, at in private.items() if name != "__future__"}


def test_all_of_them_are_known():
    attributes, modules = used()
    files = {path.stem for path in (ROOT / "aioisolate").rglob("*.py")} | {
        path.name for path in (ROOT / "aioisolate").rglob("*") if path.is_dir()
    }
    unknown = {
        name: where
        for name, where in attributes.items()
        if name not in KNOWN.keys() | DOCUMENTED | files
    }
    assert unknown == {}
    assert {n: w for n, w in modules.items() if n not in IN_C | {"importlib._bootstrap"}} == {}


def test_asyncio_forgets_a_running_loop():
    async def look():
        loop = asyncio.get_running_loop()
        assert asyncio._get_running_loop() is loop
        task = asyncio.current_task()
        asyncio._set_running_loop(None)
        try:
            assert asyncio._get_running_loop() is None
            if sys.version_info < (3, 14):
                asyncio._leave_task(loop, task)
                assert asyncio.current_task(loop) is None
                asyncio.tasks._enter_task(loop, task)
        finally:
            asyncio._set_running_loop(loop)

    asyncio.run(look())


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="later ones see to it themselves")
def test_asyncios_policy_holds_the_loop():
    asyncio.get_event_loop_policy()
    assert hasattr(asyncio.events._event_loop_policy, "_local")


def test_uvloop_is_told_by_its_module():
    loop = uvloop.new_event_loop()
    loop.close()
    assert type(loop).__module__.startswith("uvloop")


def test_trio_knows_its_run_by_a_thread_local():
    context = sys.modules["trio._core._run_context"].GLOBAL_RUN_CONTEXT
    assert context.__dict__ == {}

    async def look():
        assert {"runner", "task"} <= context.__dict__.keys()

    trio.run(look)
    assert isinstance(context, threading.local)


def test_sniffio_has_a_name_for_each_thread_and_context():
    assert sniffio.thread_local.name is None
    assert sniffio.current_async_library_cvar.get() is None
    sniffio.thread_local.name = "trio"
    try:
        assert sniffio.current_async_library() == "trio"
    finally:
        sniffio.thread_local.name = None


def test_anyio_has_thread_locals():
    threadlocals = sys.modules["anyio._core._eventloop"].threadlocals
    assert isinstance(threadlocals, threading.local)
    assert threadlocals.__dict__ == {}

    async def look():  # in a worker thread, which may ask the loop for something
        return await anyio.to_thread.run_sync(lambda: set(threadlocals.__dict__))

    assert anyio.run(look)
    assert threadlocals.__dict__ == {}


def test_subprocess_tells_the_interpreters_flags():
    script = "import subprocess; print(subprocess._args_from_interpreter_flags())"
    told = subprocess.run(
        [sys.executable, "-B", "-W", "ignore:x", "-X", "utf8=1", "-c", script],
        capture_output=True,
        check=True,
        text=True,
    )
    flags = ast.literal_eval(told.stdout)
    assert "-B" in flags
    assert "-Wignore:x" in flags
    assert "utf8=1" in flags


def test_importlib_has_a_lock_for_each_import_with_its_owner():
    assert imports._locks is importlib._bootstrap._module_locks
    lock = importlib._bootstrap._get_module_lock("a_module_of_this_test")
    lock.acquire()
    assert imports._locks["a_module_of_this_test"]() is lock
    assert lock.owner == threading.get_ident()
    lock.release()
    assert lock.owner is None


@pytest.mark.skipif(imports.LazyImport is None, reason="Python 3.15 and newer have lazy imports")
def test_a_lazy_import_refers_to_what_it_is():
    import gc

    namespace = {}
    exec("lazy import a.b\nlazy from c.d import e as f", namespace)
    plain, part = namespace["a"], namespace["f"]
    assert (repr(plain), repr(part)) == ("<lazy_import 'a.b'>", "<lazy_import 'c.d.e'>")
    assert "a.b" in gc.get_referents(plain)
    assert "c.d.e" not in gc.get_referents(part)


def test_cloudpickle_asks_for_reductions():
    asked = []

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, obj):
            asked.append(type(obj))
            return super().reducer_override(obj)

    Pickler(io.BytesIO(), 5).dump(lambda: 1)
    assert types.CodeType in asked
    assert types.FunctionType in asked


def test_tblib_makes_a_traceback_of_what_looks_like_one():
    code = types.SimpleNamespace(co_filename="file", co_name="name")
    frame = types.SimpleNamespace(f_globals={"__name__": "module"}, f_code=code, f_lineno=7)
    inner = types.SimpleNamespace(tb_frame=frame, tb_lineno=7, tb_next=None)
    stack = Traceback(types.SimpleNamespace(tb_frame=frame, tb_lineno=3, tb_next=inner))
    stack = stack.as_traceback()
    assert (stack.tb_lineno, stack.tb_next.tb_lineno) == (3, 7)
    assert stack.tb_frame.f_code.co_filename == "file"


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Python 3.14 and newer register it so")
def test_linecache_knows_code_without_a_file():
    code = compile("def f():\n    pass\n", "<a test>", "exec")
    linecache._register_code(code, "def f():\n    pass\n", "<a test>")
    inner = next(const for const in code.co_consts if isinstance(const, types.CodeType))
    assert list(linecache._getlines_from_code(inner)) == ["def f():\n", "    pass\n"]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Python 3.14 and newer have contexts")
def test_warnings_tells_the_filters_in_force():
    assert isinstance(warnings._get_filters(), list)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a message of this test")
        assert warnings._get_filters()[0][0] == "ignore"


def test_multiprocessing_has_a_fork_server_and_finalizers():
    server = multiprocessing.forkserver._forkserver
    assert server._forkserver_pid is None
    fresh = vars(type(server)())
    assert {"_forkserver_pid", "_forkserver_alive_fd", "_forkserver_address", "_lock"} <= set(fresh)
    assert multiprocessing.forkserver.ensure_running.__self__ is server
    finalizer = multiprocessing.util.Finalize(None, len, exitpriority=0)
    assert finalizer in multiprocessing.util._finalizer_registry.values()
    assert finalizer._pid == os.getpid()
    finalizer.cancel()


def test_exit_functions_can_be_counted_and_run():
    script = """
    import atexit, os
    atexit.register(print, "never")
    atexit.register(os._exit, 0)
    count = atexit._ncallbacks()
    atexit.register(print, "first", flush=True)
    assert atexit._ncallbacks() == count + 1
    atexit._run_exitfuncs()
    """
    done = python(script)
    assert (done.stdout, done.stderr, done.returncode) == ("first\n", "", 0)


def test_finalizers_are_counted():
    class Thing:
        pass

    thing = Thing()
    index = next(weakref.finalize._index_iter)
    finalizer = weakref.finalize(thing, len, ())
    assert weakref.finalize._registry[finalizer].index == index + 1
    assert weakref.finalize._registry[finalizer].atexit
    finalizer()
    assert finalizer not in weakref.finalize._registry


def test_pools_of_threads_and_processes_are_told_to_end():
    assert isinstance(concurrent.futures.thread._threads_queues, weakref.WeakKeyDictionary)
    assert isinstance(concurrent.futures.process._threads_wakeups, weakref.WeakKeyDictionary)
    assert len(threading._threading_atexits) >= 2
    assert all(map(callable, threading._threading_atexits))


def test_multiprocessing_knows_its_children():
    process = multiprocessing.get_context("fork").Process(target=len)
    assert process._parent_pid == os.getpid()
    assert isinstance(multiprocessing.process._children, set)
    assert callable(multiprocessing.util._exit_function)


def test_a_tracker_is_told_by_its_command_line():
    source = inspect.getsource(multiprocessing.resource_tracker)
    assert "from multiprocessing.resource_tracker import main" in source


def test_multiprocessing_has_a_tracker_and_queues():
    tracker = multiprocessing.resource_tracker._resource_tracker
    assert {"_fd", "_pid", "_lock"} <= set(vars(type(tracker)()))
    queue = multiprocessing.get_context("fork").Queue(1)
    assert queue in multiprocessing.util._afterfork_registry.values()
    assert queue._writer.fileno() > 2
    assert queue._sem.acquire(False)
    with pytest.raises(Full):
        queue.put(1, block=False)
    queue.close()
    assert queue._closed


def test_concurrent_futures_have_a_condition_and_a_state():
    future = Future()
    with future._condition:
        assert future._state == "PENDING"
    future.set_running_or_notify_cancel()
    assert future._state == "RUNNING"
    future.set_result(None)
    assert future._state == "FINISHED"


def test_concurrent_futures_have_exit_functions_that_may_be_called_twice():
    python("""
        import concurrent.futures, concurrent.futures.process, concurrent.futures.thread, threading

        pool = concurrent.futures.ThreadPoolExecutor(1)
        assert pool.submit(abs, -1).result() == 1
        for _ in range(2):
            concurrent.futures.thread._python_exit()
            concurrent.futures.process._python_exit()
        assert threading.active_count() == 1
    """).check_returncode()


def test_concurrent_futures_have_waiters_that_wait_for_an_event():
    future, seen = Future(), []

    class Waiters(list):
        def append(self, waiter):
            super().append(waiter)
            seen.append(waiter.event)
            waiter.event.set()

    future._waiters = Waiters()
    assert wait([future], timeout=20).not_done == {future}
    assert list(map(type, seen)) == [threading.Event]


def test_numpy_has_an_error_of_its_own_for_want_of_memory():
    with pytest.raises(MemoryError) as raised:
        np.empty(1 << 60, "u1")
    assert type(raised.value).__qualname__ == "_ArrayMemoryError"


def test_the_modules_in_c():
    import _frozen_importlib
    import _signal
    import _socket
    import _thread

    assert _frozen_importlib.module_from_spec is importlib.util.module_from_spec

    assert callable(_thread._count)
    assert _thread._local is threading.local
    assert callable(_thread.allocate_lock)
    here, there = _socket.socketpair()
    there.close()
    os.close(here.detach())
    assert callable(_signal.signal)


def test_functools_has_its_own_attributes_on_functions():
    function = functools.singledispatch(lambda _: None)
    own = {"__wrapped__", "_clear_cache", "dispatch", "register", "registry"}
    assert vars(function).keys() <= own
    assert "_clear_cache" in vars(function)


def test_sys_tells_where_the_standard_library_is():
    assert sys._stdlib_dir == os.path.dirname(os.__file__)
    assert sys._stdlib_dir in sys.path


def test_gevent():
    pytest.importorskip("gevent")
    done = python(
        "from gevent import get_hub, _hub_local; hub = get_hub();"
        "print(hub is _hub_local.get_hub_if_exists(), *vars(hub))"
    )
    same, *names = done.stdout.split()
    assert same == "True"
    assert {"_resolver", "_threadpool"} <= {*names}
