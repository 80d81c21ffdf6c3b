"""What fn raises, and every other way in which it can fail to return something."""

from __future__ import annotations

import asyncio
import copy
import enum
import gc
import logging
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
import types

import numpy as np
import pytest

import aioisolate
from aioisolate import (
    CallableDidNotExecuteError,
    CallableExecutedError,
    CallableStatusUnknownError,
    Exit,
    IsolationError,
    Limits,
    Reason,
    RemoteError,
    capture_isolated,
    isolated,
    run_isolated,
)
from tests.attacks.channel import find_line
from tests.helpers import error_of, isolator, python
from tests.internals import (
    SCRATCH_START,
    CallOptions,
    CallTimeoutError,
    Features,
    Kind,
    StartTimeoutError,
    crash,
    encode,
    execution,
    make_plan,
    result,
    safe_text,
)

pytestmark = [pytest.mark.quick, pytest.mark.dependencies, pytest.mark.part(name="calls")]


class TwoArguments(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")
        self.first = first
        self.second = second


class KeywordOnly(Exception):
    def __init__(self, *, code):
        super().__init__(f"code {code}")
        self.code = code


class Reduced(Exception):
    def __init__(self, value):
        super().__init__("message without the value")
        self.value = value

    def __reduce__(self):
        return Reduced, (self.value,)


class Outer:
    class Nested(Exception):
        pass


def raises(exc):
    raise exc


async def caught(fn, *args, **options):
    return (await capture_isolated(fn, *args, **options)).error


# fn's own exceptions


@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueError("text"),
        lambda: TwoArguments(1, 2),
        lambda: KeywordOnly(code=3),
        lambda: Reduced([1, 2]),
        lambda: Outer.Nested("inner"),
        lambda: FileNotFoundError(2, "No such file", "name"),
        lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "why"),
        lambda: KeyError("key"),
        lambda: RecursionError("deep"),
        lambda: StopAsyncIteration(),
        lambda: ValueError("x" * 5_000_000),
    ],
)
async def test_type_arguments_and_attributes(make):
    original = make()
    error = await caught(raises, original)
    assert type(error) is type(original)
    assert error.args == original.args
    assert error.__dict__ == original.__dict__
    assert str(error) == str(original)
    assert error.__traceback__.tb_frame.f_code.co_name == "raises"


async def test_real_frames_and_lines():
    def middle():
        inner()

    def inner():
        raise LookupError("here")

    with pytest.raises(LookupError) as info:
        await run_isolated(middle)
    frames = traceback.extract_tb(info.value.__traceback__)
    names = [frame.name for frame in frames]
    assert names[-2:] == ["middle", "inner"]
    assert frames[-1].lineno == inner.__code__.co_firstlineno + 1
    assert frames[-1].filename == __file__
    assert not any("_child" in frame.filename for frame in frames)


async def test_frames_of_an_async_function():
    async def later():
        await asyncio.sleep(0) if sys.modules.get("nothing") else None
        raise LookupError("later")

    error = await caught(later)
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names == ["later"]


async def test_cause_context_and_notes():
    def chained():
        try:
            try:
                raise KeyError("first")
            except KeyError as first:
                raise TwoArguments("second", 2) from first
        except TwoArguments:
            error = ValueError("third")
            error.add_note("a note")
            raise error  # noqa: B904

    error = await caught(chained)
    assert isinstance(error, ValueError)
    assert error.__notes__ == ["a note"]
    assert error.__cause__ is None
    second = error.__context__
    assert isinstance(second, TwoArguments)
    assert second.second == 2
    assert second.__traceback__ is not None
    assert isinstance(second.__cause__, KeyError)

    def silent():
        try:
            raise KeyError
        except KeyError:
            raise ValueError from None

    assert (await caught(silent)).__suppress_context__ is True


