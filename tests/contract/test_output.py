"""Where a child's output goes."""

from __future__ import annotations

import ctypes
import io
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioisolate import CallableStatusUnknownError, Isolator, capture_isolated, run_isolated
from tests.helpers import python
from tests.internals import CAPTURE_MAX, Descriptors, OutputStream, open_streams

pytestmark = pytest.mark.quick


def speak():
    print("one")
    print("two", end="", flush=False)
    print("three", file=sys.stderr)
    os.write(1, b" raw\n")
    return 1


async def test_capture():
    outcome = await capture_isolated(speak, output="capture")
    assert outcome.value == 1
    assert outcome.stdout.splitlines()[0] == "one"
    assert sorted(outcome.stdout.split()) == ["one", "raw", "two"]
    assert outcome.stderr == "three\n"


async def test_c_level_writes():
    def speak_c():
        libc = ctypes.CDLL(None)
        libc.puts(b"from C")  # stays in C's buffer: standard output is a pipe
        libc.printf(b"and more")
        os.system("echo from a program")

    outcome = await capture_isolated(speak_c, output="capture")
    for part in ("from C\n", "and more", "from a program\n"):  # in an order of C's own
        assert outcome.stdout.count(part) == 1


async def test_lines():
    lines = []

    def speak_lines():
        for i in range(1000):
            print("line", i)
        print("last", end="")
        print("e", file=sys.stderr)

    await run_isolated(speak_lines, output=lambda stream, line: lines.append((stream, line)))
    out = [line for stream, line in lines if stream == "stdout"]
    assert out == [f"line {i}" for i in range(1000)] + ["last"]
    assert [line for stream, line in lines if stream == "stderr"] == ["e"]


async def test_a_line_callable_that_raises_ends_the_call():
    def explode(stream, line):
        raise ZeroDivisionError(line)

    with pytest.raises(ZeroDivisionError, match="one"):
        await run_isolated(speak, output=explode)


async def test_null(capfd):
    outcome = await capture_isolated(speak, output="null")
    assert outcome.value == 1
    assert outcome.stdout is None
    assert capfd.readouterr() == ("", "")


async def test_inherit(capfd):
    await run_isolated(speak)
    out, err = capfd.readouterr()
    assert sorted(out.split()) == ["one", "raw", "two"]
    assert err == "three\n"


async def test_stderr_tail_of_an_error():
    def die():
        print("x" * 20_000 + "the end", file=sys.stderr)
        os.abort()

    with pytest.raises(CallableStatusUnknownError) as caught:
        await run_isolated(die, output="capture")
    assert caught.value.stderr_tail.endswith("xxthe end\n")
    assert len(caught.value.stderr_tail) == 8192


async def test_capture_is_bounded():
    def flood():
        for i in range(200_000):
            print(f"{i:09}")

    outcome = await capture_isolated(flood, output="capture")
    assert len(outcome.stdout) < CAPTURE_MAX + 200
    assert outcome.stdout.startswith("000000000\n")
    assert outcome.stdout.endswith("000199999\n")
    assert f"[... {200_000 * 10 - CAPTURE_MAX} bytes dropped ...]" in outcome.stdout


async def test_output_of_a_killed_child_is_kept():
    def die():
        print("before")
        os.kill(os.getpid(), 9)

    outcome = await capture_isolated(die, output="capture")
    assert outcome.stdout == "before\n"
    assert outcome.exit == -9


async def test_closed_and_replaced_streams():
    def close():
        sys.stdout.close()
        return 1

    def replace():
        sys.stdout = None
        return 2

    assert (await capture_isolated(close, output="capture")).value == 1
    assert (await capture_isolated(replace, output="capture")).value == 2


