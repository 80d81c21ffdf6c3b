"""A code interpreter: Python source sent by anyone, each piece run in a sandboxed child of its own.

    python examples/code_interpreter.py --port 8000

Open / in a browser, or:

    curl localhost:8000/run -H 'Content-Type: application/json' -d '{"code": "print(1); 6 * 7"}'

The code may do what it likes: it sees no files but Python's, no network, no other process and none
of this server's memory; it may take so much time and memory and say so much, and no more. Whatever
becomes of it is answered with 200 and a "status"; 4xx means that the request was wrong, 429 and 503
that it was not run, and may be sent again. A client that hangs up takes its child with it.

For the public internet, put a proxy in front that has TLS and limits the rate of requests; what one
client may have running at once is limited here.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import hashlib
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import uvicorn
from code_interpreter_cell import CELL, TRACEBACK_MAX, Answer, evaluate, shorten
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aioisolate import (
    CallableDidNotExecuteError,
    IsolationError,
    Isolator,
    Limits,
    Outcome,
    Reason,
    RemoteError,
    Sandbox,
)
from aioisolate.integrations.starlette import cancel_on_disconnect, client_closed_request

CODE_MAX = 50_000  # characters
BODY_MAX = 12 * CODE_MAX + 1000  # bytes: in JSON an emoji may be two \uXXXX
BODY_SECONDS = 10.0
TIMEOUT, TIMEOUT_MAX = 5.0, 10.0
MEMORY, MEMORY_MAX = "128 MiB", 256 << 20

SANDBOX = Sandbox.untrusted(
    scratch="16 MiB",
    limits=Limits(
        memory=MEMORY,
        cpu_time=5,
        file_size="16 MiB",
        output_size="256 KiB",
        result_size="256 KiB",
    ),
)

STATUS = {
    Reason.TIMEOUT: "timeout",
    Reason.MEMORY_LIMIT: "memory",
    Reason.CPU_LIMIT: "cpu",
    Reason.OUTPUT_LIMIT: "output",
    Reason.SIGNAL: "crash",
    Reason.EXIT: "exit",
    Reason.NO_RESULT: "exit",
}


async def post_run(request: Request) -> Response:
    """Run a piece of code and tell what became of it."""
    code, timeout, memory = checked(await read_json(request))
    with one_more_of(request):
        work = functools.partial(carry_out, request.app.state.isolator, code, timeout, memory)
        answer = await cancel_on_disconnect(request, work)
    if answer["status"] == "refused":
        return JSONResponse(answer, status_code=503, headers={"Retry-After": "1"})
    return JSONResponse(answer)


async def read_json(request: Request) -> Any:
    """Read the body, within bounds."""
    # Another site's page can't send this type without asking first, so it can't run code here.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "send JSON, with Content-Type: application/json")
    body = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > BODY_MAX:
                    raise HTTPException(413, f"a request has at most {BODY_MAX} bytes")
    except TimeoutError:
        raise HTTPException(408, f"a request is sent within {BODY_SECONDS:g} seconds") from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None


def checked(query: Any) -> tuple[str, float, int]:
    """Return the code, its timeout and its memory."""
    if not isinstance(query, dict):
        raise HTTPException(400, "the body must be a JSON object")
    if unknown := sorted(query.keys() - {"code", "timeout", "memory"}):
        raise HTTPException(400, f"there is no {unknown[0][:40]!r}; have code, timeout and memory")
    code = query.get("code")
    if not isinstance(code, str):
        raise HTTPException(400, "code must be a string")
    if len(code) > CODE_MAX:
        raise HTTPException(413, f"code has at most {CODE_MAX} characters")
    timeout = query.get("timeout", TIMEOUT)
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or not 0 < timeout < math.inf:
        raise HTTPException(400, "timeout must be a number of seconds above 0")
    try:
        memory = Limits(memory=query.get("memory", MEMORY)).memory or MEMORY_MAX
    except (TypeError, ValueError):
        raise HTTPException(400, "memory must be a size such as '64 MiB'") from None
    return code, min(timeout, TIMEOUT_MAX), min(memory, MEMORY_MAX)


@contextlib.contextmanager
def one_more_of(request: Request) -> Iterator[None]:
    """Count what a client has running; it is not to take everybody's turn."""
    state = request.app.state
    client = request.client.host if request.client else ""
    if state.running[client] >= state.per_client:
        text = f"{state.per_client} of yours are running; wait for one"
        raise HTTPException(429, text, headers={"Retry-After": "1"})
    state.running[client] += 1
    try:
        yield
    finally:
        state.running[client] -= 1
        if not state.running[client]:
            del state.running[client]


