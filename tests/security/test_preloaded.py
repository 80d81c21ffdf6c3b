"""What modules of a fork server hold open is nothing for the children of strangers."""

from __future__ import annotations

import importlib
import logging
import mmap
import os
import pathlib
import signal
import socket
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aioisolate import (
    CallableDidNotExecuteError,
    Isolator,
    Limits,
    Reason,
    Sandbox,
    Snapshot,
    run_isolated,
    shared_array,
)
from tests.helpers import error_of, forked, until
from tests.internals import ChildSpec, descriptors, escape, memfd, shared_mappings

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="containment is Linux's"),
    pytest.mark.filterwarnings("ignore::aioisolate.ForkSafetyWarning"),
]
DATA = Sandbox.untrusted()
# Paths are as everywhere, and files can be opened before Landlock is engaged.
OPEN = Sandbox(namespaces="off", codec="json")

Module = Callable[[str], str]


@pytest.fixture
def module(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[Module]:
    """Write a module that a fork server finds; gives its name."""
    made: list[str] = []

    def make(source: str) -> str:
        name = f"held_{abs(hash(request.node.nodeid)):x}_{len(made)}"
        made.append(name)
        text = f"import mmap, os, socket\ndirectory = {str(tmp_path)!r}\n"
        (tmp_path / f"{name}.py").write_text(text + textwrap.dedent(source))
        return name

    sys.path.append(str(tmp_path))
    yield make
    sys.path.remove(str(tmp_path))


def pool_of(iso: Isolator) -> Any:
    return iso._service._source._pool


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "descriptor" in record.getMessage()]


# What is told


async def test_each_is_told_of_once(module, tmp_path, caplog):
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    name = module(f"""
        log = open(directory + "/two\\nlines \\x1b[31m", "w")
        sock = socket.create_connection(("127.0.0.1", {port}))
        udp = socket.socket(type=socket.SOCK_DGRAM)
        six = socket.socket(socket.AF_INET6) if socket.has_dualstack_ipv6() else None
        unix = socket.socket(socket.AF_UNIX)
        unix.bind("\\0{module.__name__}" + str(os.getpid()))
        fd = os.memfd_create("of memory")
        event = os.eventfd(0)
        if not os.path.exists(directory + "/unix"):
            path = socket.socket(socket.AF_UNIX)
            path.bind(directory + "/unix")
            path.close()
        path = os.open(directory + "/unix", os.O_PATH)
        nothing = open(os.devnull)
    """)
    second = module('file = open(directory + "/other", "w")')
    with listener, caplog.at_level(logging.WARNING, "aioisolate"):
        async with Isolator(sandbox=DATA, preload=[name, second]) as iso:
            lines = told(caplog)
            server = pool_of(iso).pid
            os.kill(server, signal.SIGKILL)
            await until(lambda: pool_of(iso).pid not in (None, server))
            assert await iso.run(len, "abc") == 3
            assert told(caplog) == lines
    by = f"opened while {name!r} was imported"
    path = escape(f"{tmp_path}/two\nlines \x1b[31m", line=True)
    assert any(path in line and by in line for line in lines)
    assert not any("\n" in line or "\x1b" in line for line in lines)
    assert any("TCP socket 127.0.0.1:" in line and f"-> 127.0.0.1:{port}" in line for line in lines)
    assert any("UDP socket" in line for line in lines)
    assert any("Unix socket" in line and module.__name__ in line for line in lines)
    assert any("/memfd:of memory" in line for line in lines)
    assert any("eventfd" in line for line in lines)
    assert any(f"({tmp_path}/unix)" in line for line in lines)
    assert any(f"{tmp_path}/other" in line and repr(second) in line for line in lines)
    assert all("pass_fds" in line for line in lines)
    assert not any("/dev/null" in line for line in lines)
    assert len(lines) == 8 + socket.has_dualstack_ipv6()


