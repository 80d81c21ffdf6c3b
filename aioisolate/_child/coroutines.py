"""Reset the state of the parent's event loop in a child, and run a coroutine in a new event loop.

After the fork, the child is on the stack of the parent's event loop, and every library still
reports a running loop. No library has a public function that resets that state.
"""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from typing import Any

from .._async_backend import AsyncBackend
from .spec import Step, Steps

__all__ = ["obstacle", "run", "steps_to_forget", "steps_to_forget_hub"]


def steps_to_forget(backend: AsyncBackend) -> Steps:
    """Return, in the parent, the steps that make each library forget the loop of this thread."""
    modules = sys.modules
    steps: list[Step] = []
    if backend.loop is not None:
        asyncio = modules["asyncio"]
        if backend.task is not None and sys.version_info < (3, 14):
            # From 3.14 on the interpreter forgets the running loop and its task at a fork.
            steps.append((asyncio._leave_task, (backend.loop, backend.task)))
        steps.append((asyncio._set_running_loop, (None,)))
        policy = getattr(asyncio.events, "_event_loop_policy", None)
        if sys.version_info < (3, 12) and policy is not None:
            # Otherwise get_event_loop() returns the parent's loop; from 3.12 on asyncio resets it.
            steps.append((setattr, (policy._local, "_loop", None)))
    run_context = modules.get("trio._core._run_context")
    if run_context is not None and run_context.GLOBAL_RUN_CONTEXT.__dict__:
        steps.append((run_context.GLOBAL_RUN_CONTEXT.__dict__.clear, ()))
    sniffio = modules.get("sniffio")
    if sniffio is not None:
        if sniffio.thread_local.name is not None:
            steps.append((setattr, (sniffio.thread_local, "name", None)))
        if sniffio.current_async_library_cvar.get() is not None:
            steps.append((sniffio.current_async_library_cvar.set, (None,)))
    eventloop = modules.get("anyio._core._eventloop")
    if eventloop is not None and eventloop.threadlocals.__dict__:
        steps.append((eventloop.threadlocals.__dict__.clear, ()))
    steps += steps_to_forget_hub()
    return steps


def steps_to_forget_hub() -> list[Step]:
    """Return the steps that make gevent forget its hub in a copy of this process; [] without one.

    gevent makes a new hub when the copy needs one. `gevent.reinit`, gevent's own function for use
    after a fork, would run the parent's greenlets in the child, too.
    """
    hub = _hub()
    if hub is None:
        return []
    # The hub's threads exist in the parent only. Deleting the thread pool would wait for them, so
    # *kept* keeps a reference.
    kept = dict(vars(hub))
    alone = {"_threadpool": None, "_resolver": None, "periodic_monitoring_thread": None}
    return [(vars(hub).update, (alone,)), (hub.destroy, (True,)), (len, (kept,))]


def _hub() -> Any:
    local = sys.modules.get("gevent._hub_local")
    return None if local is None else local.get_hub_if_exists()


def obstacle() -> str:
    """Return why a copy of this process can't work without this thread's loop; "" if it can."""
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.already_patched:
        return "eventlet.monkey_patch() has replaced functions that a copy of the process needs"
    hub = _hub()
    if hub is not None and "libuv" in type(hub.loop).__module__:
        return "gevent's libuv loop ends a copy of this process (set GEVENT_LOOP=libev-cext)"
    return ""


def run(coroutine: Coroutine[Any, Any, Any], backend: AsyncBackend) -> Any:
    """Run a coroutine to completion in a new event loop of the same kind as the parent's."""
    import anyio  # noqa: PLC0415 - only for coroutine functions: anyio imports asyncio

    options: dict[str, Any] = {"use_uvloop": True} if backend.uvloop else {}
    return anyio.run(_await, coroutine, backend=backend.name, backend_options=options)


async def _await(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await coroutine
