"""The hazards of forking under an event loop, by their numbers in docs/hazards.md.

Each test fails when the defence that it names is taken out. Hazards with a natural home elsewhere:
7 (the caller's `finally`), 21, 24 in test_errors.py; 12 in test_output.py; 22 in test_wire.py;
23 in test_call.py; 32, 33, 35 and 37 in test_cancel.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings

import anyio
import numpy as np
import pytest

import aioisolate
from aioisolate import (
    CallableDidNotExecuteError,
    CallableStatusUnknownError,
    Reason,
    capture_isolated,
    run_isolated,
)
from tests.conftest import LOOPS, descriptors, has_children, run_on
from tests.helpers import Stages, alive, fork, python, until, wait_until
from tests.internals import Process, bootstrap, prctl
from tests.internals import fds as os_fds

pytestmark = pytest.mark.part(name="calls")

hazard = pytest.mark.hazard


# Event loop and signals


@hazard(1)
@pytest.mark.asyncio
async def test_a_signal_for_the_child_stays_there():
    calls = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, calls.append, 1)
    stages = Stages()
    task = asyncio.create_task(capture_isolated(time.sleep, 60, on_event=stages))
    os.kill(await stages.reached("started"), signal.SIGTERM)
    outcome = await task
    await asyncio.sleep(0.01)
    loop.remove_signal_handler(signal.SIGTERM)
    assert outcome.exit == -signal.SIGTERM
    assert not calls


@hazard(2)
async def test_a_signal_before_the_reset_finds_no_handler(tmp_path, monkeypatch):
    log = open(tmp_path / "log", "ab", buffering=0)

    def first_step(number, original=bootstrap.set_parent_death_signal):
        os.kill(os.getpid(), signal.SIGUSR1)  # in the child, which has hardly begun
        original(number)

    monkeypatch.setattr(bootstrap, "set_parent_death_signal", first_step)
    before = signal.signal(signal.SIGUSR1, lambda *_: log.write(b"handled\n"))
    try:
        for _ in range(5):
            outcome = await capture_isolated(int)
            assert outcome.exit == -signal.SIGUSR1
            assert isinstance(outcome.error, CallableDidNotExecuteError)
    finally:
        signal.signal(signal.SIGUSR1, before)
        log.close()
    assert (tmp_path / "log").read_bytes() == b""


@hazard(3)
def test_ctrl_c_between_fork_and_registration(monkeypatch):
    from tests.internals import forked

    def fork(original=forked.fork):
        pid = original()
        if pid:
            signal.raise_signal(signal.SIGINT)
        return pid

    monkeypatch.setattr(forked, "fork", fork)
    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(run_isolated(time.sleep, 60))
    loop.close()
    assert not has_children()


@hazard(4)
@pytest.mark.asyncio
async def test_the_childs_cleaning_up_does_not_reach_the_parents_loop():
    async def echo(reader, writer):
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    loop = asyncio.get_running_loop()

    def demolish():
        transport = writer.transport
        for fd in range(3, 60):
            with contextlib.suppress(Exception):
                loop.remove_reader(fd)
        with contextlib.suppress(Exception):
            transport.abort()
        with contextlib.suppress(Exception):
            loop._selector.close()
        gc.unfreeze()
        gc.collect()
        return "demolished"

    assert await run_isolated(demolish) == "demolished"
    writer.write(b"still there?")
    assert await asyncio.wait_for(reader.read(100), 20) == b"still there?"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


@hazard(5)
def test_the_loop_is_idle_while_a_child_runs():
    loop = asyncio.new_event_loop()
    polls = 0
    select = loop._selector.select

    def counted(timeout=None):
        nonlocal polls
        polls += 1
        return select(timeout)

    loop._selector.select = counted

    def busy():  # the grandchild keeps every pipe open, beyond the end of the child
        subprocess.Popen(["sleep", "1"], start_new_session=True)
        time.sleep(0.3)

    loop.run_until_complete(run_isolated(busy, output="capture"))
    loop.run_until_complete(asyncio.sleep(0.2))
    loop.close()
    assert polls < 30


@hazard(6)
@pytest.mark.parametrize("inner", LOOPS)
def test_any_loop_in_any_loop(loop, inner):
    async def innermost():
        await anyio.sleep(0.001)
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0)
        return anyio.get_current_task().name is not None

    assert run_on(loop, run_isolated, lambda: run_on(inner, innermost)) is True
    assert run_on(loop, run_isolated, lambda: run_on(inner, run_isolated, abs, -1)) == 1


@hazard(6)
async def test_no_loop_seems_to_run_in_the_child():
    def look():
        found = []
        with contextlib.suppress(RuntimeError):
            found.append(asyncio.get_running_loop())
        with contextlib.suppress(RuntimeError):
            found.append(asyncio.current_task())
        with contextlib.suppress(Exception):
            found.append(anyio.get_cancelled_exc_class())
        return [str(item) for item in found if item is not None]

    assert await run_isolated(look) == []


@hazard(7)
@pytest.mark.parametrize(
    "end",
    [
        "SystemExit",
        "KeyboardInterrupt",
        "GeneratorExit",
        "CancelledError",
        "_exit",
        "abort",
        "exec",
    ],
)
async def test_the_callers_finally_runs_once(end, tmp_path):
    def stop():
        match end:
            case "_exit":
                os._exit(0)
            case "abort":
                os.abort()
            case "exec":
                os.execv("/bin/true", ["true"])
            case "CancelledError":
                raise asyncio.CancelledError
        raise {
            "SystemExit": SystemExit,
            "KeyboardInterrupt": KeyboardInterrupt,
            "GeneratorExit": GeneratorExit,
        }[end]

    with open(tmp_path / "log", "ab", buffering=0) as log:
        with pytest.raises(CallableStatusUnknownError):
            try:
                await run_isolated(stop)
            finally:
                log.write(b"x")
    assert (tmp_path / "log").read_bytes() == b"x"


# Descriptors


@hazard(8)
@pytest.mark.asyncio
async def test_clients_see_the_end_of_connections_beside_a_living_child():
    left, right = socket.socketpair()
    right.setblocking(False)
    stages = Stages()
    task = asyncio.create_task(run_isolated(time.sleep, 60, on_event=stages))
    await stages.reached("started")
    left.close()
    loop = asyncio.get_running_loop()
    assert await asyncio.wait_for(loop.sock_recv(right, 1), 20) == b""
    right.close()
    assert alive(stages.pid)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@hazard(8)
async def test_files_of_the_child_survive_the_collection_of_inherited_sockets():
    sockets = [socket.socket() for _ in range(8)]

    def work():
        files = [tempfile.TemporaryFile() for _ in range(8)]
        for inherited in sockets:
            inherited.close()  # closes its number, whoever has it
        sockets.clear()
        gc.collect()
        for file in files:
            file.write(b"x")
            file.flush()
        return "all well"

    try:
        assert await run_isolated(work) == "all well"
    finally:
        for own in sockets:
            own.close()


@hazard(8)
async def test_nothing_but_files_is_inherited():
    read, write = os.pipe()
    left, right = socket.socketpair()

    def look():
        return {
            fd: to
            for fd, to in descriptors().items()
            if fd > 2 and not to.startswith(("/dev/null", "/dev/urandom"))
        }

    with left, right, tempfile.TemporaryFile() as file:
        ours = set(descriptors().values())
        inherited = await run_isolated(look)
        name = os.readlink(f"/proc/self/fd/{file.fileno()}")
    os.close(read)
    os.close(write)
    others = [to for to in inherited.values() if to != name and not to.startswith("/")]
    assert not ours.intersection(others)
    # Its own channel and scratch file, and nothing else that is not a file; but for the pipe that
    # libuv opens anew in each copy.
    assert sorted({to.split(":")[0] for to in others} - {"pipe"}) in (
        ["/memfd", "socket"],
        ["socket"],
    )


@hazard(8)
@pytest.mark.filterwarnings("ignore::aioisolate.ForkSafetyWarning")
async def test_nothing_but_files_is_inherited_with_threads():
    """Then it is the child who looks."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    left, right = socket.socketpair()
    try:
        with left, right:
            with pytest.raises(OSError, match="non-socket"):
                await run_isolated(left.send, b"x")
    finally:
        stop.set()
        thread.join()