async def test_groups():
    def several():
        errors = []
        for make in (lambda: ValueError("a"), lambda: TwoArguments(1, 2)):
            try:
                raise make()
            except Exception as exc:
                errors.append(exc)
        raise ExceptionGroup("several", [*errors, ExceptionGroup("deeper", [KeyError("k")])])

    with pytest.raises(ExceptionGroup) as info:
        await run_isolated(several)
    first, second, deeper = info.value.exceptions
    assert first.__traceback__.tb_frame.f_code.co_name == "several"
    assert second.second == 2
    assert isinstance(deeper.exceptions[0], KeyError)
    with pytest.raises(ExceptionGroup):
        try:
            await run_isolated(several)
        except* ValueError as group:
            assert len(group.exceptions) == 1


async def test_a_local_class_is_caught():
    class Local(Exception):
        pass

    class Derived(Local):
        pass

    for cls in (Local, Derived):
        with pytest.raises(Local) as info:
            await run_isolated(raises, cls("mine"))
        assert type(info.value) is cls


def test_a_class_of_main_is_caught():
    result = python(
        """
        import asyncio
        from aioisolate import run_isolated

        class Mine(Exception):
            def __reduce__(self):
                return (lambda: Mine("x")), ()  # plain pickle refuses

        def fail():
            raise Mine("x")

        try:
            asyncio.run(run_isolated(fail))
        except Mine as error:
            print("caught", error)
        """
    )
    assert result.stdout == "caught x\n", result.stderr


async def test_a_class_made_in_the_child():
    def make():
        class Fresh(Exception):
            pass

        raise Fresh("new")

    error = await caught(make)
    assert type(error).__name__ == "Fresh"
    assert error.args == ("new",)


async def test_an_exception_with_an_array():
    error = await caught(raises, ValueError(np.ones(1_000_000)))
    assert error.args[0].sum() == 1_000_000


async def test_stop_iteration():
    # As PEP 479 has it for every coroutine.
    with pytest.raises(RuntimeError) as info:
        await run_isolated(raises, StopIteration(3))
    assert isinstance(info.value.__cause__, StopIteration)
    assert isinstance(await caught(raises, StopIteration(3)), StopIteration)


# What would tear down the caller


@pytest.mark.parametrize("code", [None, 0, 3, "text"])
async def test_system_exit(code):
    error = await caught(sys.exit, code)
    assert type(error) is CallableStatusUnknownError
    assert error.reason is Reason.EXIT
    assert isinstance(error.__cause__, SystemExit)
    assert error.__cause__.code == code
    assert error.exit == {None: 0, 0: 0, 3: 3, "text": 1}[code]


@pytest.mark.parametrize(
    "make",
    [
        lambda: KeyboardInterrupt("key"),
        lambda: GeneratorExit(),
        lambda: asyncio.CancelledError("c"),
        lambda: BaseExceptionGroup("group", [KeyboardInterrupt()]),
    ],
    ids=["KeyboardInterrupt", "GeneratorExit", "CancelledError", "BaseExceptionGroup"],
)
async def test_base_exceptions(make):
    error = await caught(raises, make())
    assert type(error) is CallableStatusUnknownError
    assert error.reason is Reason.BASE_EXCEPTION
    assert type(error.__cause__) is type(make())
    assert not isinstance(error, asyncio.CancelledError)


async def test_cancelled_inside_an_async_function():
    async def cancel_itself():
        raise asyncio.CancelledError

    assert isinstance(await caught(cancel_itself), CallableStatusUnknownError)


# Results that can't travel


async def test_a_result_that_cannot_be_pickled():
    with pytest.raises(CallableExecutedError) as info:
        await run_isolated(threading.Lock)
    assert info.value.reason is Reason.RESULT_ENCODING
    assert "_thread.lock" in str(info.value)
    assert info.value.exit == 0


class Bomb:
    def __init__(self, exc):
        self.exc = exc

    def __reduce__(self):
        return raises, (self.exc,)


@pytest.mark.parametrize("exc", [ValueError("v"), SystemExit(1), KeyboardInterrupt()])
@pytest.mark.parametrize("size", [0, 1_000_000])
async def test_a_result_that_explodes_when_loaded(exc, size):
    with pytest.raises(CallableExecutedError) as info:
        await run_isolated(lambda: ("x" * size, Bomb(exc)))
    assert info.value.reason is Reason.RESULT_DECODING
    assert type(info.value.__cause__) is type(exc)