@pytest.mark.one_loop
@pytest.mark.parametrize("kind", ["zygote", "template"])
async def test_the_library_has_nothing_to_tell_of(kind, tmp_path, caplog):
    """Neither of its own descriptors, nor, in a copy, of those that the copy has lost."""
    more = {"preload": ["tests.actions"]} if kind == "zygote" else {}
    with caplog.at_level(logging.WARNING, "aioisolate"), open(tmp_path / "file", "w"):
        async with Isolator(start=kind, sandbox=OPEN, warm=1, **more) as iso:
            assert await iso.run(len, "abc", timeout=20) == 3
            assert await iso.run(len, "abc", limits=Limits(memory="1 GiB")) == 3
    assert told(caplog) == []


@pytest.mark.one_loop
async def test_one_that_is_imported_later(module, caplog):
    """The server imports what its children turn out to need, with what that opens."""
    name = module('file = open(directory + "/late", "w")')
    with caplog.at_level(logging.WARNING, "aioisolate"):
        async with Isolator(sandbox=OPEN) as iso:
            pool_of(iso).learn(name)

            def write():
                return os.write(sys.modules[name].file.fileno(), b"x")

            assert "Bad file descriptor" in str(await caught(iso.run(write)))
    assert any("/late" in line for line in told(caplog))


async def caught(call: Any) -> BaseException:
    try:
        value = await call
    except Exception as exc:
        return exc
    pytest.fail(f"it returned {value!r}")


# What children have


def leave_word() -> int:
    """Leave something at every open file, for whoever has it next; count those."""
    import fcntl

    count = 0
    for fd in range(1024):
        try:
            fcntl.fcntl(fd, 10, 12)  # F_SETSIG
        except OSError:
            continue
        count += 1
        os.set_blocking(fd, False)
        try:
            os.lseek(fd, 1234, 0)
        except OSError:
            pass
    return count


def find_word() -> list[int]:
    import fcntl

    found = []
    for fd in range(1024):
        try:
            place = os.lseek(fd, 0, 1) if fd > 2 else 0
        except OSError:
            place = 0
        try:
            if fcntl.fcntl(fd, 11) == 12 or not os.get_blocking(fd) or place == 1234:
                found.append(fd)
        except OSError:
            continue
    return found


@pytest.mark.one_loop
@pytest.mark.parametrize("warm", [0, 1])
@pytest.mark.parametrize("sandbox", [None, OPEN, DATA], ids=["none", "open", "untrusted"])
async def test_no_call_leaves_word_to_the_next(module, sandbox, warm):
    """An open file's offset, flags and owner are those of all who have inherited it."""
    name = module("""
        file = open(directory + "/file", "w+")
        from aioisolate import Snapshot
        snapshot = Snapshot.from_bytes(bytes(5000))
    """)
    preload = [name, "tests.security.test_preloaded"]
    async with Isolator(sandbox=sandbox, preload=preload, warm=warm) as iso:
        if warm:  # one that was there before does not know
            await until(lambda: iso.statistics().idle)
        assert await iso.run(leave_word) > 5
        if warm:
            await iso.run(len, "")
        left = await iso.run(find_word)
    assert bool(left) is (sandbox is None), left


@pytest.mark.one_loop
@pytest.mark.parametrize("again", [True, False], ids=["again", "another"])
@pytest.mark.parametrize("sandbox", [None, OPEN], ids=["none", "open"])
async def test_what_is_opened_after_the_fork(module, tmp_path, sandbox, again):
    """By a function that modules have had called in each child, in place of what they had."""
    name = module(f"""
        first = os.open("/", os.O_RDONLY)
        last = os.open("/", os.O_RDONLY)
        os.close(first)
        def reopen():
            global file
            file = open(directory + "/log", "a")
            if {again}:
                os.close(last)
        os.register_at_fork(after_in_child=reopen)
    """)

    def write():
        file = sys.modules[name].file
        return os.write(file.fileno(), b"written")

    async with Isolator(sandbox=sandbox, preload=[name]) as iso:
        if sandbox is None:
            await iso.run(write)
        else:
            assert "Bad file descriptor" in str(await caught(iso.run(write)))
    assert (tmp_path / "log").read_text() == ("written" if sandbox is None else "")


