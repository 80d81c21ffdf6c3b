"""What a stranger's code may try: without a sandbox it succeeds, and in one it does not.

That it succeeds without one is what proves that it would be seen if it did with one.
"""

from __future__ import annotations

import asyncio
import builtins
import os
import signal
import socket
import sys
import time
from typing import Any

import anyio
import pytest

import aioisolate
from aioisolate import CallableDidNotExecuteError, IsolationError, Isolator, Limits, Sandbox
from tests.attacks import ATTACKS, Attack, Scene, be_a_sibling, without_imports
from tests.attacks.inheritance import overwrite
from tests.helpers import ROOT, Stages, python
from tests.internals import arrays, snapshot

every_attack = pytest.mark.parametrize(
    "attack", ATTACKS, ids=[f"{attack.group}-{attack.name}" for attack in ATTACKS]
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.part(name="attacks"),
    pytest.mark.one_loop,
    pytest.mark.skipif(sys.platform != "linux", reason="these are attacks on Linux"),
    # What is forked here is what a test wants to be forked here.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::aioisolate.ForkSafetyWarning"),
]


def test_names_are_unique():
    names = [(attack.group, attack.name) for attack in ATTACKS]
    assert len(set(names)) == len(names)


async def attempt(attack: Attack, scene: Scene, *, more: dict[str, Any], **options) -> None:
    """Run an attack with an Isolator of some kind; *more* are options of the call."""
    if options.get("start") != "fork":
        options["preload"] = ["tests.attacks", *attack.preload(scene)]
    try:
        async with Isolator(max_concurrency=4, **options) as iso:
            await carry_out(attack, scene, iso, **more)
    except CallableDidNotExecuteError as refusal:  # the fork server can't be started
        scene.outcome = aioisolate.Outcome(error=refusal)


async def carry_out(attack: Attack, scene: Scene, iso: Isolator, **options) -> None:
    """Run an attack's function in a child, beside a sibling if it wants one."""
    if not attack.sibling:
        await _call(attack, scene, iso, options)
        return
    stages = Stages()
    async with iso.open_job(be_a_sibling, scene.marker.hex(), on_event=stages) as job:
        scene.sibling_pid = await stages.reached("started")
        await anyio.sleep(0.1)
        await _call(attack, scene, iso, options)
        # As long as the sibling is there.
        scene.notes["succeeded"] = succeeded(attack, scene)
        job.cancel()


async def _call(attack: Attack, scene: Scene, iso: Isolator, options) -> None:
    arguments = attack.arrange(scene)
    options = {"output": "null"} | attack.options(scene) | options
    call = [attack.run, *arguments]
    if "limits" not in options:
        options |= attack.off_options(scene)
        call.insert(0, without_imports)
    began = time.monotonic()
    try:
        scene.outcome = await iso.capture(*call, timeout=attack.timeout, **options)
    except Exception as exc:
        # `capture` never raises for a call's fate; a forged answer may have made it do so.
        scene.notes["escaped"] = exc
        scene.outcome = aioisolate.Outcome(error=exc)
    scene.wall = time.monotonic() - began


def succeeded(attack: Attack, scene: Scene) -> bool:
    if "succeeded" in scene.notes:
        return scene.notes["succeeded"]
    try:
        return bool(attack.succeeded(scene.outcome.value, scene))
    except OSError as exc:
        scene.notes["unseen"] = exc
        return False


def verdict(error: BaseException | None) -> str:
    """Give the one word for how a call ended."""
    if error is None:
        return "value"
    if isinstance(error, IsolationError) and hasattr(error, "reason"):
        return error.reason.name
    name = getattr(error, "type_name", None) or type(error).__qualname__
    name = name.rpartition(".")[2]
    kind = getattr(builtins, name, None)
    if name == "gaierror" or (isinstance(kind, type) and issubclass(kind, OSError)):
        return "denied"
    for kinds, word in (
        ((LookupError,), "nothing"),
        ((MemoryError,), "memory"),
        ((RuntimeError,), "threads"),
    ):
        if isinstance(kind, type) and issubclass(kind, kinds):
            return word
    return name


