"""An image service that survives what it is fed: thumbnails, each made in a child of its own.

    python examples/image_service.py --port 8000

Post a picture to /thumbnail, or open / in a browser. The decoder may crash, never end, or leak: the
server answers with an error and goes on. A client that hangs up takes its child with it.

`decode_with_flaws` stands for a decoder with security holes. Real ones are fixed once they are
known, so two are simulated: an upload that begins with POISON makes it follow a null pointer in C,
one that begins with ENDLESS makes it loop for ever.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import io
import os
from collections.abc import AsyncIterator

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from aioisolate import CallableDidNotExecuteError, IsolationError, Isolator, Reason
from aioisolate.integrations.starlette import cancel_on_disconnect, client_closed_request

MAX_UPLOAD = 20 * 1024 * 1024
TIMEOUT = 5.0

# What the fork server imports is there in each child at once.
DECODERS = [f"PIL.{name}ImagePlugin" for name in ("Bmp", "Gif", "Jpeg", "Png", "Ppm", "Tiff")]


def decode_with_flaws(data: bytes) -> Image.Image:
    """Decode a picture, as a library with holes in it would."""
    if data.startswith(b"POISON"):
        ctypes.string_at(0)
    while data.startswith(b"ENDLESS"):
        pass
    return Image.open(io.BytesIO(data))


def thumbnail(data: bytes, side: int) -> tuple[bytes, tuple[int, int], str]:
    """Shrink a picture; runs in the child. Return a PNG, the original size and its format."""
    picture = decode_with_flaws(data)
    size, kind = picture.size, picture.format or "unknown"
    picture.thumbnail((side, side))
    out = io.BytesIO()
    picture.convert("RGBA").save(out, "PNG")
    return out.getvalue(), size, kind


async def post_thumbnail(request: Request) -> Response:
    """Answer a picture with its thumbnail, or with what became of it."""
    data = await read_upload(request)
    if data is None:
        return JSONResponse({"error": f"at most {MAX_UPLOAD} bytes"}, status_code=413)
    try:
        side = min(max(int(request.query_params.get("side", "128")), 16), 1024)
    except ValueError:
        return JSONResponse({"error": "side must be a number"}, status_code=400)
    run = request.app.state.isolator.run
    job = functools.partial(run, thumbnail, data, side, timeout=TIMEOUT)
    try:
        png, (width, height), kind = await cancel_on_disconnect(request, job)
    except ClientDisconnect:
        raise  # `client_closed_request` answers, to nobody
    except IsolationError as error:
        return refusal(error)
    except Exception as error:  # noqa: BLE001 - whatever Pillow raises about a bad picture
        return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status_code=422)
    headers = {"X-Original": f"{kind} {width}x{height}"}
    return Response(png, media_type="image/png", headers=headers)


async def read_upload(request: Request) -> bytes | None:
    """Read the picture, posted as a form's file or as the body itself; None if it is too large."""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form(max_files=1) as form:
            file = form.get("picture")
            if file is None or isinstance(file, str):
                return b""
            data = await file.read(MAX_UPLOAD + 1)
        return data if len(data) <= MAX_UPLOAD else None
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_UPLOAD:
            return None
    return data


def refusal(error: IsolationError) -> JSONResponse:
    """Tell a client what its upload did."""
    retry = isinstance(error, CallableDidNotExecuteError)
    status = 503 if retry else 504 if error.reason is Reason.TIMEOUT else 422
    return JSONResponse(
        {
            "error": str(error).splitlines()[0],
            "reason": error.reason.name,
            "safe_to_retry": retry,
            "where": [
                line.strip()
                for line in error.crash_traceback.splitlines()
                if line.startswith("  File ")
            ],
        },
        status_code=status,
    )


async def health(request: Request) -> Response:
    """Tell that the server lives, how large it is, and what runs."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    resident = pages * os.sysconf("SC_PAGE_SIZE") // 1024
    running = [job.pid for job in request.app.state.isolator.jobs() if job.pid]
    return JSONResponse({"pid": os.getpid(), "resident_kb": resident, "running": running})


async def page(_request: Request) -> Response:
    """Show a form to try it with."""
    return HTMLResponse(PAGE)


PAGE = """<!doctype html><meta charset=utf-8><title>Thumbnails</title>
<style>body{font:16px system-ui;max-width:40em;margin:3em auto}</style>
<h1>Thumbnails</h1>
<p><input type=file id=file accept="image/*"> <button id=poison>Poison</button>
<button id=endless>Endless</button></p><img id=picture alt=""><br><pre id=answer></pre>
<script>
const answer = document.getElementById("answer"), picture = document.getElementById("picture")
async function send(body) {
  answer.textContent = "..."; picture.removeAttribute("src")
  const reply = await fetch("/thumbnail?side=256", {method: "POST", body})
  if (reply.ok) {
    picture.src = URL.createObjectURL(await reply.blob())
    answer.textContent = reply.headers.get("x-original")
  } else answer.textContent = reply.status + " " + JSON.stringify(await reply.json(), null, 2)
}
document.getElementById("file").onchange = event => send(event.target.files[0])
document.getElementById("poison").onclick = () => send("POISON")
document.getElementById("endless").onclick = () => send("ENDLESS")
</script>"""


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Start the fork server with the application; on SIGTERM let what runs come to its end."""
    async with Isolator(preload=DECODERS, warm=4, max_concurrency=8, max_queue=100) as isolator:
        app.state.isolator = isolator
        yield


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", page),
        Route("/health", health),
        Route("/thumbnail", post_thumbnail, methods=["POST"]),
    ],
    exception_handlers={ClientDisconnect: client_closed_request},
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Thumbnails, each made in a child of its own.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    options = parser.parse_args()
    uvicorn.run(app, host=options.host, port=options.port, loop="uvloop", log_level="info")


if __name__ == "__main__":
    main()
