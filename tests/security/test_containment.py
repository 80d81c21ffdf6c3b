"""What a machine can hold is found out by attempts, told, required and left out by name."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from aioisolate import (
    CallableDidNotExecuteError,
    Isolator,
    Limits,
    Reason,
    Sandbox,
    SandboxWarning,
    features,
    run_isolated,
)
from tests import actions
from tests.helpers import fork, forked, isolator, python
from tests.internals import (
    Containment,
    Layer,
    Process,
    RlimitSpec,
    containment,
    fds,
    killing,
    make_confinement,
    make_view,
    memfd,
    namespaces,
    plan_limits,
    process,
    process_count,
    rlimit,
    seccomp,
    set_no_new_privs,
    survey,
    users,
)
from tests.internals import child_bounds as bounds
from tests.internals import os_containment as module
from tests.internals import platform_features as os_features

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="as Linux has it"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
HERE = containment()
FULL = Containment(
    "linux", True, "privilege", "", 7, True, frozenset({"memory", "pids"}), True, capable=True
)
# Docker's default for root, whose processes nothing counts, and for others.
CONTAINER = FULL._replace(
    namespaces="", why_no_namespaces="EPERM", groups=frozenset(), view=False, why_no_view="EPERM"
)
POOR_ROOT = CONTAINER._replace(becomes=False, why_not_becomes="killing is refused")
POOR_USER = POOR_ROOT._replace(processes_by_user=True, capable=False)
needs_root = pytest.mark.skipif(not HERE.becomes, reason="only root can become another user")
one_loop = pytest.mark.one_loop


# Killing


def sleeper(become: bool) -> int:
    """Fork a child that sleeps, as another user if so."""
    read, write = os.pipe()
    pid = fork()
    if not pid:
        try:
            if become:
                users.become(users.SPARE.first, users.SPARE.first)
            os.write(write, b"x")
            signal.alarm(30)
            signal.pause()
        finally:
            os._exit(0)
    assert os.read(read, 1) == b"x"
    os.close(read)
    os.close(write)
    return pid


def ended_by(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@needs_root
def test_a_child_of_another_user_is_killed_without_the_capability():
    def work():
        pid = sleeper(become=True)
        users.drop_capabilities()
        with pytest.raises(PermissionError):
            os.kill(pid, signal.SIGKILL)
        owner = Process()
        owner.adopt(pid)
        owner.signal_group(signal.SIGKILL)
        owner.signal(signal.SIGTERM)  # of no avail, and no error
        owner.signal(signal.SIGKILL)
        assert owner.ended(5)
        exit_ = owner.reap().exit
        owner.close()
        return exit_.code, exit_.signal

    assert forked(work) == ([None, signal.SIGKILL], 0)


@needs_root
def test_nothing_is_killed_that_has_ended():
    """The number might be somebody else's by then."""

    def work():
        pid = sleeper(become=True)
        assert killing.kill_through_descriptor(pid, lambda: True)
        os.kill(pid, signal.SIGTERM)
        return ended_by(pid)

    assert forked(work) == (-signal.SIGTERM, 0)


def refuse_pidfd_signals(monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "a filter")

    monkeypatch.setattr(process._signal, "pidfd_send_signal", refuse)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_where_a_filter_forbids_signals_by_pidfd(number, monkeypatch):
    refuse_pidfd_signals(monkeypatch)
    owner = Process()
    owner.adopt(sleeper(become=False))
    owner.signal(number)
    assert owner.ended(5)
    assert owner.reap().exit == -number
    owner.close()


async def test_calls_end_where_a_filter_forbids_signals_by_pidfd(start, monkeypatch):
    refuse_pidfd_signals(monkeypatch)
    async with Isolator(**start) as iso:
        with pytest.raises(TimeoutError):
            await iso.run(actions.sleep, 30, timeout=0.3)


