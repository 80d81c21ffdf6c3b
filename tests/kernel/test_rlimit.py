"""Resource limits: what the kernel makes of them, and what we say that it does."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import mmap
import os
import re
import resource
import signal
import sys
import time
import traceback

import pytest

from tests.helpers import count_forks, fork, forked
from tests.internals import rlimit

MiB = 1 << 20
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="as Linux has it")
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def someone():
    """A user that nobody else is."""
    return 1879048192 + os.getpid()


def become(uid):
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def apply(name, soft, hard=None):
    rlimit.apply([(rlimit.NUMBERS[name], soft, soft if hard is None else hard)])


def test_names():
    assert list(rlimit.NUMBERS) == [
        "address_space",
        "cpu_time",
        "open_files",
        "file_size",
        "processes",
        "core_size",
    ]


def test_limits_are_set():
    def work():
        wanted = [
            (rlimit.NUMBERS["open_files"], 50, 60),
            (rlimit.NUMBERS["core_size"], 0, 0),
        ]
        rlimit.apply(wanted)
        return [resource.getrlimit(number) for number, *_ in wanted]

    assert forked(work) == ([[50, 60], [0, 0]], 0)


@ROOT
def test_what_may_be_set():
    number = rlimit.NUMBERS["file_size"]

    def work():
        rlimit.apply([(number, 1000, 2000)])
        become(someone())
        found = []
        for value in (2000, 2001, rlimit.INFINITY):
            try:
                rlimit.apply([(number, value, value)])
                found.append(0)
            except OSError as exc:
                found.append(exc.errno)
        return found

    assert forked(work) == ([0, errno.EPERM, errno.EPERM], 0)


def test_a_limit_that_makes_no_sense_is_named():
    def work():
        try:
            apply("open_files", 20, 10)
        except OSError as exc:
            return [exc.errno, exc.filename]

    assert forked(work) == ([errno.EINVAL, "open_files"], 0)


@LINUX
def test_the_address_space_counts_what_was_there():
    def room(extra):
        apply("address_space", rlimit.address_space() + extra)
        try:
            mmap.mmap(-1, 32 * MiB).close()  # not an object, which might fit into free memory
        except OSError:
            return False
        return True

    assert rlimit.address_space() > MiB
    assert forked(room, 64 * MiB) == (True, 0)
    assert forked(room, 16 * MiB) == (False, 0)


def test_no_proc(monkeypatch):
    def refuse(*_, **__):
        raise FileNotFoundError

    expected = rlimit.address_space()
    monkeypatch.setattr(rlimit, "open", refuse, raising=False)
    assert abs(rlimit.address_space() - expected) < 16 * MiB
    monkeypatch.delitem(rlimit.NUMBERS, "address_space")
    assert rlimit.address_space() == 0


# Processes


@LINUX
@ROOT
def test_a_user_of_its_own_has_so_many_processes():
    def work():
        become(someone())
        apply("processes", 3)
        return count_forks()

    assert forked(work) == (2, 0)  # and itself


@LINUX
@ROOT
def test_root_has_as_many_as_it_likes():
    def work():
        apply("processes", 1)
        return count_forks(5)

    assert forked(work) == (5, 0)


def in_a_namespace():
    """Move into a user namespace of our own, as ourselves."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid = os.geteuid()
    if libc.unshare(0x10000000):  # CLONE_NEWUSER; os.unshare is new in 3.12
        return ctypes.get_errno()
    with open("/proc/self/uid_map", "w") as file:
        file.write(f"{uid} {uid} 1")
    return 0


def beside_others(others, work):
    """Call *work* as a user who has so many other processes."""
    become(someone())
    # Its files in /proc are root's otherwise, who is not mapped.
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
    waiting = []
    for _ in range(others):
        pid = fork()
        if not pid:
            time.sleep(30)
            os._exit(0)
        waiting.append(pid)
    try:
        return work()
    except OSError:
        traceback.print_exc()
        raise
    finally:
        for pid in waiting:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@LINUX
@ROOT
@pytest.mark.parametrize("inside", [False, True])
def test_a_namespace_counts_for_itself(inside):
    def work():
        if inside and in_a_namespace():
            return "no user namespaces"
        apply("processes", 4)
        return count_forks()

    answer, status = forked(beside_others, 3, work)
    if answer == "no user namespaces":
        pytest.skip(answer)
    assert status == 0
    # Of the four, outside: itself and the three others. Inside: itself alone, from Linux 5.14 on.
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    assert answer == (3 if inside and release >= (5, 14) else 0)


@LINUX
@ROOT
def test_a_limit_from_before_the_namespace_holds_outside():
    """It is the maker's limit for the namespace as a whole, counted among all that the user has."""

    def work():
        apply("processes", 5)
        if in_a_namespace():
            return "no user namespaces"
        return count_forks()

    answer, _ = forked(beside_others, 3, work)
    if answer == "no user namespaces":
        pytest.skip(answer)
    assert answer == 1  # itself, three others, one more


# CPU time


def spin():
    while True:
        pass


def ended(work):
    """Fork *work*; return its exit status, and its CPU time in seconds."""
    pid = fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(77)
    _, status, usage = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


# The limit counts whole ticks, rusage what was really used: less, on a machine that is busy.
def test_cpu_time_ends_at_the_soft_limit():
    def work():
        apply("cpu_time", 1, 2)
        spin()

    status, used = ended(work)
    assert status == -signal.SIGXCPU
    assert 0.2 <= used < 1.5


def test_who_ignores_the_signal_ends_at_the_hard_limit():
    def work():
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        apply("cpu_time", 1, 2)
        spin()

    status, used = ended(work)
    assert status == -signal.SIGKILL
    assert 0.4 <= used < 2.5


def test_the_stack_at_the_end_of_cpu_time():
    read, write = os.pipe()

    def work():
        # What Python holds of faulthandler is the test framework's; this process ends with it.
        faulthandler.register(signal.SIGXCPU, file=write, all_threads=True, chain=True)
        apply("cpu_time", 1, 2)
        spin()

    status, used = ended(work)
    os.close(write)
    with open(read) as pipe:
        stack = pipe.read()
    assert status == -signal.SIGXCPU
    assert used < 1.5
    assert "in spin" in stack
