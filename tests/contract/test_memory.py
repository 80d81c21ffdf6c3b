"""Snapshots and their views."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import gc
import mmap
import os
import re
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from aioisolate import (
    Access,
    Advice,
    IsolationError,
    Pages,
    Reason,
    Snapshot,
    View,
    page_size,
    run_isolated,
)
from tests.helpers import leaves_nothing, mappings, python
from tests.internals import file_mappings, memfd
from tests.internals import mappings as seam

pytestmark = pytest.mark.part(name="memory")

PAGE = page_size()
# What a closed or protected object's buffer raises; 3.11 can't be told what it was.
NO_BUFFER = (ValueError, PermissionError, SystemError)


def pages(count: int) -> bytes:
    return b"".join(bytes([i + 1]) * PAGE for i in range(count))


# Snapshots


def test_a_snapshot_of_zeros():
    with Snapshot.zeroed(PAGE + 1) as snapshot:
        assert len(snapshot) == PAGE + 1
        assert snapshot.size == 2 * PAGE
        assert bytes(snapshot.view()) == bytes(PAGE + 1)
        assert not snapshot.sealed
        assert repr(snapshot) == f"<Snapshot of {PAGE + 1} bytes>"
    assert snapshot.closed
    assert repr(snapshot) == "<Snapshot closed>"


@pytest.mark.parametrize("wrong", [None, "5", 1.5, True])
def test_a_length_is_a_number(wrong):
    with pytest.raises(TypeError, match="number of bytes"):
        Snapshot.zeroed(wrong)


def test_a_length_is_not_negative():
    with pytest.raises(ValueError, match="-1"):
        Snapshot.zeroed(-1)
    with pytest.raises(TypeError, match="zeroed, from_bytes"):
        Snapshot()


@pytest.mark.parametrize(
    "content",
    [
        b"some bytes",
        bytearray(b"some more"),
        memoryview(b"every other one")[::2],
        array.array("d", [1.5, 2.5]),
        b"",
        memoryview(array.array("i", range(12))).cast("B").cast("i", (3, 4)),
    ],
)
def test_from_bytes_takes_any_buffer(content):
    wanted = memoryview(content).tobytes()
    assert bytes(Snapshot.from_bytes(content).view()) == wanted
    assert len(Snapshot.from_bytes(content)) == len(wanted)


@pytest.mark.parametrize("content", [None, 5, "text", [1, 2]])
def test_from_bytes_takes_nothing_else(content):
    with pytest.raises(TypeError, match=type(content).__name__):
        Snapshot.from_bytes(content)


OBJECTS = [
    np.array([{}, []], dtype=object),
    np.array([[1, None]], dtype=object).T,
    np.zeros(2, [("a", "i4"), ("b", object)]),
    np.zeros(2, [("a", "M8[s]"), ("b", object)]),  # numpy exports no buffer of that
    (ctypes.py_object * 2)({}, []),
]


@pytest.mark.parametrize("content", OBJECTS, ids=[f"kind {at}" for at in range(len(OBJECTS))])
def test_11_29_addresses_of_objects_are_no_content(content):
    with pytest.raises(TypeError, match="Python objects"):
        Snapshot.from_bytes(content)
    with Pages(1000) as pages, pytest.raises((TypeError, ValueError), match=r"objects|buffer"):
        pages[: content.nbytes if hasattr(content, "nbytes") else 16] = content
    named = np.zeros(2, [("O", "i4"), ("Objects", "f8")])
    assert bytes(Snapshot.from_bytes(named).view()) == bytes(24)


TYPES = [
    *("?", "i1", "u1", "<i4", ">i4", "i8", "f2", "f4", ">f8", "g", "c8", "c16"),
    *("M8[s]", "m8[ms]", "S3", "U5", "V4", [("a", "<i4"), ("b", ">f8", (2,))]),
]


@pytest.mark.parametrize("order", ["C", "F", "strided", "reversed"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_arrays_of_every_type_and_order(dtype, order):
    raw = np.random.default_rng(5).integers(0, 2, 24 * np.dtype(dtype).itemsize, dtype="u1")
    array = np.frombuffer(raw.tobytes(), dtype).reshape(4, 6)
    array = {
        "C": array,
        "F": np.asfortranarray(array),
        "strided": array[::2, 1::2],
        "reversed": array[::-1],
    }[order]
    snapshot = Snapshot.from_array(array)
    back = snapshot.as_array()
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable
    assert back.flags.f_contiguous == array.flags.f_contiguous
    # The bytes alone: what lies in whichever way comes in C's order.
    assert bytes(Snapshot.from_bytes(array).view()) == array.tobytes("C")


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 1, 3)])
def test_arrays_of_every_shape(shape):
    array = np.full(shape, 7, "i4")
    back = Snapshot.from_array(array).as_array()
    assert back.shape == shape
    assert (back == array).all()
    assert bytes(Snapshot.from_bytes(array).view()) == array.tobytes()


def test_what_numpy_makes_an_array_of():
    assert Snapshot.from_array([[1, 2], [3, 4]]).as_array().tolist() == [[1, 2], [3, 4]]
    with pytest.raises(TypeError, match="object"):
        Snapshot.from_array([object()])
    assert Snapshot.from_bytes(b"abc").as_array().tolist() == [97, 98, 99]


def test_an_array_keeps_its_memory():
    array = Snapshot.from_array(np.arange(1000)).as_array()
    gc.collect()
    assert array.sum() == 499500
    view = Snapshot.from_bytes(np.arange(1000)).view()
    array = np.frombuffer(view, "i8")
    at = array.__array_interface__["data"][0]
    assert file_mappings.at(at, array.nbytes).address == at
    with pytest.raises(BufferError, match="still uses"):
        view.close()
    part = array[10:20]
    del array
    with pytest.raises(BufferError):
        view.close()
    del part
    view.close()
    assert file_mappings.at(at, 1) is None


def test_a_file_is_copied(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(pages(3) + b"tail")
    snapshot = Snapshot.from_file(path)
    path.write_bytes(b"something else")
    assert bytes(snapshot.view()) == pages(3) + b"tail"
    path.unlink()
    assert bytes(Snapshot.from_file("/proc/self/stat").view()).startswith(b"%d" % os.getpid())
    assert len(Snapshot.from_file(os.devnull)) == 0
    with pytest.raises(FileNotFoundError):
        Snapshot.from_file(path)
    with pytest.raises(IsADirectoryError):
        Snapshot.from_file(tmp_path)


def test_a_file_that_shrinks_meanwhile(tmp_path, monkeypatch):
    path = tmp_path / "data"
    path.write_bytes(b"x" * 10)
    real = os.fstat
    monkeypatch.setattr(
        os, "fstat", lambda fd: os.stat_result([*real(fd)[:6], 5 * PAGE, *real(fd)[7:]])
    )
    snapshot = Snapshot.from_file(path)
    assert (len(snapshot), snapshot.size) == (10, PAGE)
    assert bytes(snapshot.view()) == b"x" * 10


def test_what_is_written_in_parts_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "data"
    path.write_bytes(pages(3))
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:1000], at))
    assert bytes(Snapshot.from_bytes(pages(3)).view()) == pages(3)
    assert bytes(Snapshot.from_file(path).view()) == pages(3)


def test_empty_ones():
    before = mappings()
    snapshot = Snapshot.zeroed(0)
    assert (len(snapshot), snapshot.size) == (0, 0)
    with snapshot.view() as view, snapshot.view_mut() as through:
        assert (len(view), view.size, bytes(view), view[:]) == (0, 0, b"", b"")
        assert np.frombuffer(memoryview(view), "u1").size == 0
        view[:] = b""
        view.protect(Access.NONE)
        view.restore()
        through.protect(slice(0, 0), Access.READ)
        assert not view.is_changed()
        assert len(view.take_snapshot()) == 0
        with pytest.raises(IndexError):
            view[0]
        with pytest.raises(ValueError):
            view[:] = b"x"
        assert mappings() <= before + 1
    snapshot.seal()
    assert len(Snapshot.from_bytes(b"").clone()) == 0


def test_a_clone_is_closed_by_itself():
    snapshot = Snapshot.from_bytes(b"abc")
    clone = snapshot.clone()
    with clone.view_mut() as view:
        view[0] = ord("x")
    assert snapshot.view()[:] == b"xbc"
    clone.seal()
    assert snapshot.sealed
    snapshot.close()
    snapshot.close()
    assert bytes(clone.view()) == b"xbc"
    again = Snapshot.from_array(np.eye(3)).clone()
    assert again.as_array().shape == (3, 3)


def test_a_closed_snapshot_says_so():
    snapshot = Snapshot.from_bytes(b"abc")
    snapshot.close()
    for use in (
        snapshot.view,
        snapshot.view_mut,
        snapshot.seal,
        snapshot.clone,
        snapshot.as_array,
        snapshot.__enter__,
        lambda: len(snapshot),
        lambda: snapshot.size,
        lambda: snapshot.sealed,
    ):
        with pytest.raises(ValueError, match="the Snapshot is closed"):
            use()


def test_its_file_is_not_inherited_by_programs():
    snapshot = Snapshot.from_bytes(b"secret")
    fd = snapshot._root.fd
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert fd > 2
    assert "memfd" in os.readlink(f"/proc/self/fd/{fd}")


# What does not fit


def test_errors_name_the_size():
    for length in (1 << 63, 1 << 70):
        with pytest.raises(OSError, match=f"a snapshot of {length} bytes can't be made"):
            Snapshot.zeroed(length)
    huge = Snapshot.zeroed(1 << 50)  # which is only a number
    with pytest.raises(MemoryError, match=str(1 << 50)):
        huge.view()
    with pytest.raises(MemoryError, match=str(1 << 50)):
        huge.view_mut()


def test_a_full_memory_is_an_error(monkeypatch):
    def pwrite(fd, data, at):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match=r"a snapshot of 100 bytes can't be filled: No space") as info:
        Snapshot.from_bytes(bytes(100))
    assert info.value.errno == errno.ENOSPC


def test_limits_of_the_process():
    source = """
        import resource, sys
        from aioisolate import Pages, PagedArray, Snapshot

        kept = Snapshot.zeroed(1 << 30)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        for make in (Snapshot.zeroed, lambda n: Snapshot.from_bytes(bytes(n))):
            try:
                make(2_000_000)
            except OSError as error:
                print(type(error).__name__, error)
        resource.setrlimit(resource.RLIMIT_AS, (1 << 29, resource.RLIM_INFINITY))
        array = PagedArray("q", [1, 2])
        for make in (kept.view, lambda: Pages(1 << 30), lambda: array.reserve(1 << 27)):
            try:
                make()
            except MemoryError as error:
                print(type(error).__name__, error)
        print(array.tolist())
    """
    done = python(source)
    assert not done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert all("OSError" in line and "2000000 bytes" in line for line in lines[:2])
    assert all("MemoryError" in line and "1073741824 bytes" in line for line in lines[2:5])
    assert lines[5] == "[1, 2]"


# Sealed


def test_sealed_is_for_ever():
    snapshot = Snapshot.from_bytes(pages(2))
    fd = snapshot._root.fd
    os.pwrite(fd, b"x", 0)  # not yet sealed, and
    with pytest.raises(PermissionError):
        os.ftruncate(fd, PAGE)  # the size is fixed from the beginning
    snapshot.seal()
    snapshot.seal()
    assert snapshot.sealed
    assert "sealed" in repr(snapshot)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"y", 0)
    for length in (PAGE, 3 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, length)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, PAGE)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0)
    with pytest.raises(PermissionError, match="sealed"):
        snapshot.view_mut()
    with snapshot.view() as view:
        view[0] = 9
        assert view[0] == 9
        assert snapshot.view()[0] == ord("x")


def test_only_one_writes_through():
    snapshot = Snapshot.from_bytes(pages(1))
    through = snapshot.view_mut()
    assert through.writes_through
    with pytest.raises(BufferError, match="already"):
        snapshot.clone().view_mut()
    with pytest.raises(BufferError, match="can't be sealed while"):
        snapshot.seal()
    assert not snapshot.sealed
    with pytest.raises(TypeError, match="can't be restored"):
        through.restore()
    through.close()
    with snapshot.view_mut() as again:
        again[1] = 7
    snapshot.seal()
    assert snapshot.view()[:2] == b"\1\7"


def test_what_is_made_from_the_writer_counts_as_it():
    """Also where the view itself is no longer referred to."""
    snapshot = Snapshot.from_bytes(pages(1))
    for make in (memoryview, np.asarray, lambda view: np.frombuffer(view, "u1")[5:]):
        array = make(snapshot.view_mut())
        gc.collect()
        with pytest.raises(BufferError, match="already"):
            snapshot.view_mut()
        with pytest.raises(BufferError, match="can't be sealed"):
            snapshot.seal()
        array[0] = 77
        del array
        gc.collect()
    assert 77 in snapshot.view()[:6]
    snapshot.seal()


def test_without_seals_the_process_sees_to_it(monkeypatch):
    monkeypatch.setattr(memfd, "sealable", lambda: False)
    for name in ("_SEALS", "_SIZE_SEALS"):
        monkeypatch.setattr(memfd, name, 0)
    snapshot = Snapshot.from_bytes(b"abc")
    assert not snapshot.sealed
    snapshot.view_mut().close()
    snapshot.seal()
    assert snapshot.sealed
    with pytest.raises(PermissionError, match="sealed"):
        snapshot.clone().view_mut()


def test_views_show_what_is_written_through_until_they_are_written():
    snapshot = Snapshot.from_bytes(pages(2))
    view = snapshot.view()
    view[0] = 50
    with snapshot.view_mut() as through:
        through[1] = 60
        through[PAGE] = 70
    assert view[0:2] == bytes([50, 1])  # a page of its own by then
    assert view[PAGE] == 70
    view.restore()
    assert view[0:2] == bytes([1, 60])


async def test_a_child_writes_to_no_snapshot_of_its_parent():
    snapshot = Snapshot.from_bytes(b"abc")

    def work():
        try:
            snapshot.view_mut()
        except PermissionError as error:
            refused = str(error)
        view = snapshot.view()
        view[0] = 0
        return refused, bytes(view)

    refused, content = await run_isolated(work)
    assert f"belongs to process {os.getpid()}" in refused
    assert content == b"\0bc"
    assert bytes(snapshot.view()) == b"abc"


# Views


def test_views_are_apart():
    snapshot = Snapshot.from_bytes(pages(2))
    views = [snapshot.view() for _ in range(50)]
    for i, view in enumerate(views):
        view[PAGE] = i
    assert [view[PAGE] for view in views] == list(range(50))
    assert bytes(snapshot.view()) == pages(2)
    assert not views[0].writes_through


def test_indexing_and_slicing():
    content = bytes(range(100))
    with Snapshot.from_bytes(content).view() as view:
        model = bytearray(content)
        assert len(view) == 100
        assert (view[0], view[-1], view[np.int64(5)]) == (0, 99, 5)
        keys = [slice(3, 9), slice(None, None, 7), slice(90, 2, -3), slice(50, 10), slice(-5, None)]
        for key in keys:
            assert view[key] == model[key]
            given = bytes(reversed(model[key]))
            view[key] = given
            model[key] = given
            assert view[:] == model
        view[-1] = 7
        assert view[99] == 7
        assert list(view) == [*model[:-1], 7]
        assert 7 in view
        for wrong in (100, -101):
            with pytest.raises(IndexError, match=f"^{wrong} is not in .* 100 bytes"):
                view[wrong]
            with pytest.raises(IndexError, match=f"^{wrong} is not in "):
                view[wrong] = 1
        with pytest.raises(TypeError):
            view["a"]
        with pytest.raises(TypeError):
            view[0] = "a"
        with pytest.raises(ValueError):
            view[0] = 256
        with pytest.raises(ValueError, match="can't be set to 3 bytes: the size"):
            view[0:5] = b"abc"
        with pytest.raises(TypeError):
            view[0:5] = 5


@pytest.mark.parametrize(
    "given",
    [
        array.array("i", [1, -2]),
        np.asfortranarray(np.arange(8, dtype="u1").reshape(2, 4)),
        np.arange(2, dtype=">u4"),
        memoryview(bytes(range(16)))[::2],
    ],
    ids=["numbers", "fortran", "big-endian", "strided"],
)
def test_a_slice_takes_any_buffer(given):
    with Snapshot.zeroed(20).view() as view:
        view[3:11] = given
        assert view[3:11] == memoryview(given).tobytes()
        view[12:4:-1] = given
        assert view[12:4:-1] == memoryview(given).tobytes()


def test_a_view_is_a_buffer():
    snapshot = Snapshot.from_bytes(pages(2))
    view = snapshot.view()
    array = np.frombuffer(view, dtype="u1")
    assert array.__array_interface__["data"][0] == view._address()  # no copy
    array[5] = 99
    assert view[5] == 99
    with memoryview(view) as flat:
        assert (flat.format, flat.nbytes, flat.readonly) == ("B", 2 * PAGE, False)
        flat[6] = 98
    assert view[6] == 98
    assert bytearray(view)[5:7] == bytes([99, 98])
    with pytest.raises(BufferError, match="still uses its memory"):
        view.close()
    assert not view.closed
    assert view[5] == 99
    del array
    view.close()
    view.close()
    assert view.closed
    assert "closed" in repr(view)


def test_what_is_made_of_a_view_keeps_it():
    array = np.frombuffer(Snapshot.from_bytes(pages(200)).view(), "u1")
    flat = memoryview(Snapshot.from_bytes(pages(3)).view())[PAGE:]
    gc.collect()
    assert array[199 * PAGE] == 200
    assert flat[0] == 2
    # Who asks which file this memory belongs to, finds it.
    assert file_mappings.at(array.__array_interface__["data"][0], array.nbytes) is not None


def test_a_view_keeps_its_snapshot():
    snapshot = Snapshot.from_bytes(pages(1))
    view = snapshot.view()
    snapshot.close()
    del snapshot
    gc.collect()
    view[0] = 9
    view.restore()
    assert bytes(view) == pages(1)


def test_a_closed_view_says_so():
    view = Snapshot.from_bytes(b"abc").view()
    view.close()
    for use in (
        lambda: view[0],
        lambda: view[:],
        lambda: view.__setitem__(0, 1),
        lambda: view.__setitem__(slice(0, 1), b"a"),
        lambda: view.protect(Access.READ),
        view.restore,
        view.take_snapshot,
        view.is_changed,
        view.__enter__,
    ):
        with pytest.raises(ValueError, match="the view is closed"):
            use()
    with pytest.raises(NO_BUFFER):
        memoryview(view)


def test_restore_keeps_the_address_and_drops_changes_and_protections():
    view = Snapshot.from_bytes(pages(4)).view()
    address = view._address()
    array = np.frombuffer(view, "u1")
    array[:] = 0
    view.protect(slice(PAGE, 2 * PAGE), Access.NONE)
    view.protect(slice(2 * PAGE, 3 * PAGE), Access.READ)
    assert view.is_changed()
    view.restore()
    assert view._address() == address
    assert not view.is_changed()
    assert bytes(view) == pages(4)
    assert (array == np.frombuffer(pages(4), "u1")).all()
    array[:] = 5
    view[PAGE] = 6
    assert array[PAGE] == 6


def test_take_snapshot_copies_the_view():
    base = np.arange(5000).reshape(50, 100)
    snapshot = Snapshot.from_array(base)
    view = snapshot.view()
    view[0] = 255
    taken = view.take_snapshot()
    view[0] = 3
    assert taken.as_array()[0, 0] == 255
    assert taken.as_array().shape == (50, 100)
    assert snapshot.as_array()[0, 0] == 0
    assert not taken.sealed
    view.protect(slice(0, PAGE), Access.NONE)
    with pytest.raises(PermissionError):
        view.take_snapshot()


def test_whether_a_view_is_changed():
    snapshot = Snapshot.from_bytes(pages(3))
    view = snapshot.view()
    assert not view.is_changed()
    assert bytes(view) == pages(3)
    assert not view.is_changed()
    view[2 * PAGE] = 3
    assert view.is_changed()
    view.restore()
    assert not view.is_changed()
    with snapshot.view_mut() as through:
        through[0] = 1
        assert not through.is_changed()


# Protection


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (slice(1, PAGE), "multiple"),
        (slice(0, PAGE + 1), "multiple"),
        (slice(0, 2 * PAGE, 2), "whole pages"),
        (slice(0, 5 * PAGE), "not inside"),
        (slice(-PAGE, None), "not inside"),
        (slice(2 * PAGE, PAGE), "not inside"),
    ],
)
def test_protection_is_for_whole_pages(where, text):
    view = Snapshot.zeroed(4 * PAGE - 5).view()
    with pytest.raises(ValueError, match=text):
        view.protect(where, Access.READ)
    view[:] = bytes(4 * PAGE - 5)


def test_protection_up_to_the_end():
    view = Snapshot.zeroed(2 * PAGE - 5).view()
    view.protect(slice(PAGE, 2 * PAGE - 5), Access.READ)
    view.protect(slice(PAGE, 2 * PAGE), Access.READ)
    view.protect(slice(PAGE, None), Access.READ)
    view[PAGE - 1] = 1
    with pytest.raises(PermissionError, match="may not be written"):
        view[PAGE] = 1


def test_write_and_execute_exclude_each_other():
    view = Snapshot.zeroed(PAGE).view()
    for access in (Access.WRITE | Access.EXEC, Access.READ | Access.WRITE | Access.EXEC):
        with pytest.raises(ValueError, match="either writable or executable"):
            view.protect(access)
    view.protect(Access.READ | Access.EXEC)
    view.protect(slice(None), Access.READ | Access.WRITE)
    view[0] = 1
    with pytest.raises(TypeError, match=r"protect\(slice, access\)"):
        view.protect(3)
    with pytest.raises(TypeError):
        view.protect(slice(None))


def test_what_is_protected_is_refused_before_it_crashes():
    view = Snapshot.from_bytes(pages(3)).view()
    view.protect(slice(PAGE, 2 * PAGE), Access.NONE)
    view.protect(slice(2 * PAGE, 3 * PAGE), Access.READ)
    assert view[0] == 1
    assert view[2 * PAGE] == 3
    message = f"bytes {PAGE} to {PAGE + 1} .* may not be read: they are protected"
    with pytest.raises(PermissionError, match=message):
        view[PAGE]
    for use in (
        lambda: view[:],
        lambda: view[PAGE - 1 : PAGE + 1],
        lambda: view[2 * PAGE : PAGE - 2 : -1],
        lambda: view.__setitem__(PAGE, 1),
        lambda: view.__setitem__(2 * PAGE, 1),
        lambda: view.__setitem__(slice(2 * PAGE, 2 * PAGE + 3), b"abc"),
        view.take_snapshot,
    ):
        with pytest.raises(PermissionError):
            use()
    with pytest.raises(NO_BUFFER):
        memoryview(view)
    assert view[PAGE:PAGE] == b""
    view.protect(slice(PAGE, 2 * PAGE), Access.READ)
    with memoryview(view) as flat:
        assert flat.readonly
    array = np.frombuffer(view, "u1")
    assert not array.flags.writeable
    del array
    view.restore()
    assert not memoryview(view).readonly


async def test_what_breaks_protection_in_a_child_crashes_there():
    view = Snapshot.from_bytes(pages(2)).view()
    flat = memoryview(view)
    view.protect(slice(0, PAGE), Access.NONE)

    def peek():
        return flat[0]

    with pytest.raises(IsolationError) as info:
        await run_isolated(peek)
    error = info.value
    assert error.reason is Reason.SIGNAL
    assert error.exit.signal in (signal.SIGSEGV, signal.SIGBUS)
    line = peek.__code__.co_firstlineno + 1
    assert re.search(f'File "{re.escape(__file__)}", line {line} in peek', error.crash_traceback)
    with pytest.raises(PermissionError):
        await run_isolated(lambda: view[0])
    assert await run_isolated(lambda: view[PAGE]) == 2
    assert flat[PAGE] == 2  # we live


def test_the_pages_advice_has_numbers():
    assert Advice.RANDOM.number() == mmap.MADV_RANDOM
    assert Advice.WIPEONFORK.number() == 18


# Models


class Snapshots(RuleBasedStateMachine):
    """A snapshot of some pages and any number of views, against bytes of ours.

    A view shows the snapshot page by page, until it writes to one.
    """

    views = Bundle("views")
    length = 3 * PAGE - 100
    file_mappings = st.one_of(
        st.integers(0, length - 1),
        st.sampled_from([0, PAGE - 1, PAGE, 2 * PAGE - 1, 2 * PAGE, length - 1]),
    )

    def __init__(self):
        super().__init__()
        self.root = bytearray(pages(3)[: self.length])
        self.snapshot = Snapshot.from_bytes(self.root)
        self.own = {}
        self.rights = {}
        self.through = None

    def shown(self, view):
        content = bytearray(self.root)
        for page, data in self.own[view].items():
            content[page * PAGE : (page + 1) * PAGE] = data
        return content

    def touched(self, at, count):
        return range(at // PAGE, (at + max(count, 1) - 1) // PAGE + 1)

    @rule(target=views)
    def open(self):
        view = self.snapshot.view()
        self.own[view], self.rights[view] = {}, [Access.READ | Access.WRITE] * 3
        return view

    @rule(view=views, at=file_mappings, data=st.binary(min_size=1, max_size=2 * PAGE))
    def write(self, view, at, data):
        data = data[: self.length - at]
        touched = self.touched(at, len(data))
        if not all(Access.WRITE in self.rights[view][page] for page in touched):
            with pytest.raises(PermissionError):
                view[at : at + len(data)] = data
            return
        content = self.shown(view)
        view[at : at + len(data)] = data
        content[at : at + len(data)] = data
        for page in touched:
            self.own[view][page] = content[page * PAGE : (page + 1) * PAGE]

    @rule(
        view=views,
        start=file_mappings,
        stop=file_mappings,
        step=st.sampled_from([1, 2, -1, -PAGE, PAGE + 1]),
    )
    def read(self, view, start, stop, step):
        key = slice(start, stop, step)
        touched = range(self.length)[key]
        if touched:
            low, high = sorted((touched[0], touched[-1]))
            around = self.touched(low, high - low + 1)
            if not all(Access.READ in self.rights[view][page] for page in around):
                with pytest.raises(PermissionError):
                    view[key]
                return
        assert view[key] == self.shown(view)[key]

    @rule(
        view=views,
        page=st.integers(0, 2),
        access=st.sampled_from([Access.NONE, Access.READ, Access.READ | Access.WRITE]),
    )
    def protect(self, view, page, access):
        view.protect(slice(page * PAGE, min((page + 1) * PAGE, self.length)), access)
        self.rights[view][page] = access

    @rule(view=views)
    def restore(self, view):
        address = view._address()
        view.restore()
        assert view._address() == address
        self.own[view], self.rights[view] = {}, [Access.READ | Access.WRITE] * 3
        assert bytes(view) == self.root

    @rule(view=views)
    def take(self, view):
        if all(Access.READ in access for access in self.rights[view]):
            with view.take_snapshot() as taken:
                assert bytes(taken.view()) == self.shown(view)

    @rule(view=consumes(views))
    def close(self, view):
        view.close()
        del self.own[view], self.rights[view]

    @precondition(lambda self: not self.snapshot.sealed)
    @rule(at=file_mappings, value=st.integers(0, 255))
    def write_through(self, at, value):
        with self.snapshot.view_mut() as view:
            view[at] = value
        self.root[at] = value

    @rule()
    def seal(self):
        self.snapshot.seal()

    @invariant()
    def all_as_it_should_be(self):
        for view in self.own:
            assert len(view) == self.length
            if all(Access.READ in access for access in self.rights[view]):
                assert bytes(view) == self.shown(view)

    def teardown(self):
        for view in self.own:
            view.close()
        self.snapshot.close()


TestSnapshots = Snapshots.TestCase
TestSnapshots.settings = settings(
    max_examples=20,
    stateful_step_count=15,
    suppress_health_check=list(HealthCheck),
)


# Leaks


def test_snapshots_and_views_leave_nothing():
    array = np.arange(1000.0)

    def work():
        snapshot = Snapshot.from_array(array)
        view = snapshot.view()
        flat = memoryview(view)
        view.protect(slice(0, PAGE), Access.NONE)
        view.restore()
        flat[0] = 1
        with pytest.raises(BufferError):
            view.close()
        flat.release()
        with snapshot.view_mut() as through:
            through[5:8] = b"abc"
        held = snapshot.as_array()
        held[0] = 5.0
        view.take_snapshot().clone().seal()
        view.close()
        empty = Snapshot.zeroed(0)
        memoryview(empty.view())

    leaves_nothing(work)


def test_failures_leave_nothing(monkeypatch):
    big = Snapshot.zeroed(1 << 50)

    def work():
        for fail in (lambda: Snapshot.zeroed(1 << 63), big.view, lambda: Snapshot.from_bytes(5)):
            with pytest.raises((OSError, MemoryError, TypeError)):
                fail()

    leaves_nothing(work)

    def refuse(*args, **options):
        raise OSError(errno.ENOMEM, "no")

    snapshot = Snapshot.from_bytes(b"abc")
    monkeypatch.setattr(seam, "map_file", refuse)

    def fail():
        with pytest.raises(OSError):
            snapshot.view()

    leaves_nothing(fail, 100)


def test_under_the_interpreters_own_checks():
    """With the debugging hooks of Python's memory, which see what is written beside its blocks.

    All the tests of memory, which takes longer: PYTHONMALLOC=debug python -X dev -m pytest
    tests/contract/test_memory.py tests/contract/test_pages.py tests/contract/test_paged_array.py
    """
    done = python(
        """
        import faulthandler, gc
        import numpy as np
        from aioisolate import Access, PagedArray, Pages, Snapshot, page_size

        assert faulthandler.is_enabled()
        page = page_size()
        for round in range(20):
            snapshot = Snapshot.from_array(np.arange(3000))
            array, view = snapshot.as_array(), snapshot.view()
            flat, other = memoryview(view), np.frombuffer(view, "i8")
            flat[-1] = array[-1] = other[0] = round
            view.protect(slice(0, page), Access.READ)
            view.restore()
            view[::3] = bytes(view)[::3]
            through = np.asarray(Snapshot.from_bytes(bytes(100)).view_mut())
            del view, snapshot
            gc.collect()
            through[-1] = flat[-1] = other[-1] = array[0] = 9
            part = through[5:]
            del flat, other, array, through
            part[:] = 1
            for guard in (False, True):
                pages = Pages(3 * page - 1, guard=guard)
                flat = memoryview(pages)
                flat[-1] = pages[-1] = 1
                del flat
                pages.protect(slice(page, None), Access.READ)
                for size in (100 * page, 5, 7 * page):
                    pages.resize(size)
                    pages.decommit()
                part = np.asarray(pages)
                del pages
                assert not part.any()
            numbers = PagedArray("d", range(page))
            numbers[5:7] = numbers
            del numbers[::2]
            part = np.asarray(numbers)
            numbers.reverse()
            del numbers
            part[-1] = part.sum()
            numbers = PagedArray("b", bytes(16 * page))
            for _ in range(page):
                numbers.append(1)
            numbers.clear_decommit()
            numbers.close()
        print("done")
        """,
        env={"PYTHONMALLOC": "debug", "PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
