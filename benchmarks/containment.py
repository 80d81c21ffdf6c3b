"""What containment costs: each layer, the presets, warm and cold, beside bubblewrap and python -I.

    python benchmarks/containment.py [--quick]

Calls are compared one by one, in random order, in one process; ratios and differences are medians
over pairs from the same round, since the machine's speed changes from minute to minute.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from aioisolate import Isolator, Limits, Sandbox, run_isolated
from tests import functions

clock = time.perf_counter
Call = Callable[[], Awaitable[Any]]

# One layer at a time; all else is left out.
_OFF: dict[str, Any] = {
    "read": None,
    "write": None,
    "network": "inherit",
    "subprocesses": False,
    "namespaces": "off",
    "syscalls": "off",
    "user": "keep",
    "env": None,
    "codec": "pickle",
}
LAYERS = {
    "no_new_privs": {},
    "user id of its own": {"user": "auto"},
    "Landlock": {"read": ("aioisolate:python",), "write": ()},
    "seccomp, default": {"syscalls": "default"},
    "seccomp, strict": {"syscalls": "strict"},
    "namespaces": {"namespaces": "require"},
    "namespaces and view of files": {
        "namespaces": "require",
        "read": ("aioisolate:python",),
        "write": (),
    },
    "the same and scratch": {
        "namespaces": "require",
        "read": ("aioisolate:python",),
        "write": (),
        "scratch": "1 MiB",
    },
    "namespaces and init": {"namespaces": "require", "subprocesses": True},
    "data-only codec": {"codec": "msgspec"},
    "limits": {"limits": Limits(memory="512 MiB", cpu_time=10, open_files=64, file_size="1 MiB")},
    "crash_guard()": None,
    "Sandbox()": None,
    "untrusted()": None,
}


def sandbox_of(name: str) -> Sandbox:
    presets = {
        "crash_guard()": Sandbox.crash_guard,
        "Sandbox()": Sandbox,
        "untrusted()": Sandbox.untrusted,
    }
    if name in presets:
        return presets[name]()
    return Sandbox(**(_OFF | (LAYERS[name] or {})))


async def interleaved(calls: dict[str, Call], rounds: int, gap: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            await call()
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            await asyncio.sleep(gap)
            start = clock()
            await calls[name]()
            times[name].append(clock() - start)
    return times


def show(title: str, times: dict[str, list[float]], base: str) -> None:
    print(f"\n{title}\n{'':28}{'median':>10}{'/ plain':>9}{'- plain':>12}")
    for name, of in times.items():
        pairs = list(zip(of, times[base], strict=True))
        ratio = statistics.median(one / plain for one, plain in pairs)
        extra = statistics.median(one - plain for one, plain in pairs)
        median = statistics.median(of) * 1e6
        print(f"{name:28}{median:7.0f} us{ratio:9.2f}{extra * 1e6:+9.0f} us")


async def serve(start: dict[str, Any], names: list[str], rounds: int, title: str) -> None:
    """Compare children of fork servers."""
    async with AsyncExitStack() as stack:
        calls: dict[str, Call] = {}
        for name in ("plain", *names):
            sandbox = None if name == "plain" else sandbox_of(name)
            iso = await stack.enter_async_context(
                Isolator(sandbox=sandbox, preload=["tests.functions"], **start)
            )
            calls[name] = lambda iso=iso: iso.run(functions.double, 2)
        show(title, await interleaved(calls, rounds, 0.01 if start else 0.003), "plain")


if sys.version_info < (3, 12):  # by default it waits in threads, which a fork is warned about
    asyncio.set_child_watcher(asyncio.PidfdChildWatcher())


async def program(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0, argv


async def alone(rounds: int) -> None:
    """Compare direct forks, and programs that confine others."""
    calls: dict[str, Call] = {"plain": lambda: run_isolated(functions.double, 2)}
    for name in ("crash_guard()", "Sandbox()"):
        sandbox = sandbox_of(name)
        calls[name] = lambda sandbox=sandbox: run_isolated(functions.double, 2, sandbox=sandbox)
    async with Isolator(sandbox=Sandbox.untrusted(), preload=["tests.functions"]) as iso:
        calls["untrusted(), cold"] = lambda: iso.run(functions.double, 2)
        calls["python -I -c pass"] = lambda: program(sys.executable, "-I", "-c", "pass")
        if bwrap := shutil.which("bwrap"):
            argv = (bwrap, "--unshare-all", "--ro-bind", "/", "/", "true")
            calls["bwrap --unshare-all true"] = lambda: program(*argv)
        else:
            print("(bubblewrap is not installed)")
        show("Beside direct forks and other programs", await interleaved(calls, rounds, 0), "plain")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rounds = 100 if quick else 500
    presets = ["crash_guard()", "Sandbox()", "untrusted()"]
    await serve({"warm": 1}, presets, rounds, "Warm, from a confined fork server")
    await serve({}, presets, rounds // 2, "Cold, from a confined fork server")
    layers = [name for name in LAYERS if name not in presets]
    await serve({}, layers, rounds // 3, "Each layer by itself, cold, from a fork server")
    await alone(rounds // 3)


asyncio.run(main())