_GIVE_UP = """
import asyncio, os, sys, time
from aioisolate import Isolator, IsolationError, Sandbox, run_isolated
from tests.internals import users
from tests import actions

def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False

async def call(run, **more):
    pids = []
    def begun(event):
        if event.name == "started":
            pids.append(event.pid)
            users.drop_capabilities()
    try:
        await run(actions.sleep, 30, timeout=1.5, on_event=begun, **more)
    except IsolationError as error:
        print(error.reason.name, gone(pids[0]))

async def main():
    if sys.argv[1] == "fork":
        await call(run_isolated, sandbox=Sandbox())
    else:
        async with Isolator(sandbox=Sandbox(), preload=["tests.actions"]) as iso:
            await call(iso.run)
asyncio.run(main())
"""


@needs_root
@pytest.mark.parametrize("start", ["fork", "zygote"])
def test_calls_end_whose_parent_has_given_up_its_capabilities(start):
    done = python(_GIVE_UP, start)
    assert done.stdout == "TIMEOUT True\n", done.stderr
    assert done.stderr == ""


# Attempts


def without(*names: str):
    """Return what a forked process finds that lacks some capabilities."""
    bits = {"setgid": 6, "setuid": 7, "kill": 5, "sys_admin": 21}

    def work():
        everything = (1 << 41) - 1
        for name in names:
            everything &= ~(1 << bits[name])
            assert users._libc.prctl(24, bits[name], 0, 0, 0) == 0  # PR_CAPBSET_DROP
        everything &= users.capabilities()
        words = (everything & 0xFFFFFFFF, everything >> 32)
        data = users._WORDS.pack(words[0], words[0], 0, words[1], words[1], 0)
        header = users.struct.pack("=Ii", users._CAPABILITY_VERSION_3, 0)
        assert users._libc.capset(header, data) == 0
        found = containment()
        return found._replace(groups=sorted(found.groups))._asdict()

    found, status = forked(work)
    assert status == 0
    return found


@needs_root
def test_another_user_takes_three_capabilities():
    """Without KILL nothing would end what runs as that user."""
    assert "killing" in without("kill")["why_not_becomes"]
    for name in ("setuid", "setgid"):
        found = without(name)
        assert not found["becomes"]
        assert "becoming another user is refused" in found["why_not_becomes"]
    assert without()["becomes"]


@needs_root
def test_namespaces_are_had_in_another_way_without_the_capability():
    found = without("sys_admin")
    if not found["namespaces"]:
        pytest.skip(found["why_no_namespaces"])
    assert found["namespaces"] == "user"
    assert found["becomes"]


@pytest.mark.parametrize(
    ("place", "name"),
    [(users, "become"), (namespaces, "unshare"), (namespaces, "make_mounts_private")],
)
def test_what_is_short_for_a_moment_is_no_verdict(place, name, monkeypatch):
    if (place is users and not HERE.becomes) or (place is namespaces and not HERE.namespaces):
        pytest.skip("it is not got as far as that here")

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(place, name, refuse)
    module._containment.cache_clear()
    with pytest.raises(OSError, match="while testing") as caught:
        containment()
    assert caught.value.errno == errno.EMFILE
    monkeypatch.undo()
    assert containment() == HERE


def test_an_attempt_that_is_killed_is_none_that_holds(monkeypatch):
    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(namespaces, "unshare", die)
    found = module._attempt_all()
    assert not found.get("namespaces")
    assert "was killed" in found["why_no_namespaces"]
    monkeypatch.undo()
    if not HERE.view:
        return
    monkeypatch.setattr(namespaces, "make_mounts_private", die)
    found = module._attempt_all()
    assert found["namespaces"] == HERE.namespaces
    assert "was killed" in found["why_no_view"]


def test_a_process_that_is_not_dumpable_is_tried_out_in_a_program():
    assert module._attempt_in_program() == module._attempt_all()


