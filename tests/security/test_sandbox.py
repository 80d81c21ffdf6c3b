"""What isolated code may reach, for every way of starting a child; that it fails closed."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import pickle
import select
import signal
import tempfile
from typing import TypedDict

import anyio
import pytest

from aioisolate import (
    CallableDidNotExecuteError,
    CallableStatusUnknownError,
    IsolationError,
    Isolator,
    Limits,
    Reason,
    RemoteError,
    Sandbox,
    SandboxWarning,
    capture_isolated,
    isolated,
    run_isolated,
)
from aioisolate.sandbox import PYTHON
from tests import actions, helpers
from tests.attacks import channel
from tests.helpers import ROOT, Stages, alive, error_of, python, until, wait_until
from tests.internals import (
    ForkedChild,
    Layer,
    confine,
    draining,
    landlock,
    make_confinement,
    namespaces,
    pid_namespace,
    platform_features,
    python_paths,
    seccomp,
    users,
)

pytestmark = pytest.mark.part(name="sandbox")

MiB = 1 << 20
HERE = platform_features.containment()
IS_ROOT = HERE.becomes
SPARE = users.Ids(*HERE.spare)
one_loop = pytest.mark.one_loop
as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can become somebody else")
confinable = HERE.landlock and HERE.seccomp and HERE.namespaces
needs_layers = pytest.mark.skipif(not confinable, reason="layers are missing here")


def isolator(start, **options):
    return helpers.isolator(start, "tests.actions", **options)


@pytest.fixture
def shared(tmp_path):
    """A directory that anybody may use."""
    for directory in (tmp_path, *tmp_path.parents[:3]):
        if directory.stat().st_uid == os.getuid() and str(directory) != "/tmp":
            os.chmod(directory, 0o777)
    return tmp_path


# Data


def test_bad_arguments():
    cases = [
        (ValueError, {"network": "all"}),
        (ValueError, {"network": None}),
        (ValueError, {"namespaces": True}),
        (ValueError, {"syscalls": "none"}),
        (ValueError, {"cgroup": "yes"}),
        (ValueError, {"codec": "yaml"}),
        (ValueError, {"missing": "ignore"}),
        (TypeError, {"subprocesses": 1}),
        (TypeError, {"fresh": "no"}),
        (TypeError, {"limits": {"memory": 1}}),
        (TypeError, {"read": "/usr"}),
        (TypeError, {"read": b"/usr"}),
        (TypeError, {"read": [b"/usr"]}),
        (TypeError, {"read": [1]}),
        (ValueError, {"read": ["usr"]}),
        (ValueError, {"write": ["."]}),
        (ValueError, {"write": [PYTHON]}),
        (ValueError, {"read": None}),
        (ValueError, {"write": None}),
        (ValueError, {"scratch": 1}),
        (ValueError, {"scratch": "x"}),
        (TypeError, {"scratch": True}),
        (ValueError, {"scratch": "1 MiB", "namespaces": "off"}),
        (ValueError, {"scratch": "1 MiB", "read": None, "write": None}),
        (TypeError, {"user": None}),
        (TypeError, {"user": True}),
        (TypeError, {"user": "root"}),
        (ValueError, {"user": 0}),
        (ValueError, {"user": -1}),
        (ValueError, {"user": 1 << 32}),
        (TypeError, {"env": ["A=1"]}),
        (TypeError, {"env": {"A": 1}}),
        (TypeError, {"env": {1: "A"}}),
        (ValueError, {"env": {"": "x"}}),
        (ValueError, {"env": {"A=B": "x"}}),
        (ValueError, {"env": {"A": "\0"}}),
    ]
    for kind, arguments in cases:
        with pytest.raises(kind, match=f"sandbox.{next(iter(arguments))}"):
            Sandbox(**arguments)


def test_sandboxes_are_data():
    box = Sandbox(read=[PYTHON, "/usr"], env={"TOKEN": "secret"}, limits=Limits(memory=5))
    same = Sandbox(read=(PYTHON, "/usr"), env={"TOKEN": "secret"}, limits=Limits(memory="5 B"))
    assert box == same
    assert hash(box) == hash(same)
    assert box != Sandbox()
    assert box != 1
    assert len({box, same, Sandbox()}) == 2
    assert "secret" not in repr(box)
    assert "TOKEN" in repr(box)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(box, protocol)) == box
    assert copy.copy(box) == copy.deepcopy(box) == box
    for name in Sandbox.__slots__:
        with pytest.raises(AttributeError):
            setattr(box, name, None)
        with pytest.raises(AttributeError):
            delattr(box, name)
    with pytest.raises(AttributeError):
        box.other = 1
    with pytest.raises(TypeError):
        box.env["TOKEN"] = "other"
    given = {"A": "1"}
    box = Sandbox(env=given)
    given["B"] = "2"
    assert box.env == {"A": "1"}
    assert Sandbox() == Sandbox(env={})
    assert Sandbox(env=None) != Sandbox()


def test_crash_guard():
    guard = Sandbox.crash_guard()
    assert guard.codec == "pickle"
    assert guard.read is guard.write is guard.env is None
    assert guard.limits == Limits(memory="1 GiB")
    assert Sandbox.crash_guard(limits=None).limits is None
    assert Sandbox.crash_guard(network="none", syscalls="default").network == "none"
    assert not guard.fresh


def test_untrusted():
    box = Sandbox.untrusted()
    assert box.fresh
    assert box.codec in {"msgspec", "json"}
    assert box.limits.processes == 16
    assert box.limits.memory == 512 * MiB
    assert box.env == {}
    assert box.missing == "refuse"
    assert not box.subprocesses
    mine = Sandbox.untrusted(limits=Limits(memory="64 MiB"))
    assert mine.limits.memory == 64 * MiB
    assert mine.limits.cpu_time == 10
    with pytest.raises(ValueError, match="pickle"):
        Sandbox.untrusted(codec="pickle")
    with pytest.raises(ValueError, match="fresh"):
        Sandbox.untrusted(fresh=False)
    with pytest.raises(TypeError, match=r"sandbox\.limits"):
        Sandbox.untrusted(limits=5)


@pytest.mark.parametrize("kind", ["fork", "template"])
@one_loop
async def test_untrusted_code_gets_no_copy_of_this_process(kind):
    with pytest.raises(CallableDidNotExecuteError, match=f"start='{kind}'") as caught:
        async with Isolator(start=kind, sandbox=Sandbox.untrusted()) as iso:
            await iso.run(actions.double, 4)
    assert caught.value.reason is Reason.FEATURE_UNAVAILABLE


@one_loop
async def test_options_and_sandboxes():
    with pytest.raises(CallableDidNotExecuteError, match="fresh interpreter"):
        await run_isolated(actions.double, 4, sandbox=Sandbox.untrusted())
    with pytest.raises(TypeError, match="sandbox must be a Sandbox"):
        await run_isolated(actions.double, 4, sandbox="untrusted")
    with pytest.raises(ValueError, match="data-only codec"):
        await run_isolated(actions.double, 4, sandbox=Sandbox(), codec="pickle")
    async with Isolator() as iso:
        with pytest.raises(TypeError, match="belongs to the Isolator"):
            await iso.run(actions.double, 4, sandbox=Sandbox())


# Policy

FULL = platform_features.Containment(
    "linux", True, "privilege", "", 7, True, frozenset({"memory", "pids"}), True
)
ORDINARY = FULL._replace(becomes=False, namespaces="user", groups=frozenset())
NO_NAMESPACES = FULL._replace(namespaces="", why_no_namespaces="[Errno 1] unshare")
DARWIN = platform_features.Containment("darwin", False, "", "", 0, False, frozenset(), False)


def refusal(sandbox, here, start="fork"):
    with pytest.raises(CallableDidNotExecuteError) as caught:
        make_confinement(sandbox, here, start)
    assert caught.value.reason is Reason.FEATURE_UNAVAILABLE
    with pytest.warns(SandboxWarning, match="can't enforce the sandbox"):
        make_confinement(changed(sandbox, missing="warn"), here, start)
    return str(caught.value)


def changed(sandbox, **changes):
    fields = {name: getattr(sandbox, name) for name in Sandbox.__slots__}
    return Sandbox(**fields | changes)


def test_policy_of_root():
    confinement = make_confinement(Sandbox(), FULL, "fork")
    assert confinement.unshare == namespaces.ALL
    assert not confinement.as_user
    assert confinement.uid == 0
    assert not confinement.init
    assert set(confinement.child_layers) == {
        Layer.PRIVILEGES,
        Layer.NAMESPACES,
        Layer.VIEW,
        Layer.ENVIRONMENT,
        Layer.USER,
        Layer.LANDLOCK,
        Layer.SECCOMP,
    }
    served = make_confinement(Sandbox(), FULL, "zygote")
    assert set(served.server_layers) | set(served.child_layers) == set(confinement.child_layers)
    assert make_confinement(Sandbox(user=1234), FULL, "fork").uid == 1234
    assert make_confinement(Sandbox(user="keep"), FULL, "fork").uid == -1
    more = make_confinement(Sandbox(subprocesses=True, scratch="1 MiB"), FULL, "zygote")
    assert {Layer.PROCESSES, Layer.SCRATCH} <= set(more.child_layers)
    open_ = make_confinement(Sandbox(network="inherit"), FULL, "fork")
    assert not open_.unshare & namespaces.NEWNET
    assert make_confinement(Sandbox(namespaces="off"), FULL, "fork").unshare == 0
    assert (
        make_confinement(Sandbox(namespaces="off", subprocesses=True), FULL, "fork").init is False
    )


def test_policy_of_an_ordinary_user():
    confinement = make_confinement(Sandbox(), ORDINARY, "fork")
    assert confinement.as_user
    assert confinement.uid == -1
    assert Layer.USER in confinement.child_layers
    assert "may not become the user 1234" in refusal(Sandbox(user=1234), ORDINARY)
    guard = make_confinement(Sandbox.crash_guard(), ORDINARY, "fork")
    assert guard.child_layers == (Layer.PRIVILEGES,)


def test_policy_without_a_layer():
    assert "Landlock" in refusal(Sandbox(), FULL._replace(landlock=0))
    assert "seccomp" in refusal(Sandbox(), FULL._replace(seccomp=False))
    assert make_confinement(Sandbox(), NO_NAMESPACES, "fork").unshare == 0
    require = Sandbox(namespaces="require")
    assert "[Errno 1] unshare" in refusal(require, NO_NAMESPACES)
    assert "mount namespace" in refusal(Sandbox(scratch="1 MiB"), NO_NAMESPACES)
    assert "outlive" in refusal(Sandbox(subprocesses=True), NO_NAMESPACES)
    text = refusal(Sandbox(), DARWIN)
    assert "darwin" in text
    assert "seccomp" in text
    assert "darwin" in refusal(Sandbox(syscalls="off", network="inherit"), DARWIN)
    # Whoever does without them loses nothing.
    guard = Sandbox.crash_guard()
    for here in (DARWIN, NO_NAMESPACES, FULL._replace(landlock=0, seccomp=False)):
        assert make_confinement(guard, here, "fork").read is None
    none = FULL._replace(landlock=0, seccomp=False, namespaces="", becomes=False)
    text = refusal(Sandbox(scratch="1 MiB", namespaces="require", user=77), none)
    for name in ("Landlock", "seccomp", "mount namespace", "namespaces can't be made", "user 77"):
        assert name in text
    with pytest.warns(SandboxWarning):
        confinement = make_confinement(changed(Sandbox(), missing="warn"), none, "fork")
    assert confinement.child_layers == (Layer.ENVIRONMENT, Layer.PRIVILEGES)


def test_an_old_landlock_has_the_filter_keep_files_from_being_emptied():
    sandbox = Sandbox()
    new, *old = (
        make_confinement(sandbox, FULL._replace(landlock=version), "zygote")
        for version in (3, 2, 1)
    )
    assert new.whole_filter == make_confinement(sandbox, FULL, "zygote").whole_filter
    for confinement in old:
        assert confinement.whole_filter != new.whole_filter
        assert confinement.server_filter != new.server_filter
    unfiltered = Sandbox(syscalls="off", network="inherit")
    assert "truncated" in refusal(unfiltered, FULL._replace(landlock=2))
    assert make_confinement(unfiltered, FULL._replace(landlock=3), "fork").landlock == 3
    # Whoever may reach all files may empty them.
    anywhere = Sandbox(read=None, write=None)
    filters = {
        make_confinement(anywhere, FULL._replace(landlock=version), "fork").whole_filter
        for version in (0, 2, 7)
    }
    assert len(filters) == 1


def test_a_network_is_closed_by_a_filter():
    with pytest.raises(ValueError, match="syscalls='off'"):
        make_confinement(Sandbox(syscalls="off"), FULL, "fork")


def test_a_warning_is_given_each_time():
    here = FULL._replace(landlock=0)
    box = Sandbox(missing="warn", env={"EACH": "time"})
    for _ in range(2):
        with pytest.warns(SandboxWarning, match="Landlock"):
            make_confinement(box, here, "fork")


async def test_a_warning_points_to_the_call(monkeypatch):
    without = platform_features.containment()._replace(landlock=0)
    monkeypatch.setattr(platform_features, "containment", lambda: without)
    box = Sandbox(missing="warn")
    with pytest.warns(SandboxWarning, match="Landlock") as caught:
        await run_isolated(abs, -4, sandbox=box)
    assert caught[0].filename == __file__
    iso = Isolator(sandbox=box)
    with pytest.warns(SandboxWarning, match="Landlock") as caught:
        await iso.__aenter__()
    await iso.aclose()
    assert caught[0].filename == __file__


@one_loop
async def test_a_refusal_forks_nothing(start, monkeypatch):
    monkeypatch.setattr(platform_features, "containment", lambda: DARWIN)
    events = []
    with pytest.raises(CallableDidNotExecuteError, match="darwin") as caught:
        async with isolator(start, sandbox=Sandbox()) as iso:
            await iso.run(actions.double, 4, on_event=events.append)
    assert caught.value.reason is Reason.FEATURE_UNAVAILABLE
    assert not events


# A guard against crashes


async def test_crash_guard_works(start, tmp_path):
    async with isolator(start, sandbox=Sandbox.crash_guard()) as iso:
        assert await iso.run(actions.double, 4) == 8
        await iso.run(actions.touch, str(tmp_path / "made"))
        assert (tmp_path / "made").exists()
        assert await iso.run(actions.who) == [
            os.getuid(),
            os.geteuid(),
            os.getgid(),
            os.getgroups(),
        ]
        assert await iso.run(actions.run_program, "/bin/echo", "hello") == [0, "hello\n", ""]
        assert await iso.run(actions.status_of, "NoNewPrivs") == "1"
        with pytest.raises(ValueError, match="own type"):
            await iso.run(actions.raise_value, "own type")
        error = await error_of(iso.run(actions.crash))
        assert error.reason is Reason.SIGNAL
        assert "in crash" in error.crash_traceback
        error = await error_of(iso.run(actions.allocate, 2 << 30))
        assert error.reason is Reason.MEMORY_LIMIT


async def test_without_a_service(tmp_path):
    guard = Sandbox.crash_guard()
    secret = object()
    assert await run_isolated(lambda: secret is not None, sandbox=guard) is True
    assert (await capture_isolated(actions.double, 4, sandbox=guard)).value == 8
    assert await isolated(sandbox=guard)(actions.double)(x=4) == 8
    if confinable:
        assert await run_isolated(actions.double, 4, sandbox=Sandbox()) == 8
        outcome = await capture_isolated(
            actions.read_file, "/etc/passwd", sandbox=Sandbox(), output="capture"
        )
        assert isinstance(outcome.error, RemoteError)


# Files


@needs_layers
@one_loop
async def test_files(start, shared):
    for name in ("hidden", "shown", "open"):
        (shared / name).mkdir()
        os.chmod(shared / name, 0o777)
        (shared / name / "file").write_text(name)
        os.chmod(shared / name / "file", 0o666)
    box = Sandbox(read=[PYTHON, shared / "shown"], write=[str(shared / "open")])
    hidden, shown, opened = (str(shared / n / "file") for n in ("hidden", "shown", "open"))
    async with isolator(start, sandbox=box) as iso:
        assert await iso.run(actions.read_file, shown) == "shown"
        assert await iso.run(actions.read_file, opened) == "open"
        no = {errno.EACCES, errno.ENOENT}
        assert set(await iso.run(actions.try_files, hidden)) <= no
        assert await iso.run(actions.try_files, shown) == [0, errno.EACCES, errno.EACCES, 0]
        assert await iso.run(actions.try_files, opened) == [0, 0, 0, 0]
        assert (shared / "open" / "made").exists()
        assert not (shared / "shown" / "made").exists()
        for path in ("/etc/shadow", "/etc/passwd", f"{ROOT}/pyproject.toml", "/proc/1/environ"):
            with pytest.raises(RemoteError) as caught:
                await iso.run(actions.read_file, path)
            assert caught.value.type_name in {"PermissionError", "FileNotFoundError"}


@needs_layers
@pytest.mark.parametrize("version", [1, 2, HERE.landlock])
@pytest.mark.parametrize("namespaces_", ["auto", "off"])
@one_loop
async def test_files_are_not_emptied(start, shared, monkeypatch, version, namespaces_):
    """Landlock alone does not see to that before its version 3, Linux 6.2."""
    here = HERE._replace(landlock=min(version, HERE.landlock))
    monkeypatch.setattr(platform_features, "containment", lambda: here)
    files = []
    for name in ("hidden", "shown", "open"):
        (shared / name).mkdir()
        os.chmod(shared / name, 0o777)
        files.append(shared / name / "file")
        files[-1].write_text(name)
        os.chmod(files[-1], 0o666)
    hidden, shown, opened = files
    box = Sandbox(read=[PYTHON, shown.parent], write=[str(opened.parent)], namespaces=namespaces_)
    async with isolator(start, sandbox=box) as iso:
        for file in (hidden, shown):
            found = await iso.run(actions.try_to_empty, str(file))
            assert set(found) <= {errno.EACCES, errno.EPERM, errno.ENOENT}
            assert file.read_text() == file.parent.name
        # What is not open for writing is cut off by nobody, if Landlock can't tell which it is.
        unseen = 0 if here.landlock >= 3 else errno.EPERM
        found = await iso.run(actions.try_to_empty, str(opened))
        assert found == [unseen, unseen, unseen, 0, 0]
        assert opened.read_text() == ""


@needs_layers
@pytest.mark.skipif(HERE.namespaces != "privilege", reason="it takes mounts of one's own")
@pytest.mark.parametrize(("namespaces_", "changes"), [("require", False), ("off", True)])
@one_loop
async def test_reading_leaves_no_time_of_access(start, shared, namespaces_, changes):
    """By such times a call could leave word to the next one; without a view it can."""
    if os.statvfs(shared).f_flag & os.ST_NOATIME:
        pytest.skip("no times of access are kept here")
    file = shared / "read"
    file.write_text("text")
    file.chmod(0o644)
    os.utime(file, (1, 2))
    box = Sandbox(read=[PYTHON, shared], namespaces=namespaces_)
    async with isolator(start, sandbox=box) as iso:
        await iso.run(actions.read_file, str(file))
    assert (file.stat().st_atime != 1) is changes


@needs_layers
@pytest.mark.parametrize("namespaces_", ["auto", "off"])
@one_loop
async def test_locks(start, shared, namespaces_):
    """Only where something may be written: who else locks what is only read is not held up."""
    path = "/etc/ld.so.cache"
    box = Sandbox(namespaces=namespaces_)
    async with isolator(start, sandbox=box) as iso:
        assert await iso.run(actions.lock, path) == [errno.ENOLCK, errno.ENOLCK]
    box = Sandbox(namespaces=namespaces_, write=[str(shared)])
    async with isolator(start, sandbox=box) as iso:
        assert await iso.run(actions.lock, path) == [0, 0]


@needs_layers
@one_loop
async def test_who_stays_after_the_answer_is_killed(monkeypatch):
    """A stranger's code does not run on, outside all limits of the call, until somebody looks."""
    monkeypatch.setattr(draining, "PATIENCE", 1000)
    async with Isolator(sandbox=Sandbox.untrusted(), preload=["tests.attacks"]) as iso:
        assert await iso.run(channel.answer_and_stay, b"\x04") == 4
        forkserver = iso._service._source._pool._forkserver
        await until(lambda: not forkserver.workers, 10)  # it would stay for 20 s