@pytest.mark.one_loop
async def test_objects_of_modules_do_no_harm(module, tmp_path):
    """Neither when they are used, nor when they are collected, nor at the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    name = module(f"""
        import gc, sqlite3
        log = open(directory + "/log", "w")
        log.write("not yet written")
        sock = socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}))
        stream = sock.makefile("w")
        stream.write("not yet sent")
        base = sqlite3.connect(directory + "/base")
        base.execute("create table if not exists words (word)")
        base.execute("insert into words values ('not committed')")
    """)

    def use():
        held = sys.modules[name]
        numbers = {held.log.fileno(), held.sock.fileno()}
        seen = []
        for act in (
            held.log.flush,
            held.stream.flush,
            lambda: held.sock.recv(1),
            lambda: held.base.execute("insert into words values ('later')"),
            held.base.commit,
        ):
            try:
                seen.append(repr(act()))
            except Exception as exc:
                seen.append(type(exc).__name__)
        read, write = os.pipe()
        del held.log, held.stream, held.sock, held.base
        held.gc.collect()
        # What is closed now was not somebody else's.
        os.write(write, b"x")
        return os.read(read, 1) == b"x", bool(numbers & {read, write}), seen

    def leave():
        return len(sys.modules[name].log.name) > 0

    with listener:
        async with Isolator(sandbox=DATA, preload=[name]) as iso:
            for call in (use, use, leave):
                outcome = await iso.capture(call, timeout=20)
                assert outcome.error is None
                assert outcome.exit.code == 0
                if call is use:
                    fine, reused, seen = outcome.value
                    assert fine
                    assert not reused
                    assert seen[:3] == ["OSError", "OSError", "OSError"]
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(100) == b""
    assert (tmp_path / "log").read_text() == ""
    import sqlite3

    base = sqlite3.connect(tmp_path / "base")
    assert base.execute("select count(*) from words").fetchone() == (0,)
    base.close()


@pytest.mark.one_loop
@pytest.mark.parametrize("warm", [0, 1])
async def test_a_file_is_given_by_pass_fds(module, tmp_path, warm):
    """The way out for what a module wants to have at hand: whatever number it happens to have."""
    (tmp_path / "data").write_bytes(b"of the file " * 1000)
    name = module("""
        # So that the library's own get numbers that are free here.
        many = [os.open(os.devnull, os.O_RDONLY) for _ in range(70)]
        file = open(directory + "/data", "rb")
        copied = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    """)

    def look(fd):
        held = sys.modules[name]
        with open(fd, "rb", closefd=False) as file:
            file.seek(0)
            content = file.read(11)
        again = os.pread(fd, 11, 0)
        view = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)[:11]
        parts = content, again, view, held.copied[:11], held.mapped[:11]
        return [bytes(part).decode() for part in parts]

    limits = Limits(memory="256 MiB", open_files=40)
    async with Isolator(sandbox=DATA, preload=[name], warm=warm) as iso:
        first = os.open(tmp_path / "data", os.O_RDONLY)
        numbers = []
        try:
            for number in range(first + 1, first + 110):
                try:
                    os.fstat(number)
                except OSError:
                    os.dup2(first, number)
                    numbers.append(number)
            assert len(numbers) > 60
            for number in [first, *numbers]:
                got = await iso.run(look, number, pass_fds=[number], limits=limits)
                assert got == ["of the file"] * 5, number
        finally:
            for number in [first, *numbers]:
                os.close(number)


@pytest.mark.one_loop
async def test_files_that_are_not_passed_read_as_empty(module, tmp_path):
    (tmp_path / "data").write_bytes(b"of the file")
    name = module('file = open(directory + "/data", "rb")')

    def look():
        return sys.modules[name].file.read().decode()

    async with Isolator(sandbox=DATA, preload=[name]) as iso:
        assert await iso.run(look) == ""
    async with Isolator(preload=[name]) as iso:
        assert await iso.run(look) == "of the file"


# Snapshots


@pytest.mark.one_loop
async def test_snapshots_stay_as_they_are(module):
    """They are the library's, and nobody can change them."""
    name = module("""
        from aioisolate import Snapshot
        snapshot = Snapshot.from_bytes(b"of the snapshot")
        view = snapshot.view()
    """)

    def look():
        held = sys.modules[name]
        with held.snapshot.view() as view:
            view[0:2] = b"OF"
            found = bytes(view[0:15]).decode()
        fd = held.snapshot._root.fd
        held.view[0:2] = b"if"
        try:
            os.pwrite(fd, b"attacked", 0)
        except OSError as exc:
            return found, bytes(held.view[0:15]).decode(), exc.errno, held.snapshot.sealed
        return "attacked"

    async with Isolator(sandbox=DATA, preload=[name]) as iso:
        for _ in range(2):
            assert await iso.run(look) == ["OF the snapshot", "if the snapshot", 9, True]


