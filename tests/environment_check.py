"""What the library does in the environment that this program is started in, as JSON.

python -m tests.environment_check [--setuid UID]

One object on standard output: who runs it, what `features.report()` says, and for each preset
whether it works or is refused, which attacks were stopped, whether calls end when they have to, and
what was left behind. tests/environments.py has the environments, and what is expected of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from aioisolate import IsolationError, Isolator, RemoteError, Sandbox, features, run_isolated
from tests import environment_actions as actions
from tests import environment_presets as presets

_VICTIM = "--victim"
# What may be required of each sandbox of a stranger's, whether `features.report` names it or not.
_LAYERS = ("landlock", "namespaces", "seccomp", "user", "view of files")
_PATIENCE = 10.0  # for what happens at once on a machine that has time
# Errors by which an attack is denied.
_DENIED = {
    "PermissionError",
    "FileNotFoundError",
    "OSError",
    "BlockingIOError",
    "ConnectionRefusedError",
    "ProcessLookupError",
    "RuntimeError",  # can't start new thread
    "MemoryError",
}


def gone(pid: int) -> bool:
    """Whether there is no such process any more; a zombie, whose parent is to collect it, is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


async def until_gone(pid: int) -> bool:
    end = time.monotonic() + _PATIENCE
    while not gone(pid):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.01)
    return True


def fds() -> list[int]:
    """What is open in this process, without /proc."""
    found = []
    for fd in range(512):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            found.append(fd)
    return found


def told(error: BaseException) -> dict[str, str]:
    """Return what is said about an error."""
    reason = error.reason.name if isinstance(error, IsolationError) else ""
    return {"type": type(error).__name__, "reason": reason, "text": str(error)}


class Scene:
    """What there is to be attacked."""

    def __init__(self) -> None:
        self.signals = 0
        signal.signal(signal.SIGUSR1, self._count)
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.file = ""
        with contextlib.suppress(OSError):  # nothing can be written to here
            self.folder = tempfile.TemporaryDirectory(prefix="environment-")
            os.chmod(self.folder.name, 0o755)
            self.file = os.path.join(self.folder.name, "private")
            with open(self.file, "w") as file:
                file.write("secret")
            os.chmod(self.file, 0o600)
        self.listener: socket.socket | None = None
        with contextlib.suppress(OSError):
            self.listener = socket.create_server(("127.0.0.1", 0))

    def _count(self, *_: object) -> None:
        self.signals += 1

    def close(self) -> None:
        if self.folder is not None:
            self.folder.cleanup()
        if self.listener is not None:
            self.listener.close()

    def attacks(self) -> Iterator[tuple[str, Callable[..., Any], Any]]:
        """Give the name, the function and its argument of each."""
        if self.file:
            yield "read a private file", actions.read, self.file
            yield "write a file", actions.write, self.file
        yield "read /etc/passwd", actions.read, "/etc/passwd"
        if self.listener is not None:
            yield "connect", actions.connect, self.listener.getsockname()[1]
        yield "fork", actions.fork, None
        yield "kill the parent", actions.kill, os.getpid()
        yield "40 threads", actions.start_threads, 40
        yield "600 MiB", actions.take_memory, 600 << 20
        yield "200 descriptors", actions.open_many, 200


async def attempt(
    iso: Isolator, run: Callable[..., Any], argument: Any = None, on_event: Any = None
) -> str:
    """Carry out an attack: "stopped", "succeeded", or what else happened."""
    arguments = () if argument is None else (argument,)
    try:
        await iso.run(run, *arguments, timeout=_PATIENCE, output="null", on_event=on_event)
    except RemoteError as error:
        name = error.type_name.rpartition(".")[2]
        return "stopped" if name in _DENIED else f"{error.type_name}: {error.message}"
    except IsolationError as error:
        return "stopped" if error.reason.name == "MEMORY_LIMIT" else f"{error.reason}: {error}"
    except (OSError, RuntimeError, MemoryError):
        return "stopped"
    except ValueError as error:
        return f"ValueError: {error}"
    return "succeeded"