async def test_no_room_for_the_result(monkeypatch):
    import errno

    def pwrite(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fail():
        os.pwrite = pwrite
        return b"x" * 1_000_000

    with pytest.raises(CallableExecutedError) as info:
        await run_isolated(fail)
    assert info.value.reason is Reason.RESULT_WRITE
    assert "No space left" in str(info.value)


# Ends without a result


@pytest.mark.parametrize(
    ("fn", "reason", "exit_"),
    [
        (lambda: os._exit(0), Reason.NO_RESULT, 0),
        (lambda: os._exit(3), Reason.EXIT, 3),
        (os.abort, Reason.SIGNAL, -signal.SIGABRT),
        (lambda: os.execv("/bin/true", ["true"]), Reason.NO_RESULT, 0),
        (lambda: os.execv("/bin/false", ["false"]), Reason.EXIT, 1),
        (lambda: os.closerange(3, 4096), Reason.NO_RESULT, 0),
        (lambda: os.kill(os.getpid(), 34), Reason.SIGNAL, -34),
    ],
    ids=["exit-0", "exit-3", "abort", "exec-true", "exec-false", "close-all", "real-time-signal"],
)
async def test_ends_without_a_result(fn, reason, exit_):
    with pytest.raises(CallableStatusUnknownError) as info:
        await run_isolated(fn, timeout=60)
    error = info.value
    assert error.reason is reason
    assert error.exit == exit_
    assert error.pid > 0
    assert error.usage.wall > 0
    assert str(error)


async def test_a_segfault_names_its_line():
    import ctypes

    def poke():
        ctypes.string_at(0)

    with pytest.raises(CallableStatusUnknownError) as info:
        await run_isolated(poke)
    error = info.value
    assert error.reason is Reason.SIGNAL
    assert error.exit.signal is signal.SIGSEGV
    assert "SIGSEGV" in str(error)
    line = poke.__code__.co_firstlineno + 1
    assert f'File "{__file__}", line {line} in poke' in error.crash_traceback
    assert "test_a_segfault" not in error.crash_traceback
    assert "bootstrap.py" not in error.crash_traceback


def crash_in_c():
    import ctypes

    ctypes.string_at(0)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Python 3.14 and newer tell of C functions")
async def test_c_functions_stand_above_the_python_function_that_called_them(start):
    async with isolator(start) as iso:
        error = await error_of(iso.run(crash_in_c))
    lines = error.crash_traceback.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("Current thread 0x")) + 1
    frames = [line.split('"')[1] for line in lines[first:]]
    kinds = [line.split('"')[0].strip() for line in lines[first:]]
    assert kinds == ["Binary file"] * kinds.count("Binary file") + ["File"] * 2
    # libffi, or what of it is built into _ctypes.
    assert any("ffi" in frame or "_ctypes" in frame for frame in frames)
    assert frames[-1] == __file__
    assert "in crash_in_c" in lines[-1]
    # Nothing of the interpreter, or of what is below it.
    assert not {os.path.basename(frame) for frame in frames} & {"python", "python3"}
    assert "C stack trace" not in error.crash_traceback


@pytest.mark.parametrize(
    ("frames", "left"),
    [
        ("p p c x y p p c", "c x y"),
        ("p p c p", "c"),
        ("p p p", ""),
        ("p c", "c"),
        ("", ""),
    ],
)
def test_which_c_functions_are_told_of(tmp_path, frames, left):
    text = "Current thread 0x1 [python] (most recent call first):\n  File a, line 1 in f\n\n"
    text += "Current thread's C stack trace (most recent call first):\n"
    text += "".join(f'  Binary file "{name}", at {name} [0x1]\n' for name in frames.split())
    text += "\nExtension modules: numpy (total: 1)\n"
    (tmp_path / "file").write_text(text)
    with open(tmp_path / "file") as file:
        lines = crash.StackText(file.fileno()).text().split("\n  ")
    assert lines[0].startswith("Current thread 0x1")
    assert [line.split('"')[1] for line in lines[1:-1]] == left.split()
    assert lines[-1] == "File a, line 1 in f"


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT])
async def test_other_crashes_name_their_line(number):
    error = await caught(lambda: signal.raise_signal(number))
    assert error.exit == -number
    assert "in <lambda>" in error.crash_traceback