@pytest.mark.one_loop
@pytest.mark.parametrize("kind", ["fork", "template"])
async def test_snapshots_of_a_copied_process(kind):
    """Neither sealed there, nor open to be written to by a stranger."""
    snapshot = Snapshot.from_bytes(b"of the snapshot")

    def look():
        try:
            os.pwrite(snapshot._root.fd, b"attacked", 0)
        except OSError as exc:
            return bytes(snapshot.view()[0:15]).decode(), exc.errno
        return "attacked"

    async with Isolator(start=kind, sandbox=Sandbox(codec="json")) as iso:
        assert await iso.run(look) == ["of the snapshot", 9]
    assert not snapshot.sealed
    assert bytes(snapshot.view()) == b"of the snapshot"


# Shared mappings

REFUSED = {
    "file": """
        open(directory + "/shared", "wb").write(bytes(8192))
        file = open(directory + "/shared", "r+b")
        page = mmap.mmap(file.fileno(), 0)
    """,
    "file that is closed": """
        with open(directory + "/shared", "w+b") as file:
            file.truncate(8192)
            page = mmap.mmap(file.fileno(), 8192)
    """,
    "read-only for now": """
        with open(directory + "/shared", "w+b") as file:
            file.truncate(8192)
            page = mmap.mmap(file.fileno(), 8192, prot=mmap.PROT_READ)
    """,
    "no file": "page = mmap.mmap(-1, 8192)",
    "memmap": """
        import numpy
        page = numpy.memmap(directory + "/shared", "u1", "w+", shape=(8192,))
    """,
    "value": "import multiprocessing\nvalue = multiprocessing.Value('i')",
    "array": "import multiprocessing\narray = multiprocessing.Array('i', 3000)",
    "lock": "import multiprocessing\nlock = multiprocessing.get_context('fork').Lock()",
    "shared array": "import aioisolate\narray = aioisolate.shared_array(1024)",
    "snapshot": """
        import aioisolate
        view = aioisolate.Snapshot.zeroed(8192).view_mut()
    """,
}
NAMES = {"no file": "/dev/zero", "lock": "sem.", "shared array": "memfd:aioisolate"}
NAMES |= {"snapshot": "memfd:aioisolate", "value": "pym-", "array": "pym-"}


@pytest.mark.one_loop
@pytest.mark.parametrize("what", REFUSED)
async def test_memory_that_all_calls_would_share_is_refused(module, what):
    name = module(REFUSED[what])
    async with Isolator(preload=[name]) as iso:
        assert await iso.run(len, "abc") == 3
    with pytest.raises(CallableDidNotExecuteError) as refused:
        async with Isolator(sandbox=OPEN, preload=[name]):
            pass
    assert refused.value.reason is Reason.CHILD_SETUP
    text = str(refused.value)
    assert NAMES.get(what, "/shared") in text
    assert "8192 bytes" in text or what in ("value", "array", "lock")
    assert "ACCESS_COPY" in text
    assert "Traceback" not in text


