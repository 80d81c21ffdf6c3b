"""Functions for children that get snapshots and arrays."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import threading

import numpy as np

from aioisolate import Snapshot
from tests.internals import (
    Descriptors,
    arrays,
    fd_passing,
    file_mappings,
    mappings,
    memfd,
    messages,
)
from tests.internals import snapshot as snapshots

LARGE = 1 << 20  # items; 8 MB of floats


def own_memory():
    """How much memory this process has written to by itself, in bytes."""
    with open("/proc/self/smaps_rollup") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    return int(fields["Anonymous"].split()[0]) * 1024


unpickling, may_go_on, unpickled = (threading.Event() for _ in range(3))


def _wait():
    unpickling.set()
    may_go_on.wait(20)


class Waits:
    """It takes its time to be unpickled."""

    def __reduce__(self):
        return _wait, ()


def _tell():
    unpickled.set()


class Tells:
    """It tells that it has been unpickled."""

    def __reduce__(self):
        return _tell, ()


def slow_to_unpickle():
    return "x" * 300_000, Waits(), Snapshot.zeroed(1000), Tells()


def identity(fd):
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def same(value):
    return value


def whose(found):
    return identity(found._root.fd)


def ones(n):
    return np.ones(n)


def count_open(snapshot):
    """How many descriptors of a snapshot's file this process has."""
    mine, found = identity(snapshot._root.fd), 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += identity(int(name)) == mine
        except OSError:
            continue  # the listing's own
    return found


def total(array):
    return float(array.sum())


def descriptors_of_a_child():
    return sorted(os.listdir("/proc/self/fd"))


def fill(array, value):
    array[...] = value


def write(view):
    view[0:4] = b"mine"
    return view


def fill_and_die(array):
    array[...] = 3
    os.abort()


def write_to_root(snapshot):
    try:
        snapshot.view_mut()
    except PermissionError:
        return "refused"
    return "open"


def make(length):
    return Snapshot.from_array(np.full(length, 7.0))


def cost_of_touching(snapshot):
    """How much of its own memory it takes to read a whole snapshot."""
    before = own_memory()
    assert snapshot.as_array().sum() == LARGE
    return own_memory() - before


def each(n):
    for number in range(n):
        yield Snapshot.from_bytes(bytes([number]) * 10)


def fail_with(snapshot):
    raise LookupError("with a snapshot", snapshot)


def many_snapshots(n):
    # The parent may have lowered its own limit, which a direct fork inherits.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return [Snapshot.zeroed(1) for _ in range(n)]


class Lie:
    """Pickles as a snapshot that is none."""

    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        own = Descriptors()
        length = 2 * mmap.PAGESIZE
        reopen = snapshots._reopen
        if self.kind == "index":
            return reopen, (7, length, None)
        if self.kind == "pipe":
            fd = os.pipe()[0]
        elif self.kind == "file":
            fd = os.open(__file__, os.O_RDONLY)
        elif self.kind == "directory":
            fd = os.open("/", os.O_RDONLY)
        else:
            fd = memfd.create(own)
            os.ftruncate(fd, length if self.kind == "unsealed" else mmap.PAGESIZE)
            if self.kind != "unsealed":
                memfd.seal(fd)
        if self.kind == "negative":
            length = -5
        index = fd_passing.bundle().add(fd, own)
        own.release(fd) if fd in own.listed() else None
        return reopen, (index, length, None)


def shrink_later(snapshot):
    """Try to cut the ground from under whoever maps it."""
    fd = snapshot._root.fd
    tried = []
    for attempt in (
        lambda: os.ftruncate(fd, 0),
        lambda: os.pwrite(fd, b"x", 0),
        lambda: mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE),
    ):
        try:
            attempt()
        except OSError:
            tried.append("refused")
        else:
            tried.append("done")
    return tried


def shrink(array):
    place = file_mappings.at(mappings.address_of(array), array.nbytes)
    try:
        os.ftruncate(place.root.fd, 0)
    except PermissionError:
        return "refused"
    return "done"


def frame(n):
    import pandas as pd

    return pd.DataFrame({"whole": np.arange(n), "half": np.arange(n) / 2})


def table(n):
    import pyarrow as pa

    return pa.table({"whole": np.arange(n), "text": [f"number {i}" for i in range(n)]})


def refuse_descriptors():
    """From now on none may travel from this process."""

    def refused(*_):
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    messages.send_on = refused


def refused_result():
    refuse_descriptors()
    return Snapshot.from_bytes(b"content")


def refused_exception():
    refuse_descriptors()
    raise LookupError(Snapshot.from_bytes(b"content"))


def refused_item():
    yield 1
    refuse_descriptors()
    yield Snapshot.from_bytes(b"content")


def try_to_write(given, by_chance=False):
    """Try it by numpy, and on purpose in other ways; tell of each array what went through."""
    ways = WAYS[:1] if by_chance else WAYS
    return [[way.__name__ for way in ways if way(array)] for array in given]


def _by_assignment(array):
    try:
        array[(0,) * array.ndim] = 7
    except ValueError:
        return False
    return True


def _by_its_flag(array):
    try:
        array.flags.writeable = True
    except ValueError:
        return False
    return True


def _by_its_memory(array):
    address = array.__array_interface__["data"][0] // mmap.PAGESIZE * mmap.PAGESIZE
    try:
        mappings.protect(address, mmap.PAGESIZE, mappings.READ | mappings.WRITE)
    except OSError:
        return False
    return True


def _by_its_descriptor(array):
    place = file_mappings.at(array.__array_interface__["data"][0], 1)
    try:
        os.pwrite(place.root.fd, b"\7", place.offset)
    except OSError:
        return False
    return True


WAYS = (_by_assignment, _by_its_flag, _by_its_memory, _by_its_descriptor)


def open_again(array):
    """Try to open what an array lies in for writing."""
    place = file_mappings.at(array.__array_interface__["data"][0], 1)
    try:
        os.close(os.open(f"/proc/self/fd/{place.root.fd}", os.O_RDWR))
    except OSError as exc:
        return errno.errorcode[exc.errno]
    return "open"


def places_to_write(view, page):
    """Write to each page of a view; tell which of them may be written."""
    found = []
    for at in range(-(-len(view) // page)):
        try:
            view[at * page + 3] = 1
        except PermissionError:
            continue
        found.append(at)
    return found