@pytest.mark.parametrize("program", ["/nothing/here", "here", "", None])
def test_a_program_that_can_not_be_started_proves_nothing(monkeypatch, program):
    monkeypatch.setattr(sys, "executable", program)
    assert "could not be tested" in module._attempt_in_program()["why_no_namespaces"]


def test_a_frozen_application_is_not_started(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert "not the path of" in module._attempt_in_program()["why_no_namespaces"]


def test_attempts_where_children_are_not_collected():
    def work():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        return module._attempt_all()

    expected = json.loads(json.dumps(module._attempt_all()))
    assert forked(work) == (expected, 0)


def test_an_attempt_that_can_not_be_made_leaves_no_descriptor(monkeypatch):
    def refuse():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(module, "fork", refuse)
    before = fds.listed()
    with pytest.raises(BlockingIOError):
        module._in_child(dict)
    with pytest.raises(BlockingIOError):
        module._try_becoming(users.SPARE)
    assert fds.listed() == before


def test_no_handler_runs_in_an_attempt():
    ran, run = os.pipe()

    def work():
        os.kill(os.getpid(), signal.SIGUSR1)
        return {"answer": 1}

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    before = signal.signal(signal.SIGUSR1, lambda *_: os.write(run, b"x"))
    try:
        assert module._in_child(work) == {"answer": 1}
    finally:
        signal.signal(signal.SIGUSR1, before)
    os.close(run)
    assert os.read(ran, 1) == b""
    os.close(ran)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


@one_loop
@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EMFILE, Reason.PIPE_CREATION), (errno.EAGAIN, Reason.FORK)]
)
async def test_an_attempt_that_can_not_be_made_is_told_as_that(number, reason, monkeypatch):
    def refuse():
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os_features, "containment", refuse)
    with pytest.raises(CallableDidNotExecuteError, match="could not be determined") as info:
        await run_isolated(abs, -1, sandbox=Sandbox.crash_guard())
    assert info.value.reason is reason
    with pytest.raises(CallableDidNotExecuteError, match="could not be determined") as info:
        async with Isolator(sandbox=Sandbox.crash_guard()):
            pass
    assert info.value.reason is reason


def test_a_probe_where_children_are_not_collected():
    source = """
    import signal
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    from aioisolate import features

    found = features.probe()
    print(found.holds("Sandbox.crash_guard()"), "No child processes" in str(found))
    """
    done = python(source)
    assert done.stdout == "True False\n", done.stderr


def test_an_answer_is_read_while_another_process_has_the_pipe():
    wait, go = os.pipe()

    def work():
        if not fork():
            os.close(go)
            signal.alarm(20)  # should nothing else end it
            os.read(wait, 1)
            os._exit(0)
        return {"answer": 1}

    begun = time.monotonic()
    assert module._in_child(work) == {"answer": 1}
    assert time.monotonic() - begun < 10
    os.close(wait)
    os.close(go)


def test_a_broken_program_proves_nothing(monkeypatch):
    def broken(*_, **__):
        return subprocess.CompletedProcess([], 0, b"")

    monkeypatch.setattr(subprocess, "run", broken)
    assert "could not be tested" in module._attempt_in_program()["why_no_namespaces"]


# Counting


def start_threads(count: int) -> threading.Event:
    gate = threading.Event()
    for _ in range(count):
        threading.Thread(target=gate.wait, daemon=True).start()
    return gate


def in_own_count() -> None:
    """Be the only process that is counted, or raise OSError."""
    if HERE.becomes:
        uid = users.spare_id(os.getpid(), users.Ids(*HERE.spare))
        users.become(uid, uid)
    elif HERE.processes_by_namespace:
        uid, gid = os.getuid(), os.getgid()
        namespaces.unshare(namespaces.NEWUSER)
        namespaces.map_user(uid, gid)
        users.drop_capabilities()
    else:
        raise OSError(errno.ENOTSUP, "nothing is counted apart here")


needs_count = pytest.mark.skipif(
    not (HERE.becomes or HERE.processes_by_namespace), reason="nothing is counted apart here"
)