@pytest.mark.parametrize("size", [1, 2, 3, 7, 4096])
def test_lines_in_any_pieces(size):
    text = "ä\nbb\n\nlong " + "x" * 200_000 + "\nend"
    lines = []
    stream = OutputStream("stdout", -1, lambda _, line: lines.append(line))
    data = text.encode()
    step = size if size > 3 else max(size, len(data) // 3000)
    for i in range(0, len(data), step):
        stream.feed(data[i : i + step])
    stream.finish()
    assert "".join(lines) == text.replace("\n", "")
    assert lines[:3] == ["ä", "bb", ""]
    assert lines[-1] == "end"
    assert max(map(len, lines)) <= 64 * 1024


BAR = "\r  0%|    | 0/2\r 50%|##  | 1/2\r100%|####| 2/2\ndone\r\n\r\nlast"
BAR_LINES = ["  0%|    | 0/2", " 50%|##  | 1/2", "100%|####| 2/2", "done", "", "last"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_11_30_a_carriage_return_ends_a_line(size):
    lines = []
    stream = OutputStream("stderr", -1, lambda _, line: lines.append(line))
    for start in range(0, len(BAR), size):
        stream.feed(BAR[start : start + size].encode())
    stream.finish()
    assert lines == BAR_LINES
    assert stream.text() == BAR


@given(st.text("a\r\n", max_size=30), st.integers(1, 31))
def test_11_30_lines_are_those_of_text_files(text, size):
    lines = []
    stream = OutputStream("stderr", -1, lambda _, line: lines.append(line))
    for start in range(0, len(text), size):
        stream.feed(text[start : start + size].encode())
        whole = text[: start + size]
        if whole.endswith(("\r", "\n")):  # none is kept back
            assert "".join(lines) == whole.replace("\r", "").replace("\n", "")
    stream.finish()
    # As io.TextIOWrapper has them, but for empty ones that a carriage return ends.
    wanted = []
    for line in io.StringIO(text, newline=""):
        bare = line.rstrip("\r\n")
        if bare or not line.endswith("\r"):
            wanted.append(bare)
    assert lines == wanted


@pytest.mark.one_loop
async def test_11_30_a_progress_bar_is_seen_while_it_grows():
    read, write = os.pipe()

    def work():
        for percent in range(0, 100, 25):
            sys.stderr.write(f"{percent}%\r")
            sys.stderr.flush()
            os.read(read, 1)  # until the parent has seen it

    seen = []

    def see(stream, line):
        seen.append((stream, line))
        os.write(write, b"x")

    try:
        await run_isolated(work, output=see, pass_fds=[read], timeout=20)
    finally:
        os.close(read)
        os.close(write)
    assert seen == [("stderr", f"{percent}%") for percent in range(0, 100, 25)]


def test_each_line_once_with_unwritten_output_in_the_parent():
    """Hazard 12."""
    result = python(
        """
        import asyncio, ctypes, sys
        from aioisolate import run_isolated
        libc = ctypes.CDLL(None)
        def child():
            print("child")
            libc.puts(b"C child")
        print("parent before", end="\\n")   # to a pipe: it stays in the buffer
        libc.puts(b"C before")
        asyncio.run(run_isolated(child))
        print("parent after")
        """
    )
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == sorted(
        ["parent before", "C before", "child", "C child", "parent after"]
    )


PRINT_ABROAD = """
    import asyncio, sys
    from aioisolate import Isolator, run_isolated

    def speak():
        print("gr\u00fcn", end="", flush=True)
        print(", blau")
        print("f\u00fcnf", file=sys.stderr)

    async def main():
        lines = []
        for start in {"start": "fork"}, {"start": "zygote"}, {"start": "template"}:
            async with Isolator(**start) as iso:
                outcome = await iso.capture(speak, output="capture")
                assert outcome.stdout == "gr\u00fcn, blau\\n", outcome
                assert outcome.stderr == "f\u00fcnf\\n", outcome
                await iso.run(speak, output=lambda *line: lines.append(line))
        expected = [("stderr", "f\u00fcnf"), ("stdout", "gr\u00fcn, blau")]
        assert sorted(lines) == sorted(expected * 3), lines

    if __name__ == "__main__":
        asyncio.run(main())
"""


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252:replace"])
def test_11_5_what_is_captured_is_what_was_printed(encoding):
    env = {"PYTHONIOENCODING": encoding}
    result = python(PRINT_ABROAD, env=env, text=False)
    assert result.returncode == 0, result.stderr


def speak_latin():
    print("gr\u00fcn", sys.stdout.encoding)


@pytest.mark.one_loop
async def test_11_5_the_encoding_is_that_of_the_fork_server(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    async with Isolator(preload=[__name__]) as iso:
        outcome = await iso.capture(speak_latin, output="capture")
    assert outcome.stdout == "gr\u00fcn iso8859-1\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "latin-1"])
@pytest.mark.parametrize("odd", [0, 1])
def test_11_5_long_output_is_cut_between_characters(encoding, odd):
    stream = OutputStream("stdout", -1, None, encoding)
    text = "\u00fcx" * CAPTURE_MAX + "end" + "y" * odd
    data = text.encode(encoding)
    for start in range(0, len(data), 9973):
        stream.feed(data[start : start + 9973])
    head, dropped, tail = stream.text().split("\n")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert "bytes dropped" in dropped
    assert len(head) >= CAPTURE_MAX // 8 - 1
    assert text.endswith(stream.tail())


def test_11_5_an_encoding_that_is_not_known_here():
    stream = OutputStream("stdout", -1, None, "no-such-encoding")
    stream.feed("gr\u00fcn".encode())
    assert stream.text() == "gr\u00fcn"


def test_11_5_output_that_ends_inside_a_character():
    text = "\u00fc\U0001f40d" * CAPTURE_MAX
    for encoding, missing in (("utf-16", 1), ("utf-32", 1), ("utf-32", 3)):
        stream = OutputStream("stdout", -1, None, encoding)
        stream.feed(text.encode(encoding)[:-missing])
        tail = stream.text().split("\n")[2].strip("\ufffd")
        assert len(tail) > CAPTURE_MAX // 16
        assert tail in text
        assert stream.tail().strip("\ufffd") in text


def test_11_5_a_mark_of_the_byte_order_is_no_part_of_a_line():
    lines = []
    stream = OutputStream("stdout", -1, lambda _, line: lines.append(line), "utf-16")
    data = "gr\u00fcn\nrot".encode("utf-16")
    for byte in data:
        stream.feed(bytes([byte]))
    stream.finish()
    assert lines == ["gr\u00fcn", "rot"]


def test_11_5_each_stream_has_an_encoding_of_its_own():
    fds = Descriptors()
    try:
        (out, err), *_ = open_streams("capture", -1, fds, ("latin-1", "utf-8"))
        for stream, encoding in ((out, "latin-1"), (err, "utf-8")):
            stream.feed("gr\u00fcn".encode(encoding))
            assert stream.text() == "gr\u00fcn"
    finally:
        fds.close_all()