@pytest.mark.parametrize("unit", [b"\x01", b"\n\x01", b"\xff", "\U000e0001".encode()])
async def test_a_stack_that_a_stranger_wrote_is_cut_off(unit, monkeypatch):
    def forge():
        os.pwrite(find_line().scratch, (unit * SCRATCH_START)[: SCRATCH_START - 1], 0)
        os._exit(3)

    read, escaped = [], []

    def pread(fd, size, offset, real=os.pread):
        read.append(size)
        return real(fd, size, offset)

    def escape(text, real=safe_text.escape, **options):
        escaped.append(len(text))
        return real(text, **options)

    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(safe_text, "escape", escape)
    error = await caught(forge, codec="json")
    assert error.reason is Reason.EXIT
    assert max(read) <= 64 * 1024
    assert max(escaped) <= 45 * 1024
    assert 40 * 1024 < len(error.crash_traceback) <= 45 * 1024
    assert len(str(error)) <= 64 * 1024
    assert "left out" in error.crash_traceback
    assert not set(error.crash_traceback) & {"\x01", "\U000e0001"}


async def test_words_that_a_stranger_wrote_are_cut_off():
    def forge(kind, text):
        line = find_line()
        os.write(line.channel, encode(line.nonce, kind, text + b"\x1b" * 100_000))
        os._exit(3)

    error = await caught(forge, Kind.LOST, b"RESULT_WRITE\n", codec="json")
    assert type(error) is CallableExecutedError
    assert 15 * 1024 < len(str(error)) < 18 * 1024
    # What the kernel is said to have said is a stranger's word, too.
    error = result._os_error(
        types.SimpleNamespace(options=CallOptions(codec="json")),
        (Kind.FAILED, [b"scratch\n2\n" + b"\x1b" * 100_000], ()),
    )
    assert error.errno == 2
    assert 15 * 1024 < len(error.strerror) < 18 * 1024
    assert "\x1b" not in error.strerror


@pytest.mark.parametrize("trusted", [False, True])
def test_a_stack_is_looked_for_piece_by_piece(trusted, monkeypatch):
    read = []

    def pread(fd, size, offset, real=os.pread):
        data = real(fd, size, offset)
        read.append(len(data))
        return data

    end = f'\n  File "{execution.__file__}", line 1 in work\n'.encode()
    with tempfile.TemporaryFile() as file:
        stack = crash.StackText(file.fileno(), trusted=trusted)
        file.write(b"\n" * 30_000)
        file.flush()
        stack.expect_dump()
        monkeypatch.setattr(os, "pread", pread)
        file.write(b"x" * 500_000)
        file.flush()
        for _ in range(100):
            assert not stack.whole()
        assert max(read) <= 16 * 1024
        assert sum(read) < 550_000
        file.write(end[:30])
        file.flush()
        assert not stack.whole()
        file.write(end[30:] + b"\0" * 10 + end)
        file.flush()
        assert stack.whole()
        monkeypatch.undo()
        assert len(stack.text()) == (500_000 if trusted else 64 * 1024)


async def test_a_crash_in_a_thread_of_the_child():
    import ctypes

    def poke():
        thread = threading.Thread(target=ctypes.string_at, args=(0,))
        thread.start()
        thread.join()

    error = await caught(poke)
    assert error.exit == -signal.SIGSEGV
    assert "in string_at" in error.crash_traceback
    assert "in poke" in error.crash_traceback


def write_to_the_channel(data):
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd >= 64 and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                os.write(fd, data)
        except FileNotFoundError:
            continue


@pytest.mark.parametrize(
    "data",
    [b"garbage", b"\x00" * 100, b"\x89iso" + b"x" * 40, os.urandom(5000)],
    ids=["text", "zeros", "magic", "random"],
)
async def test_garbage_on_the_channel(data):
    def scribble():
        write_to_the_channel(data)
        signal.pause()

    with pytest.raises(CallableStatusUnknownError) as info:
        await run_isolated(scribble, timeout=60)
    assert info.value.reason is Reason.PROTOCOL
    assert info.value.exit == -9


