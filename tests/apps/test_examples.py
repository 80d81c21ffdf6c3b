"""Every example runs, as a process of its own; the image service over real HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import httpx
import pytest
import skimage

from tests.helpers import ROOT, alive, service, until, wait_until

# Up to scikit-image 0.26 they lie in the package itself.
PICTURES = next(
    folder
    for package in ("skimage", "_skimage2")
    if (folder := Path(skimage.__file__).parent.parent / package / "data")
    and (folder / "coffee.png").exists()
)
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
EXPECTED = {
    "quick_tour": [
        "in the child: [1, 2, 3]   here: [3, 1, 2]",
        "raised in 'parse': return int(text)",
        "CallableStatusUnknownError, SIGNAL, SIGSEGV",
        "in poke",
        "it took longer than 0.2 s",
        "in wait_for_godot",
        "the child is gone: True",
        r"stdout='hello from the child\n'",
        "add_slowly(40, b=2) = 42",
        "50 children computed 40425",
    ],
    "error_handling": [
        "the answer is 42",
        "a job that returns: 'a value'",
        "raised ZeroDivisionError",
        "crashed with SIGABRT",
        "exited by itself with exit code 3",
        "took too long and was killed",
        "its result was lost (RESULT_ENCODING)",
    ],
    "blocking_signals": ["call ends undisturbed\nSIGTERM handled\nsignals let in again"],
    "wiped_secrets": ["in the child: 0000000000000000...  b'not wiped'"],
    "tracing": ["spawn", "started", "result", "reaped"],
    "leaky_extension": [],
    "image_service": [],
    "report_service": [],
    "code_interpreter": [],  # tests/apps/test_code_interpreter.py
    "code_interpreter_cell": [],
    "batch": [],
    "dataset": [],
}


def test_every_example_is_tested():
    assert set(EXPECTED) == set(EXAMPLES)


def run(*command: str, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        cwd=ROOT,
        **options,
    )


@pytest.mark.parametrize("name", [name for name in EXAMPLES if EXPECTED[name]])
def test_example(name):
    result = run(f"examples/{name}.py")
    assert result.returncode == 0, result.stderr
    for line in EXPECTED[name]:
        assert line in result.stdout


def test_the_leaky_extension():
    result = run("examples/leaky_extension.py")
    assert result.returncode == 0, result.stderr
    grown = {words[0]: float(words[1]) for words in map(str.split, result.stdout.splitlines()[-2:])}
    assert grown["isolated"] < 4
    assert grown["directly"] > 190


def picture(name="coffee.png"):
    return (PICTURES / name).read_bytes()


def test_the_image_service():
    async def main(address, pid):
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            assert (
                "<form" in (await client.get("/")).text or "<input" in (await client.get("/")).text
            )
            # Real pictures, as the body and as a form.
            names = ["coffee.png", "rocket.jpg", "no_time_for_that_tiny.gif"]
            replies = await asyncio.gather(
                *(client.post("/thumbnail?side=64", content=picture(name)) for name in names)
            )
            assert [r.status_code for r in replies] == [200] * 3
            assert all(r.content.startswith(b"\x89PNG") for r in replies)
            assert [r.headers["x-original"].split()[0] for r in replies] == ["PNG", "JPEG", "GIF"]
            form = await client.post("/thumbnail", files={"picture": picture("rocket.jpg")})
            assert form.headers["x-original"] == "JPEG 640x427"

            # What is no picture, or too much of it.
            assert (await client.post("/thumbnail", content=b"text")).status_code == 422
            assert (
                "UnidentifiedImageError"
                in (await client.post("/thumbnail", content=b"text")).json()["error"]
            )
            large = await client.post("/thumbnail", content=bytes(21 << 20))
            assert large.status_code == 413
            bad = await client.post("/thumbnail?side=x", content=picture())
            assert bad.status_code == 400

            # What kills a decoder.
            poisoned = await client.post("/thumbnail", content=b"POISON")
            assert poisoned.status_code == 422
            answer = poisoned.json()
            assert answer["reason"] == "SIGNAL"
            assert answer["safe_to_retry"] is False
            assert any("decode_with_flaws" in line for line in answer["where"])
            endless, meanwhile = await asyncio.gather(
                client.post("/thumbnail", content=b"ENDLESS"),
                client.post("/thumbnail", content=picture()),
            )
            assert endless.status_code == 504
            assert endless.json()["reason"] == "TIMEOUT"
            assert meanwhile.status_code == 200

            # Who hangs up.
            request = asyncio.create_task(client.post("/thumbnail", content=b"ENDLESS"))
            while not (running := (await client.get("/health")).json()["running"]):
                await asyncio.sleep(0.01)
            request.cancel()
            await until(lambda: not alive(running[0]), 1.5)  # before its timeout would kill it

            health = (await client.get("/health")).json()
            assert health["pid"] == pid

    with service() as (address, pid):
        asyncio.run(main(address, pid))


def test_the_report_service():
    async def main(address):
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            assert "EventSource" in (await client.get("/")).text
            names, data = [], ""
            async with client.stream("GET", "/report?pause=0") as reply:
                assert reply.headers["content-type"].startswith("text/event-stream")
                async for line in reply.aiter_lines():
                    if line.startswith("event: "):
                        names.append(line.removeprefix("event: "))
                    elif line.startswith("data: "):
                        data = line.removeprefix("data: ")
            assert names[0] == "progress"
            assert names[-1] == "report"
            assert json.loads(data)["modules"] > 100

            # The page is closed in the middle.
            async with client.stream("GET", "/report?pause=1") as reply:
                async for line in reply.aiter_lines():
                    if line.startswith("data: "):
                        break
                (job,) = (await client.get("/jobs")).json()
                assert job["state"] == "running"
            await until(lambda: not alive(job["pid"]))
            with anyio.fail_after(20):
                while (await client.get("/jobs")).json():
                    await anyio.sleep(0.01)

    with service("report_service") as (address, _):
        asyncio.run(main(address))


def test_sigterm_lets_what_runs_come_to_its_end():
    """uvicorn closes the application's lifespan, and with it the Isolator."""

    async def main(address, pid):
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            endless = asyncio.create_task(client.post("/thumbnail", content=b"ENDLESS"))
            while not (running := (await client.get("/health")).json()["running"]):
                await asyncio.sleep(0.01)
            os.kill(pid, signal.SIGTERM)
            assert (await endless).status_code == 504  # its own timeout, nobody else's doing
            return running[0]

    with service() as (address, pid):
        job = asyncio.run(main(address, pid))
        wait_until(lambda: not alive(pid))
        assert not alive(job)