@needs_count
@pytest.mark.parametrize("threads", [1, 2, 3, 4, 30])
def test_tasks_are_counted(threads):
    def work():
        in_own_count()
        before = resource.getrlimit(resource.RLIMIT_NPROC)
        counts = [process_count.count_tasks()]
        gate = start_threads(threads)
        counts.append(process_count.count_tasks())
        gate.set()
        assert resource.getrlimit(resource.RLIMIT_NPROC) == before
        return counts

    assert forked(work) == ([1, 1 + threads], 0)


@needs_root
def test_of_root_nothing_is_counted():
    assert not process_count.is_counted()
    with pytest.raises(OSError, match="not counted"):
        process_count.count_tasks()


@needs_count
@pytest.mark.parametrize("others", [0, 3])
def test_so_many_besides_the_others(others):
    """As `RlimitSpec.besides` has it, in a child that has its filter by then."""

    def work():
        in_own_count()
        gate = start_threads(others)
        program = seccomp.compile_filter(
            "default", "whole", subprocesses=False, network=False, counting=True
        )
        set_no_new_privs()
        seccomp.install(seccomp.bind_pid(program, os.getpid()))
        bounds.apply(RlimitSpec(processes=4, besides=True), -1, 2)
        started = []
        more = threading.Event()
        try:
            for _ in range(8):
                threading.Thread(target=more.wait, daemon=True).start()
                started.append(1)
        except RuntimeError:
            pass
        more.set()
        gate.set()
        return len(started)

    assert forked(work) == (3, 0)


@needs_count
def test_what_counts_makes_no_process():
    """The exception for it in the filter is for an address that can't be written to."""

    def work():
        program = seccomp.compile_filter(
            "default", "whole", subprocesses=False, network=False, counting=True
        )
        set_no_new_privs()
        seccomp.install(seccomp.bind_pid(program, os.getpid()))
        number = process_count._CLONE[os.uname().machine]
        found = []
        for flags, address in (
            (process_count.CLONE_FLAGS, process_count.NOWHERE),
            (process_count.CLONE_FLAGS, 0x1_0000_0000 + (process_count.NOWHERE & 0xFFFFFFFF)),
            (process_count.CLONE_FLAGS, 8),
            (process_count.CLONE_FLAGS & ~0x1000, process_count.NOWHERE),
            (process_count.CLONE_FLAGS | 0x10000000, process_count.NOWHERE),
        ):
            try:
                process_count.syscall(number, flags, 0, address, 0, 0)
                found.append("made")
            except OSError as exc:
                found.append(errno.errorcode[exc.errno])
        return found

    assert forked(work) == (["EFAULT", "EPERM", "EPERM", "EPERM", "EPERM"], 0)


# Policy


def test_without_the_right_to_kill_nobody_becomes_another_user():
    confinement = make_confinement(Sandbox(), POOR_ROOT, "zygote")
    assert confinement.uid == -1
    assert confinement.drop
    assert Layer.CAPABILITIES in confinement.child_layers
    with pytest.raises(CallableDidNotExecuteError, match="SETUID, SETGID and KILL") as caught:
        make_confinement(Sandbox(user=77), POOR_ROOT, "zygote")
    assert caught.value.reason is Reason.FEATURE_UNAVAILABLE


def test_all_capabilities_go_but_with_keep():
    for user, dropped in (("auto", True), ("unprivileged", True), ("keep", False)):
        assert make_confinement(Sandbox(user=user), POOR_ROOT, "fork").drop is dropped
    assert not make_confinement(Sandbox(), FULL, "fork").drop
    assert make_confinement(Sandbox(user="unprivileged"), FULL, "fork").drop
    assert not make_confinement(Sandbox(), POOR_USER, "fork").drop  # there are none


