"""Real control groups, with real children in them; where they can be made: mostly as root."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.helpers import alive, count_forks, fork, forked, wait_until
from tests.internals import Cgroup, Home, cgroup_tree, cgroups, oom

MiB = 1 << 20
# Version 2 kills the chosen one, and then all of its group, where it mostly counts once more.
ONE = (1, 2)


def touched(size):
    """Return so much memory, touched."""
    held = bytearray(size)
    held[::4096] = b"x" * len(held[::4096])
    return held


def bomb(size):
    """Touch so much memory, for a moment."""
    return len(touched(size))


@pytest.fixture
def group():
    """Make groups, and see to it that they are gone afterwards."""
    made = []

    def make(memory=None, processes=None):
        for name, limit in (("memory", memory), ("pids", processes)):
            if limit is not None and getattr(cgroup_tree.delegated(), name) is None:
                pytest.skip(f"no groups with the controller {name} can be made here")
        made.append(Cgroup.create(memory, processes))
        return made[-1]

    yield make
    for one in made:
        directories = [home.directory for home in one.homes]
        assert one.kill(5)
        assert wait_until(one.remove)
        assert not any(map(os.path.exists, directories))


def test_memory_has_a_limit(group):
    limited = group(memory=64 * MiB)

    def work(size):
        cgroups.enter(limited.entrances)
        return bomb(size)

    assert forked(work, 16 * MiB) == (16 * MiB, 0)
    assert limited.events().oom_kills == 0
    assert forked(work, 128 * MiB) == (None, -signal.SIGKILL)
    kills, peak = limited.events()
    assert kills in ONE
    if limited.homes[0].version == 1 or peak is not None:  # version 2 tells since Linux 5.19
        assert 32 * MiB < peak <= 64 * MiB


def test_the_limit_holds_for_the_tree_together(group):
    limited = group(memory=64 * MiB)

    def work():
        cgroups.enter(limited.entrances)
        for _ in range(4):
            if not os.fork():
                with open("/proc/self/oom_score_adj", "w") as file:
                    file.write("1000")  # one of these, and not the one that waits
                os.closerange(0, 200)  # whoever reads until the end does not wait for it
                held = touched(32 * MiB)  # while it sleeps, since the others may be slow to start
                time.sleep(30)
                del held
                os._exit(0)
        return [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)]

    answer, _ = forked(work)
    # Version 2 kills all at once.
    assert answer in (None, [-signal.SIGKILL] * 2)
    assert limited.events().oom_kills >= 2


def test_what_was_there_before_is_not_counted(group):
    held = bytearray(b"x") * (96 * MiB)
    limited = group(memory=64 * MiB)

    def work():
        cgroups.enter(limited.entrances)
        return held.count(b"x")

    assert forked(work) == (96 * MiB, 0)


def test_processes_have_a_limit(group):
    limited = group(processes=5)

    def work():
        cgroups.enter(limited.entrances)
        return count_forks(20)

    assert forked(work) == (4, 0)  # and itself


def test_both_limits_hold_at_once(group):
    limited = group(memory=64 * MiB, processes=3)

    def work(size):
        cgroups.enter(limited.entrances)
        return [count_forks(20), bomb(size)]

    assert forked(work, 1) == ([2, 1], 0)
    assert forked(work, 128 * MiB) == (None, -signal.SIGKILL)
    assert limited.events().oom_kills in ONE


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_child_enters_by_what_its_parent_opened(group):
    limited = group(processes=3)

    def work():
        os.setresuid(65534, 65534, 65534)
        cgroups.enter(limited.entrances)
        return count_forks(20)

    assert forked(work) == (2, 0)


def start_daemon(entrances):
    """Have a process enter that is in a session of its own, and nobody's child; return its pid."""
    read, write = os.pipe()

    def work():
        cgroups.enter(entrances)
        if not os.fork():
            os.setsid()
            if not os.fork():
                os.write(write, str(os.getpid()).encode())
                os.closerange(0, 200)  # whoever reads until the end does not wait for it
                time.sleep(60)
            os._exit(0)
        os.wait()

    try:
        assert forked(work)[1] == 0
        return int(os.read(read, 20))
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("limits", [{"memory": 64 * MiB}, {"processes": 10}])
def test_killing_reaches_a_daemon(group, limits):
    limited = group(**limits)
    left = start_daemon(limited.entrances)
    assert alive(left)
    assert limited.remove() is False
    assert limited.kill(10)
    assert not alive(left)
    assert limited.remove()
    assert limited.kill()


