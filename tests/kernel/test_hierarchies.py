"""Where our control groups are, and where others can be made; with trees that only look so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers import forked
from tests.internals import (
    Cgroup,
    CgroupPosition,
    Delegation,
    Home,
    cgroup_tree,
    cgroups,
    cpus,
    oom,
)

MiB = 1 << 20
DOCKER = "/docker/0f3c"
V1_GROUPS = f"""\
12:pids:{DOCKER}/job
5:cpu,cpuacct:{DOCKER}
4:memory:{DOCKER}
1:name=systemd:{DOCKER}
"""
HYBRID_GROUPS = "4:memory:/user.slice\n1:name=systemd:/user.slice/a\n0::/user.slice/a\n"


def mount(root, point, kind, options):
    return f"31 23 0:28 {root} {point} rw,relatime shared:1 - {kind} cgroup {options}\n"


def test_version_1_in_a_container_that_sees_its_own_part():
    mounts = (
        "30 23 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
        + mount(DOCKER, "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
        + mount(DOCKER, "/sys/fs/cgroup/memory", "cgroup", "rw,memory")
        + mount(DOCKER, "/sys/fs/cgroup/pids", "cgroup", "rw,pids")
    )
    cpu = CgroupPosition(1, "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct")
    assert cgroup_tree.places_in(V1_GROUPS, mounts) == {
        "cpu": cpu,
        "cpuacct": cpu,
        "memory": CgroupPosition(1, "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory"),
        "pids": CgroupPosition(1, "/sys/fs/cgroup/pids", "/sys/fs/cgroup/pids/job"),
    }


def test_a_hybrid_layout():
    mounts = (
        mount("/", "/sys/fs/cgroup/unified", "cgroup2", "rw,nsdelegate")
        + mount("/", "/sys/fs/cgroup/systemd", "cgroup", "rw,xattr,name=systemd")
        + mount("/", "/sys/fs/cgroup/memory", "cgroup", "rw,memory")
    )
    found = cgroup_tree.places_in(HYBRID_GROUPS, mounts)
    memory = CgroupPosition(1, "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/user.slice")
    unified = CgroupPosition(2, "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/user.slice/a")
    assert found["memory"] == memory
    assert found[cgroup_tree.UNIFIED] == unified
    assert cgroup_tree.place_of("memory", found) == memory
    assert cgroup_tree.place_of("cpu", found) == unified
    assert cgroup_tree.place_of("cpu", {}) is None


@pytest.mark.parametrize(
    ("root", "path", "group"),
    [
        ("/", "/", "/cg"),
        ("/", "/a/b", "/cg/a/b"),
        ("/a", "/a", "/cg"),
        ("/a", "/a/b", "/cg/b"),
        ("/a", "/ab", None),  # another one, whose name begins alike
        ("/a", "/", None),
        ("/", "/../other", None),  # outside this cgroup namespace
    ],
)
def test_what_is_mounted_decides_what_a_path_means(root, path, group):
    found = cgroup_tree.places_in(f"0::{path}\n", mount(root, "/cg", "cgroup2", "rw"))
    assert found == ({} if group is None else {"": CgroupPosition(2, "/cg", group)})


def test_spaces_colons_and_several_mounts():
    mounts = mount("/x", "/other", "cgroup2", "rw") + mount("/", r"/my\040cg", "cgroup2", "rw")
    found = cgroup_tree.places_in("0::/a:b\n", mounts)
    assert found == {"": CgroupPosition(2, "/my cg", "/my cg/a:b")}


def test_no_groups_at_all(monkeypatch):
    assert cgroup_tree.places_in("", "") == {}
    assert cgroup_tree.delegated_at({}) == Delegation(None, None)
    assert oom.kills_at(None).group is None
    monkeypatch.setattr(cpus, "places", dict)
    assert cpus._quota() is None


def test_the_way_up():
    assert list(cgroup_tree.above(CgroupPosition(2, "/cg", "/cg/a/b"))) == [
        "/cg/a/b",
        "/cg/a",
        "/cg",
    ]
    assert list(cgroup_tree.above(CgroupPosition(2, "/cg", "/cg"))) == ["/cg"]


def fake(directory: Path, **files):
    """Make a directory that looks like a group; the first "_" in a name stands for "."."""
    directory.mkdir(exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("_", ".", 1)).write_text(text)
    return str(directory)


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        (("150000 100000", "max 100000"), 1.5),
        (("max 100000", "50000 100000"), 0.5),
        (("max 100000", "max 100000"), None),
        (("rubbish", "200000 100000"), 2),
    ],
)
def test_the_cpu_quota_of_version_2(tmp_path, monkeypatch, quotas, expected):
    top = fake(tmp_path / "cg", cpu_max=quotas[1])
    group = fake(tmp_path / "cg" / "a", cpu_max=quotas[0])
    monkeypatch.setattr(cpus, "places", lambda: {"": CgroupPosition(2, top, group)})
    assert cpus._quota() == expected
    assert cpus.available() >= 1


def test_the_cpu_quota_of_version_1(tmp_path, monkeypatch):
    top = fake(tmp_path / "cpu", cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")
    group = fake(tmp_path / "cpu" / "a", cpu_cfs_quota_us="250000", cpu_cfs_period_us="100000")
    monkeypatch.setattr(cpus, "places", lambda: {"cpu": CgroupPosition(1, top, group)})
    assert cpus._quota() == 2.5


def group_v2(directory, *, kind="domain", **files):
    files = {
        "cgroup_procs": "",
        "cgroup_controllers": "cpu memory pids\n",
        "cgroup_subtree_control": "memory pids\n",
        **files,
    }
    if kind:
        files["cgroup_type"] = f"{kind}\n"
    return fake(directory, **files)


def beside(tmp_path, *, name="service", above=None, own=None):
    """Make our own group and the one above it, below the root of all; ask what is delegated."""
    top = group_v2(tmp_path / "cg", kind=None)
    parent = group_v2(tmp_path / "cg" / name, **(above or {}))
    group = group_v2(tmp_path / "cg" / name / "main", **{"cgroup_procs": "1\n", **(own or {})})
    return parent, cgroup_tree.delegated_at({"": CgroupPosition(2, top, group)})


def test_beside_our_own_group(tmp_path):
    parent, found = beside(tmp_path)
    assert found == Delegation(Home(2, parent), Home(2, parent))


def test_controllers_that_are_yet_to_be_handed_on(tmp_path):
    parent, found = beside(tmp_path, above={"cgroup_subtree_control": "memory\n"})
    assert found == Delegation(Home(2, parent), Home(2, parent, ("pids",)))


def test_controllers_that_are_not_there(tmp_path):
    above = {"cgroup_subtree_control": "", "cgroup_controllers": "cpu pids\n"}
    parent, found = beside(tmp_path, above=above)
    assert found == Delegation(None, Home(2, parent, ("pids",)))


@pytest.mark.parametrize(
    "tree",
    [
        {"name": "app.slice"},
        {"above": {"cgroup_procs": "12\n"}},
        {"above": {"kind": "domain threaded"}},
        {"own": {"memory_max": "1000000\n"}},
        {"own": {"cpu_max": "50000 100000\n"}},
        {"own": {"pids_max": "10\n"}},
    ],
    ids=["slice", "with processes", "threaded", "our memory", "our cpu", "our pids"],
)
def test_not_beside_our_own_group(tmp_path, tree):
    assert beside(tmp_path, **tree)[1] == Delegation(None, None)


def test_unlimited_is_no_limit(tmp_path):
    own = {"memory_max": "max\n", "cpu_max": "max 100000\n", "pids_max": "max\n"}
    assert beside(tmp_path, own=own)[1].memory is not None


def test_a_container_whose_top_group_we_are_in(tmp_path):
    top = group_v2(tmp_path / "cg", cgroup_procs="1\n", cgroup_subtree_control="")
    assert cgroup_tree.delegated_at({"": CgroupPosition(2, top, top)}) == Delegation(None, None)


def test_the_root_of_all(tmp_path):
    files = {"cgroup_procs": "1\n", "cgroup_subtree_control": "cpu\n"}
    top = group_v2(tmp_path / "cg", kind=None, **files)
    found = cgroup_tree.delegated_at({"": CgroupPosition(2, top, top)})
    assert found == Delegation(Home(2, top, ("memory",)), Home(2, top, ("pids",)))


def test_version_1_below_our_own_group(tmp_path):
    memory = fake(tmp_path / "memory", cgroup_procs="", memory_use_hierarchy="1\n")
    pids = fake(tmp_path / "pids", cgroup_procs="")
    found = {"memory": CgroupPosition(1, memory, memory), "pids": CgroupPosition(1, pids, pids)}
    assert cgroup_tree.delegated_at(found) == Delegation(Home(1, memory), Home(1, pids))
    fake(tmp_path / "memory", memory_use_hierarchy="0\n")
    assert cgroup_tree.delegated_at(found) == Delegation(None, Home(1, pids))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_elses_groups_are_not_delegated(tmp_path):
    parent, _ = beside(tmp_path)
    for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        directory.chmod(0o755)
    places = {"": CgroupPosition(2, os.path.dirname(parent), f"{parent}/main")}

    def look():
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        real = cgroup_tree.delegated()  # asked anew: another process
        return [cgroup_tree.delegated_at(places), real]

    assert forked(look) == ([[None, None]] * 2, 0)


def test_it_is_asked_once_in_a_process():
    assert cgroup_tree.delegated() is cgroup_tree.delegated()


class Kernel:
    """Makes a new directory look like a group of version 2, and lets it be removed."""

    def __init__(self, monkeypatch, root, *files):
        self.root, self.files = str(root), files
        self.mkdir, self.rmdir = os.mkdir, os.rmdir
        monkeypatch.setattr(os, "mkdir", self.make)
        monkeypatch.setattr(os, "rmdir", self.remove)

    def make(self, path, *args):
        self.mkdir(path, *args)
        if str(path).startswith(self.root):
            for name in self.files:
                Path(path, name).touch()

    def remove(self, path, *args, **options):
        if str(path).startswith(self.root):
            for name in self.files:
                Path(path, name).unlink(missing_ok=True)
        self.rmdir(path, *args, **options)


def test_both_limits_are_one_group_of_version_2(tmp_path, monkeypatch):
    parent, found = beside(tmp_path, above={"cgroup_subtree_control": "pids\n"})
    names = ("cgroup.procs", "memory.max", "memory.swap.max", "memory.oom.group", "pids.max")
    Kernel(monkeypatch, tmp_path, *names)
    group = Cgroup.create(64 * MiB, 5, found)
    ((_, directory, _),) = group.homes
    texts = [Path(directory, name).read_text() for name in names]
    assert texts == ["", str(64 * MiB), "0", "1", "5"]
    assert "+memory" in Path(parent, "cgroup.subtree_control").read_text()
    (entrance,) = group.entrances
    assert entrance >= 64
    assert not os.get_inheritable(entrance)
    cgroups.enter(group.entrances)
    assert Path(directory, "cgroup.procs").read_text() == "0"
    assert group.remove()
    assert group.remove()
    assert not os.path.exists(directory)


def test_a_kernel_without_some_files(tmp_path, monkeypatch):
    found = beside(tmp_path)[1]
    Kernel(monkeypatch, tmp_path, "cgroup.procs", "memory.max")
    group = Cgroup.create(64 * MiB, None, found)
    assert group.events() == (0, None)
    assert group.remove()


def test_nothing_is_left_of_a_group_that_can_not_be_made(tmp_path, monkeypatch):
    parent, found = beside(tmp_path)
    Kernel(monkeypatch, tmp_path, "cgroup.procs", "memory.max")
    with pytest.raises(FileNotFoundError, match=r"pids\.max"):
        Cgroup.create(64 * MiB, 5, found)
    assert not [name for name in os.listdir(parent) if name.startswith("aioisolate")]


def test_no_group_where_none_can_be_made():
    with pytest.raises(OSError, match="No control groups can be created here: 'memory'"):
        Cgroup.create(1, None, Delegation(None, None))


def test_no_limits_no_group():
    group = Cgroup.create(None, None)
    assert group.entrances == group.homes == []
    assert group.events() == (0, None)
    assert group.kill()
    assert group.remove()


def test_version_2_adds_up_by_itself(tmp_path):
    group = Cgroup([Home(2, str(tmp_path))])
    fake(tmp_path, memory_events="low 0\noom 3\noom_kill 2\noom_group_kill 1\n")
    fake(tmp_path, memory_peak="4096\n")
    fake(tmp_path / "below", memory_events="oom_kill 2\n")
    assert group.events() == (2, 4096)


def test_who_has_killed(tmp_path, monkeypatch):
    top = fake(tmp_path / "cg", memory_max="max\n")
    group = fake(tmp_path / "cg" / "a", memory_events="oom 1\noom_kill 4\n", memory_max="max\n")
    place = CgroupPosition(2, top, group)
    assert oom.kills_at(place).group == 4
    monkeypatch.setattr(oom, "places", lambda: {"": place})
    monkeypatch.setattr(oom, "kills_at", lambda place: oom.Kills(9, 4 if place else None))
    kernel = "the kernel's out-of-memory killer"
    assert oom.since(oom.Kills(8, 4)) == ""  # somebody else's, elsewhere
    assert oom.since(oom.Kills(8, 3)) == kernel  # there is no limit that could have
    fake(tmp_path / "cg", memory_max="1000000\n")
    assert oom.since(oom.Kills(8, 3)) == "the memory limit of this container (its cgroup)"
    monkeypatch.setattr(oom, "places", dict)
    assert oom.since(oom.Kills(8, None)) == kernel
    assert oom.since(oom.Kills(9, None)) == ""
    assert oom.since(oom.Kills(None, None)) == ""


def test_counters_are_found_by_their_whole_name():
    assert oom.parse_counter("oom_kill_disable 0\nunder_oom 0\noom_kill 12\n", "oom_kill") == 12
    assert oom.parse_counter("oom_kill 3\n", "oom_kill") == 3
    assert oom.parse_counter("low 0\n", "oom_kill") is None
    assert oom.parse_counter(None, "oom_kill") is None