@needs_root
async def test_root_that_stays_has_no_capability(start):
    for user, has_some in (("unprivileged", False), ("keep", True)):
        # Nothing else is taken away, so that it can be seen.
        box = Sandbox.crash_guard(user=user)
        async with isolator(start, "tests.actions", sandbox=box) as iso:
            uid, capabilities = await iso.run(actions.who_and_what)
        assert uid == 0
        assert bool(capabilities) is has_some


def test_threads_are_counted_or_forbidden():
    box = Sandbox.untrusted()
    poor = make_confinement(box, POOR_USER, "zygote")
    assert poor.threads
    found = plan_limits(box.limits, box, poor, POOR_USER, "zygote").rlimits
    assert found.processes == 16
    assert found.besides
    confinement = make_confinement(box, POOR_ROOT, "zygote")
    assert not confinement.threads
    assert plan_limits(box.limits, box, confinement, POOR_ROOT, "zygote").rlimits.processes is None
    group = POOR_ROOT._replace(groups=frozenset({"pids"}))
    confinement = make_confinement(box, group, "zygote")
    assert confinement.threads
    assert plan_limits(box.limits, box, confinement, group, "zygote").group == (None, 16)


@one_loop
async def test_a_filter_without_threads(monkeypatch):
    from tests.internals import platform_features as seam

    monkeypatch.setattr(
        seam,
        "containment",
        lambda: HERE._replace(
            becomes=False, groups=frozenset(), namespaces="", processes_by_user=False
        ),
    )
    box = Sandbox.untrusted()
    async with Isolator(sandbox=box, preload=["tests.actions"]) as iso:
        assert await iso.run(len, "four") == 4
        with pytest.raises(Exception, match="can't start new thread"):
            await iso.run(actions.start_a_thread)


def test_limits_that_can_not_be_held_are_left_out_with_a_warning():
    box = Sandbox(subprocesses=True, missing="warn", namespaces="off", user="keep")
    confinement = make_confinement(box, POOR_ROOT, "zygote")
    with pytest.warns(SandboxWarning, match=r"limits\.processes"):
        found = plan_limits(Limits(processes=3, open_files=5), box, confinement, POOR_ROOT)
    assert found.rlimits.processes is None
    assert found.rlimits.open_files == 5


def test_refusals_say_what_to_change():
    box = Sandbox(subprocesses=True, namespaces="off", limits=Limits(processes=3))
    confinement = make_confinement(box, POOR_ROOT, "zygote")
    with pytest.raises(CallableDidNotExecuteError) as caught:
        plan_limits(box.limits, box, confinement, POOR_ROOT)
    text = str(caught.value)
    assert "give the container the capabilities SETUID, SETGID and KILL" in text
    assert "pids control group" in text
    assert "leave out limits.processes" in text
    filtered = POOR_USER._replace(landlock=0, why_no_landlock="a filter forbids it")
    with pytest.raises(CallableDidNotExecuteError, match=r"a filter.*without=\['landlock'\]"):
        make_confinement(Sandbox(), filtered, "zygote")


def test_a_process_that_is_not_dumpable():
    here = FULL._replace(becomes=False, namespaces="user", dumpable=False)
    assert make_confinement(Sandbox(), here, "zygote").unshare
    require = Sandbox(namespaces="require")
    with pytest.raises(CallableDidNotExecuteError, match="not dumpable"):
        make_confinement(require, here, "fork")
    assert make_confinement(require, here, "zygote").unshare


def test_ids_in_a_user_namespace():
    here = FULL._replace(namespaces="user", spare=(32768, 1000))
    confinement = make_confinement(Sandbox(), here, "zygote")
    assert confinement.as_user
    assert confinement.ids
    assert confinement.spare == (32768, 1000)
    assert make_confinement(Sandbox(user=77), here, "zygote").spare == (77, 1)