@hazard(8)
async def test_nothing_but_files_is_inherited_among_many_descriptors():
    """Then, too."""
    sockets = [socket.socket() for _ in range(200)]
    try:
        with pytest.raises(OSError, match="non-socket"):
            await run_isolated(sockets[-1].listen)
    finally:
        for own in sockets:
            own.close()


@hazard(10)
@pytest.mark.parametrize("kind", ["asyncio", "trio"])  # libuv itself aborts
def test_standard_streams_closed_in_the_parent(kind, tmp_path):
    source = """
        import anyio, ctypes, os, sys
        from aioisolate import run_isolated

        def work():
            libc = ctypes.CDLL(None)
            libc.puts(b"rubbish"); libc.fflush(None)
            os.system("echo rubbish")
            print("rubbish")
            return [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)]

        result = anyio.run(run_isolated, work, backend=sys.argv[1])
        with open(sys.argv[2], "w") as file:
            file.write(repr(result))
    """
    python(source, kind, str(tmp_path / "out"), prefix="<&- >&- 2>&-", capture_output=False)
    assert (tmp_path / "out").read_text() == repr(["/dev/null"] * 3)


@hazard(11)
@pytest.mark.filterwarnings("ignore::aioisolate.ForkSafetyWarning")
def test_two_loops_in_two_threads(loop):
    failures = []

    async def many(base):
        for i in range(25):
            if await run_isolated(lambda i=i: base + i) != base + i:
                failures.append((base, i))

    threads = [threading.Thread(target=run_on, args=(loop, many, n * 1000)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


@hazard(8)
async def test_files_of_a_child_survive_in_its_own_children():
    """Numbers that were ours in the parent are nobody's in the child."""

    async def outer():
        for fd in numbers:
            os.close(fd)
        files = [tempfile.TemporaryFile() for _ in range(20)]

        def write_to_all():
            return [os.write(file.fileno(), b"x") for file in files]

        await run_isolated(write_to_all)
        return [os.fstat(file.fileno()).st_size for file in files]

    # Several at once, so that there are enough such numbers.
    async with anyio.create_task_group() as group:
        stages = [Stages(), Stages()]
        for each in stages:
            group.start_soon(lambda each=each: run_isolated(time.sleep, 0.3, on_event=each))
            await each.reached("started")
        # Channels and memfds of calls in flight: no object in the child will close these again.
        numbers = [
            fd
            for fd, to in descriptors().items()
            if fd in os_fds.ours and to.startswith(("socket:", "/memfd:"))
        ]
        assert len(numbers) >= 4
        assert await run_isolated(outer) == [1] * 20


# Interpreter state


@hazard(13)
async def test_finalizers_and_exit_handlers_of_the_parent_do_not_run_in_the_child(tmp_path):
    class Cycle:
        def __init__(self):
            self.me = self
            self.directory = tempfile.TemporaryDirectory(dir=tmp_path)

    cycle = Cycle()
    kept = cycle.directory.name
    gc.disable()
    try:
        del cycle  # unreachable now, and not collected yet
        assert await run_isolated(gc.collect) is not None
        with pytest.raises(CallableStatusUnknownError):
            await run_isolated(sys.exit)
        assert os.path.isdir(kept)
    finally:
        gc.enable()
        with pytest.warns(ResourceWarning):
            gc.collect()


@hazard(13)
def test_exit_handlers_run_once():
    result = python(
        """
        import asyncio, atexit, sys
        from aioisolate import run_isolated
        atexit.register(print, "bye", flush=True)
        try:
            asyncio.run(run_isolated(sys.exit))
        except Exception:
            pass
        """
    )
    assert result.stdout == "bye\n", result.stderr


@hazard(14)
@pytest.mark.filterwarnings("ignore::aioisolate.ForkSafetyWarning")
async def test_fork_in_the_middle_of_an_import(tmp_path, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text("import builtins\nbuiltins._gate.wait()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import builtins

    gate = builtins._gate = threading.Event()
    thread = threading.Thread(target=__import__, args=("slow_to_import",))
    thread.start()
    wait_until(lambda: "slow_to_import" in sys.modules)
    try:

        def work():
            import slow_to_import

        with pytest.raises(CallableDidNotExecuteError) as caught:
            await run_isolated(work, start_timeout=0.2)
        assert caught.value.reason is Reason.START_TIMEOUT
        assert isinstance(caught.value, TimeoutError)
        assert "slow_to_import" in str(caught.value)
        threading.Timer(0.1, gate.set).start()
        await run_isolated(work, timeout=30)  # waits until it is imported
    finally:
        gate.set()
        thread.join()
        del sys.modules["slow_to_import"], builtins._gate


@hazard(14)
@pytest.mark.filterwarnings("ignore::aioisolate.ForkSafetyWarning")
async def test_a_lock_that_stops_the_child_before_fn():
    held, stop = threading.Event(), threading.Event()

    def hold():
        with np.random.mtrand._rand._bit_generator.lock:
            held.set()
            stop.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        with pytest.raises(CallableDidNotExecuteError) as caught:
            await run_isolated(int, start_timeout=0.2)
    finally:
        stop.set()
        thread.join()
    assert caught.value.reason is Reason.START_TIMEOUT
    assert isinstance(caught.value, TimeoutError)
    assert await run_isolated(int, start_timeout=20) == 0


@hazard(15)
async def test_numerical_libraries_after_use_in_the_parent():
    matrix = np.random.rand(400, 400)
    expected = (matrix @ matrix).sum()
    assert np.isclose(await run_isolated(lambda: (matrix @ matrix).sum(), timeout=60), expected)


@hazard(16)
def test_a_slow_fork_shows_in_the_usage():
    result = python(
        """
        import asyncio, os, time
        from aioisolate import capture_isolated
        os.register_at_fork(before=lambda: time.sleep(0.1))
        print(asyncio.run(capture_isolated(int)).usage.fork)
        """
    )
    assert float(result.stdout) >= 0.1, result.stderr


@hazard(17)
@pytest.mark.parametrize("filters", ["default", "always", "error"])
def test_threads_are_warned_about_before_the_fork(filters):
    result = python(
        f"""
        import asyncio, os, sys, threading, warnings
        import aioisolate
        from aioisolate import run_isolated
        if {filters != "default"}:
            warnings.simplefilter("{filters}")
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait, name="somebody's")
        thread.start()
        async def main():
            for _ in range(3):
                try:
                    await run_isolated(int)  # here
                except aioisolate.ForkSafetyWarning:
                    print("refused")
                try:
                    print("child left", os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG))
                except ChildProcessError:
                    pass
        try:
            asyncio.run(main())
        finally:
            stop.set()
        """
    )
    assert "DeprecationWarning" not in result.stderr
    assert "child left" not in result.stdout
    if filters == "error":
        assert result.stdout == "refused\n" * 3
    else:  # once per call site, and naming it
        assert result.stderr.count("ForkSafetyWarning") == (1 if filters == "default" else 3)
        assert "<string>:13: ForkSafetyWarning" in result.stderr
        assert "somebody's" in result.stderr


@hazard(17)
@pytest.mark.parametrize("aware", ["0", "1"])
def test_pythons_own_warning_never_loses_a_child(aware):
    """It is raised when the child is there; filters may be each context's own (Python 3.14)."""
    result = python(
        """
        import asyncio, os, threading, warnings
        from aioisolate import ForkSafetyWarning, run_isolated
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        async def main():
            warnings.simplefilter("ignore", ForkSafetyWarning)
            for _ in range(2):
                print(await run_isolated(int))
                with warnings.catch_warnings():
                    warnings.simplefilter("error", DeprecationWarning)
                    print(await run_isolated(int))
        try:
            asyncio.run(main())
        finally:
            stop.set()
        """,
        env={"PYTHON_CONTEXT_AWARE_WARNINGS": aware},
    )
    assert result.stdout == "0\n" * 4, result.stderr


@hazard(17)
async def test_no_warning_without_threads(recwarn):
    await run_isolated(int)
    await run_isolated(lambda: b"x" * 20_000_000)  # unpickled in a thread of ours
    await run_isolated(int)
    assert not recwarn.list


# The result channel


@hazard(19)
async def test_a_grandchild_does_not_delay_the_result():
    def work():
        # Inherits whatever is not closed on exec, and leaves the group.
        fds = [int(fd) for fd in os.listdir("/proc/self/fd")]
        child = subprocess.Popen(["sleep", "30"], start_new_session=True, close_fds=False)
        return child.pid, fds

    started = time.monotonic()
    pid, _ = await run_isolated(work, output="capture")
    assert time.monotonic() - started < 10
    os.kill(pid, signal.SIGKILL)


@hazard(19)
async def test_a_forked_grandchild_holding_the_channel_does_not_delay_the_result():
    def work():
        pid = os.fork()
        if pid == 0:
            os.setsid()
            time.sleep(30)
            os._exit(0)
        return pid

    started = time.monotonic()
    pid = await run_isolated(work)
    assert time.monotonic() - started < 10
    os.kill(pid, signal.SIGKILL)


@hazard(19)
async def test_fn_that_forks_and_returns_twice():
    def work():
        return "child" if os.fork() else "grandchild"

    for _ in range(5):
        assert await run_isolated(work) == "child"


@hazard(20)
@pytest.mark.asyncio
async def test_crashes_are_never_misreported():
    async def crash(code):
        outcome = await capture_isolated(os._exit, code)
        return outcome.exit == code and outcome.error.reason is (
            Reason.EXIT if code else Reason.NO_RESULT
        )

    for _ in range(20):
        assert all(await asyncio.gather(*(crash(code) for code in range(25))))


_turned = threading.Event()


def _unpickled_when_the_loop_has_turned():
    """Is called by unpickling; the event loop has to go on for it to end well."""
    _loop.call_soon_threadsafe(_turned.set)
    return _turned.wait(20)


class SlowToUnpickle:
    def __reduce__(self):
        return _unpickled_when_the_loop_has_turned, ()


@hazard(26)
@pytest.mark.asyncio
@pytest.mark.parametrize("size", [200_000, 20_000_000])
async def test_unpickling_does_not_hold_up_the_loop(size):
    global _loop
    _turned.clear()
    _loop = asyncio.get_running_loop()
    text, turned = await run_isolated(lambda: ("x" * size, SlowToUnpickle()))
    assert len(text) == size
    assert turned


# Reaping


@hazard(27)
async def test_sigchld_ignored():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        outcome = await capture_isolated(int)
        assert outcome.value == 0
        crash = await capture_isolated(os._exit, 7)
        gone = await capture_isolated(os.kill, 0, 0)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert gone.error is None
    # Linux 6.15 still knows how it ended; before, nobody does.
    assert crash.exit in (7, None)
    assert crash.error.reason is (Reason.EXIT if crash.exit == 7 else Reason.WAIT)
    if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15):
        assert crash.exit == 7


@hazard(28)
@pytest.mark.parametrize("reaper", ["pidfd", "thread"])
async def test_somebody_else_collects_our_children(reaper, monkeypatch):
    if reaper == "thread":
        without_pidfds(monkeypatch)
    collect = Process._collect

    def beaten(self):
        os.waitpid(self.pid, 0)  # what os.waitpid(-1, 0) somewhere else comes to
        return collect(self)

    monkeypatch.setattr(Process, "_collect", beaten)
    assert await run_isolated(abs, -2) == 2
    outcome = await capture_isolated(os._exit, 3)
    assert outcome.exit in (3, None)
    assert isinstance(outcome.error, CallableStatusUnknownError)


@hazard(29)
@hazard(30)
def test_a_handle_forgets_its_number():
    def child():
        pid = fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        process = Process()
        process.adopt(pid)
        return process

    first = child()
    number = first.fileno()
    first.signal(signal.SIGKILL)
    first.ended(20)
    first.reap()
    first.close()
    second = child()
    assert second.fileno() == number  # the recycled descriptor
    first.signal(signal.SIGKILL)
    first.signal_group(signal.SIGKILL)
    assert not second.ended(0.05)
    second.signal(signal.SIGKILL)
    second.ended(20)
    assert second.reap().exit == -9
    second.close()


def test_a_copy_of_a_handle_does_nothing():
    pid = fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    process = Process()
    process.adopt(pid)
    copy = fork()
    if copy == 0:
        process.signal(signal.SIGKILL)
        process.close()
        os._exit(0)
    os.waitpid(copy, 0)
    assert not process.ended(0.05)
    process.signal(signal.SIGKILL)
    process.ended(20)
    process.reap()
    process.close()


def without_pidfds(monkeypatch, code=errno.ENOSYS):
    def pidfd_open(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)


@hazard(31)
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EMFILE])
async def test_without_pidfds(monkeypatch, code):
    without_pidfds(monkeypatch, code)
    assert await run_isolated(abs, -1) == 1
    outcome = await capture_isolated(os.abort)
    assert outcome.exit == -signal.SIGABRT
    with pytest.raises(TimeoutError):
        await run_isolated(time.sleep, 60, timeout=0.1)
    with anyio.move_on_after(0.1):
        await run_isolated(time.sleep, 60)


def without_group_signals(monkeypatch):
    """As it is before Linux 6.9."""
    send = signal.pidfd_send_signal

    def old(pidfd, number, info=None, flags=0):
        if flags:
            raise OSError(errno.EINVAL, "Invalid argument")
        send(pidfd, number, info, flags)

    monkeypatch.setattr(signal, "pidfd_send_signal", old)


@pytest.mark.parametrize("kernel", ["this", "before 6.9", "without pidfds"])
def test_a_group_is_gone_with_its_last_member(monkeypatch, kernel):
    if kernel == "before 6.9":
        without_group_signals(monkeypatch)
    if kernel == "without pidfds":
        without_pidfds(monkeypatch)
    read, write = os.pipe()
    pid = fork()
    if pid == 0:
        os.setpgid(0, 0)
        if os.fork() == 0:
            os.write(write, str(os.getpid()).encode())
            time.sleep(60)
        os._exit(0)
    process = Process()
    process.adopt(pid)
    assert process.ended(20)
    left = int(os.read(read, 20))
    os.close(read)
    os.close(write)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Process, "signal_group", lambda *_: None)  # it would kill the rest
            assert process.reap().exit == 0
        assert not process.group_is_gone()
        assert alive(left)
    finally:
        os.kill(left, signal.SIGKILL)
    assert wait_until(process.group_is_gone)
    assert not alive(left)
    process.close()
    assert process.group_is_gone()