@every_attack
async def test_without_the_sandbox_it_succeeds(attack):
    if attack.needs_root and os.geteuid() != 0:
        pytest.skip("only root can do that anyway")
    if why := attack.needs():
        pytest.skip(why)
    with Scene() as scene:
        await attempt(attack, scene, start=attack.off_start, more={})
        worked = succeeded(attack, scene)
        seen = (worked, verdict(scene.outcome.error), scene.outcome, scene.notes.get("unseen"))
        if attack.off == "success":
            assert worked, seen
        else:
            assert not worked, seen
            assert verdict(scene.outcome.error) in attack.off.split("|"), seen


@every_attack
async def test_untrusted_stops_it(attack):
    with Scene() as scene:
        await attempt(
            attack,
            scene,
            sandbox=Sandbox.untrusted(),
            more={"limits": Limits(**attack.limits)},
        )
        seen = (verdict(scene.outcome.error), scene.outcome)
        assert not succeeded(attack, scene), seen
        assert "escaped" not in scene.notes, seen
        assert verdict(scene.outcome.error) in attack.expect.split("|"), seen


@pytest.mark.parametrize(
    "sandbox", [None, Sandbox.untrusted(), Sandbox.untrusted(level="portable")], ids=str
)
async def test_11_25_an_array_that_may_only_be_read(sandbox):
    """Neither by its memory nor by its file, opened once more, does a stranger write to it."""
    pytest.importorskip("numpy")
    array = aioisolate.shared_array(4096, "u1")
    read_only = array.view()
    read_only.flags.writeable = False
    preload = ["tests.attacks", snapshot.__name__, arrays.__name__]
    try:
        async with Isolator(sandbox=sandbox, preload=preload) as iso:
            done = await iso.run(overwrite, read_only, timeout=10)
    except CallableDidNotExecuteError as refusal:
        pytest.skip(str(refusal))
    if sandbox is None:
        assert done
        assert bytes(array[:8]) == b"attacked"
    else:
        assert done == []
        assert not array.any()


# What is left when the parent is killed

_PARENT = """
import asyncio, os, signal, sys, time
import aioisolate
from aioisolate import Isolator
from tests.attacks.resources import {attack}

async def main():
    line = int(sys.argv[1])
    more = {more}
    async with Isolator(preload=["tests.attacks"], **more) as iso:
        def kill(event):
            if event.name == "started":
                asyncio.get_running_loop().call_later(
                    0.5, os.kill, os.getpid(), signal.SIGKILL
                )
        await iso.run({call}, pass_fds=[line], output="null", on_event=kill)

asyncio.run(main())
"""


def killed_parent(attack: str, wants: bool, more: str) -> bool:
    """Kill a parent while an attack runs; tell whether somebody is left of it."""
    with Scene() as scene:
        fd = scene.line()
        call = f"{attack}, line" if wants else attack
        source = _PARENT.format(attack=attack, call=call, more=more)
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        done = python(source, str(fd), pass_fds=[fd], env={"PYTHONPATH": path})
        assert done.returncode == -signal.SIGKILL, done.stderr
        return scene.held()


def test_a_killed_parent_leaves_a_daemon_without_the_sandbox():
    assert killed_parent("leave_behind_and_hang", True, "{}")


def test_a_killed_parent_leaves_none_that_is_an_ordinary_child():
    assert not killed_parent("ignore_everything", False, "{}")


@pytest.mark.parametrize(
    ("attack", "wants"), [("leave_behind_and_hang", True), ("ignore_everything", False)]
)
def test_a_killed_parent_leaves_none_with_the_sandbox(attack, wants):
    sandbox = "aioisolate.Sandbox(subprocesses=True)"
    assert not killed_parent(attack, wants, f'{{"sandbox": {sandbox}}}')


# Who may start processes

_daemons = [attack for attack in ATTACKS if attack.name.startswith("daemon")]


@pytest.mark.parametrize("attack", _daemons, ids=lambda attack: attack.name)
@pytest.mark.parametrize("warm", [0, 1])
async def test_daemons_end_with_their_call(attack, warm):
    with Scene() as scene:
        async with Isolator(
            sandbox=Sandbox(subprocesses=True), preload=["tests.attacks"], warm=warm
        ) as iso:
            await carry_out(attack, scene, iso)
            seen = (verdict(scene.outcome.error), scene.outcome)
            assert not succeeded(attack, scene), seen
            assert verdict(scene.outcome.error) in attack.expect.split("|"), seen
            assert attack.name == "daemon-by-clone" or "denied" not in seen