async def carry_out(isolator: Isolator, code: str, timeout: float, memory: int) -> dict[str, Any]:
    """Run the code in a child; cancelled, it takes the child along."""
    waited: list[float] = []
    begin = time.monotonic()
    outcome = await isolator.capture(
        evaluate,
        code,
        timeout=timeout,
        limits=Limits(memory=memory),
        result_type=Answer,
        # The first one is that there is a child for it.
        on_event=lambda _event: waited.append(time.monotonic() - begin),
    )
    waited.append(time.monotonic() - begin)
    answer: dict[str, Any] = {"status": "", "value": None, "traceback": None}
    answer |= told(outcome)
    usage = outcome.usage
    timings = {"wall": usage.wall, "user": usage.user, "system": usage.system} if usage else {}
    timings["queue"] = waited[0]
    return answer | {
        "stdout": outcome.stdout or "",
        "stderr": outcome.stderr or "",
        "timings": {name: round(seconds, 6) for name, seconds in timings.items()},
    }


def told(outcome: Outcome[Answer]) -> dict[str, Any]:
    """Say what became of it, in words of the code's and of ours."""
    error = outcome.error
    if error is None and outcome.value is not None:
        return {**outcome.value, "reason": None, "message": ""}
    if isinstance(error, RemoteError):
        # It has got at `evaluate` itself, or raises where an exception should be formatted.
        return {"status": "error", "traceback": str(error), "reason": None, "message": ""}
    assert isinstance(error, IsolationError)
    if isinstance(error, CallableDidNotExecuteError):
        status = "refused"
    else:
        # Anything else is a result that is none: too large, of another form, no message at all.
        status = STATUS.get(error.reason, "invalid")
    return {
        "status": status,
        "traceback": stack_of(error) or None,
        "reason": error.reason.name,
        "message": shorten(str(error).partition("\n")[0], 500),
    }


def stack_of(error: IsolationError) -> str:
    """Return where the code was, most recent call first, without what called it."""
    lines = re.sub(r"hread 0x\w+", "hread", error.crash_traceback).splitlines()
    lines = [line.removeprefix("| ") for line in lines]  # so that they pass for nothing in a log
    lines = [line for line in lines if not line.startswith("  Binary file ")]  # nor addresses in C
    last = max((i for i, line in enumerate(lines) if f'File "{CELL}"' in line), default=-1)
    return shorten("\n".join(lines[: last + 1]), TRACEBACK_MAX)


async def status(request: Request) -> Response:
    """Tell how much there is to do."""
    figures = request.app.state.isolator.statistics()
    return JSONResponse({"running": figures.running, "waiting": figures.queued})


async def page(_request: Request) -> Response:
    """Show a page to try it with."""
    return Response(PAGE, media_type="text/html")


def digests(tag: str) -> str:
    """Return what a Content-Security-Policy calls the page's own *tag* elements."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in found)
    return " ".join(f"'sha256-{digest.decode()}'" for digest in hashes)


with open(os.path.join(os.path.dirname(__file__), "code_interpreter.html"), encoding="utf-8") as f:
    PAGE = f.read()

HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class WithHeaders:
    """Adds the headers above to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.headers = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_more(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self.headers]}
            await send(message)

        await self.app(scope, receive, send_more if scope["type"] == "http" else send)


async def as_json(_request: Request, error: Exception) -> Response:
    """Answer what is wrong with a request."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def make_app(concurrency: int | None = None, queue: int = 32, per_client: int = 8) -> Starlette:
    """Make the application: so many at once, so many waiting, so many of one client."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with Isolator(
            start="zygote",
            preload=["code_interpreter_cell"],
            warm=2,
            max_concurrency=concurrency,
            max_queue=queue,
            sandbox=SANDBOX,
            output="capture",
        ) as isolator:
            app.state.isolator = isolator
            app.state.running = Counter()
            app.state.per_client = per_client
            yield

    app = Starlette(
        lifespan=lifespan,
        exception_handlers={
            HTTPException: as_json,
            ClientDisconnect: client_closed_request,  # and its child is gone as well
        },
        routes=[
            Route("/", page),
            Route("/run", post_run, methods=["POST"]),
            Route("/status", status),
        ],
    )
    app.add_middleware(WithHeaders)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs Python source sent by anyone, confined.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    parser.add_argument("--concurrency", type=int, help="how many run at once; default: the CPUs")
    parser.add_argument("--queue", type=int, default=32, help="how many may wait")
    parser.add_argument("--per-client", type=int, default=8, help="how many of one address")
    options = parser.parse_args()
    app = make_app(options.concurrency, options.queue, options.per_client)
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        loop="uvloop",
        log_level="info",
        limit_concurrency=512,
        server_header=False,
    )


if __name__ == "__main__":
    main()