@hazard(31)
async def test_without_group_signals_through_pidfds(monkeypatch):
    without_group_signals(monkeypatch)

    def work():
        return subprocess.Popen(["sleep", "60"]).pid

    grandchild = await run_isolated(work)
    await until(lambda: not alive(grandchild))


FAILING = [
    (os, "pipe", errno.EMFILE, Reason.PIPE_CREATION),
    (__import__("_socket"), "socketpair", errno.EMFILE, Reason.PIPE_CREATION),
    (os, "open", errno.ENFILE, Reason.PIPE_CREATION),
    (os, "memfd_create", errno.ENOMEM, Reason.PIPE_CREATION),
    (os, "fork", errno.EAGAIN, Reason.FORK),
    (os, "fork", errno.ENOMEM, Reason.FORK),
    (os, "set_blocking", errno.EBADF, Reason.PIPE_CREATION),
    (__import__("fcntl"), "fcntl", errno.EMFILE, Reason.PIPE_CREATION),
    (__import__("select"), "epoll", errno.EMFILE, Reason.PIPE_CREATION),
]


@hazard(31)
@pytest.mark.parametrize(
    ("module", "name", "code", "reason"),
    FAILING,
    ids=[f"{name}-{errno.errorcode[code]}" for _, name, code, _ in FAILING],
)
@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_every_system_call_may_fail(monkeypatch, module, name, code, reason, nth):
    original = getattr(module, name)
    calls = 0

    def failing(*args, **options):
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(code, os.strerror(code))
        with warnings.catch_warnings():  # about threads: here os.fork is called by another module
            warnings.filterwarnings("ignore", "This process", DeprecationWarning)
            return original(*args, **options)

    before = descriptors()
    monkeypatch.setattr(module, name, failing)
    outcome = await capture_isolated(abs, -1, output="capture")
    monkeypatch.undo()
    if calls >= nth:
        assert outcome.error.reason is reason
        assert isinstance(outcome.error, CallableDidNotExecuteError)
        assert outcome.error.__cause__.errno == code
        assert os.strerror(code) in str(outcome.error)
    else:
        assert outcome.value == 1
    assert {fd for fd in descriptors() if fd not in before} == set()
    assert not has_children()


