"""Forgetting the parent's event loop, and running a coroutine in a fresh one.

The child is in the middle of the parent's event loop, on its stack, and every library that asks
"is a loop running?" says yes. None of them has a public way to be told otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from .._async_backend import AsyncBackend
from .spec import Steps

__all__ = ["hub_to_forget", "not_to_forget", "run", "steps_to_forget"]

Step: TypeAlias = tuple[Callable[..., object], tuple[Any, ...]]


def steps_to_forget(backend: AsyncBackend) -> Steps:
    """List, in the parent, what makes each library believe that no loop runs in this thread."""
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
            # Or get_event_loop would return the parent's; later versions see to it themselves.
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
    steps += hub_to_forget()
    return steps


def hub_to_forget() -> list[Step]:
    """List, in the process that is to be forked, what makes gevent forget its loop there, if any.

    It makes another when one is needed. By its own way of going on after a fork (`gevent.reinit`)
    the parent's greenlets would run in the child, too.
    """
    hub = _hub()
    if hub is None:
        return []
    # Its threads are the parent's; what is dropped would wait for them, so it is kept.
    kept = dict(vars(hub))
    alone = {"_threadpool": None, "_resolver": None, "periodic_monitoring_thread": None}
    return [(vars(hub).update, (alone,)), (hub.destroy, (True,)), (len, (kept,))]


def _hub() -> Any:
    local = sys.modules.get("gevent._hub_local")
    return None if local is None else local.get_hub_if_exists()


def not_to_forget() -> str:
    """Say what of this thread a copy of this process could not do without, or ""."""
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.already_patched:
        return "eventlet.monkey_patch() has replaced what a copy of this process needs"
    hub = _hub()
    if hub is not None and "libuv" in type(hub.loop).__module__:
        return "gevent's libuv loop ends a copy of this process (set GEVENT_LOOP=libev-cext)"
    return ""


def run(coroutine: Coroutine[Any, Any, Any], backend: AsyncBackend) -> Any:
    """Run a coroutine to its end in a fresh loop of the kind that the parent runs."""
    import anyio  # noqa: PLC0415 - only where fn is a coroutine function; it brings asyncio in

    options: dict[str, Any] = {"use_uvloop": True} if backend.uvloop else {}
    return anyio.run(_await, coroutine, backend=backend.name, backend_options=options)


async def _await(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await coroutine