def test_the_batch(tmp_path):
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    for name in ("coffee.png", "rocket.jpg"):
        (folder / name).write_bytes(picture(name))
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "poison.crash").write_bytes(b"")
    result = run("examples/batch.py", str(folder), str(out))
    assert result.returncode == 0, result.stderr
    assert "4 of 4" in result.stdout
    assert "2 thumbnails in" in result.stdout
    assert "bad.png: UnidentifiedImageError" in result.stdout
    assert "poison.crash: CallableStatusUnknownError: the child was killed by SIGSEGV" in (
        result.stdout
    )
    assert len(list(out.iterdir())) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="what it shows is in /proc")
def test_the_data_set():
    result = run("examples/dataset.py", "--megabytes=64", "--queries=6", "--at-once=3")
    assert result.returncode == 0, result.stderr
    lines = {text[:36].strip(): text[36:].split() for text in result.stdout.splitlines()}
    assert "the same answers however they were asked: True" in result.stdout

    trips = runpy.run_path(str(ROOT / "examples/dataset.py"))["make_trips"](64)
    for zone in range(5):
        there = trips[trips["origin"] == zone]
        text = f"zone {zone}: {len(there)} trips, {there['fare'].mean():.2f} on average, "
        assert f"{text}{there['kilometres'].max():.1f} km" in result.stdout

    def megabytes(title):
        return [float(number) for number in lines[title][::2]]

    warm, forked, copied = megabytes("a child's own memory at its peak")
    assert max(warm, forked) < 64 / 4
    assert copied > 64
    before, with_data, after = megabytes("resident")
    assert max(with_data, after) < before + 64 / 4


def test_the_demo():
    result = run("scripts/demo_main.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "7 of 7 promises kept" in result.stdout
