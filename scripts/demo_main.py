"""What ./scripts/demo shows: a real server, real pictures, and uploads that would kill it.

It starts examples/image_service.py under uvicorn and uvloop, sends it the photographs that come
with scikit-image over HTTP, and then everything that a server fears. Exits with 0 if it kept its
promises.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import skimage

ROOT = Path(__file__).resolve().parent.parent
# Up to scikit-image 0.26 they lie in the package itself.
PICTURES = next(
    folder
    for package in ("skimage", "_skimage2")
    if (folder := Path(skimage.__file__).parent.parent / package / "data")
    and (folder / "coffee.png").exists()
)
WIDTH = 78

promises: list[tuple[str, bool]] = []


def title(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")


def promise(text: str, kept: bool) -> None:
    promises.append((text, kept))
    print(f"  {'ok  ' if kept else 'FAIL'}  {text}")


@contextlib.contextmanager
def server() -> Iterator[tuple[str, int]]:
    """Run the image service on a free port; give its address and pid."""
    command = [sys.executable, str(ROOT / "examples" / "image_service.py"), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if found := re.search(r"running on (http://\S+)", line):
                    yield found[1], process.pid
                    break
            else:
                raise SystemExit("the server did not start")
        finally:
            process.terminate()


def alive(pid: int) -> bool:
    """Tell whether there is such a process."""
    return Path(f"/proc/{pid}").exists()


def pictures() -> list[Path]:
    """List the photographs that scikit-image brings along."""
    found = [p for p in sorted(PICTURES.iterdir()) if p.suffix in {".png", ".jpg", ".gif", ".tif"}]
    return [p for p in found if "multipage" not in p.name]


def where(answer: dict[str, Any]) -> str:
    """Pick the innermost line of the service's own from a stack."""
    line: str = next(line for line in answer["where"] if "image_service" in line)
    return line.replace(str(ROOT) + "/", "")


async def thumbnails(client: httpx.AsyncClient) -> None:
    title("1. Real pictures, all at once, each decoded in a throw-away process")

    async def one(path: Path) -> tuple[str, httpx.Response, float]:
        started = time.perf_counter()
        reply = await client.post("/thumbnail", content=path.read_bytes())
        return path.name, reply, time.perf_counter() - started

    replies = await asyncio.gather(*(one(path) for path in pictures()))
    for name, reply, seconds in replies:
        original = reply.headers.get("x-original", reply.text[:40])
        print(
            f"  {name:24} {original:18} -> {len(reply.content):6} bytes  {seconds * 1000:6.0f} ms"
        )
    good = [reply for _, reply, _ in replies if reply.content.startswith(b"\x89PNG")]
    promise(f"{len(good)} of {len(replies)} thumbnails made", 0 < len(good) == len(replies))


async def poison(client: httpx.AsyncClient, pid: int) -> None:
    title("2. An upload that makes the decoder follow a null pointer, ten times at once")
    replies = await asyncio.gather(
        *(client.post("/thumbnail", content=b"POISON") for _ in range(10))
    )
    answer = replies[0].json()
    print(f"  the server answers {replies[0].status_code}: {answer['error']}")
    print(f"  it happened in {where(answer)}")
    promise("each crash became an answer", all(r.json()["reason"] == "SIGNAL" for r in replies))
    health = await client.get("/health")
    promise("the server lives, and is the same process", health.json()["pid"] == pid)


async def endless(client: httpx.AsyncClient) -> None:
    title("3. An upload that never ends, while others are served")
    started = time.perf_counter()
    stuck = asyncio.create_task(client.post("/thumbnail", content=b"ENDLESS"))
    picture = (PICTURES / "coffee.png").read_bytes()
    times = []
    while not stuck.done():
        before = time.perf_counter()
        await client.post("/thumbnail", content=picture)
        times.append(time.perf_counter() - before)
    answer = stuck.result().json()
    print(f"  meanwhile {len(times)} thumbnails were made, {max(times) * 1000:.0f} ms at most")
    print(f"  after {time.perf_counter() - started:.1f} s: {answer['error']}")
    print(f"  it was in {where(answer)}")
    promise("a TimeoutError, and its child was killed", answer["reason"] == "TIMEOUT")


async def hang_up(client: httpx.AsyncClient) -> None:
    title("4. A client that hangs up")
    request = asyncio.create_task(client.post("/thumbnail", content=b"ENDLESS"))
    while not (running := (await client.get("/health")).json()["running"]):
        await asyncio.sleep(0.01)
    print(f"  a child is working for it: process {running[0]}")
    hung_up = time.perf_counter()
    request.cancel()
    while alive(running[0]) and time.perf_counter() - hung_up < 1:
        await asyncio.sleep(0.002)
    seconds = time.perf_counter() - hung_up
    promise(f"{seconds * 1000:.0f} ms later it is gone", not alive(running[0]))


async def flat(client: httpx.AsyncClient) -> None:
    title("5. After 200 more thumbnails")
    before = (await client.get("/health")).json()["resident_kb"]
    picture = (PICTURES / "coffee.png").read_bytes()
    started = time.perf_counter()
    for _ in range(20):
        await asyncio.gather(*(client.post("/thumbnail", content=picture) for _ in range(10)))
    print(f"  {200 / (time.perf_counter() - started):.0f} thumbnails a second")
    grown = (await client.get("/health")).json()["resident_kb"] - before
    promise(f"the server grew by {max(grown, 0)} KB", grown < 8192)
    promise("no call is left", not (await client.get("/health")).json()["running"])


async def main() -> int:
    print("aioisolate: an image service that survives what it is fed".center(WIDTH))
    with server() as (address, pid):
        print(f"examples/image_service.py under uvicorn and uvloop at {address}".center(WIDTH))
        async with httpx.AsyncClient(base_url=address, timeout=30) as client:
            await thumbnails(client)
            await poison(client, pid)
            await endless(client)
            await hang_up(client)
            await flat(client)
    broken = [text for text, kept in promises if not kept]
    title(f"{len(promises) - len(broken)} of {len(promises)} promises kept")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