@pytest.mark.parametrize(
    ("extents", "expected"),
    [
        ("0 0 4294967295\n", users.SPARE),
        ("0 100000 65536\n", users._SPARE_OF_FEW),
        ("0 100000 1000\n1000 2000 64536\n", users._SPARE_OF_FEW),
        ("0 1000 1\n", None),
        ("", None),
    ],
)
def test_spare_ids_are_mapped_ones(extents, expected, tmp_path, monkeypatch):
    path = tmp_path / "map"
    path.write_text(extents)
    monkeypatch.setattr(users, "open", lambda *_: path.open(), raising=False)
    assert users.spare_ids() == expected
    if expected:
        assert users.spare_id(expected.size + 5, expected) == expected.first + 5


# Required, left out, told


def test_names_are_checked():
    for option in ({"require": ["moat"]}, {"require": ["limits.moat"]}):
        with pytest.raises(ValueError, match="must hold names of namespaces"):
            Sandbox(**option)
    with pytest.raises(TypeError, match="not the one name 'user'"):
        Sandbox(require="user")
    with pytest.raises(ValueError, match="level must be one of"):
        Sandbox.untrusted(level="high")
    with pytest.raises(ValueError, match="another layer implies it"):
        Sandbox.untrusted(without=["no_new_privs"])


def test_what_is_required_is_refused_where_it_is_missing():
    box = Sandbox.untrusted(require=["user"], missing="warn")
    make_confinement(box, FULL, "zygote")
    with pytest.raises(CallableDidNotExecuteError, match="keep this user id"):
        make_confinement(box, POOR_ROOT, "zygote")
    make_confinement(Sandbox.untrusted(), POOR_ROOT, "zygote")


def test_limits_without_a_sandbox_are_refused_as_limits():
    with pytest.raises(CallableDidNotExecuteError, match="can't enforce the limits of the call"):
        plan_limits(Limits(processes=3), None, None, POOR_USER)


def test_a_count_that_is_shared_is_not_what_is_required():
    box = Sandbox.untrusted(require=["limits.processes"])
    confinement = make_confinement(box, POOR_USER, "zygote")
    with pytest.raises(CallableDidNotExecuteError, match="together with the other processes"):
        plan_limits(box.limits, box, confinement, POOR_USER, "zygote")
    confinement = make_confinement(box, FULL, "zygote")
    assert plan_limits(box.limits, box, confinement, FULL, "zygote").rlimits.processes == 16


def test_what_is_required_must_be_there():
    for name in ("scratch", "process namespace"):
        with pytest.raises(CallableDidNotExecuteError, match=f"'{name}' is required"):
            make_confinement(Sandbox(require=[name]), FULL, "zygote")
    make_confinement(Sandbox(require=["capabilities", "view of files"]), FULL, "zygote")
    make_confinement(Sandbox(require=["capabilities"], namespaces="off"), POOR_USER, "zygote")
    with pytest.raises(CallableDidNotExecuteError, match="'capabilities' is required"):
        make_confinement(Sandbox(require=["capabilities"], user="keep"), FULL, "zygote")
    box = Sandbox(require=["limits.memory", "control group"])
    confinement = make_confinement(box, FULL, "zygote")
    with pytest.raises(CallableDidNotExecuteError, match=r"limits\.memory is required"):
        plan_limits(None, box, confinement, FULL)
    with pytest.raises(CallableDidNotExecuteError, match="control group is required"):
        plan_limits(Limits(memory=9), box, confinement, FULL)
    grouped = Sandbox(require=["control group"], cgroup="require")
    assert plan_limits(Limits(memory=9), grouped, confinement, FULL).group == (9, None)


@needs_root
def test_who_is_not_root_loses_capabilities_with_the_user_id():
    def work():
        assert users._libc.prctl(8, 1, 0, 0, 0) == 0  # PR_SET_KEEPCAPS
        users.become(users.SPARE.first, users.SPARE.first)
        return users.capabilities()

    assert forked(work) == (0, 0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seccomp", {"network": "none"}),
        ("namespaces", {"scratch": "1 MiB"}),
        ("landlock", {"read": ["/usr"]}),
        ("environment", {"env": {"A": "b"}}),
    ],
)
def test_what_is_asked_for_is_not_left_out_silently(name, change):
    for preset in (Sandbox.untrusted, Sandbox.crash_guard):
        with pytest.raises(ValueError, match="contradict each other"):
            preset(without=[name], **change)