@one_loop
async def test_who_is_trusted_and_stays_is_killed_after_a_while(monkeypatch, caplog):
    monkeypatch.setattr(draining, "PATIENCE", 0.3)
    async with Isolator(preload=["tests.attacks"]) as iso:
        assert await iso.run(channel.answer_and_stay, pickle.dumps(4)) == 4
        forkserver = iso._service._source._pool._forkserver
        assert forkserver.workers
        await until(lambda: not forkserver.workers, 10)  # it would stay for 20 s
    assert "kept running after its answer" in caplog.text


@needs_layers
@one_loop
async def test_a_path_that_is_not_there(start, tmp_path):
    box = Sandbox(read=[PYTHON, tmp_path / "nothing"])
    with pytest.raises(CallableDidNotExecuteError) as caught:
        async with isolator(start, sandbox=box) as iso:
            await iso.run(actions.touch, str(tmp_path / "called"))
    assert caught.value.reason is Reason.CHILD_SETUP
    assert "nothing" in str(caught.value)
    assert caught.value.__cause__.errno == errno.ENOENT
    assert not (tmp_path / "called").exists()


@needs_layers
@one_loop
async def test_all_files(start, tmp_path):
    """Files are not confined, and the rest is."""
    box = Sandbox(read=None, write=None, user="keep")
    async with isolator(start, sandbox=box) as iso:
        await iso.run(actions.touch, str(tmp_path / "made"))
        assert (tmp_path / "made").exists()
        assert (await iso.run(actions.network))[0] != 0


