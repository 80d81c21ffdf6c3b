"""Ending a handler's job when its client disconnects."""

from __future__ import annotations

import time

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from aioisolate import run_isolated
from aioisolate.integrations.starlette import cancel_on_disconnect, client_closed_request
from tests.helpers import Stages

pytestmark = pytest.mark.dependencies


def request_of(*pieces, then=None):
    """A request whose client sends *pieces*, then waits for the event *then*, and disconnects."""
    waiting = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
        for number, piece in enumerate(pieces, 1)
    ]

    async def receive():
        if waiting:
            return waiting.pop(0)
        await (then or anyio.Event()).wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


async def test_the_result_of_a_job_whose_client_stays():
    assert await cancel_on_disconnect(request_of(b""), run_isolated, abs, -3) == 3


async def test_the_exception_of_a_job_comes_out_as_itself():
    with pytest.raises(ValueError, match="no number"):
        await cancel_on_disconnect(request_of(b""), run_isolated, int, "no number")


async def test_a_job_whose_client_goes_is_killed():
    stages, gone = Stages(), anyio.Event()

    async def job():
        await run_isolated(time.sleep, 60, on_event=stages)

    async def hang_up():
        await stages.reached("started")
        gone.set()

    async with anyio.create_task_group() as group:
        group.start_soon(hang_up)
        with pytest.raises(ClientDisconnect):
            await cancel_on_disconnect(request_of(b"", then=gone), job)
        assert stages.names[-1] == "reaped"


@pytest.mark.one_loop
@pytest.mark.parametrize("registered", [True, False])
async def test_11_30_there_is_a_handler_for_it(registered):
    async def handler(request):
        await cancel_on_disconnect(request, anyio.sleep_forever)

    app = Starlette(routes=[Route("/", handler)])
    if registered:
        app.add_exception_handler(ClientDisconnect, client_closed_request)
    told = []

    async def receive():
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}

    async def send(message):
        told.append(message.get("status"))

    if registered:
        await app(scope, receive, send)
        assert told[0] == 499
    else:  # it counts as an error of the application
        with pytest.raises(ClientDisconnect):
            await app(scope, receive, send)
        assert told[0] == 500


async def test_cancelled_from_outside():
    with anyio.move_on_after(0.05) as scope:
        await cancel_on_disconnect(request_of(b""), anyio.sleep_forever)
    assert scope.cancelled_caught


async def test_a_client_that_was_gone_from_the_beginning():
    gone = anyio.Event()
    gone.set()
    with pytest.raises(ClientDisconnect):
        await cancel_on_disconnect(request_of(b"", then=gone), run_isolated, time.sleep, 60)


async def test_a_body_that_the_handler_has_not_read_is_kept():
    request = request_of(b"ab", b"cd")
    assert await cancel_on_disconnect(request, run_isolated, abs, -3) == 3
    assert await request.body() == b"abcd"


async def test_a_body_that_the_handler_has_read():
    request = request_of(b"ab", b"cd")
    assert b"".join([piece async for piece in request.stream()]) == b"abcd"
    assert await cancel_on_disconnect(request, run_isolated, abs, -3) == 3


async def test_a_client_that_goes_in_the_middle_of_its_body():
    gone = anyio.Event()
    gone.set()
    request = request_of(b"ab", b"cd", then=gone)
    await request.receive()
    await request.receive()
    began = False

    async def job():
        nonlocal began
        began = True

    with pytest.raises(ClientDisconnect):
        await cancel_on_disconnect(request, job)
    assert not began


async def test_behind_a_middleware_that_wraps_the_body():
    async def handler(request):
        value = await cancel_on_disconnect(request, run_isolated, abs, -3)
        return PlainTextResponse(f"{value} {(await request.body()).decode()}")

    async def passing(request, call_next):
        return await call_next(request)

    app = Starlette(
        routes=[Route("/", handler, methods=["POST"])],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=passing)],
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        for _ in range(3):
            assert (await client.post("/", content=b"abcd")).text == "3 abcd"