class Started:
    """Awaits the moment in which a call has begun."""

    def __init__(self) -> None:
        self.pid = 0
        self.event = asyncio.Event()

    def __call__(self, event: Any) -> None:
        self.pid = event.pid
        if event.name == "started":
            self.event.set()


async def crowd(iso: Isolator) -> str:
    """Attack while this process has many threads, which end as soon as the call has begun."""
    leave = threading.Event()
    threads = [threading.Thread(target=leave.wait) for _ in range(30)]
    for thread in threads:
        thread.start()

    def note(event: Any) -> None:
        if event.name == "started":
            leave.set()

    try:
        return await attempt(iso, actions.start_threads_in_time, 40, note)
    finally:
        leave.set()
        for thread in threads:
            thread.join()


async def stubborn(iso: Isolator) -> tuple[asyncio.Task[Any], int]:
    """Begin a call that sleeps through every signal; return it, and its process."""
    started = Started()
    call = asyncio.create_task(iso.run(actions.sleep_stubbornly, 60, on_event=started))
    waiting = asyncio.create_task(started.event.wait())
    await asyncio.wait({call, waiting}, timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if call.done():
        await call
    return call, started.pid


async def ends(iso: Isolator, server: int) -> dict[str, Any]:
    """Have calls end by their timeout, by cancellation, and by the Isolator's closing."""
    found: dict[str, Any] = {}
    started = Started()
    began = time.monotonic()
    try:
        await iso.run(actions.sleep_stubbornly, 60, timeout=0.3, on_event=started)
    except IsolationError as error:
        found["timeout"] = error.reason.name
    if time.monotonic() - began > _PATIENCE:
        found["timeout"] = "too late"
    found["gone after its timeout"] = await until_gone(started.pid)
    call, pid = await stubborn(iso)
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(call, _PATIENCE)
    found["gone after its cancellation"] = await until_gone(pid)
    call, pid = await stubborn(iso)
    await asyncio.wait_for(iso.aclose(cancel=True), _PATIENCE)
    try:
        await call
    except IsolationError as error:
        found["closing"] = error.reason.name
    found["gone after closing"] = await until_gone(pid)
    found["server gone"] = await until_gone(server)
    return found


async def check(sandbox: Sandbox | None, scene: Scene) -> dict[str, Any]:
    """Try one preset: it works or is refused, and what comes of it then."""
    result: dict[str, Any] = {"outcome": "works"}
    signals = scene.signals
    iso = Isolator(sandbox=sandbox, preload=[actions.__name__], warm=1)
    try:
        await iso.__aenter__()
        try:
            answer = await iso.run(actions.work, 41, timeout=_PATIENCE)
            result |= {"value": answer["number"], "user": answer["user"], "names": answer["names"]}
            result["exception"] = await attempt(iso, actions.fail, "so")
            result["attacks"] = {
                name: await attempt(iso, run, argument) for name, run, argument in scene.attacks()
            }
            result["attacks"]["capabilities"] = await attempt(iso, actions.hold_capabilities)
            result["attacks"]["threads in others' place"] = await crowd(iso)
            result["signals"] = scene.signals - signals
            result["ends"] = await ends(iso, answer["server"])
        finally:
            await iso.aclose(cancel=True)
    except Exception as error:
        result |= {"outcome": "refused"} | told(error)
    return result


async def check_calls() -> dict[str, Any]:
    """Try calls without an Isolator: copies of this process."""
    found: dict[str, Any] = {}
    for name, sandbox in (("plain", None), ("crash_guard", Sandbox.crash_guard())):
        try:
            value = await run_isolated(actions.work, 41, sandbox=sandbox, timeout=_PATIENCE)
            found[name] = value["number"]
        except Exception as error:
            found[name] = told(error)
    return found


def victim(name: str) -> None:
    """Be a program that is killed: print the processes that are to go with it, and wait."""

    async def run() -> None:
        sandbox = presets.make(name)
        async with Isolator(sandbox=sandbox, preload=[actions.__name__], warm=1) as iso:
            server = (await iso.run(actions.work, 1))["server"]
            _, pid = await stubborn(iso)
            print(json.dumps([pid, server]), flush=True)
            await asyncio.sleep(60)

    warnings.simplefilter("ignore")
    try:
        asyncio.run(run())
    except IsolationError:
        print("[]", flush=True)


def start_victim(name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.environment_check", _VICTIM, name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def kill_victim(process: subprocess.Popen[str]) -> bool | None:
    """Kill a program in the middle of a call; tell whether nothing of it is left."""
    with process:
        assert process.stdout is not None
        pids = json.loads(process.stdout.readline() or "[]")
        process.kill()
    if not pids:
        return None
    end = time.monotonic() + _PATIENCE
    while not all(map(gone, pids)):
        collect_orphans()
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def collect_orphans() -> None:
    """As process 1, collect the processes that a killed program has left."""
    with contextlib.suppress(ChildProcessError):
        while os.getpid() == 1 and os.waitpid(-1, os.WNOHANG)[0]:
            pass


def has_children() -> bool:
    collect_orphans()
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def reports() -> dict[str, Any]:
    """Return what the library says holds here, by the presets' names, and by the findings'."""
    return {
        name: {finding.name: [finding.holds, finding.detail] for finding in report.findings}
        for name, report in presets.reports().items()
    }


async def try_sandbox(sandbox: Sandbox) -> dict[str, Any]:
    """Tell whether a sandbox can be used."""
    try:
        async with Isolator(sandbox=sandbox, preload=[actions.__name__], warm=0) as iso:
            return {"outcome": "works", "value": (await iso.run(actions.work, 41))["number"]}
    except Exception as error:
        return {"outcome": "refused"} | told(error)


async def check_advice(found: dict[str, Any]) -> dict[str, Any]:
    """Require what does not hold, by name, and leave out what a refusal says to leave out."""
    report = found["reports"]["full"]
    names = {*_LAYERS, *(name for name in report if name != "sandbox")}
    required = {
        name: await try_sandbox(Sandbox.untrusted(require=[name]))
        for name in sorted(names)
        if not report.get(name, [False])[0]
    }
    left_out = {name: await follow(name, found[name]) for name in ("full", "portable")}
    return {"required": required, "left out": left_out}


async def follow(level: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a refusal says, and what the next one says; return what comes of it."""
    left_out: list[str] = []
    for _ in range(3):
        if found["outcome"] == "works":
            break
        advice = re.findall(r"without=\['([^']+)'\]|leave out (limits\.\w+)", found["text"])
        names = [first or second for first, second in advice]
        if not set(names) - set(left_out):
            break
        left_out += names
        found = await try_sandbox(Sandbox.untrusted(level=level, without=left_out))
    return found | {"left out": left_out}


async def check_presets(scene: Scene) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in presets.NAMES:
        if name == "warn" and found["full"]["outcome"] == "works":
            found[name] = {"outcome": "works"}  # there is nothing to warn of
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found[name] = await check(presets.make(name), scene)
        found[name]["warnings"] = [str(entry.message) for entry in caught]
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    if _VICTIM in sys.argv:
        victim(sys.argv[-1])
        return
    if "--setuid" in sys.argv:
        # Whoever gives up privileges like this can't be looked into any more.
        uid = int(sys.argv[sys.argv.index("--setuid") + 1])
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    began = time.monotonic()
    victims = {name: start_victim(name) for name in ("full", "portable")}
    scene = Scene()
    result: dict[str, Any] = {"user": os.geteuid(), "pid": os.getpid()}
    result["reports"] = reports()
    asyncio.run(asyncio.sleep(0))
    before = fds()
    result |= asyncio.run(check_presets(scene))
    result["advice"] = asyncio.run(check_advice(result))
    result["calls"] = asyncio.run(check_calls())
    result["left open"] = [fd for fd in fds() if fd not in before]
    result["died with it"] = {name: kill_victim(process) for name, process in victims.items()}
    scene.close()
    result["left children"] = has_children()
    result["seconds"] = round(time.monotonic() - began, 1)
    json.dump(result, sys.stdout)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