@needs_layers
@one_loop
async def test_scratch(start):
    tempfile.gettempdir()  # which remembers it
    async with isolator(start, sandbox=Sandbox(scratch="1 MiB")) as iso:
        found = await iso.run(actions.where)
        place = found["cwd"]
        assert found == {"cwd": place, "home": place, "tmp": place, "tempfile": place, "files": []}
        written, code = await iso.run(actions.fill_scratch, 4 * MiB)
        assert code == errno.ENOSPC
        assert written <= MiB
        made, code = await iso.run(actions.many_inodes, 100_000)
        assert code == errno.ENOSPC
        assert made <= 300
        # Each has its own, also at the same time.
        got = []
        async with anyio.create_task_group() as group:

            async def leave(name):
                got.append(await iso.run(actions.leave_in_scratch, name, 0.3))

            group.start_soon(leave, "one")
            group.start_soon(leave, "two")
        assert sorted(got) == [["one"], ["two"]]
        assert (await iso.run(actions.where))["files"] == []
    with open("/proc/self/mounts") as mounts:
        assert "/aioisolate/scratch" not in mounts.read()
    assert not os.path.exists(confine.SCRATCH)


# Network


@needs_layers
@pytest.mark.parametrize("namespaces_", ["auto", "off"])
@one_loop
async def test_network(start, namespaces_):
    async with isolator(start, sandbox=Sandbox(namespaces=namespaces_)) as iso:
        assert await iso.run(actions.network) == [errno.EACCES, errno.EACCES, 0]
    async with isolator(start, sandbox=Sandbox(network="inherit", namespaces=namespaces_)) as iso:
        assert await iso.run(actions.network) == [errno.ECONNREFUSED, 0, 0]


