"""For handlers of Starlette and FastAPI: end a job when its client disconnects.

A plain handler is not cancelled when its client disconnects, on any server: it runs to its end, and
nobody reads its answer. An isolated job should be killed then; `cancel_on_disconnect` does that. It
raises `ClientDisconnect`, for which this module has an exception handler, to be registered once::

    app.add_exception_handler(ClientDisconnect, client_closed_request)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple, Unpack

import anyio

try:
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
except ModuleNotFoundError as _missing:
    if str(_missing.name).partition(".")[0] != "starlette":  # a dependency is missing
        raise
    raise ImportError(
        f'{__name__} needs starlette: pip install "aioisolate[starlette]"', name="starlette"
    ) from _missing

__all__ = ["ClientDisconnect", "cancel_on_disconnect", "client_closed_request"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def cancel_on_disconnect(
    request: Request, job: Callable[[Unpack[Ts]], Awaitable[T]], /, *args: *Ts
) -> T:
    """Await ``job(*args)``, and cancel it if the client of *request* disconnects meanwhile.

    The body of the request is read to its end first, unless the handler has read it, and is still
    available from ``request.body()`` afterwards: servers report a disconnect only after the body.

    Args:
        request: the request whose client is waiting.
        job: an async function; use `functools.partial` for keyword arguments.
        args: its positional arguments.

    Returns:
        the result of the job.

    Raises:
        ClientDisconnect: the client went away; the job has been cancelled, and if it was an
            isolated call, its child has been killed and reaped. There is no client to answer: let
            the exception propagate, and register `client_closed_request`, or else Starlette logs it
            as an error of the application.
        the exception that the job raises.

    Example::

        async def thumbnail(request: Request) -> Response:
            data = await request.body()
            job = functools.partial(run_isolated, decode, data, timeout=10)
            return Response(await cancel_on_disconnect(request, job))
    """
    result: list[T] = []
    failure: list[BaseException] = []
    gone = False

    try:
        await request.body()
    except RuntimeError:
        pass  # stream() or form() has read it

    async def listen(scope: anyio.CancelScope) -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(listen, group.cancel_scope)
        try:
            result.append(await job(*args))
        except Exception as exc:  # noqa: BLE001 - raised again below, outside the group
            # Not through the group, which would wrap it in an ExceptionGroup.
            failure.append(exc)
        group.cancel_scope.cancel()
    if failure:
        raise failure[0]
    if result:
        return result[0]
    assert gone  # after a cancellation from outside, the group has raised
    raise ClientDisconnect


async def client_closed_request(request: Request, exc: Exception) -> Response:
    """Answer for a handler whose client has gone; an exception handler for `ClientDisconnect`.

    Nobody reads the answer. It has the status 499, as in nginx's logs. Without a handler
    Starlette treats the exception as an error of the application: it logs a traceback, and raises
    it to the server.

    Example::

        app = Starlette(
            routes=[...], exception_handlers={ClientDisconnect: client_closed_request}
        )
        # or, with FastAPI, too:
        app.add_exception_handler(ClientDisconnect, client_closed_request)
    """
    del request, exc
    return Response(status_code=499)