@pytest.mark.one_loop
async def test_a_path_of_two_lines_is_one(module):
    name = module("""
        with open(directory + "/two\\nlines\\x1b", "w+b") as file:
            file.truncate(8192)
            page = mmap.mmap(file.fileno(), 8192)
    """)
    with pytest.raises(CallableDidNotExecuteError) as refused:
        async with Isolator(sandbox=DATA, preload=[name]):
            pass
    assert "lines\\x1b" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.one_loop
async def test_memory_that_is_imported_later(module):
    # The server's own filter allows no shared memory without a file by then.
    name = module("""
        fd = os.memfd_create("page")
        os.ftruncate(fd, 8192)
        page = mmap.mmap(fd, 8192)
    """)
    async with Isolator(sandbox=OPEN) as iso:
        assert await iso.run(len, "abc") == 3
        pool_of(iso).learn(name)
        error = await error_of(iso.run(len, "abc"))
        assert error.reason is Reason.CHILD_SETUP
        assert "memfd:page" in str(error)


@pytest.mark.one_loop
async def test_private_and_read_only_memory_is_fine(module, tmp_path):
    (tmp_path / "data").write_bytes(b"of the file " * 1000)
    name = module("""
        import numpy
        with open(directory + "/data", "rb") as file:
            copied = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        changed = numpy.memmap(directory + "/data", "u1", "c")
        array = numpy.memmap(directory + "/data", "u1", "r")
        own = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    """)

    def use():
        held = sys.modules[name]
        held.copied[0:2] = held.own[0:2] = b"OF"
        held.changed[0] = 79
        return [bytes(part[:11]).decode() for part in (held.copied, held.mapped, held.changed)]

    async with Isolator(sandbox=DATA, preload=[name]) as iso:
        for _ in range(2):
            assert await iso.run(use) == ["OF the file", "of the file", "Of the file"]
    assert (tmp_path / "data").read_bytes() == b"of the file " * 1000


@pytest.mark.one_loop
async def test_a_copy_is_refused_for_it_as_well():
    array = shared_array(512)
    with pytest.raises(CallableDidNotExecuteError, match=r"process that was copied.*memfd:aio"):
        async with Isolator(start="template", sandbox=OPEN):
            pass
    array[0] = 1.0


def test_looking_changes_nothing():
    """Whether a mapping could be written is tried out, and its rights are those of before."""
    fd = os.memfd_create("looked at")
    os.ftruncate(fd, 8192)
    other = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    with (
        mmap.mmap(fd, 8192, prot=mmap.PROT_READ) as writable,
        mmap.mmap(other, 8192, prot=mmap.PROT_READ) as readable,
    ):
        os.close(fd)
        os.close(other)
        before = pathlib.Path("/proc/self/maps").read_text()
        rows = [line for line in before.splitlines() if "looked at" in line]
        found = [found for found in shared_mappings.shared() if "looked at" in found.name]
        after = pathlib.Path("/proc/self/maps").read_text()
        assert [line for line in after.splitlines() if "looked at" in line] == rows
        assert len(found) == 1
        assert found[0].size == 8192
        assert writable[0] == readable[0] == 0


def test_where_proc_is_missing(tmp_path):
    directory = os.open(tmp_path, os.O_RDONLY)
    assert shared_mappings.shared(directory) == []
    shared_mappings.unmap_io_uring_rings(directory)
    os.close(directory)