@needs_layers
@one_loop
async def test_a_network_of_its_own_has_nothing(start):
    box = Sandbox(read=None, write=None, syscalls="off", network="inherit")
    async with isolator(start, sandbox=box) as iso:
        assert "lo" in await iso.run(actions.interfaces)
    confinement = make_confinement(Sandbox(), HERE, "fork")
    assert confinement.unshare & namespaces.NEWNET


# Programs and other processes

PROGRAMS = [PYTHON, "/bin", "/usr"]


@needs_layers
@one_loop
async def test_programs(start):
    async with isolator(start, sandbox=Sandbox(read=PROGRAMS, subprocesses=True)) as iso:
        assert await iso.run(actions.run_program, "/bin/echo", "hello") == [0, "hello\n", ""]
        assert await iso.run(actions.run_program, "/bin/sh", "-c", "exit 7") == [7, "", ""]
        code, out, _ = await iso.run(actions.run_program, "/bin/cat", "/etc/shadow")
        assert code
        assert not out
        assert await iso.run(actions.count_forks, 3) == [3, 0]
    async with isolator(start, sandbox=Sandbox(read=PROGRAMS)) as iso:
        for fn, args in ((actions.run_program, ["/bin/echo"]), (actions.count_forks, [3])):
            try:
                assert await iso.run(fn, *args) == [0, errno.EPERM]
            except RemoteError as error:
                assert error.type_name == "PermissionError"


