"""Attacks on the parent over the channel that the result travels on.

They know the library: they find its order in the frames that called them, and so the descriptor
and the number that marks the frames of this call. What the frames look like is written here once
more, since a forger is not bound to what the library would make.
"""

from __future__ import annotations

import array
import builtins
import ctypes
import fcntl
import functools
import os
import pickle
import re
import signal
import socket
import struct
import sys
import time
from typing import NamedTuple

from .network import socket_descriptors
from .scene import Attack, Scene
from .system import libc

__all__ = ["ATTACKS"]

_MAGIC = b"\x89iso"
_STARTED, _VALUE, _RAISED, _LOST, _FAILED, _ITEM, _PROGRESS, _READY, _IMPORTED, _LEAVING = range(
    1, 11
)
_NO_TABLE = struct.pack("<BH", 0, 0)
_SCRATCH_START = 1 << 20
_DEEP = 100_000
_LONG = 64 << 20


class Line(NamedTuple):
    """What a forger needs."""

    nonce: bytes
    channel: int
    scratch: int
    quiet: bool


def find_line():
    """Find out about the channel. Raises LookupError."""
    frame = sys._getframe(1)
    while frame is not None:
        for thing in frame.f_locals.values():
            nonce = getattr(thing, "nonce", None)
            channel = getattr(thing, "channel", None)
            if isinstance(nonce, bytes) and isinstance(channel, int):
                quiet = getattr(thing, "quiet", True)
                return Line(nonce, channel, getattr(thing, "scratch", -1), quiet)
        frame = frame.f_back
    return Line(_search_nonce(), socket_descriptors()[0], _search_scratch(), True)


def _search_nonce():
    """Find the number in the bytes of a frame, wherever they are."""
    pattern = re.compile(re.escape(_MAGIC) + rb"(.{8})\x01\0{9}", re.DOTALL)
    with open("/proc/self/maps") as file:
        lines = file.readlines()
    for line in reversed(lines):
        place, access, *_ = line.split()
        start, end = (int(part, 16) for part in place.split("-"))
        if access == "rw-p" and "[v" not in line:
            for found in pattern.finditer(ctypes.string_at(start, end - start)):
                if any(found[1]):
                    return found[1]
    raise LookupError("no frame in memory")


def _search_scratch():
    for fd in range(3, 1024):
        try:
            fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:
            continue
        return fd
    return -1


def frame(nonce, kind, body=b"", passed_fds=0, length=None):
    size = len(body) if length is None else length
    return struct.pack("<4s8sBBQ", _MAGIC, nonce, kind, passed_fds, size) + body