async def test_a_result_and_then_running_on(monkeypatch):
    from tests.internals import supervision

    monkeypatch.setattr(supervision, "_LINGER_PATIENCE", 0.1)

    def linger(code):
        signal.pause()

    def work():
        os._exit = linger
        return "the result counts"

    assert await run_isolated(work) == "the result counts"


async def test_a_memfd_that_is_not_what_was_said(monkeypatch):
    from tests.internals import memfd

    def unsealed():
        memfd.seal = lambda _fd: None
        return b"x" * 1_000_000

    def truncated():
        def seal(fd, seal=memfd.seal):
            os.ftruncate(fd, 4096)
            seal(fd)

        memfd.seal = seal
        return b"x" * 1_000_000

    for fn in (unsealed, truncated):
        error = await caught(fn)
        assert type(error) is CallableStatusUnknownError
        assert error.reason is Reason.PROTOCOL


# Errors as objects


def test_errors_survive_pickle_and_copy():
    for cls in (
        IsolationError,
        CallableDidNotExecuteError,
        CallableExecutedError,
        CallableStatusUnknownError,
        CallTimeoutError,
        StartTimeoutError,
    ):
        error = cls("text", reason=Reason.TIMEOUT, pid=3, exit=Exit(-9), stderr_tail="tail")
        error.add_note("note")
        for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(twin) is cls
            assert str(twin) == "text"
            assert twin.__dict__ == error.__dict__
            assert twin.exit.signal is signal.SIGKILL


async def test_the_error_of_a_nested_call_comes_through():
    async def outer():
        await run_isolated(os.abort)

    error = await caught(outer)
    assert type(error) is CallableStatusUnknownError
    assert error.reason is Reason.SIGNAL
    assert error.exit == -signal.SIGABRT
    assert "Fatal Python error" in error.crash_traceback


async def test_a_nested_call_that_did_not_begin_does_not_make_this_one_safe_to_retry():
    async def outer():
        await run_isolated(int, timeout=0)

    error = await caught(outer)
    assert type(error) is CallableStatusUnknownError
    assert error.reason is Reason.START_TIMEOUT
    assert isinstance(error.__cause__, CallableDidNotExecuteError)


def test_exit():
    assert Exit(3).code == 3
    assert Exit(3).signal is None
    assert Exit(-11).code is None
    assert Exit(-11).signal is signal.SIGSEGV
    assert (str(Exit(3)), str(Exit(-11)), str(Exit(-40))) == ("exit code 3", "SIGSEGV", "signal 40")
    assert repr(Exit(-9)) == "<Exit -9: SIGKILL>"


# Bad use


@pytest.mark.parametrize(
    ("args", "options", "error", "words"),
    [
        ((3,), {}, TypeError, "expected a function, not 3"),
        ((None,), {}, TypeError, "expected a function, not None"),
        ((int,), {"timeout": -1}, ValueError, "timeout"),
        ((int,), {"timeout": float("nan")}, ValueError, "timeout"),
        ((int,), {"timeout": "5"}, TypeError, "timeout"),
        ((int,), {"timeout": True}, TypeError, "timeout"),
        ((int,), {"grace": -1}, ValueError, "grace"),
        ((int,), {"grace": None}, TypeError, "grace"),
        ((int,), {"grace": float("inf")}, ValueError, "grace"),
        ((int,), {"start_timeout": 0}, ValueError, "start_timeout"),
        ((int,), {"start": "spawn"}, ValueError, "start must be"),
        ((int,), {"output": "pipe"}, ValueError, "output must be"),
        ((int,), {"output": None}, ValueError, "output must be"),
        ((int,), {"on_event": 3}, TypeError, "on_event"),
        ((int,), {"pass_fds": ["1"]}, TypeError, "pass_fds"),
        ((int,), {"pass_fds": 3}, TypeError, "pass_fds must be"),
        ((int,), {"pass_fds": [987654]}, ValueError, "987654"),
        ((int,), {"pass_fds": [-1]}, ValueError, "-1"),
        ((int,), {"no_such_option": 1}, TypeError, "no_such_option"),
    ],
)
async def test_bad_use_is_refused(args, options, error, words):
    for call in (run_isolated, capture_isolated):
        with pytest.raises(error, match=words):
            await call(*args, **options)