def test_they_are_replaced_without_proc(tmp_path):
    def work():
        order = ChildSpec()
        order.null = os.open(os.devnull, os.O_RDWR)
        order.empty = os.open(os.devnull, os.O_RDONLY)
        file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        late = os.open(tmp_path / "file", os.O_RDWR)
        order.module_fds, order.snapshots, order.dev = [file], [], -1
        order.gaps = descriptors.gaps(set(range(late + 10)) - {late})
        descriptors.replace_module_files(order, -1)
        failed = []
        for fd in (file, late):
            try:
                os.write(fd, b"attacked")
            except OSError as exc:
                failed.append(exc.errno)
        return failed, os.write(1, b""), os.read(0, 1).decode()

    assert forked(work) == ([[9, 9], 0, ""], 0)


# Copies of the process


@pytest.mark.one_loop
@pytest.mark.parametrize("kind", ["fork", "template"])
@pytest.mark.parametrize("codec", ["json", "pickle"])
async def test_files_of_a_copied_process(kind, codec, tmp_path):
    """Wherever fn may read and write: what the process has open is not its business."""
    (tmp_path / "file").write_text("of the file")
    sandbox = Sandbox(read=None, write=None, codec=codec, namespaces="off")
    with open(tmp_path / "file", "r+") as file, open(tmp_path / "other", "w+") as other:
        other.write("of the other")
        other.flush()

        def look():
            os.lseek(file.fileno(), 0, 0)
            found = os.read(file.fileno(), 100).decode()
            try:
                os.write(file.fileno(), b"+")
            except OSError as exc:
                found += f" {exc.errno}"
            return found, os.pread(other.fileno(), 100, 0).decode()

        async with Isolator(start=kind, sandbox=sandbox) as iso:
            got = await iso.run(look, pass_fds=[other.fileno()])
        assert list(got) == [" 9" if codec == "json" else "of the file", "of the other"]
    assert (tmp_path / "file").read_text() == "of the file" + "+" * (codec == "pickle")


@pytest.mark.one_loop
@pytest.mark.parametrize("sandbox", [None, OPEN], ids=["none", "open"])
async def test_what_a_copy_opens_after_the_fork(sandbox, tmp_path):
    opened: list[Any] = []
    armed = True

    def reopen():
        if armed:
            opened.append(open(tmp_path / "log", "a"))

    os.register_at_fork(after_in_child=reopen)

    def write():
        return os.write(opened[-1].fileno(), b"written")

    try:
        call = run_isolated(write, sandbox=sandbox)
        if sandbox is None:
            await call
        else:
            assert "Bad file descriptor" in str(await caught(call))
    finally:
        armed = False
    assert (tmp_path / "log").read_text() == ("written" if sandbox is None else "")


@pytest.mark.parametrize("kind", ["fork", "template"])
async def test_a_copy_loses_the_rings_of_the_loop(kind):
    """Who writes to a ring of io_uring has the kernel do something in the loop's name."""

    def rings():
        with open("/proc/self/maps") as file:
            return sum("[io_uring]" in line for line in file)

    sandbox = Sandbox(read=None, write=None, codec="json", namespaces="off")
    async with Isolator(start=kind, sandbox=sandbox) as iso:
        assert await iso.run(rings) == 0


@pytest.mark.one_loop
async def test_a_start_cannot_be_taken_back_where_nothing_is_sealed(module, monkeypatch):
    """A seal is a mark for good; where there are none a frame says that fn is called."""
    monkeypatch.setattr(memfd, "_sealable", False)
    name = module(
        """
        import stat
        from tests.internals import MARK_AT, memfd

        memfd._sealable = False

        def wipe():
            for fd in range(3, 256):
                try:
                    if stat.S_ISREG(os.fstat(fd).st_mode):
                        os.pwrite(fd, bytes(1), MARK_AT)
                except OSError:
                    pass
            os._exit(0)
        """
    )
    wipe = importlib.import_module(name).wipe
    async with Isolator(sandbox=DATA, preload=[name]) as iso:
        error = await error_of(iso.run(wipe, output="null"))
    assert error.reason is Reason.NO_RESULT, error