@pytest.mark.parametrize("limits", [{"memory": 64 * MiB}, {"processes": 40}])
def test_killing_ends_those_who_run_away(group, limits):
    limited = group(**limits)
    read, write = os.pipe()
    pid = fork()
    if not pid:
        cgroups.enter(limited.entrances)
        os.fork()
        os.write(write, b".")
        end = time.monotonic() + 60
        # Each forks a successor and ends, so that no list of them is ever up to date.
        while time.monotonic() < end:
            if os.fork():
                os._exit(0)
        os._exit(0)
    os.read(read, 1)
    os.close(read)
    os.close(write)
    os.waitpid(pid, 0)
    time.sleep(0.05)
    assert limited.remove() is False
    assert limited.kill(20)
    assert limited.remove()


def test_killing_without_pidfds(group, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open")
    limited = group(memory=64 * MiB)
    left = start_daemon(limited.entrances)
    assert limited.kill(10)
    assert not alive(left)


def test_killing_takes_no_longer_than_it_may(group, monkeypatch):
    limited = group(memory=64 * MiB)
    left = start_daemon(limited.entrances)
    monkeypatch.setattr(cgroups, "_try_kill", lambda *_: None)
    if os.path.exists(f"{limited.homes[0].directory}/cgroup.kill"):
        pytest.skip("the kernel kills")
    begin = time.monotonic()
    assert limited.kill(0.05) is False
    assert 0.05 <= time.monotonic() - begin < 5
    assert alive(left)
    monkeypatch.undo()


def test_groups_that_were_made_inside_go_with_it(group):
    limited = group(memory=64 * MiB)
    if limited.homes[0].version == 2:
        pytest.skip("in version 2 there are none inside")

    def work():
        cgroups.enter(limited.entrances)
        inner = Cgroup.create(32 * MiB, None)
        assert inner.homes[0].directory.startswith(limited.homes[0].directory + "/")
        if not os.fork():
            cgroups.enter(inner.entrances)
            bomb(48 * MiB)
        status = os.waitstatus_to_exitcode(os.wait()[1])
        start_daemon(inner.entrances)
        return status

    assert forked(work) == (-signal.SIGKILL, 0)
    assert limited.events().oom_kills == 1  # of the inner one
    assert limited.remove() is False
    assert limited.kill(10)
    assert limited.remove()


def test_a_copy_in_a_child_removes_nothing(group):
    limited = group(processes=3)
    left = start_daemon(limited.entrances)
    assert forked(lambda: [limited.kill(), limited.remove()]) == ([False, False], 0)
    assert alive(left)


def test_stale_groups_are_removed_and_others_are_not(group):
    group(processes=3)
    home = cgroup_tree.delegated().pids
    dead, _ = forked(os.getpid)
    makers = [dead, dead, os.getppid()]
    names = [f"{cgroups._prefix(pid)}-{number}" for number, pid in enumerate(makers)]
    # Of another pid namespace, where that number is somebody else's.
    names.append(f"aioisolate-1-{dead}-0")
    for name in names:
        os.mkdir(f"{home.directory}/{name}")
    inside = f"{home.directory}/{names[1]}"
    busy = Cgroup([Home(home.version, inside)])
    try:
        with open(f"{inside}/cgroup.procs", "w") as entrance:
            left = start_daemon([entrance.fileno()])
        cgroups._tidied.discard(home.directory)
        group(processes=3)
        found = [os.path.exists(f"{home.directory}/{name}") for name in names]
        assert found == [False, True, True, True]
        assert alive(left)
    finally:
        assert busy.kill(10)
        assert busy.remove()
        for name in names[2:]:
            os.rmdir(f"{home.directory}/{name}")


def test_the_kernel_kills_a_group_of_version_2():
    """The real thing, where version 2 is mounted and ours to write, whatever controllers it has."""
    place = cgroup_tree.places().get(cgroup_tree.UNIFIED)
    if place is None or not os.access(place.group, os.W_OK):
        pytest.skip("no group of version 2 can be made here")
    directory = f"{place.group}/aioisolate-{os.getpid()}-kill"
    os.mkdir(directory)
    limited = Cgroup([Home(2, directory)])
    try:
        if not os.path.exists(f"{directory}/cgroup.kill"):
            pytest.skip("before Linux 5.14")
        with open(f"{directory}/cgroup.procs", "w") as entrance:
            left = start_daemon([entrance.fileno()])
        assert limited.remove() is False
        assert limited.kill(10)
        assert not alive(left)
    finally:
        assert limited.remove()


def test_the_limit_of_our_own_group_has_killed(group):
    limited = group(memory=64 * MiB)
    if limited.homes[0].version == 2:
        pytest.skip("version 2 kills all of the group")

    def work():
        cgroups.enter(limited.entrances)
        before = oom.kills()
        calm = oom.since(before)
        if not os.fork():
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("1000")  # this one, and not the one that looks
            bomb(128 * MiB)
        status = os.waitstatus_to_exitcode(os.wait()[1])
        return [calm, status, oom.since(before), oom.kills().group - before.group]

    words = "the memory limit of this container (its cgroup)"
    assert forked(work) == (["", -signal.SIGKILL, words, 1], 0)