async def test_a_coroutine_instead_of_a_function():
    async def work(): ...

    with pytest.raises(TypeError, match=r"run_isolated\(work, \.\.\.\)"):
        await run_isolated(work())
    gc.collect()  # and no warning about a coroutine that was never awaited


async def test_wrong_arguments_for_fn():
    with pytest.raises(TypeError, match="takes 0 positional arguments but 1 was given"):
        await run_isolated(lambda: 1, 2)


def test_an_unsupported_platform():
    lacking = Features(platform="plan9", waitid=False)
    with pytest.raises(CallableDidNotExecuteError, match="plan9") as info:
        make_plan(int, (), CallOptions(), lacking)
    assert info.value.reason is Reason.FEATURE_UNAVAILABLE
    result = python("import os; del os.fork; import aioisolate")
    assert "ImportError: aioisolate needs os.fork" in result.stderr


def test_a_decorated_coroutine_is_refused():
    async def work(): ...

    coroutine = work()
    with pytest.raises(TypeError, match="coroutine"):
        isolated(coroutine)


# What a stranger says, in a log

FORGED = "\n2026-01-01 00:00:00 root: FORGED\r\x1b[2K\u2028FORGED\u202e\u3164\U000e0100"


def forge_exception():
    raise type(f"E{FORGED}", (Exception,), {"__module__": f"m{FORGED}"})(FORGED)


def forge_exit():
    raise SystemExit(FORGED)


def forge_memory_error():
    raise MemoryError(FORGED)


def forge_stderr():
    os.write(2, FORGED.encode() * 3)
    os._exit(3)


def forge_stack():
    os.pwrite(find_line().scratch, FORGED.encode(), 0)
    os._exit(3)


def forge_loss():
    line = find_line()
    os.write(line.channel, encode(line.nonce, Kind.LOST, b"RESULT_WRITE\n" + FORGED.encode()))
    os._exit(3)


def forge_value():
    return FORGED


def forge_rubbish():
    os.write(find_line().channel, FORGED.encode())
    time.sleep(30)


def forge_unencodable():
    return {FORGED: object()}


@pytest.mark.parametrize("codec", ["json", "msgspec"])
@pytest.mark.parametrize(
    "fn",
    [
        *(forge_exception, forge_exit, forge_memory_error, forge_stderr, forge_stack, forge_loss),
        *(forge_value, forge_rubbish, forge_unencodable),
    ],
)
@pytest.mark.one_loop
async def test_what_a_stranger_says_forges_no_line_of_a_log(codec, fn, caplog):
    limits = Limits(memory="1 GiB")
    outcome = await capture_isolated(
        fn, codec=codec, output="capture", limits=limits, result_type=Colour, timeout=20
    )
    error = outcome.error
    assert error is not None
    try:
        raise error
    except Exception:
        logging.getLogger("some").exception("it failed: %s", error)
    lines = caplog.text.split("\n")
    assert any("it failed" in line for line in lines)
    texts = [str(error), repr(error), str(error.__cause__), *map(str, error.args[:2])]
    if isinstance(error, RemoteError):
        texts += [error.type_name, error.message]
        blocks = error.traceback
    else:
        blocks = f"{error.stderr_tail}\n{error.crash_traceback}"
        assert ("FORGED" in error.stderr_tail) is (fn is forge_stderr)
        assert ("FORGED" in error.crash_traceback) is (fn is forge_stack)
    for text in texts:
        assert "\n" not in text
    for line in blocks.split("\n"):
        assert not line or line.startswith("|")
    for text in (*texts, *lines, *blocks.split("\n")):
        assert not set(text) & set("\r\x1b\u2028\u202e\u3164\U000e0100")
        assert not text.startswith(("2026", "FORGED"))
    if fn is forge_stderr:  # what was asked for as data is data
        assert outcome.stderr == FORGED * 3


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize("codec", ["pickle", "json"])
@pytest.mark.one_loop
async def test_words_of_trusted_code_are_left_as_they_are(codec):
    outcome = await capture_isolated(forge_stderr, codec=codec, output="capture")
    raw = outcome.error.stderr_tail == FORGED * 3
    assert raw is (codec == "pickle")
