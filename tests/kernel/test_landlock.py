"""What a Landlock domain lets through, tried in real children, and the same without the domain."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import pytest

from tests.confined import in_child, leave, outcome
from tests.helpers import fork
from tests.internals import landlock, prctl, syscalls

ABI = landlock.abi()
pytestmark = pytest.mark.skipif(not ABI, reason="this kernel has no Landlock")
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this anyway")


def since(version):
    return pytest.mark.skipif(version > ABI, reason=f"this kernel has ABI {ABI} only")


@pytest.fixture
def place(tmp_path):
    """Two directories with a bit of everything, /tmp/.../in and /tmp/.../out."""
    for name in ("in", "out"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "empty").mkdir()
        (tmp_path / name / "file").write_text("secret")
        (tmp_path / name / "sub" / "program").write_text("#!/bin/sh\nexit 0\n")
        (tmp_path / name / "sub" / "program").chmod(0o755)
    return tmp_path


def inside(read=(), write=(), *, execute=False, network=False, abi=None):
    def layer():
        prctl.set_no_new_privs()
        ruleset = landlock.make_ruleset(
            [str(path) for path in read],
            [str(path) for path in write],
            execute=execute,
            network=network,
            abi=abi,
        )
        landlock.restrict(ruleset)
        os.close(ruleset)

    return layer


def put(path):
    with open(path, "w") as file:
        file.write("x")


def append(path):
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND))


def bind(path):
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path)  # a short name
        server.bind("socket")


def run(path):
    pid = os.posix_spawn(path, [path], {})
    assert os.waitpid(pid, 0)[1] == 0


READING = {
    "read": lambda d: open(d / "file").close(),
    "list": lambda d: os.listdir(d),
}
WRITING = {
    "create": lambda d: put(d / "new"),
    "overwrite": lambda d: put(d / "file"),
    "append": lambda d: append(d / "file"),
    "mkdir": lambda d: os.mkdir(d / "new"),
    "rmdir": lambda d: os.rmdir(d / "empty"),
    "unlink": lambda d: os.unlink(d / "file"),
    "rename": lambda d: os.rename(d / "file", d / "new"),
    "symlink": lambda d: os.symlink("file", d / "new"),
    "link": lambda d: os.link(d / "file", d / "new"),
    "mkfifo": lambda d: os.mkfifo(d / "new"),
    "bind": lambda d: bind(d),
}
LATER = {
    "move": (2, lambda d: os.rename(d / "file", d / "sub" / "new")),
    "truncate": (3, lambda d: os.truncate(d / "file", 0)),
}
WRITING |= {name: act for name, (version, act) in LATER.items() if version <= ABI}
REFUSED = {"EACCES", "EXDEV"}


@pytest.mark.parametrize("name", READING | WRITING)
def test_nothing_outside(place, name):
    act = (READING | WRITING)[name]
    out = place / "out"
    assert in_child(lambda: act(out), inside(["/usr"], [place / "in"])) in REFUSED
    assert in_child(lambda: act(out)) == "ok"


@pytest.mark.parametrize("name", READING | WRITING)
def test_what_may_be_read(place, name):
    act = (READING | WRITING)[name]
    expected = {"ok"} if name in READING else REFUSED
    assert in_child(lambda: act(place / "in"), inside([place / "in"])) in expected
    assert in_child(lambda: act(place / "in")) == "ok"


@pytest.mark.parametrize("name", READING | WRITING)
def test_what_may_be_written(place, name):
    act = (READING | WRITING)[name]
    assert in_child(lambda: act(place / "in"), inside([], [place / "out"])) in REFUSED
    assert in_child(lambda: act(place / "in"), inside([], [place / "in"])) == "ok"


@pytest.mark.parametrize("how", ["read", "write"])
def test_programs(place, how):
    program = place / "in" / "sub" / "program"
    paths = {"read": ["/usr", "/bin", "/lib", "/lib64"], "write": []}
    paths["read"] = [path for path in paths["read"] if os.path.exists(path)]
    paths[how] = [*paths[how], place / "in"]
    act = lambda: run(str(program))
    assert in_child(act, inside(**paths, execute=True)) == "ok"
    assert in_child(act, inside(**paths, execute=False)) == "EACCES"


def test_rules_on_single_files(place):
    file = place / "in" / "file"
    sibling = place / "in" / "sub" / "program"
    assert in_child(lambda: open(file).close(), inside([file])) == "ok"
    assert in_child(lambda: open(sibling).close(), inside([file])) == "EACCES"
    assert in_child(lambda: put(file), inside([file])) == "EACCES"
    assert in_child(lambda: put(file), inside([], [file])) == "ok"
    assert in_child(lambda: put("/dev/null"), inside([], ["/dev/null"])) == "ok"
    assert in_child(lambda: put("/dev/null"), inside(["/dev/null"])) == "EACCES"


def test_reopening_for_writing_what_is_open_for_reading(place):
    def act():
        fd = os.open(place / "in" / "file", os.O_RDONLY)
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY))

    assert in_child(act, inside([place / "in", "/proc"])) == "EACCES"
    assert in_child(act) == "ok"


@root
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_no_devices_are_made(place, kind):
    act = lambda: os.mknod(place / "in" / "device", kind | 0o600, os.makedev(1, 3))
    assert in_child(act, inside([], [place / "in"])) == "EACCES"
    assert in_child(act) == "ok"


@since(5)
def test_orders_to_devices():
    def act():
        fd = os.open("/dev/ptmx", os.O_RDONLY | os.O_NOCTTY)
        fcntl.ioctl(fd, 0x80045430, bytearray(4))  # TIOCGPTN

    assert in_child(act) == "ok"
    assert in_child(act, inside(["/dev"])) == "EACCES"
    assert in_child(act, inside([], ["/dev"])) == "ok"
    assert in_child(act, inside(["/dev"], abi=4)) == "ok"


def test_a_path_that_is_not_there(place):
    before = os.listdir("/proc/self/fd")
    missing = str(place / "missing")
    for read, write in ([missing], []), ([], [missing]):
        with pytest.raises(FileNotFoundError, match="missing") as info:
            landlock.make_ruleset(read, write, execute=False, network=False)
        assert info.value.filename == missing
    assert os.listdir("/proc/self/fd") == before


def test_an_error_of_the_kernel_names_the_path(monkeypatch):
    real = landlock.syscall

    def failing(number, *args):
        if number == 445:
            raise OSError(errno.EINVAL, "no")
        return real(number, *args)

    monkeypatch.setattr(landlock, "syscall", failing)
    with pytest.raises(OSError, match="/usr") as info:
        landlock.make_ruleset(["/usr"], [], execute=False, network=False)
    assert info.value.errno == errno.EINVAL


def test_a_ruleset_is_closed_on_exec():
    fd = landlock.make_ruleset(["/usr"], [], execute=True, network=True)
    assert not os.get_inheritable(fd)
    os.close(fd)


@since(4)
def test_tcp():
    def bind():
        with socket.socket() as mine:
            mine.bind(("127.0.0.1", 0))

    with socket.create_server(("127.0.0.1", 0)) as server:

        def connect():
            with socket.socket() as client:
                client.connect(server.getsockname())

        for act in (bind, connect):
            assert in_child(act, inside()) == "EACCES"
            assert in_child(act, inside(network=True)) == "ok"
            assert in_child(act, inside(abi=3)) == "ok"


@since(6)
def test_signals_and_abstract_sockets_stay_inside():
    parent = os.getpid()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(b"\0aioisolate-%d" % parent)
        server.listen()

        def connect():
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(server.getsockname())

        def signal_own_child():
            pid = fork()
            if pid == 0:
                signal.pause()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

        for act in (lambda: os.kill(parent, 0), connect):
            assert in_child(act, inside()) == "EPERM"
            assert in_child(act, inside(abi=5)) == "ok"
        assert in_child(signal_own_child, inside()) == "ok"


def siblings(act, abi, *, scoped):
    """Let one child of a domain do something to another: in domains of their own, or not."""

    def enter():
        if scoped:
            inside(["/"], ["/tmp"], abi=abi)()

    def both():
        read, write = os.pipe()
        victim = fork()
        if victim == 0:
            enter()
            os.write(write, b".")
            signal.pause()
        try:
            os.read(read, 1)
            return in_child(lambda: act(victim), enter)
        finally:
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)

    # As low a version here as there, or this domain would contain more than the one below.
    return in_child(both, inside(["/"], ["/tmp"], abi=abi))


def attach(victim):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, victim, None, None) != 0:  # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), "")
    os.waitpid(victim, 0x40000000)  # __WALL
    libc.ptrace(17, victim, None, None)


@pytest.mark.parametrize("abi", [1, 5, 6])
def test_siblings_in_domains_of_their_own(abi):
    if abi > ABI:
        pytest.skip("this kernel has no such version")
    for act, contained_since in ((lambda pid: os.kill(pid, 0), 6), (attach, 1)):
        without = siblings(act, abi, scoped=False)
        if act is attach and without == "EPERM":
            pytest.skip("ptrace is forbidden here anyway")
        assert without == "ok"
        expected = "EPERM" if abi >= contained_since else "ok"
        assert siblings(act, abi, scoped=True) == expected


def test_a_domain_needs_no_new_privs():
    rules = landlock.make_ruleset(["/usr"], [], execute=True, network=True)

    def become_nobody():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)

    def act():
        landlock.restrict(rules)

    assert in_child(act, become_nobody) == "EPERM"
    assert in_child(act, become_nobody, prctl.set_no_new_privs) == "ok"
    os.close(rules)


@since(3)
def test_an_older_kernel(place, monkeypatch):
    act = lambda: os.truncate(place / "out" / "file", 0)
    assert in_child(act, inside()) == "EACCES"
    monkeypatch.setattr(landlock, "abi", lambda: 2)
    assert in_child(act, inside()) == "ok"
    assert in_child(act, inside(abi=3)) == "ok"  # no more than there is
    assert in_child(lambda: put(place / "out" / "file"), inside()) == "EACCES"


def test_no_landlock_at_all(monkeypatch):
    def missing(*args):
        raise OSError(errno.ENOSYS, "no")

    monkeypatch.setattr(landlock, "syscall", missing)
    assert landlock._ask.__wrapped__() == (0, errno.ENOSYS)
    with pytest.raises(OSError, match="no"):
        landlock.make_ruleset([], [], execute=False, network=False)
    assert landlock.abi() == ABI > 0


def test_system_calls_by_number():
    assert syscalls.syscall({"x86_64": 39, "aarch64": 172}[syscalls.machine()]) == os.getpid()
    with pytest.raises(FileNotFoundError):
        syscalls.syscall({"x86_64": 80, "aarch64": 49}[syscalls.machine()], b"/missing")  # chdir
    for act in (lambda: syscalls.syscall(99999), lambda: syscalls.syscall(99999, -1, 1 << 63)):
        assert outcome(act) == "ENOSYS"


def test_all_64_bits_of_an_argument_arrive(tmp_path):
    with open(tmp_path / "file", "wb") as file:
        number = {"x86_64": 77, "aarch64": 46}[syscalls.machine()]  # ftruncate
        syscalls.syscall(number, file.fileno(), (1 << 32) + 5)
        assert os.fstat(file.fileno()).st_size == (1 << 32) + 5


def test_a_call_of_six_arguments(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    with open(tmp_path / "file", "rb") as file, open(tmp_path / "copy", "wb") as copy:
        number = {"x86_64": 326, "aarch64": 285}[syscalls.machine()]  # copy_file_range
        assert syscalls.syscall(number, file.fileno(), 0, copy.fileno(), 0, 3, 0) == 3
        with pytest.raises(OSError, match="Invalid argument"):
            syscalls.syscall(number, file.fileno(), 0, copy.fileno(), 0, 3, -1)


def test_no_new_privs():
    def status():
        return Path("/proc/self/status").read_text().partition("NoNewPrivs:")[2].split()[0]

    assert in_child(lambda: status() + "!") == "0!"
    assert in_child(lambda: status() + "!", prctl.set_no_new_privs) == "1!"


def test_dumpable():
    import ctypes

    def state():
        return f"{ctypes.CDLL(None).prctl(3)}!"

    assert in_child(state) == "1!"
    assert in_child(state, lambda: prctl.set_dumpable(False)) == "0!"
    again = [lambda: prctl.set_dumpable(False), lambda: prctl.set_dumpable(True)]
    assert in_child(state, *again) == "1!"
