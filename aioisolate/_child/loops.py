"""Forgetting the parent's event loop, and running a coroutine in a fresh one.

The child is in the middle of the parent's event loop, on its stack, and every library that asks
"is a loop running?" says yes. None of them has a public way to be told otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from typing import Any

from .order import AsyncBackend

__all__ = ["forget", "run"]


def forget(backend: AsyncBackend) -> None:
    """Make asyncio, trio, sniffio and anyio believe that no loop runs in this thread."""
    modules = sys.modules
    if backend.loop is not None:
        asyncio = modules["asyncio"]
        if backend.task is not None:
            asyncio._leave_task(backend.loop, backend.task)
        asyncio._set_running_loop(None)
        if sys.version_info < (3, 12):  # later versions do it themselves after a fork
            asyncio.set_event_loop(None)
    run_context = modules.get("trio._core._run_context")
    if run_context is not None:
        run_context.GLOBAL_RUN_CONTEXT.__dict__.clear()
    sniffio = modules.get("sniffio")
    if sniffio is not None:
        sniffio.thread_local.name = None
        if sniffio.current_async_library_cvar.get() is not None:
            sniffio.current_async_library_cvar.set(None)
    eventloop = modules.get("anyio._core._eventloop")
    if eventloop is not None:
        eventloop.threadlocals.__dict__.clear()


def run(coroutine: Coroutine[Any, Any, Any], backend: AsyncBackend) -> Any:
    """Run a coroutine to its end in a fresh loop of the kind that the parent runs."""
    import anyio  # noqa: PLC0415 - only where fn is a coroutine function; it brings asyncio in

    options: dict[str, Any] = {"use_uvloop": True} if backend.uvloop else {}
    return anyio.run(_await, coroutine, backend=backend.name, backend_options=options)


async def _await(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await coroutine