class Daemon:
    """A pipe whose end tells that nobody lives who has the other end."""

    def __enter__(self):
        self.read, self.write = os.pipe()
        return self

    def __exit__(self, *_):
        os.close(self.read)
        if self.write >= 0:
            os.close(self.write)

    def is_there(self):
        return bool(select.select([self.read], [], [], 0)[0])

    def check_gone(self):
        """Nobody has it open any more: right now, not a little later."""
        os.close(self.write)
        self.write = -1
        assert os.read(self.read, 10) == b"d"
        assert select.select([self.read], [], [], 0)[0]
        assert os.read(self.read, 10) == b""


TREE = Sandbox(subprocesses=True)


@needs_layers
@pytest.mark.parametrize("how", ["return", "crash", "kill", "timeout", "cancel", "capture", "stop"])
async def test_daemons_end_with_the_call(start, how):
    async with isolator(start, sandbox=TREE) as iso:
        with Daemon() as daemon:
            options = {"pass_fds": [daemon.write]}
            if how == "return":
                assert await iso.run(actions.start_daemon, daemon.write, 0.2, **options) == "left"
            elif how == "capture":
                outcome = await iso.capture(
                    actions.start_daemon, daemon.write, 0.2, output="capture", **options
                )
                assert outcome.value == "left"
            elif how in {"crash", "kill", "stop"}:
                number = {"crash": signal.SIGSEGV, "kill": signal.SIGKILL, "stop": signal.SIGSTOP}[
                    how
                ]
                if how == "stop":
                    options["timeout"] = 1.0
                error = await error_of(
                    iso.run(actions.start_daemon, daemon.write, 60, number, **options)
                )
                if how == "stop":
                    assert error.reason is Reason.TIMEOUT
                else:
                    assert error.exit == -number
            elif how == "timeout":
                error = await error_of(
                    iso.run(actions.start_daemon, daemon.write, 60, timeout=1.0, **options)
                )
                assert error.reason is Reason.TIMEOUT
                assert "in start_daemon" in error.crash_traceback
            else:
                async with anyio.create_task_group() as group:
                    group.start_soon(
                        lambda: iso.run(actions.start_daemon, daemon.write, 60, **options)
                    )
                    await until(daemon.is_there)
                    group.cancel_scope.cancel()
            daemon.check_gone()


@needs_layers
@one_loop
async def test_no_return_is_ahead_of_the_end(start):
    async with isolator(start, sandbox=TREE) as iso:
        for _ in range(20):
            with Daemon() as daemon:
                assert (
                    await iso.run(actions.start_daemon, daemon.write, 0, pass_fds=[daemon.write])
                    == "left"
                )
                daemon.check_gone()


@needs_layers
@pytest.mark.parametrize("kind", ["fork", "zygote", "template"])
def test_daemons_end_with_this_process(kind):
    program = """
        import os, sys, anyio
        from aioisolate import Isolator, Sandbox
        from tests import actions, helpers

        async def main():
            options = {"preload": ["tests.actions"]} if sys.argv[1] == "zygote" else {}
            box = Sandbox(subprocesses=True)
            async with Isolator(start=sys.argv[1], sandbox=box, **options) as iso:
                async with anyio.create_task_group() as group:
                    write = int(sys.argv[2])
                    group.start_soon(
                        lambda: iso.run(actions.start_daemon, write, 60, pass_fds=[write])
                    )
                    group.start_soon(
                        lambda: iso.run(actions.start_daemon, write, 60, pass_fds=[write])
                    )
                    await anyio.sleep(float(sys.argv[3]))
                    os.kill(os.getpid(), 9)

        anyio.run(main)
    """
    read, write = os.pipe()
    try:
        done = python(program, kind, str(write), "2.0", pass_fds=[write])
        assert done.returncode == -9, done.stderr
        os.close(write)
        write = -1
        assert os.read(read, 1) == b"d"
        end = wait_until(lambda: select.select([read], [], [], 0)[0])
        assert end
        while data := os.read(read, 10):  # until the end: everybody is gone
            assert data.strip(b"d") == b""
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


