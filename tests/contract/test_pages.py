"""Private pages: protected, guarded, advised, given back, resized, run."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import pickle
import platform
import signal
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aioisolate import Access, Advice, IsolationError, Pages, Reason, page_size, run_isolated
from tests.helpers import fork, leaves_nothing, resident
from tests.internals import MemoryRegion
from tests.internals import mappings as seam

pytestmark = pytest.mark.part(name="memory")

PAGE = page_size()
RW = Access.READ | Access.WRITE
RX = Access.READ | Access.EXEC
NO_BUFFER = (ValueError, PermissionError, SystemError)

# int64_t add(int64_t a, int64_t b) { return a + b; }
ADD = {
    "x86_64": bytes.fromhex("488d0437c3"),  # lea rax, [rdi + rsi]; ret
    "aarch64": bytes.fromhex("0000018bc0035fd6"),  # add x0, x0, x1; ret
    "arm64": bytes.fromhex("0000018bc0035fd6"),
}.get(platform.machine(), b"")
# The same with a minus.
SUBTRACT = {
    "x86_64": bytes.fromhex("4889f84829f0c3"),  # mov rax, rdi; sub rax, rsi; ret
    "aarch64": bytes.fromhex("000001cbc0035fd6"),  # sub x0, x0, x1; ret
    "arm64": bytes.fromhex("000001cbc0035fd6"),
}.get(platform.machine(), b"")
needs_code = pytest.mark.skipif(not ADD, reason=f"no machine code for {platform.machine()} here")
INT = ctypes.c_int64


def has_huge_pages() -> bool:
    try:
        seam.check_huge_pages()
    except OSError:
        return False
    return True


needs_huge = pytest.mark.skipif(not has_huge_pages(), reason="there are no huge pages here")


def flags(pages: MemoryRegion) -> str:
    """What the kernel says of the mapping of the first byte."""
    address, inside = pages._address(), False
    with open("/proc/self/smaps") as file:
        for line in file:
            head = line.split()[0]
            if "-" in head and ":" not in head:
                start, stop = (int(part, 16) for part in head.split("-"))
                inside = start <= address < stop
            elif inside and head == "VmFlags:":
                return line
    raise AssertionError("not mapped")


# Being made, and used


def test_pages_are_zeros_that_can_be_written():
    with Pages(PAGE + 1) as pages:
        assert len(pages) == PAGE + 1
        assert pages.size == 2 * PAGE
        assert bytes(pages) == bytes(PAGE + 1)
        pages[:5] = b"hello"
        pages[-1] = 7
        array = np.frombuffer(pages, "u1")
        assert array.__array_interface__["data"][0] == pages._address()
        array[5] = 33
        assert pages[:7] == b"hello!\0"
        assert repr(pages) == f"<Pages of {PAGE + 1} bytes>"
        with pytest.raises(BufferError, match="still uses"):
            pages.close()
        del array
    assert pages.closed
    with pytest.raises(ValueError, match="the memory is closed"):
        pages[0]


@pytest.mark.parametrize("wrong", [None, "5", 1.5, True, b"x"])
def test_a_length_is_a_number(wrong):
    with pytest.raises(TypeError, match="number of bytes"):
        Pages(wrong)
    with Pages(5) as pages, pytest.raises(TypeError, match="number of bytes"):
        pages.resize(wrong)


def test_other_wrong_arguments():
    with pytest.raises(ValueError, match="-1"):
        Pages(-1)
    with pytest.raises(TypeError, match="Access"):
        Pages(5, 3)
    for access in (Access.WRITE | Access.EXEC, RW | Access.EXEC):
        with pytest.raises(ValueError, match="either writable or executable"):
            Pages(5, access)


@pytest.mark.parametrize("length", [1 << 60, 1 << 70])
def test_too_many_are_an_error_that_names_the_size(length):
    with pytest.raises(MemoryError, match=str(length)):
        Pages(length)
    pages = Pages(100)
    pages[:3] = b"abc"
    with pytest.raises(MemoryError, match=str(length)):
        pages.resize(length)
    pages.protect(Access.READ)
    with pytest.raises(MemoryError, match=str(length)):
        pages.resize(length)
    assert pages[:4] == b"abc\0"
    assert len(pages) == 100


def test_empty_pages():
    for options in ({}, {"guard": True}):
        with Pages(0, **options) as pages:
            assert (len(pages), pages.size, bytes(pages)) == (0, 0, b"")
            pages.protect(Access.READ)
            pages.advise(Advice.RANDOM)
            pages.decommit()
            pages.resize(0)
            with pytest.raises(IndexError):
                pages.get_function(0)
            pages.resize(10)
            pages[:] = b"0123456789"
            pages.resize(0)
            assert bytes(pages) == b""
            pages.resize(3)
            assert bytes(pages) == b"\0\0\0"


def test_they_are_not_pickled():
    with pytest.raises(TypeError, match=r"Snapshot.from_bytes\(pages\)"):
        pickle.dumps(Pages(5))


async def test_a_child_has_a_copy_of_its_own():
    pages = Pages(PAGE)
    pages[0] = 1

    def work():
        pages[0] += 1
        return pages[0]

    assert await run_isolated(work) == 2
    assert pages[0] == 1


# Protection


ALL = [
    Access.NONE,
    Access.READ,
    Access.WRITE,
    Access.EXEC,
    RW,
    RX,
]


@pytest.mark.parametrize("access", ALL, ids=str)
def test_every_access_from_the_beginning_and_later(access):
    for pages in (Pages(2 * PAGE, access), Pages(2 * PAGE), Pages(2 * PAGE, guard=True)):
        pages.protect(access)
        shown = flags(pages).split()[1:]
        # Whoever may write or execute may read, says the processor, not the kernel's list.
        assert [flag in shown for flag in ("rd", "wr", "ex")] == [
            flag in access for flag in (Access.READ, Access.WRITE, Access.EXEC)
        ]
        if Access.READ in access:
            assert pages[:3] == bytes(3)
        else:
            with pytest.raises(PermissionError, match="may not be read"):
                pages[0]
            with pytest.raises(NO_BUFFER):
                memoryview(pages)
        if Access.WRITE in access:
            pages[0] = 1
        else:
            with pytest.raises(PermissionError, match="may not be written"):
                pages[0] = 1
        pages.protect(slice(0, PAGE), RW)
        pages[0] = 5
        assert pages[0] == 5
        pages.close()


def test_a_flip_from_writable_to_executable_and_back():
    pages = Pages(PAGE)
    pages[0] = 1
    with pytest.raises(ValueError, match="write first, then"):
        pages.protect(RW | Access.EXEC)
    pages.protect(RX)
    with pytest.raises(PermissionError):
        pages[0] = 2
    pages.protect(slice(0, PAGE), RW)
    pages[0] = 2
    with pytest.raises(ValueError, match="whole pages"):
        pages.protect(slice(0, 1), Access.READ)


# Advice and giving back


@pytest.mark.parametrize(
    "advice",
    [
        *(Advice.NORMAL, Advice.RANDOM, Advice.SEQUENTIAL, Advice.WILLNEED),
        *(Advice.DONTFORK, Advice.DOFORK, Advice.WIPEONFORK, Advice.KEEPONFORK),
        *(Advice.DONTDUMP, Advice.DODUMP, Advice.COLD),
    ],
)
def test_advice_of_every_kind(advice):
    for options in ({}, {"guard": True}):
        with Pages(4 * PAGE, **options) as pages:
            pages[0] = 5
            pages.advise(advice)
            pages.advise(advice, slice(PAGE, 2 * PAGE))
            assert pages[0] == 5
            with pytest.raises(ValueError, match="whole pages"):
                pages.advise(advice, slice(5, PAGE))


def test_advice_that_the_platform_has_not(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_RANDOM")
    with Pages(5) as pages, pytest.raises(NotImplementedError, match="no MADV_RANDOM"):
        pages.advise(Advice.RANDOM)


async def test_secrets_are_wiped_in_children():
    pages = Pages(2 * PAGE)
    pages[:6] = b"secret"
    pages[PAGE : PAGE + 4] = b"open"
    pages.advise(Advice.WIPEONFORK, slice(0, PAGE))
    assert await run_isolated(lambda: (pages[:6], pages[PAGE : PAGE + 4])) == (bytes(6), b"open")
    assert pages[:6] == b"secret"


async def test_pages_that_children_do_not_have():
    pages = Pages(PAGE)
    pages.advise(Advice.DONTFORK)
    with pytest.raises(IsolationError) as info:
        await run_isolated(lambda: pages[0])
    assert info.value.reason is Reason.SIGNAL
    assert pages[0] == 0


@pytest.mark.parametrize("guard", [False, True])
def test_advice_outlives_a_resize(guard):
    pages = Pages(4 * PAGE, guard=guard)
    pages.advise(Advice.RANDOM)
    pages.advise(Advice.WIPEONFORK)
    pages.advise(Advice.SEQUENTIAL, slice(0, PAGE))
    pages.advise(Advice.NORMAL, slice(0, PAGE))
    for length in (100 * PAGE, 2 * PAGE, PAGE, 10 * PAGE):
        pages.resize(length)
        shown = flags(pages).split()
        assert "wf" in shown
        assert "rr" not in shown
        if length > PAGE:
            pages.advise(Advice.RANDOM, slice(PAGE, None))
    pid = fork()
    if not pid:
        os._exit(pages[9 * PAGE])
    assert os.waitpid(pid, 0)[1] == 0


def test_what_is_given_back_is_zero_and_takes_no_memory():
    pages = Pages(64 << 20)
    pages[:] = b"x" * len(pages)
    full = resident()
    pages.decommit(slice(PAGE, 32 << 20))
    assert full - resident() > 31 << 20
    assert pages[PAGE - 1 : PAGE + 1] == b"x\0"
    assert pages[(32 << 20) - 1 : (32 << 20) + 1] == b"\0x"
    pages.decommit()
    assert full - resident() > 62 << 20
    assert pages[-1] == 0
    pages[0] = 1
    with pytest.raises(ValueError, match="whole pages"):
        pages.decommit(slice(0, 100))


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_giving_back_keeps_protections(platform, monkeypatch):
    pages = Pages(4 * PAGE, guard=True)
    pages[:] = b"x" * len(pages)
    pages.protect(slice(PAGE, 2 * PAGE), Access.READ)
    pages.protect(slice(2 * PAGE, 3 * PAGE), Access.NONE)
    monkeypatch.setattr(seam.sys, "platform", platform)
    pages.decommit(slice(0, 3 * PAGE))
    monkeypatch.undo()
    assert pages[: 2 * PAGE] == bytes(2 * PAGE)
    assert "wr" in flags(pages)
    for page, there in ((1, "rd"), (2, "")):
        with pytest.raises(PermissionError):
            pages[page * PAGE] = 1
        shown = flags(Window(pages, page * PAGE)).split()
        assert "wr" not in shown
        assert ("rd" in shown) == bool(there)
    assert pages[3 * PAGE] == ord("x")


class Window:
    def __init__(self, pages, offset):
        self.at = pages._address() + offset

    def _address(self):
        return self.at


# Guards


@pytest.mark.parametrize("before", [True, False])
async def test_an_overrun_is_a_crash_in_the_child_and_nothing_in_the_parent(before):
    pages = Pages(2 * PAGE, guard=True)
    address = pages._address()

    def overrun():
        ctypes.memset(address if before else address + 2 * PAGE - 1, 1, 1)  # the last that may be
        ctypes.memset(address - 1 if before else address + 2 * PAGE, 1, 1)

    with pytest.raises(IsolationError) as info:
        await run_isolated(overrun)
    assert info.value.reason is Reason.SIGNAL
    assert info.value.exit.signal in (signal.SIGSEGV, signal.SIGBUS)
    line = overrun.__code__.co_firstlineno + 2
    assert f"line {line} in overrun" in info.value.crash_traceback
    assert bytes(pages) == bytes(2 * PAGE)


async def test_guards_outlive_a_resize():
    pages = Pages(PAGE, guard=True)
    pages[:] = b"x" * PAGE
    pages.resize(5 * PAGE)
    assert bytes(pages) == b"x" * PAGE + bytes(4 * PAGE)
    for at in (-1, 5 * PAGE):
        with pytest.raises(IsolationError):
            await run_isolated(ctypes.memset, pages._address() + at, 1, 1)
    assert await run_isolated(ctypes.string_at, pages._address(), 2) == b"xx"


# Resizing


@pytest.mark.parametrize("guard", [False, True])
def test_resizing_keeps_content_and_protections(guard):
    pages = Pages(3 * PAGE - 10, guard=guard)
    pages[:] = bytes(range(256)) * (3 * PAGE // 256 - 1) + bytes(range(246))
    content = bytes(pages)
    pages.protect(slice(PAGE, 2 * PAGE), Access.READ)
    pages.protect(slice(0, PAGE), Access.NONE)
    pages.resize(10 * PAGE)
    assert len(pages) == 10 * PAGE
    assert pages[PAGE : 3 * PAGE] == content[PAGE:] + bytes(10)
    assert pages[3 * PAGE :] == bytes(7 * PAGE)
    with pytest.raises(PermissionError):
        pages[PAGE] = 1
    with pytest.raises(PermissionError):
        pages[0]
    pages[2 * PAGE] = 1
    pages[-1] = 1
    pages.resize(2 * PAGE)
    with pytest.raises(PermissionError):
        pages[PAGE] = 1
    pages.protect(RW)
    assert bytes(pages) == content[: 2 * PAGE]
    pages[0] = 1


@pytest.mark.parametrize("access", [Access.READ, RX, RW])
@pytest.mark.parametrize("guard", [False, True])
def test_what_was_cut_off_does_not_come_back(guard, access):
    pages = Pages(2 * PAGE, access, guard=guard)
    pages.protect(RW)
    pages[:] = b"x" * 2 * PAGE
    pages.protect(access)
    pages.resize(100)
    pages.resize(50)
    for length in (60, PAGE, 2 * PAGE):
        pages.resize(length)
        assert bytes(pages) == b"x" * 50 + bytes(length - 50)
        # New pages have the first protection.
        if access is not RW:
            with pytest.raises(PermissionError):
                pages[-1] = 1


def test_new_pages_have_the_first_protection():
    pages = Pages(PAGE, Access.READ)
    pages.protect(RW)
    pages[0] = 1
    pages.resize(2 * PAGE)
    pages[0] = 2
    with pytest.raises(PermissionError):
        pages[PAGE] = 1
    assert "wr" not in flags(Window(pages, PAGE)).split()


@pytest.mark.parametrize("length", [0, 50, 90, 3 * PAGE])
def test_what_is_used_is_not_resized(length):
    pages = Pages(100)
    pages[:3] = b"abc"
    for use in (memoryview, np.asarray):
        held = use(pages)
        with pytest.raises(BufferError):
            pages.resize(length)
        held[0] = ord("a")
        del held
    assert pages[:3] == b"abc"
    pages.resize(length)


@pytest.fixture
def _small_pages_only():
    """A huge page is taken as a whole; where pages have 16 KiB, it has 32 MiB."""
    prctl, thp_disable = ctypes.CDLL(None).prctl, 41
    if sys.platform == "linux":
        prctl(thp_disable, 1, 0, 0, 0)
    yield
    if sys.platform == "linux":
        prctl(thp_disable, 0, 0, 0, 0)


@pytest.mark.usefixtures("_small_pages_only")
def test_growing_moves_and_copies_nothing():
    pages = Pages(64 << 20)
    pages[:] = b"x" * len(pages)
    before = resident()
    calls = []
    reserve = seam.reserve
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seam, "reserve", lambda size: calls.append(size) or reserve(size))
        pages.resize(128 << 20)
        assert not calls
        pages.protect(slice(0, PAGE), Access.READ)
        pages.resize(64 << 20)
        assert calls == [64 << 20]
    assert resident() - before < 4 << 20
    pages.decommit(slice(0, 60 << 20))
    pages.resize(66 << 20)
    assert before - resident() > 50 << 20  # zeros take no memory by being copied
    assert pages[-4 << 20 :] == b"x" * (2 << 20) + bytes(2 << 20)


def test_resizing_where_the_kernel_moves_no_pages(monkeypatch):
    pages = Pages(3 * PAGE)
    pages[:] = b"x" * 3 * PAGE
    monkeypatch.setattr(seam.sys, "platform", "darwin")
    for length in (10 * PAGE, PAGE, 2 * PAGE):
        pages.resize(length)
        assert (
            bytes(pages)
            == (b"x" * 3 * PAGE + bytes(7 * PAGE))[: min(length, PAGE)].ljust(length, b"\0")
            or length == 10 * PAGE
        )
    assert len(pages) == 2 * PAGE


def test_pages_that_the_kernel_has_in_parts_are_copied():
    pages = Pages(4 * PAGE)
    pages[:] = b"x" * 4 * PAGE
    # Behind our back, so that it must fail to be moved at once.
    pages._area.madvise(mmap.MADV_DONTDUMP, PAGE, PAGE)
    pages.resize(400 * PAGE)
    assert bytes(pages) == (b"x" * 4 * PAGE).ljust(400 * PAGE, b"\0")


# Huge pages


@needs_huge
@pytest.mark.parametrize("guard", [False, True])
def test_huge_pages(guard):
    size = seam.huge_page_size()
    pages = Pages(size + 1, guard=guard, huge=True)
    assert len(pages) == size + 1
    assert pages.size == 2 * size
    assert pages._address() % size == 0
    assert "hg" in flags(pages).split()
    pages[0] = pages[size] = 1
    pages.resize(2 * size + 1)
    assert pages.size == 3 * size
    assert pages._address() % size == 0
    assert "hg" in flags(pages).split()
    assert (pages[0], pages[size], pages[2 * size]) == (1, 1, 0)
    pages.protect(slice(PAGE, 2 * PAGE), Access.READ)
    pages.resize(5)
    assert bytes(pages) == b"\1\0\0\0\0"
    pages.resize(size)
    pages.protect(RW)
    pages[:] = b"x" * size
    pages.protect(slice(5 * PAGE, 6 * PAGE), Access.NONE)
    pages.resize(3)  # it stays where it is
    pages.resize(size)
    pages.protect(RW)
    assert bytes(pages) == b"xxx".ljust(size, b"\0")
    pages.close()
    empty = Pages(0, huge=True)
    empty.resize(5)
    assert "hg" in flags(empty).split()


@needs_huge
def test_a_touch_gets_a_huge_page():
    size = seam.huge_page_size()
    pages = Pages(8 * size, huge=True)
    before = resident()
    pages[0] = 1
    assert resident() - before >= size


@pytest.mark.parametrize(
    ("content", "text"), [("always madvise [never]", "turned off"), (None, "no transparent huge")]
)
def test_huge_pages_that_there_are_not(content, text, monkeypatch, tmp_path):
    real = open

    def other(path, *args, **options):
        if "transparent_hugepage" in str(path):
            if content is None:
                raise FileNotFoundError(errno.ENOENT, "none", path)
            path = tmp_path / "setting"
            path.write_text(content if "enabled" in path.name else "2097152")
        return real(path, *args, **options)

    monkeypatch.setattr("builtins.open", other)
    if content is not None:
        path = tmp_path / "enabled"
        monkeypatch.setattr(seam, "huge_page_size", lambda: 2 << 20)
        monkeypatch.setattr(
            "builtins.open",
            lambda name, *rest: real(path if "transparent" in str(name) else name, *rest),
        )
        path.write_text(content)
    with pytest.raises(OSError, match=text) as info:
        Pages(5, huge=True)
    assert info.value.errno == errno.ENOTSUP


# Machine code


def load(code=ADD, at=0, **options):
    pages = Pages(at + 64, **options)
    pages[at : at + len(code)] = code
    pages.protect(RX)
    return pages


@needs_code
@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("at", [0, 16, 4096])
def test_machine_code_adds(at, guard):
    add = load(at=at, guard=guard).get_function(at, INT, [INT, INT])
    gc.collect()  # the function keeps the pages
    assert add(43, 34) == 77
    assert add(-1, -2) == -3
    with pytest.raises(ctypes.ArgumentError):
        add("a", 1)
    with pytest.raises(TypeError):
        add(1)


@needs_code
def test_code_that_is_replaced():
    pages = load()
    assert pages.get_function(0, INT, [INT, INT])(43, 34) == 77
    pages.protect(RW)
    pages[: len(SUBTRACT)] = SUBTRACT
    pages.protect(RX)
    assert pages.get_function(0, INT, (INT, INT))(43, 34) == 9


@needs_code
@pytest.mark.parametrize(
    "change",
    [
        lambda pages: pages.protect(RW),
        lambda pages: pages.protect(RX),
        lambda pages: pages.resize(3 * PAGE),
        lambda pages: pages.resize(len(pages) + 1),
        lambda pages: pages.decommit(),
        lambda pages: pages.close(),
    ],
    ids=["writable", "executable again", "moved", "longer", "given back", "closed"],
)
def test_a_function_is_refused_after_a_change(change):
    pages = load()
    add = pages.get_function(0, INT, [INT, INT])
    change(pages)
    with pytest.raises(PermissionError, match="has changed since the function"):
        add(43, 34)


@pytest.mark.parametrize("access", [Access.NONE, Access.READ, RW, Access.WRITE], ids=str)
def test_only_what_is_executable_is_a_function(access):
    pages = Pages(2 * PAGE)
    pages.protect(slice(PAGE, None), RX)
    pages.protect(slice(0, PAGE), access)
    with pytest.raises(PermissionError, match="may not be executed"):
        pages.get_function(PAGE - 1)
    pages.get_function(PAGE)
    pages.get_function(-1)
    with pytest.raises(IndexError):
        pages.get_function(2 * PAGE)
    with pytest.raises(TypeError):
        pages.get_function("a")
    with pytest.raises(TypeError):
        pages.get_function(PAGE, "int")


@needs_code
def test_pages_are_not_closed_while_their_code_runs():
    pages = load(
        {
            # call rdi (with the stack aligned); ret
            "x86_64": bytes.fromhex("4883ec08ffd74883c408c3"),
            # stp x29, x30, [sp, #-16]!; blr x0; ldp x29, x30, [sp], #16; ret
        }.get(platform.machine(), bytes.fromhex("fd7bbfa900003fd6fd7bc1a8c0035fd6"))
    )
    raised = []

    @ctypes.CFUNCTYPE(None)
    def callback():
        for change in (pages.close, lambda: pages.resize(PAGE)):
            try:
                change()
            except BufferError as error:
                raised.append(error)

    call = pages.get_function(0, None, [type(callback)])
    call(callback)
    assert len(raised) == 2
    pages.close()


async def test_code_that_crashes_in_a_child():
    pages = load(b"\0" * 64)  # not executable in any sense, or reads the address 0
    pages.protect(RW)
    pages[:] = {"x86_64": b"\x0f\x0b"}.get(platform.machine(), b"\0\0\0\0").ljust(64, b"\0")
    pages.protect(RX)
    with pytest.raises(IsolationError) as info:
        await run_isolated(pages.get_function(0))
    assert info.value.exit.signal is signal.SIGILL


# A model


class Model(RuleBasedStateMachine):
    """Pages against a bytearray and a list of rights."""

    guard = False
    places = st.integers(0, 4 * PAGE)
    access = st.sampled_from([RW, Access.READ, RX, Access.NONE])

    def __init__(self):
        super().__init__()
        self.pages = Pages(PAGE + 100, guard=self.guard)
        self.model = bytearray(PAGE + 100)
        self.rights = [RW, RW]

    def allowed(self, start, stop, need):
        touched = range(start // PAGE, -(-stop // PAGE)) if stop > start else ()
        return all(need in self.rights[page] for page in touched)

    @rule(at=places, data=st.binary(max_size=PAGE))
    def write(self, at, data):
        at = min(at, len(self.model))
        data = data[: len(self.model) - at]
        if self.allowed(at, at + len(data), Access.WRITE):
            self.pages[at : at + len(data)] = data
            self.model[at : at + len(data)] = data
        else:
            with pytest.raises(PermissionError):
                self.pages[at : at + len(data)] = data

    @rule(length=places)
    def resize(self, length):
        self.pages.resize(length)
        self.model = self.model[:length].ljust(length, b"\0")
        count = -(-length // PAGE)
        self.rights = (self.rights + [RW] * count)[:count]

    @rule(page=st.integers(0, 3), access=access)
    def protect(self, page, access):
        if page < len(self.rights):
            self.pages.protect(slice(page * PAGE, (page + 1) * PAGE), access)
            self.rights[page] = access

    @rule(access=access)
    def protect_all(self, access):
        self.pages.protect(access)
        self.rights = [access] * len(self.rights)

    @rule(page=st.integers(0, 3))
    def decommit(self, page):
        if page < len(self.rights):
            self.pages.decommit(slice(page * PAGE, (page + 1) * PAGE))
            part = self.model[page * PAGE : (page + 1) * PAGE]
            self.model[page * PAGE : (page + 1) * PAGE] = bytes(len(part))

    @invariant()
    def alike(self):
        assert len(self.pages) == len(self.model)
        assert self.pages.size == len(self.rights) * PAGE
        for page, access in enumerate(self.rights):
            start, stop = page * PAGE, min((page + 1) * PAGE, len(self.model))
            if Access.READ in access:
                assert self.pages[start:stop] == self.model[start:stop]
                # The memory is what we think it is: the kernel lets us look.
                assert self.pages._area[self.pages._start + start] == self.model[start]

    def teardown(self):
        self.pages.close()


class GuardedModel(Model):
    guard = True


TestPages = Model.TestCase
TestPagesWithGuards = GuardedModel.TestCase
TestPages.settings = TestPagesWithGuards.settings = settings(
    max_examples=20,
    stateful_step_count=15,
    suppress_health_check=list(HealthCheck),
)


# Leaks


@pytest.mark.parametrize("guard", [False, True])
def test_pages_leave_nothing(guard):
    def work():
        pages = Pages(3 * PAGE, guard=guard)
        pages[0] = 1
        pages.protect(slice(PAGE, 2 * PAGE), Access.READ)
        pages.advise(Advice.RANDOM, slice(0, PAGE))
        pages.resize(9 * PAGE)
        pages.decommit()
        pages.protect(RX)
        pages.get_function(0)
        pages.resize(PAGE)
        with memoryview(pages), pytest.raises(BufferError):
            pages.resize(2 * PAGE)
        with pytest.raises(MemoryError):
            pages.resize(1 << 60)

    leaves_nothing(work)