def test_layers_and_limits_are_left_out_by_name():
    box = Sandbox.untrusted(without=["limits.processes", "namespaces", "environment"])
    assert box.limits.processes is None
    assert box.limits.memory == 512 << 20
    assert box.namespaces == "off"
    assert box.env is None
    assert Sandbox.untrusted(without=["landlock"]).read is None
    assert Sandbox.untrusted(without=["seccomp"]).syscalls == "off"
    assert Sandbox.untrusted(without=["user"]).user == "unprivileged"
    assert Sandbox.crash_guard(without=["limits.memory"]).limits == Limits()
    assert Sandbox.crash_guard(without=["limits.memory"], limits=None).limits is None


def test_who_keeps_capabilities_keeps_the_user_in_any_order():
    for names in (["user", "capabilities"], ["capabilities", "user"], ["capabilities"]):
        assert Sandbox.untrusted(without=names).user == "keep"


def test_no_layer_comes_of_leaving_one_out():
    assert Sandbox.crash_guard(without=["user"]) == Sandbox.crash_guard()


def test_the_portable_level():
    box = Sandbox.untrusted(level="portable")
    first, *others = (
        make_confinement(box, here, "zygote")._replace(drop=False, child_layers=())
        for here in (FULL._replace(becomes=False, processes_by_user=True), FULL, POOR_USER)
    )
    assert not first.unshare
    assert others[1] == first
    assert others[0].threads is False  # of root nothing is counted
    assert box.user == "unprivileged"


def test_a_report_names_what_holds_and_what_does_not():
    found = features.report(Sandbox.untrusted())
    assert found.holds("sandbox")
    assert found.holds("landlock")
    assert found.holds("limits.memory")
    with pytest.raises(KeyError):
        found.holds("scratch")  # it has none
    with pytest.raises(CallableDidNotExecuteError):
        features.report(Sandbox.untrusted(), start="fork")


def test_a_report_of_a_poor_place(monkeypatch):
    monkeypatch.setattr(features, "containment", lambda: POOR_ROOT)
    found = features.report(Sandbox.untrusted())
    assert found.holds("sandbox")
    assert found.holds("capabilities")
    assert not found.holds("user")
    assert not found.holds("namespaces")
    assert found.holds("limits.processes")
    assert "no thread" in str(found)
    assert "without it: the sandbox lacks it" in str(found)
    strict = features.report(Sandbox.untrusted(require=["namespaces"]))
    assert not strict.holds("sandbox")
    assert "without it: the sandbox is refused" in str(strict)
    warning = features.report(Sandbox(missing="warn", subprocesses=True))
    assert "with a warning" in str(warning)
    required = features.report(Sandbox(missing="warn", require=["namespaces"]))
    assert "with a warning" not in str(required)
    assert (
        str(required).count("without it: the sandbox is refused") == 2
    )  # as a whole, and that layer


def test_a_report_names_the_control_group(monkeypatch):
    monkeypatch.setattr(features, "containment", lambda: FULL)
    for cgroup in ("require", "off"):
        found = features.report(Sandbox(cgroup=cgroup, limits=Limits(memory="1 GiB")))
        names = [finding.name for finding in found.findings]
        assert ("control group" in names) is (cgroup == "require")


def test_what_is_missing_is_told_once():
    _, lacks = survey(Sandbox(scratch="1 MiB"), POOR_USER, "zygote")
    names = [lack.name for lack in lacks]
    assert sorted(names) == ["namespaces", "scratch", "user", "view of files"]