@needs_layers
@one_loop
async def test_an_end_is_told_truthfully(start):
    """Through those who look after it."""
    async with isolator(start, sandbox=TREE) as iso:
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGSEGV):
            error = await error_of(iso.run(actions.raise_signal, number))
            assert error.exit == -number
            assert error.reason is Reason.SIGNAL
            assert isinstance(error, CallableStatusUnknownError)
        assert "in raise_signal" in error.crash_traceback
        for code in (0, 1, 77, 255):
            error = await error_of(iso.run(actions.leave, code))
            assert error.exit == code
            assert error.reason is (Reason.EXIT if code else Reason.NO_RESULT)
        outcome = await iso.capture(actions.spin, 0.3)
        assert outcome.exit == 0
        assert outcome.usage.user + outcome.usage.system > 0.2
        error = await error_of(iso.run(actions.leave_politely, 5))
        assert error.reason is Reason.EXIT
        assert error.exit == 5


@needs_layers
@one_loop
async def test_grace(start, shared):
    box = Sandbox(subprocesses=True, write=[shared])
    async with isolator(start, sandbox=box) as iso:
        error = await error_of(
            iso.run(actions.on_term, str(shared / "note"), timeout=0.5, grace=5.0)
        )
        assert error.reason is Reason.TIMEOUT
        assert error.exit == 3
        assert (shared / "note").read_text() == "called"


@needs_layers
@one_loop
async def test_cpu_time_through_an_init(start):
    async with isolator(start, sandbox=TREE, limits=Limits(cpu_time=1)) as iso:
        error = await error_of(iso.run(actions.spin, 30))
        assert error.reason is Reason.CPU_LIMIT
        assert error.exit == -signal.SIGXCPU
        assert "in spin" in error.crash_traceback


# Who it is


@needs_layers
@one_loop
async def test_users(start):
    async with isolator(start, sandbox=Sandbox()) as iso:
        uid, euid, gid, groups = await iso.run(actions.who)
        assert uid == euid
        if IS_ROOT:
            assert uid in range(SPARE.first, SPARE.first + SPARE.size)
            assert gid == uid
            assert groups == []
            uids = []
            async with anyio.create_task_group() as group:
                for _ in range(2):

                    async def meet():
                        uids.append(await iso.run(actions.meet, 0.3))

                    group.start_soon(meet)
            assert len(set(uids)) == 2
        else:
            assert uid == os.getuid()
    async with isolator(start, sandbox=Sandbox(user="keep")) as iso:
        assert (await iso.run(actions.who))[0] == os.getuid()


@as_root
@needs_layers
@one_loop
async def test_a_certain_user(start):
    async with isolator(start, sandbox=Sandbox(user=2345)) as iso:
        assert await iso.run(actions.who) == [2345, 2345, 2345, []]


@needs_layers
@one_loop
async def test_without_namespaces(start):
    async with isolator(start, sandbox=Sandbox(namespaces="off", read=[PYTHON, "/proc"])) as iso:
        status = await iso.run(actions.status_of, "Seccomp")
        assert status == "2"
        assert await iso.run(actions.status_of, "NoNewPrivs") == "1"
        assert int(await iso.run(actions.status_of, "CapEff"), 16) == 0
    async with isolator(start, sandbox=Sandbox(namespaces="require")) as iso:
        assert await iso.run(actions.double, 4) == 8


@needs_layers
@pytest.mark.parametrize("kind", ["default", "strict", "off"])
@one_loop
async def test_system_calls(start, kind):
    network = "inherit" if kind == "off" else "none"
    async with isolator(start, sandbox=Sandbox(syscalls=kind, network=network)) as iso:
        assert await iso.run(actions.double, 4) == 8
        assert await iso.run(actions.threads_work, 5) == [0, 1, 2, 3, 4]
        assert await iso.run(actions.slow_double, 4) == 8
        try:
            allowed = await iso.run(actions.write_memory_file, 10) is None
        except RemoteError as error:
            assert error.type_name == "PermissionError"
            allowed = False
        assert allowed is (kind == "off")


# What it has been given


