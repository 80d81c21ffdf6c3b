"""A long report with live progress, over server-sent events, that can be cancelled from the page.

    python examples/report_service.py --port 8000

Open / in a browser. The report reads the source of Python's standard library, file by file, in a
child of its own; leaving the page, or its Cancel button, ends that child.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import sysconfig
import time
from collections import Counter
from collections.abc import AsyncIterator

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from aioisolate import IsolationError, Isolator, Progress, report_progress


def report(directory: str, pause: float) -> dict[str, object]:
    """Count what the modules in *directory* consist of; runs in the child."""
    names = sorted(name for name in os.listdir(directory) if name.endswith(".py"))
    counts: Counter[str] = Counter()
    lines = 0
    for done, name in enumerate(names, 1):
        with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as file:
            source = file.read()
        lines += source.count("\n")
        counts.update(type(node).__name__ for node in ast.walk(ast.parse(source)))
        report_progress(done, len(names), name)
        time.sleep(pause)
    return {"modules": len(names), "lines": lines, "nodes": counts.most_common(5)}


async def get_report(request: Request) -> Response:
    """Stream the progress of a new report, and at last the report itself."""
    pause = min(float(request.query_params.get("pause", "0.02")), 1.0)
    return StreamingResponse(
        events(request.app.state.isolator, pause), media_type="text/event-stream"
    )


async def events(isolator: Isolator, pause: float) -> AsyncIterator[str]:
    """Make a report in a child; yield server-sent events. Cancelled, it takes the child along."""
    latest: list[Progress] = []
    news = anyio.Event()

    def note(progress: Progress) -> None:
        latest[:] = [progress]
        news.set()

    directory = sysconfig.get_path("stdlib")
    async with isolator.open_job(report, directory, pause, on_progress=note, timeout=300) as job:
        while not job.done():
            with anyio.move_on_after(0.2):
                await news.wait()
            news = anyio.Event()
            while latest:
                yield event("progress", latest.pop()._asdict())
        try:
            yield event("report", await job.result())
        except IsolationError as error:
            yield event("failure", {"error": str(error)})


def event(name: str, data: object) -> str:
    """Format a server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def jobs(request: Request) -> Response:
    """List what is going on."""
    return JSONResponse(
        [
            {"id": job.id, "name": job.name, "state": job.state, "age": job.age, "pid": job.pid}
            for job in request.app.state.isolator.jobs()
        ]
    )


async def page(_request: Request) -> Response:
    """Show the page."""
    return HTMLResponse(PAGE)


PAGE = """<!doctype html><meta charset=utf-8><title>Report</title>
<style>body{font:16px system-ui;max-width:40em;margin:3em auto}progress{width:100%}</style>
<h1>Report</h1>
<p><button id=start>Start</button> <button id=cancel disabled>Cancel</button></p>
<progress id=bar value=0 max=1></progress><p id=what>&nbsp;</p><pre id=report></pre>
<script>
const byId = id => document.getElementById(id)
let source = null
function stop(text) {
  source.close(); source = null
  byId("start").disabled = false; byId("cancel").disabled = true
  byId("what").textContent = text
}
byId("start").onclick = () => {
  byId("start").disabled = true; byId("cancel").disabled = false; byId("report").textContent = ""
  source = new EventSource("/report" + location.search)
  source.addEventListener("progress", event => {
    const {done, total, message} = JSON.parse(event.data)
    byId("bar").max = total; byId("bar").value = done
    byId("what").textContent = `${done} of ${total}: ${message}`
  })
  source.addEventListener("report", event => {
    byId("report").textContent = JSON.stringify(JSON.parse(event.data), null, 2)
    stop("done")
  })
  source.addEventListener("failure", event => stop(JSON.parse(event.data).error))
  source.onerror = () => stop("the connection was lost")
}
byId("cancel").onclick = () => stop("cancelled")
// A page that one has left may live on in the browser's cache, with its connection.
onpagehide = () => source && stop("cancelled")
</script>"""


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Keep a fork server as long as the application lives."""
    async with Isolator(preload=["ast", "sysconfig"], warm=1) as isolator:
        app.state.isolator = isolator
        yield


app = Starlette(
    lifespan=lifespan,
    routes=[Route("/", page), Route("/report", get_report), Route("/jobs", jobs)],
)


def main() -> None:
    parser = argparse.ArgumentParser(description="A long report with live progress.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    options = parser.parse_args()
    uvicorn.run(app, host=options.host, port=options.port, loop="uvloop", log_level="info")


if __name__ == "__main__":
    main()