@needs_root
@pytest.mark.skipif(not HERE.seccomp, reason="system calls can't be filtered here")
def test_capabilities_are_known_where_a_filter_forbids_to_ask():
    def work():
        set_no_new_privs()
        program = seccomp.compile_filter("default", "whole", subprocesses=False, network=False)
        before = users.capabilities()
        seccomp.install(seccomp.bind_pid(program, os.getpid()))
        asked = users._libc.capget(struct.pack("=Ii", 0x20080522, 0), bytes(24))
        return before, users.capabilities(), asked

    (before, after, asked), status = forked(work)
    assert (asked, status) == (-1, 0)
    assert before
    assert after == before


# Views of files


@one_loop
@pytest.mark.skipif(not HERE.landlock or not HERE.seccomp, reason="a sandbox would be refused here")
async def test_there_is_no_view_of_everything():
    box = Sandbox(read=["/"])
    assert "usr" in await run_isolated(os.listdir, "/", sandbox=box)
    assert not features.report(box, start="fork").holds("view of files")
    with pytest.raises(CallableDidNotExecuteError, match="'/' is among its paths"):
        make_confinement(Sandbox(read=["/"], scratch="1 MiB"), FULL, "fork")


@pytest.mark.skipif(
    not HERE.view or HERE.namespaces != "privilege", reason="there can be no other root here"
)
def test_the_place_where_a_view_is_made_can_be_shown():
    with tempfile.NamedTemporaryFile(dir="/tmp") as file:  # the very directory is meant

        def work():
            namespaces.unshare(namespaces.NEWNS)
            make_view(["/tmp"])
            return sorted(os.listdir("/")), os.path.exists(file.name)

        assert forked(work) == ([["tmp"], True], 0)


# Without this and that


def test_the_size_of_a_process_without_proc(monkeypatch):
    with open("/proc/self/statm") as file:
        expected = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert abs(rlimit.measure_address_space() - expected) < 16 << 20
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EMFILE])
def test_files_in_memory_that_are_refused(number, monkeypatch):
    monkeypatch.setattr(memfd, "_sealable", None)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(memfd._os, "memfd_create", refuse)
    assert memfd.sealable() is (number == errno.EMFILE)
    monkeypatch.undo()
    assert memfd.sealable()


@one_loop
@pytest.mark.parametrize("start", ["fork", "template"])
async def test_calls_without_files_in_memory(start, monkeypatch):
    monkeypatch.setattr(memfd, "_sealable", False)
    async with Isolator(start=start) as iso:
        assert len(await iso.run(bytes, 3 << 20)) == 3 << 20
    assert len(await run_isolated(bytes, 3 << 20)) == 3 << 20


def test_few_descriptors():
    source = """
    import asyncio, resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    from aioisolate import Isolator, Sandbox, run_isolated

    async def main():
        print(await run_isolated(abs, -4))
        for more in ({}, {"sandbox": Sandbox.crash_guard()}):
            async with Isolator(**more) as iso:
                print(await iso.run(abs, -5))

    asyncio.run(main())
    """
    done = python(source)
    assert done.stdout == "4\n5\n5\n", done.stderr


def test_descriptors_are_found_without_a_list(monkeypatch):
    """Those opened as mere paths, too, which poll does not know."""

    def refuse(_):
        raise FileNotFoundError

    path = os.open("/", os.O_PATH)
    try:
        expected = [fd for fd in fds.listed() if fds.is_open(fd)]
        monkeypatch.setattr(os, "listdir", refuse)
        found = fds.listed()
        monkeypatch.undo()
    finally:
        os.close(path)
    assert path in found
    assert set(found) >= set(expected)


def test_descriptors_are_found_without_a_list_where_few_are_allowed():
    def work():
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))

        def refuse(_):
            raise FileNotFoundError

        os.listdir = refuse
        return [fd for fd in fds.listed() if not fds.is_open(fd)]

    assert forked(work) == ([], 0)