@needs_layers
@one_loop
async def test_environment(start, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    async with isolator(start, sandbox=Sandbox()) as iso:
        assert "SECRET" not in await iso.run(actions.environment)
    async with isolator(start, sandbox=Sandbox(env={"A": "b"})) as iso:
        found = await iso.run(actions.environment)
        assert found.pop("A") == "b"
        assert set(found) <= {"LC_CTYPE"}  # which the interpreter sets
    async with isolator(start, sandbox=Sandbox(env=None)) as iso:
        assert (await iso.run(actions.environment))["SECRET"] == "s3cret"


@needs_layers
@one_loop
async def test_standard_input(start):
    read, write = os.pipe()
    os.write(write, b"typed")
    saved = os.dup(0)
    os.dup2(read, 0)
    try:
        async with isolator(start, sandbox=Sandbox(codec="json")) as iso:
            assert await iso.run(actions.same_file, 0) == list(os.stat("/dev/null"))[2:0:-1]
    finally:
        os.dup2(saved, 0)
        for fd in (read, write, saved):
            os.close(fd)


@needs_layers
@one_loop
async def test_descriptors(start, tmp_path):
    (tmp_path / "secret").write_text("secret")
    with open(tmp_path / "secret") as file, Daemon() as pipe:
        secret = os.fstat(file.fileno())
        async with isolator(start, sandbox=Sandbox()) as iso:
            try:
                found = await iso.run(actions.same_file, file.fileno())
                assert found != [secret.st_dev, secret.st_ino]
            except RemoteError as error:
                assert "Bad file descriptor" in str(error)
            kept = await iso.run(actions.same_file, pipe.write, pass_fds=[pipe.write])
            assert kept[1] == os.fstat(pipe.write).st_ino
            kept = await iso.run(actions.same_file, file.fileno(), pass_fds=[file.fileno()])
            assert kept == [secret.st_dev, secret.st_ino]
        # Those who are trusted keep their files.
        if start["start"] == "fork":
            found = await run_isolated(
                actions.same_file, file.fileno(), sandbox=Sandbox.crash_guard()
            )
            assert found == [secret.st_dev, secret.st_ino]


# What comes back


class Point(TypedDict):
    x: int
    y: int


@needs_layers
@pytest.mark.parametrize("codec", ["msgspec", "json"])
async def test_codecs(start, codec):
    async with isolator(start, sandbox=Sandbox(codec=codec)) as iso:
        assert await iso.run(actions.point) == {"x": 1, "y": 2}
        assert await iso.run(actions.point, result_type=Point) == {"x": 1, "y": 2}
        error = await error_of(iso.run(actions.point, result_type=list[int]))
        assert error.reason is Reason.RESULT_DECODING
        error = await error_of(iso.run(actions.opaque))
        assert error.reason is Reason.RESULT_ENCODING
        assert codec in str(error)
        with pytest.raises(RemoteError) as caught:
            await iso.run(actions.raise_odd)
        assert caught.value.type_name == "tests.actions.Odd"
        assert "\x1b" not in str(caught.value)
        assert "in raise_odd" in caught.value.traceback
        assert caught.value.__cause__ is None
        error = await error_of(iso.run(actions.leave_politely, 5))
        assert error.reason is Reason.EXIT
        assert error.exit == 5
        assert isinstance(error.__cause__, RemoteError)


@needs_layers
async def test_every_kind_of_call(start):
    async with isolator(start, sandbox=Sandbox()) as iso:
        assert await iso.run(actions.slow_double, 4) == 8
        async with iso.stream(actions.numbers, 200) as items:
            assert [item async for item in items] == list(range(200))
        async with iso.stream(actions.slow_numbers, 5) as items:
            assert [item async for item in items] == list(range(5))
        assert sorted([x async for x in iso.map(actions.double, range(5))]) == [0, 2, 4, 6, 8]
        seen = []
        assert await iso.run(actions.report, 3, on_progress=seen.append) == 3
        assert [report.done for report in seen] == [0, 1, 2]
        async with iso.open_job(actions.double, 4) as job:
            assert await job.result() == 8
        outcome = await iso.capture(actions.write_out, 10, 5, output="capture")
        assert (outcome.stdout, outcome.stderr) == ("o" * 10, "e" * 5)
        assert await iso.run(actions.threads_work, 10) == list(range(10))
        future = iso.executor().submit(actions.double, 4)
        await until(future.done)
        assert future.result() == 8


@needs_layers
@one_loop
async def test_work_inside(start):
    preload = {"preload": ["tests.actions", "numpy"]} if start["start"] == "zygote" else {}
    async with isolator(start, sandbox=Sandbox(), **preload) as iso:
        assert await iso.run(actions.numpy_work, 20) is True
        library = await iso.run(actions.use_the_library)
        assert library[:2] == [42, "0.125"]


@needs_layers
@one_loop
async def test_untrusted_works():
    async with Isolator(sandbox=Sandbox.untrusted(), preload=["tests.actions"], warm=1) as iso:
        assert await iso.run(actions.double, 4) == 8
        # Each has a stack and an arena of addresses, which the limit of memory counts.
        assert 4 <= await iso.run(actions.count_threads, 50) <= 15
        error = await error_of(iso.run(actions.allocate, 600 * MiB))
        assert error.reason is Reason.MEMORY_LIMIT
        error = await error_of(iso.run(actions.text, 20 * MiB))
        assert error.reason is Reason.RESULT_TOO_LARGE
        assert await iso.run(actions.open_more, 100) == [64, errno.EMFILE]
        assert await iso.run(actions.numbers_of, "def f(): return 6 * 7") == 42


# Crashes, deadlines, cancellation


@needs_layers
@pytest.mark.parametrize("box", [Sandbox(), TREE], ids=["alone", "tree"])
async def test_crashes_and_deadlines(start, box):
    async with isolator(start, sandbox=box) as iso:
        error = await error_of(iso.run(actions.crash))
        assert error.exit == -signal.SIGABRT
        assert "in crash" in error.crash_traceback
        error = await error_of(iso.run(actions.sleep, 60, timeout=0.5))
        assert error.reason is Reason.TIMEOUT
        assert "in sleep" in error.crash_traceback
        assert await iso.run(actions.double, 4) == 8


@needs_layers
@pytest.mark.parametrize("stage", ["spawn", "started", "result", "reaped"])
async def test_cancelled_at_every_stage(start, stage):
    async with isolator(start, sandbox=TREE) as iso:
        for fn, args in ((actions.sleep, (60,)), (actions.double, (4,))):
            if fn is actions.sleep and stage in {"result", "reaped"}:
                continue
            seen = []
            with anyio.CancelScope() as scope:

                def look(event, seen=seen, scope=scope):
                    seen.append(event.pid)
                    if event.name == stage:
                        scope.cancel()

                await iso.run(fn, *args, on_event=look)
            assert not alive(seen[0])


@needs_layers
async def test_cancelled_at_any_time(start):
    async with isolator(start, sandbox=TREE) as iso:
        for milliseconds in range(0, 60, 4):
            with anyio.move_on_after(milliseconds / 1000):
                await iso.run(actions.sleep, 60)
        assert await iso.run(actions.double, 4) == 8


# It fails closed


def failing(number=errno.EPERM):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number), "seam")

    return fail


SEAMS = {
    Layer.NAMESPACES: [(namespaces, "unshare")],
    Layer.VIEW: [(namespaces, "make_mounts_private"), (namespaces, "make_root")],
    Layer.USER: [(users, "become"), (users, "drop_capabilities")],
    Layer.PROCESSES: [(pid_namespace, "enter_namespace")],
    Layer.PRIVILEGES: [(confine, "set_no_new_privs"), (confine, "set_dumpable")],
    Layer.LANDLOCK: [(landlock, "make_ruleset"), (landlock, "restrict")],
    Layer.SECCOMP: [(seccomp.Prepared, "install")],
    Layer.SCRATCH: [(confine, "_mount_scratch")],
}
ALL = Sandbox(subprocesses=True, scratch="1 MiB")