@hazard(31)
async def test_no_pidfd_and_no_thread(monkeypatch):
    """A child that can't be watched is killed, and whether it had begun is told truthfully."""
    without_pidfds(monkeypatch)
    from tests.internals import threads

    def start(name, work):
        time.sleep(0.05)
        raise OSError(errno.EAGAIN, "can't start new thread")

    monkeypatch.setattr(threads, "Helper", start)
    error = (await capture_isolated(time.sleep, 60)).error
    assert isinstance(error, (CallableStatusUnknownError, CallableDidNotExecuteError))
    assert error.reason is (
        Reason.WAIT if isinstance(error, CallableStatusUnknownError) else Reason.FORK
    )
    assert not has_children()


@hazard(31)
def test_process_limit():
    result = python(
        """
        import asyncio, os, resource
        from aioisolate import capture_isolated
        if os.getuid() == 0:
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        error = asyncio.run(capture_isolated(int)).error
        print(error.reason.name, error.__cause__.errno, "RLIMIT_NPROC" in str(error))
        """
    )
    assert result.stdout == f"FORK {errno.EAGAIN} True\n", result.stderr


@hazard(31)
async def test_descriptor_limit():
    used = max(descriptors()) + 1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for extra in range(8):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + extra, hard))
        try:
            outcome = await capture_isolated(abs, -1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if outcome.error is not None:
            assert outcome.error.reason in (Reason.PIPE_CREATION, Reason.FORK)
            assert outcome.error.__cause__.errno == errno.EMFILE


# Cancellation and life


@hazard(34)
def test_ctrl_c_in_the_terminal_is_the_parents_business(tmp_path):
    source = f"""
        import asyncio, os, signal, time
        from aioisolate import run_isolated
        def work():
            try:
                time.sleep(60)
            except BaseException as exc:
                open({str(tmp_path / "seen")!r}, "a").write(type(exc).__name__)
                raise
        def told(event):
            if event.name == "started":
                print(event.pid, flush=True)
                os.killpg(0, signal.SIGINT)  # as the terminal does
        asyncio.run(run_isolated(work, on_event=told))
    """
    result = python(source, start_new_session=True)
    assert result.returncode != 0
    assert "KeyboardInterrupt" in result.stderr
    assert not alive(int(result.stdout))
    assert not (tmp_path / "seen").exists()


@hazard(36)
async def test_grandchildren_end_with_the_call():
    grandchild = await run_isolated(lambda: subprocess.Popen(["sleep", "60"]).pid)
    await until(lambda: not alive(grandchild))


@hazard(36)
def test_no_zombies_are_left_to_a_subreaper():
    result = python(
        """
        import asyncio, ctypes, os, subprocess
        from aioisolate import run_isolated
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: as pid 1 of a container is
        def work():
            for _ in range(3):
                subprocess.Popen(["sleep", "60"])
        asyncio.run(run_isolated(work))
        try:
            print(os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG))
        except ChildProcessError:
            print("none")
        """
    )
    assert result.stdout == "none\n", result.stderr


@hazard(37)
async def test_a_stopped_child_can_be_killed():
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        await run_isolated(lambda: os.kill(os.getpid(), signal.SIGSTOP), timeout=0.1)
    assert time.monotonic() - started < 20


@hazard(38)
async def test_the_child_goes_first_when_memory_runs_out():
    def score():
        with open("/proc/self/oom_score_adj") as file:
            return int(file.read())

    before = score()
    assert await run_isolated(score) == 1000
    assert score() == before


@hazard(38)
async def test_a_kill_that_was_not_ours():
    error = (await capture_isolated(os.kill, 0, 0)).error
    assert error is None
    error = (await capture_isolated(lambda: os.kill(os.getpid(), 9))).error
    assert "out of memory" in str(error)
    assert error.exit == -9


@hazard(39)
async def test_programs_inherit_no_ignored_and_no_blocked_signals():
    def look():
        return subprocess.run(
            ["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    old = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        status = await run_isolated(look)
        own = await run_isolated(lambda: open("/proc/self/status").read())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
        signal.signal(signal.SIGHUP, before)
    masks = [int(line.split()[1], 16) for line in status.splitlines()]
    assert masks == [0, 0]
    blocked = next(line for line in own.splitlines() if line.startswith("SigBlk"))
    assert int(blocked.split()[1], 16) == 0


@hazard(44)
async def test_reading_memory_that_was_not_inherited_is_a_crash_of_the_child():
    import mmap

    area = mmap.mmap(-1, mmap.PAGESIZE)
    area.madvise(mmap.MADV_DONTFORK)
    outcome = await capture_isolated(lambda: area[0])
    assert outcome.exit == -signal.SIGSEGV
    assert "<lambda>" in outcome.error.crash_traceback
    area.close()


@hazard(45)
def test_children_of_children_die_with_their_parent(loop):
    read, write = os.pipe()

    async def outer():
        def told(event):
            if event.name == "started":
                os.write(write, f"{event.pid} ".encode())

        await run_isolated(time.sleep, 60, on_event=told, pass_fds=[write])

    async def main():
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def call():
                    await run_isolated(outer, pass_fds=[write])

                group.start_soon(call)
                await anyio.wait_readable(read)
                scope.cancel()

    run_on(loop, main)
    pid = int(os.read(read, 100))
    os.close(read)
    os.close(write)
    wait_until(lambda: not alive(pid))


# What has no number


def test_the_crash_report_setting_of_the_parent_is_left_alone():
    import faulthandler

    enabled = faulthandler.is_enabled()
    asyncio.run(run_isolated(int))
    assert faulthandler.is_enabled() == enabled


def test_the_signal_mask_of_the_parent_is_restored():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        asyncio.run(run_isolated(int))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before | {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_subreaper_is_noticed():
    assert prctl.is_subreaper() in (True, False)
    assert aioisolate.__version__