def write(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def begin(line):
    if line.quiet:
        write(line.channel, frame(line.nonce, _STARTED))


def answer(kind, body, *, passed_fds=0, length=None):
    """Send an answer of one's own making."""
    line = find_line()
    begin(line)
    write(line.channel, frame(line.nonce, kind, body, passed_fds, length))
    return line


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class _Raiser:
    def __init__(self, exception):
        self.exception = exception

    def __reduce__(self):
        return self.exception, ("forged",)


def send_bomb(kind, path):
    """Send a pickle that does something where it is loaded."""
    stream = pickle.dumps(_Bomb(path))
    answer(kind, stream if kind in (_ITEM, _PROGRESS) else _NO_TABLE + stream)
    os._exit(0)


def send_none(kind):
    """Send nothing where something of a certain kind belongs."""
    stream = pickle.dumps(None)
    answer(kind, stream if kind == _PROGRESS else _NO_TABLE + stream)
    os._exit(0)


def send_bomb_as_text(path):
    """Have the bomb where the library expects a text."""
    answer(_LOST, b"RESULT_ENCODING\n" + pickle.dumps(_Bomb(path)))
    os._exit(0)


def send_bomb_in_scratch(path):
    """Send a pickle by the file that both have open."""
    line = find_line()
    stream = pickle.dumps(_Bomb(path))
    os.pwrite(line.scratch, stream, _SCRATCH_START)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    fcntl.fcntl(line.scratch, fcntl.F_ADD_SEALS, seals)
    begin(line)
    table = struct.pack("<BHQQBB", 1, 1, _SCRATCH_START, len(stream), 0, 0)
    write(line.channel, frame(line.nonce, _VALUE, table))
    os._exit(0)


def return_bomb(path):
    return _Bomb(path)


def raise_bomb(path):
    """Raise an exception that does something where it arrives."""
    raise BombError(path)


class BombError(Exception):
    def __reduce__(self):
        return os.mkdir, self.args


def send_swelling_pickle():
    """Send a few bytes that take 256 MiB to load, twice.

    LONG_BINPUT makes room for its number, before Python 3.15; a product does everywhere.
    """
    memo = b"Nr" + struct.pack("<I", 1 << 24) + b"0"
    product = b"coperator\nmul\nC\x01xJ" + struct.pack("<i", 1 << 28) + b"\x86R"
    answer(_VALUE, _NO_TABLE + b"\x80\x04" + memo + product + b".")
    os._exit(0)


def send_endless_frame():
    """Send a frame that has not ended when there have been 64 MiB of it."""
    line = answer(_VALUE, _NO_TABLE, length=1 << 39)
    piece = b"x" * (1 << 20)
    for _ in range(_LONG // len(piece)):
        write(line.channel, piece)
    time.sleep(60)


def flood_with_frames(kind):
    """Send frames that nobody has asked for, for as long as this may last."""
    line = answer(kind, b"\x80\x05N.")
    end = time.monotonic() + 60
    while time.monotonic() < end:
        write(line.channel, frame(line.nonce, kind, b"\x80\x05N.") * 1000)


def promise(length, wait):
    """Promise so many bytes, and send none."""
    answer(_VALUE, b"", length=length)
    if wait:
        time.sleep(60)
    os._exit(0)


def announce_item(length):
    """Yield an item, and announce one of so many bytes of which none comes."""
    yield 1
    line = find_line()
    write(line.channel, frame(line.nonce, _ITEM, length=length))
    time.sleep(30)


def send_half():
    line = find_line()
    begin(line)
    data = frame(line.nonce, _VALUE, _NO_TABLE + pickle.dumps("x" * 1000))
    write(line.channel, data[: len(data) // 2])
    os._exit(0)


def send_drop_by_drop():
    line = find_line()
    begin(line)
    for byte in frame(line.nonce, _VALUE, _NO_TABLE + pickle.dumps("x" * 1000)):
        os.write(line.channel, bytes([byte]))
        time.sleep(0.1)
    os._exit(0)


def send_rubbish(data):
    write(find_line().channel, data)
    time.sleep(60)


def send_raw(body):
    """Send something as the bytes of the result, whatever their codec."""
    answer(_VALUE, _NO_TABLE + body)
    os._exit(0)


def send_deep(form):
    bodies = {
        "pickle": b"\x80\x05" + b"]" * _DEEP + b"a" * (_DEEP - 1) + b".",
        "json": b"[" * _DEEP + b"]" * _DEEP,
        "msgpack": b"\x91" * (_DEEP - 1) + b"\x90",
    }
    send_raw(bodies[form])


def return_deep():
    result = []
    for _ in range(_DEEP):
        result = [result]
    return result


def return_long_integer():
    return 1 << 3_400_000


def send_long_integer(form):
    digits = 1_000_000
    number = b"\x01" * 415_242
    bodies = {
        "pickle": b"\x80\x05\x8b" + struct.pack("<i", len(number)) + number + b".",
        "json": b"1" * digits,
    }
    send_raw(bodies[form])


def return_much():
    return b"x" * _LONG


def return_many():
    return [""] * 5_000_000


def print_endlessly():
    """Print 64 MiB."""
    line = b"x" * 65535 + b"\n"
    for _ in range(_LONG // len(line)):
        write(1, line)
    return True


def print_without_newline():
    """Print one line of 64 MiB."""
    for _ in range(_LONG >> 16):
        write(1, b"x" * (1 << 16))
    return True


def send_two(first, second):
    line = find_line()
    begin(line)
    data = [frame(line.nonce, _VALUE, _NO_TABLE + body) for body in (first, second)]
    write(line.channel, b"".join(data))
    os._exit(0)


def answer_and_stay(body):
    """Answer, and run on in a session of its own."""
    answer(_VALUE, _NO_TABLE + body)
    signal.alarm(20)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(60)


def leave(body, *, flood):
    """Answer, say that something is left, and that it has ended; then stay, and write on."""
    line = find_line()
    begin(line)
    left = frame(line.nonce, _LEAVING, b"thread x")
    write(line.channel, left + frame(line.nonce, _VALUE, _NO_TABLE + body))
    signal.alarm(20)
    if flood:
        time.sleep(0.2)  # so that the answer has been read
        write(line.channel, frame(line.nonce, _LEAVING))
    piece = bytes(1 << 16)
    while flood:
        write(line.channel, piece)
    time.sleep(60)


def leave_without_an_answer(times):
    """Say that something is left, again and again."""
    line = find_line()
    begin(line)
    write(line.channel, frame(line.nonce, _LEAVING, b"thread x") * times)
    time.sleep(60)


def leave_with_words(size):
    """Have the names of what is left be a forged log, and long."""
    line = find_line()
    begin(line)
    words = b"thread \x1b[2J\r2026 CRITICAL forged" + b"\xe2\x80\xae" * size
    left = frame(line.nonce, _LEAVING, words)
    write(line.channel, left + frame(line.nonce, _VALUE, _NO_TABLE + pickle.dumps(1)) + left)
    time.sleep(60)


def forge_exception(name):
    """Have something raised in the parent that would end it, or that lies about the call."""
    answer(_RAISED, _NO_TABLE + pickle.dumps(_Raiser(getattr(builtins, name))))
    os._exit(0)


def forge_refusal():
    """Raise the library's own word for: nothing has happened, try again."""
    text = b"the process could not be forked"
    stream = (
        b"\x80\x04caioisolate._errors\nCallableDidNotExecuteError\n)\x81}("
        b"\x8c\x06reasoncaioisolate._errors\nReason\n\x8c" + bytes([len(text)]) + text + b"\x85Rub."
    )
    answer(_RAISED, _NO_TABLE + stream)
    os._exit(0)


def claim_never_to_have_begun():
    """Say that the call failed before the function was called, though this is the function."""
    line = find_line()
    if line.scratch >= 0:
        os.pwrite(line.scratch, b"\0", _SCRATCH_START - 1)
    write(line.channel, frame(line.nonce, _FAILED, b"request\nthere was nothing"))
    os._exit(0)


def wipe_mark():
    """Remove the mark that says that the function was called, and end."""
    line = find_line()
    os.pwrite(line.scratch, b"\0", _SCRATCH_START - 1)
    os._exit(0)


def forge_loss(name):
    """Name another reason than there is."""
    answer(_LOST, name.encode() + b"\nforged")
    os._exit(0)


def send_descriptors(line, data, fds):
    with socket.socket(fileno=os.dup(line.channel)) as sock:
        rights = array.array("i", fds)
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def shorten_after_sending():
    """Send a file as a part of the result, and shorten it before the parent looks."""
    line = find_line()
    begin(line)
    fd = os.memfd_create("attack", 2)
    os.ftruncate(fd, 1 << 20)
    table = struct.pack("<BHQQBB", 0, 1, 0, 1 << 20, 1, 0)
    body = table + b"\x80\x05\x97."
    send_descriptors(line, frame(line.nonce, _VALUE, body, 1), [fd])
    os.ftruncate(fd, 0)
    os._exit(0)


def shorten_scratch():
    """Leave the common file open to changes, and shorten it before the parent looks."""
    line = find_line()
    begin(line)
    os.ftruncate(line.scratch, 2 << 20)
    table = struct.pack("<BHQQBB", 0, 1, _SCRATCH_START, 1 << 20, 0, 0)
    write(line.channel, frame(line.nonce, _VALUE, table + b"\x80\x05\x97."))
    os.ftruncate(line.scratch, 0)
    os._exit(0)


def point_outside():
    """Name a part of the common file that is not there."""
    line = find_line()
    begin(line)
    table = struct.pack("<BHQQBB", 0, 1, 1 << 40, 1 << 20, 0, 0)
    write(line.channel, frame(line.nonce, _VALUE, table + b"\x80\x05\x97."))
    os._exit(0)


def send_pipe():
    """Send a pipe where a file should be, so that who reads it waits."""
    line = find_line()
    begin(line)
    read, _ = os.pipe()
    table = struct.pack("<BHQQBB", 0, 1, 0, 1 << 20, 1, 0)
    send_descriptors(line, frame(line.nonce, _VALUE, table + b"\x80\x05\x97.", 1), [read])
    os._exit(0)


def send_needless_descriptors(times):
    """Send descriptors that no frame announces; then answer as usual."""
    line = find_line()
    with open(os.devnull) as file:
        for number in range(times):
            # A whole frame at first, and nothing that is wrong by itself later.
            kind = _STARTED if number == 0 and line.quiet else _PROGRESS
            body = b"" if kind == _STARTED else b"\x80\x05N."
            send_descriptors(line, frame(line.nonce, kind, body), [file.fileno()] * 200)
    write(line.channel, frame(line.nonce, _VALUE, _NO_TABLE + pickle.dumps("done")))
    os._exit(0)


def announce_missing_descriptors():
    answer(_VALUE, _NO_TABLE + b"\x80\x05N.", passed_fds=200)
    os._exit(0)


def close_channel():
    os.close(find_line().channel)
    time.sleep(60)


def close_everything():
    os.closerange(0, 4096)
    return True


def fill_crash_report():
    """Write what should be the stack of a crash: a megabyte of it, and no UTF-8."""
    line = find_line()
    os.pwrite(line.scratch, b"\xff\x1b[2J\n" * (_SCRATCH_START // 6), 0)
    os.kill(os.getpid(), signal.SIGSEGV)


# Of the parent's


def _made(result, scene):
    return os.path.exists(scene.path("bomb"))


def _swells(result, scene):
    return scene.swollen() >= 40


def _watch(*args):
    def arrange(scene):
        scene.watch_memory()
        return args

    return arrange


def _depth(result, scene):
    depth = 0
    while isinstance(result, list) and result:
        result = result[0]
        depth += 1
    return depth > 50_000


def _long(result, scene):
    return isinstance(result, int) and result.bit_length() > 3_000_000


def _printed(result, scene):
    return result is True


def _leaks(result, scene):
    return len(os.listdir("/proc/self/fd")) > scene.notes["open"] + 20


def _count(scene: Scene):
    scene.notes["open"] = len(os.listdir("/proc/self/fd"))


def _counting(*args):
    def arrange(scene):
        _count(scene)
        return args

    return arrange


def _note_cpu(*args):
    def arrange(scene):
        scene.notes["cpu"] = time.process_time()
        return args

    return arrange


def _forged_ending(result, scene):
    error = scene.outcome.error
    return isinstance(error, BaseException) and not isinstance(error, Exception)


def _lies(result, scene):
    return type(scene.outcome.error).__name__ == "CallableDidNotExecuteError"


def _named(name):
    return lambda result, scene: (
        getattr(scene.outcome.error, "reason", None) and (scene.outcome.error.reason.name == name)
    )


def _slow(result, scene):
    return scene.wall > 6


def _busy(result, scene):
    return scene.wall > 4 or time.process_time() - scene.notes["cpu"] > 1.5


def _never(result, scene):
    """Nothing is to be gained but what is seen; that the parent is alive is enough."""
    return False


def _nothing_more(progress):
    return None


_bomb = lambda scene: (scene.path("bomb"),)
_no_pickle = "RESULT_DECODING|PROTOCOL"
_with_progress = lambda scene: {"on_progress": _nothing_more}
_capture = lambda scene: {"output": "capture"}
_data = {"limits": {"result_size": 1 << 20}}


def _channel(name, run, arrange=lambda scene: (), succeeded=_never, **rest):
    return Attack(name, "channel", run, arrange, succeeded, **rest)


def _bomb_of(name, kind, **rest):
    arrange = lambda scene: (kind, scene.path("bomb"))
    return _channel(name, send_bomb, arrange, _made, **{"expect": _no_pickle} | rest)


def _given(*args):
    return lambda scene: args


ATTACKS = [
    _bomb_of("pickle-bomb", _VALUE),
    _bomb_of("pickle-bomb-raised", _RAISED),
    _bomb_of("pickle-bomb-progress", _PROGRESS, options=_with_progress, off="PROTOCOL",
             expect=_no_pickle + "|NO_RESULT"),
    _bomb_of("pickle-bomb-item", _ITEM, off="PROTOCOL", expect=_no_pickle + "|NO_RESULT"),
    _channel("raised-none", send_none, _given(_RAISED),
             off="PROTOCOL", expect=_no_pickle),
    _channel("progress-none", send_none, _given(_PROGRESS), options=_with_progress,
             off="TypeError|PROTOCOL|NO_RESULT", expect=_no_pickle + "|NO_RESULT"),
    _channel("pickle-bomb-text", send_bomb_as_text, _bomb, _made, off="RESULT_ENCODING",
             expect="RESULT_ENCODING|PROTOCOL"),
    _channel("pickle-bomb-scratch", send_bomb_in_scratch, _bomb, _made, expect=_no_pickle),
    _channel("pickle-bomb-returned", return_bomb, _bomb, _made, expect="RESULT_ENCODING"),
    _channel("pickle-bomb-exception", raise_bomb, _bomb, _made, expect="BombError|denied"),
    _channel("pickle-swells", send_swelling_pickle, _watch(), _swells, expect=_no_pickle),
    _channel("frame-endless", send_endless_frame, _watch(), _swells,
             expect="RESULT_TOO_LARGE|PROTOCOL", timeout=2.0, **_data),
    _channel("frame-flood-items", flood_with_frames, _watch(_ITEM), _swells, off="PROTOCOL",
             expect="TIMEOUT|PROTOCOL|OUTPUT_LIMIT", timeout=1.0),
    _channel("frame-flood-progress", flood_with_frames, _watch(_PROGRESS), _swells,
             off="PROTOCOL", expect="PROTOCOL", timeout=1.0),
    _channel("length-4g", promise, _given((1 << 32) - 1, False), _never, off="NO_RESULT",
             expect="NO_RESULT|RESULT_TOO_LARGE|PROTOCOL"),
    _channel("length-4g-and-wait", promise, _given((1 << 32) - 1, True), _never, off="TIMEOUT",
             expect="TIMEOUT|RESULT_TOO_LARGE|PROTOCOL", timeout=1.0),
    _channel("length-max", promise, _given((1 << 64) - 1, True), _never, off="PROTOCOL",
             expect="RESULT_TOO_LARGE|PROTOCOL"),
    _channel("truncated", send_half, off="NO_RESULT", expect="NO_RESULT|PROTOCOL"),
    _channel("drop-by-drop", send_drop_by_drop, off="TIMEOUT", expect="TIMEOUT", timeout=1.5),
    _channel("rubbish", send_rubbish, _given(b"rubbish"), off="PROTOCOL", expect="PROTOCOL"),
    _channel("rubbish-zeros", send_rubbish, _given(bytes(4096)), off="PROTOCOL",
             expect="PROTOCOL"),
    _channel("other-nonce", send_rubbish, _given(frame(b"\1" * 8, _STARTED)), off="PROTOCOL",
             expect="PROTOCOL"),
    _channel("deep-returned", return_deep, succeeded=_depth, off="RESULT_ENCODING",
             expect="RESULT_ENCODING"),
    _channel("deep-pickle", send_deep, _given("pickle"), _depth, expect=_no_pickle),
    _channel("deep-json", send_deep, _given("json"), _depth, off="RESULT_DECODING",
             expect=_no_pickle),
    _channel("deep-msgpack", send_deep, _given("msgpack"), _depth, off="RESULT_DECODING",
             expect=_no_pickle),
    _channel("long-integer", return_long_integer, succeeded=_long,
             expect="RESULT_ENCODING|RESULT_DECODING"),
    _channel("long-integer-pickle", send_long_integer, _given("pickle"), _long,
             expect=_no_pickle),
    _channel("long-integer-json", send_long_integer, _given("json"), _long,
             off="RESULT_DECODING", expect=_no_pickle),
    _channel("large-result", return_much,
             succeeded=lambda result, scene: result is not None and len(result) == _LONG,
             expect="RESULT_TOO_LARGE", **_data),
    _channel("large-list", return_many,
             succeeded=lambda result, scene: result is not None and len(result) == 5_000_000,
             expect="RESULT_TOO_LARGE|RESULT_ENCODING", **_data),
    _channel("stdout-endless", print_endlessly, succeeded=_printed, options=_capture,
             expect="OUTPUT_LIMIT", limits={"output_size": 1 << 20}),
    _channel("stdout-one-line", print_without_newline, succeeded=_printed, options=_capture,
             expect="OUTPUT_LIMIT", limits={"output_size": 1 << 20}),
    _channel("second-frame", send_two, _given(pickle.dumps("first"), pickle.dumps("second")),
             lambda result, scene: result == "second", off="value", expect=_no_pickle + "|value"),
    _channel("answer-and-stay", answer_and_stay, _given(pickle.dumps("here")), _slow,
             off="value", expect=_no_pickle + "|value"),
    _channel("leave-and-flood", functools.partial(leave, flood=True),
             _note_cpu(pickle.dumps("here")), _busy, off="value", expect=_no_pickle + "|value"),
    _channel("leave-and-stay", functools.partial(leave, flood=False),
             _given(pickle.dumps("here")), lambda result, scene: scene.wall > 2.5, off="value",
             expect=_no_pickle + "|value", options=lambda scene: {"exit_timeout": 0.5}),
    _channel("leave-past-the-deadline", functools.partial(leave, flood=False),
             _given(pickle.dumps("here")), lambda result, scene: scene.wall > 2.5, off="value",
             expect=_no_pickle + "|value", timeout=1.0),
    _channel("leave-without-an-answer", leave_without_an_answer, _given(1), off="TIMEOUT",
             expect="TIMEOUT", timeout=1.0),
    _channel("leave-again-and-again", leave_without_an_answer, _given(1000), off="PROTOCOL",
             expect="PROTOCOL"),
    _channel("leave-with-words", leave_with_words, _given(30_000), off="value",
             expect=_no_pickle + "|value"),
    _channel("exception-exit", forge_exception, _given("SystemExit"), _forged_ending,
             off="EXIT", expect=_no_pickle + "|EXIT"),
    _channel("exception-interrupt", forge_exception, _given("KeyboardInterrupt"),
             _forged_ending, off="BASE_EXCEPTION", expect=_no_pickle + "|BASE_EXCEPTION"),
    _channel("exception-refusal", forge_refusal, _given(), _lies,
             off="FORK", expect=_no_pickle),
    _channel("claim-never-begun", claim_never_to_have_begun, _given(), _lies,
             off="PROTOCOL|NO_RESULT", expect="PROTOCOL|NO_RESULT"),
    _channel("wipe-mark", wipe_mark, _given(), _lies, off="PROTOCOL|NO_RESULT",
             expect="PROTOCOL|NO_RESULT"),
    _channel("forged-loss", forge_loss, _given("TIMEOUT"), _named("TIMEOUT"),
             off="RESULT_WRITE", expect="RESULT_WRITE|PROTOCOL"),
    _channel("memfd-shortened", shorten_after_sending, off="PROTOCOL", expect=_no_pickle),
    _channel("scratch-shortened", shorten_scratch, off="PROTOCOL", expect=_no_pickle),
    _channel("scratch-outside", point_outside, off="PROTOCOL", expect=_no_pickle),
    _channel("pipe-for-memfd", send_pipe, succeeded=_slow, off="PROTOCOL", expect=_no_pickle),
    _channel("needless-descriptors", send_needless_descriptors, _counting(1), _leaks,
             off="value", expect="value|PROTOCOL|RESULT_DECODING"),
    _channel("many-needless-descriptors", send_needless_descriptors, _counting(5), _leaks,
             off="PROTOCOL", expect="PROTOCOL|denied"),
    _channel("missing-descriptors", announce_missing_descriptors, off="PROTOCOL",
             expect="PROTOCOL"),
    _channel("close-channel", close_channel, off="TIMEOUT", expect="TIMEOUT|NO_RESULT",
             timeout=1.0),
    _channel("close-everything", close_everything, off="NO_RESULT", expect="NO_RESULT"),
    _channel("crash-report", fill_crash_report, off="SIGNAL", expect="SIGNAL"),
]  # fmt: skip