@needs_layers
@pytest.mark.parametrize("kind", ["fork", "template"])
@pytest.mark.parametrize(
    ("layer", "seam"), [(layer, seam) for layer, seams in SEAMS.items() for seam in seams]
)
@one_loop
async def test_a_layer_that_fails(kind, layer, seam, monkeypatch, tmp_path):
    if seam[1] == ("drop_capabilities" if IS_ROOT else "become"):
        pytest.skip("not used by this user")
    monkeypatch.setattr(*seam, failing(errno.ENOSPC))
    box = changed(ALL, read=(*ALL.read, str(tmp_path)), write=(str(tmp_path),))
    with pytest.raises(CallableDidNotExecuteError) as caught:
        async with Isolator(start=kind, sandbox=box) as iso:
            await iso.run(actions.touch, str(tmp_path / "called"))
    error = caught.value
    assert error.reason is Reason.CHILD_SETUP
    assert layer in str(error)
    assert f"[Errno {errno.ENOSPC}]" in str(error)
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == errno.ENOSPC
    assert not (tmp_path / "called").exists()


@needs_layers
@pytest.mark.parametrize("kind", ["fork", "template"])
@pytest.mark.parametrize("layer", [Layer.ENVIRONMENT, Layer.LANDLOCK, Layer.SECCOMP, Layer.USER])
@one_loop
async def test_a_layer_that_is_left_out(kind, layer, monkeypatch, tmp_path):
    """Whoever forgets one is noticed before fn is called."""
    with_layer = confine._layer

    @contextlib.contextmanager
    def forgetful(name, engaged):
        with with_layer(name, [] if name == layer else engaged):
            yield

    monkeypatch.setattr(confine, "_layer", forgetful)
    monkeypatch.setattr(
        confine,
        "_set_environment",
        lambda _, engaged: layer == Layer.ENVIRONMENT or engaged.append(Layer.ENVIRONMENT),
    )
    box = changed(ALL, write=(str(tmp_path),))
    with pytest.raises(CallableDidNotExecuteError) as caught:
        async with Isolator(start=kind, sandbox=box) as iso:
            await iso.run(actions.touch, str(tmp_path / "called"))
    assert caught.value.reason is Reason.CHILD_SETUP
    assert f"layers missing: {layer}" in str(caught.value)
    assert not (tmp_path / "called").exists()


@needs_layers
@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("field", ["server_layers", "child_layers"])
@one_loop
async def test_a_fork_server_that_leaves_one_out(warm, field, monkeypatch, tmp_path):
    """Here what it engages is right, and it is too little for what the parent expects."""
    from tests.internals import confinement as policies

    def expecting(*args):
        confinement = make_confinement(*args)
        return confinement._replace(**{field: (*getattr(confinement, field), "moat")})

    monkeypatch.setattr(policies, "make_confinement", expecting)
    box = Sandbox(write=[tmp_path])
    with pytest.raises(CallableDidNotExecuteError, match="layers missing: moat") as caught:
        async with Isolator(sandbox=box, warm=warm, preload=["tests.actions"]) as iso:
            await iso.run(actions.touch, str(tmp_path / "called"))
    assert caught.value.reason is Reason.CHILD_SETUP
    assert not (tmp_path / "called").exists()


@needs_layers
@pytest.mark.parametrize(
    ("change", "layer"),
    [
        (lambda _: {"server_filter": b"\xff" * 8}, Layer.SECCOMP),
        (lambda p: {"child_filter": b"\xff" * 8 + p.child_filter[8:]}, Layer.SECCOMP),
        (lambda p: {"read": (*p.read, "/nothing/here")}, Layer.VIEW),
        (lambda _: {"unshare": 0x7FFFFFFF}, Layer.NAMESPACES),
    ],
)
@pytest.mark.parametrize("warm", [0, 2])
@one_loop
async def test_a_layer_that_fails_in_a_fork_server(change, layer, warm, monkeypatch, tmp_path):
    from tests.internals import confinement as policies

    def wrong(*args):
        confinement = make_confinement(*args)
        return confinement._replace(**change(confinement))

    monkeypatch.setattr(policies, "make_confinement", wrong)
    with pytest.raises(CallableDidNotExecuteError) as caught:
        async with Isolator(sandbox=Sandbox(), warm=warm, preload=["tests.actions"]) as iso:
            await iso.run(actions.touch, str(tmp_path / "called"))
    assert caught.value.reason is Reason.CHILD_SETUP
    assert repr(layer) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert f"[Errno {caught.value.__cause__.errno}]" in str(caught.value)
    assert not (tmp_path / "called").exists()


@needs_layers
@one_loop
async def test_a_child_that_dies_before_it_may_go(monkeypatch):
    go = ForkedChild.go

    def kill_first(self):
        os.kill(self.pid, signal.SIGKILL)
        select.select([self.end_fd], [], [], 10)
        go(self)

    monkeypatch.setattr(ForkedChild, "go", kill_first)
    error = await error_of(run_isolated(actions.double, 4, sandbox=Sandbox()))
    assert isinstance(error, CallableDidNotExecuteError)
    assert error.reason is Reason.CHILD_SETUP
    assert error.exit == -signal.SIGKILL


@needs_layers
@one_loop
async def test_a_child_that_is_never_told_to_go(monkeypatch, tmp_path):
    monkeypatch.setattr(ForkedChild, "go", lambda _: None)
    box = Sandbox(write=[tmp_path])
    error = await error_of(
        run_isolated(actions.touch, str(tmp_path / "called"), sandbox=box, start_timeout=0.5)
    )
    assert isinstance(error, CallableDidNotExecuteError)
    assert error.reason is Reason.START_TIMEOUT
    assert not (tmp_path / "called").exists()


def test_what_python_needs_is_there():
    for path in python_paths():
        assert os.path.exists(path)
    assert "/etc" not in python_paths()
    assert str(ROOT) not in python_paths()
