"""Ending a handler's job when its client disconnects."""

from __future__ import annotations

import time

import anyio
import pytest
from starlette.requests import ClientDisconnect, Request

from aioisolate import run_isolated
from aioisolate.integrations.starlette import cancel_on_disconnect
from tests.helpers import Stages


def request_of(*messages, then=None):
    """A request whose client sends *messages*, then waits for the event *then*, and disconnects."""
    waiting = list(messages)

    async def receive():
        if waiting:
            return waiting.pop(0)
        await (then or anyio.Event()).wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


BODY = {"type": "http.request", "body": b"", "more_body": False}


async def test_the_result_of_a_job_whose_client_stays():
    assert await cancel_on_disconnect(request_of(BODY), run_isolated, abs, -3) == 3


async def test_the_exception_of_a_job_comes_out_as_itself():
    with pytest.raises(ValueError, match="no number"):
        await cancel_on_disconnect(request_of(), run_isolated, int, "no number")


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
            await cancel_on_disconnect(request_of(BODY, then=gone), job)
        assert stages.names[-1] == "reaped"


async def test_cancelled_from_outside():
    with anyio.move_on_after(0.05) as scope:
        await cancel_on_disconnect(request_of(), anyio.sleep_forever)
    assert scope.cancelled_caught


async def test_a_client_that_was_gone_from_the_beginning():
    gone = anyio.Event()
    gone.set()
    with pytest.raises(ClientDisconnect):
        await cancel_on_disconnect(request_of(then=gone), run_isolated, time.sleep, 60)
