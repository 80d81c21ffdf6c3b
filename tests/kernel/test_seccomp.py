"""What a seccomp filter lets through, tried in real children, and the same without a filter."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import termios
import threading
import time
import warnings
from pathlib import Path

import pytest

from tests.confined import in_child, leave
from tests.helpers import fork, python
from tests.internals import NUMBERS, machine_code, prctl, seccomp, syscalls

MACHINE = syscalls.machine()
pytestmark = pytest.mark.skipif(not seccomp.available(), reason="no seccomp here")
IS_ROOT = os.geteuid() == 0
PARENT = os.getpid()
NICE = os.getpriority(os.PRIO_PROCESS, 0)
KINDS = ["default", "strict"]


def call(name, *args):
    # What a machine has no number for (creat on aarch64), its kernel has not.
    return syscalls.syscall(NUMBERS[MACHINE].get(name, 9999), *args)


def filtered(kind="default", *parts, subprocesses=False, network=False):
    """Layers: a filter in one part, or in those that are named."""

    def layer(part):
        def install():
            program = seccomp.compile_filter(kind, part, subprocesses=subprocesses, network=network)
            if part != "base":
                program = seccomp.bind_pid(program, os.getpid())
            seccomp.install(program)

        return install

    return [prctl.set_no_new_privs, *map(layer, parts or ["whole"])]


# What is done by fork, and what by a socket, has tests of its own below. Each act has an outcome
# without a filter; where it isn't "ok", it is an error that shows that the kernel has got to it.
class Act:
    def __init__(self, do, without="ok", *, root=False, setting_up=False, within="EPERM"):
        self.do, self.without, self.within = do, without, within
        self.root, self.setting_up = root, setting_up


def pty_ioctl(request, argument):
    _, tty = os.openpty()
    os.setsid()
    fcntl.ioctl(tty, termios.TIOCSCTTY, 0)
    fcntl.ioctl(tty, request, argument)


def filter_of_a_socket():
    everything = struct.pack("HBBI", 6, 0, 0, 0xFFFF)  # return
    program = ctypes.create_string_buffer(everything)
    fprog = struct.pack("HxxxxxxP", 1, ctypes.addressof(program))
    socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, 26, fprog)


def clock_of(pid):
    time.clock_gettime(~pid << 3 | 2)


def out_of_band():
    here, _there = socket.socketpair()
    here.send(b"x", socket.MSG_OOB)


def userfaultfd():
    try:
        return call("userfaultfd", 1)  # for faults of user mode only, which anybody may have
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        return call("userfaultfd", 0)  # before Linux 5.11


def own_times():
    return struct.pack("4q", 1, 0, 1, 0)


def fcntl_owner():
    read, _ = os.pipe()
    fcntl.fcntl(read, fcntl.F_SETOWN, PARENT)


def lease(path):
    fd = os.open(path, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)


def flags_of_a_file(path):
    fd = os.open(path, os.O_RDONLY)
    old = bytearray(8)
    fcntl.ioctl(fd, 0x80086601, old)  # FS_IOC_GETFLAGS
    fcntl.ioctl(fd, 0x40086602, bytes(old))


def shared_segment():
    segment = call("shmget", 0, 4096, 0o600)
    call("shmctl", segment, 0, 0)  # IPC_RMID


def message_queue():
    call("mq_open", b"aioisolate-test", os.O_CREAT | os.O_RDWR, 0o600, 0)
    call("mq_unlink", b"aioisolate-test")


def vm_read():
    target = ctypes.create_string_buffer(8)
    local = struct.pack("QQ", ctypes.addressof(target), 8)
    call("process_vm_readv", PARENT, local, 1, local, 1, 0)


def make(path, mode):
    os.umask(0)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, mode))
    assert os.stat(path).st_mode & 0o7777 == mode


ACTS = {
    "chmod": Act(lambda d: os.chmod(d / "file", 0o600)),
    "fchmod": Act(lambda d: os.chmod(os.open(d / "file", os.O_RDONLY), 0o600)),
    "chown": Act(lambda d: os.chown(d / "file", os.geteuid(), os.getegid())),
    "lchown": Act(lambda d: os.lchown(d / "file", os.geteuid(), os.getegid())),
    "utime": Act(lambda d: os.utime(d / "file")),
    "setxattr": Act(lambda d: os.setxattr(d / "file", "user.a", b"b")),
    "removexattr": Act(lambda d: os.removexattr(d / "file", "user.a"), "ENODATA"),
    "chattr": Act(lambda d: flags_of_a_file(d / "file")),
    "lease": Act(lambda d: lease(d / "file")),
    "notify": Act(lambda d: fcntl.fcntl(os.open(d, os.O_RDONLY), 1026, 1)),
    "aio": Act(lambda _: call("io_setup", 1, bytes(8))),
    "pipe size": Act(lambda _: fcntl.fcntl(os.pipe()[0], 1031, 4096)),
    "filter of a socket": Act(lambda _: filter_of_a_socket()),
    "out of band": Act(lambda _: out_of_band()),
    "clock of another": Act(lambda _: clock_of(PARENT), within="EINVAL"),
    "group of another": Act(lambda _: os.getpgid(PARENT), setting_up=True),
    "session of another": Act(lambda _: os.getsid(PARENT), setting_up=True),
    "priority of another": Act(lambda _: os.getpriority(0, PARENT), setting_up=True),
    "mkfifo": Act(lambda d: os.mkfifo(d / "new")),
    "create set-uid": Act(lambda d: make(d / "new", 0o4755)),
    "creat set-gid": Act(lambda d: call("creat", bytes(d / "new"), 0o2755)),
    "openat2": Act(
        lambda d: call("openat2", -100, bytes(d / "file"), struct.pack("3Q", 0, 0, 0), 24),
        within="ENOSYS",
    ),
    "chroot": Act(lambda d: os.chroot(d), root=True),
    "mount": Act(lambda _: call("mount", 0, b"/missing", 0, 0, 0), "ENOENT", setting_up=True),
    "unshare": Act(lambda _: call("unshare", 0x10000000), setting_up=True),
    "setns": Act(lambda _: call("setns", -1, 0), "EBADF", setting_up=True),
    "open_tree": Act(lambda _: call("open_tree", -100, b"/", 0)),
    "memfd": Act(lambda _: os.memfd_create("x"), setting_up=True),
    "io_uring": Act(lambda _: call("io_uring_setup", 1, bytes(120))),
    "bpf": Act(lambda _: call("bpf", 9999, bytes(16), 16), "EINVAL", root=True),
    "perf": Act(lambda _: call("perf_event_open", 0, 0, -1, -1, 0), "EFAULT"),
    "userfaultfd": Act(lambda _: userfaultfd()),
    "keyctl": Act(lambda _: call("keyctl", 0, -3, 0)),
    "add_key": Act(lambda _: call("add_key", b"user", b"x", b"y", 1, -2)),
    "kcmp": Act(lambda _: call("kcmp", os.getpid(), PARENT, 1, 0, 0), root=True),
    "ptrace": Act(lambda _: call("ptrace", 0, 0, 0, 0)),
    "process_vm_readv": Act(lambda _: vm_read(), root=True),
    "handles": Act(lambda _: call("open_by_handle_at", -100, bytes(16), 0), "EINVAL", root=True),
    "inotify": Act(lambda _: call("inotify_init1", 0)),
    "fanotify": Act(lambda _: call("fanotify_init", 0x200, 0)),
    "hostname": Act(lambda _: socket.sethostname(socket.gethostname()), root=True),
    "clock": Act(lambda _: call("clock_settime", 99, bytes(16)), "EINVAL"),
    "syslog": Act(lambda _: call("syslog", 10, 0, 0), root=True),
    "personality": Act(lambda _: call("personality", 0x40000)),
    "shm": Act(lambda _: shared_segment()),
    "mq": Act(lambda _: message_queue()),
    "setuid": Act(lambda _: os.setuid(os.getuid()), setting_up=True),
    "setgid": Act(lambda _: os.setgid(os.getgid()), setting_up=True),
    "setresuid": Act(lambda _: os.setresuid(-1, -1, -1), setting_up=True),
    "setgroups": Act(lambda _: os.setgroups(os.getgroups()), root=True, setting_up=True),
    "setfsuid": Act(lambda _: call("setfsuid", os.getuid()), setting_up=True),
    "capset": Act(lambda _: call("capset", 0, 0), "EFAULT", setting_up=True),
    "seccomp": Act(lambda _: call("seccomp", 99, 0, 0), "EINVAL", setting_up=True),
    "landlock": Act(lambda _: call("landlock_create_ruleset", 0, 0, 1), setting_up=True),
    "prctl dumpable": Act(lambda _: prctl.set_dumpable(True), setting_up=True),
    "prctl subreaper": Act(lambda _: call("prctl", 36, 0, 0, 0, 0), setting_up=True),
    "prctl death": Act(lambda _: call("prctl", 1, 0, 0, 0, 0), setting_up=True),
    "prctl seccomp": Act(lambda _: call("prctl", 22, 99, 0), "EINVAL", setting_up=True),
    "TIOCSTI": Act(lambda _: pty_ioctl(0x5412, b"x")),
    "TIOCSETD": Act(lambda _: pty_ioctl(0x5423, struct.pack("i", 0))),
    "F_SETOWN": Act(lambda _: fcntl_owner()),
    "kill": Act(lambda _: os.kill(PARENT, 0), setting_up=True),
    "kill all": Act(lambda _: os.kill(-os.getpgid(PARENT), 0), setting_up=True),
    "tgkill": Act(lambda _: call("tgkill", PARENT, PARENT, 0), setting_up=True),
    "tkill": Act(lambda _: call("tkill", PARENT, 0), setting_up=True),
    "sigqueue": Act(lambda _: call("rt_sigqueueinfo", PARENT, 0, 0), "EFAULT", setting_up=True),
    "pidfd": Act(lambda _: os.pidfd_open(PARENT), setting_up=True),
    "pidfd_send_signal": Act(
        lambda _: call("pidfd_send_signal", -1, 0, 0, 0), "EBADF", setting_up=True
    ),
    "join a group": Act(lambda _: os.setpgid(0, os.getpgid(PARENT)), setting_up=True),
    "prlimit": Act(lambda _: resource.prlimit(PARENT, resource.RLIMIT_CORE), setting_up=True),
    "priority": Act(
        lambda _: os.setpriority(os.PRIO_PROCESS, PARENT, NICE),
        setting_up=True,
    ),
    "priority of all": Act(lambda _: os.setpriority(os.PRIO_PGRP, 0, NICE), setting_up=True),
    "affinity": Act(
        lambda _: os.sched_setaffinity(PARENT, os.sched_getaffinity(0)), setting_up=True
    ),
    "scheduler": Act(
        lambda _: os.sched_setscheduler(PARENT, os.SCHED_OTHER, os.sched_param(0)),
        setting_up=True,
    ),
    "affinity of another": Act(
        lambda _: sorted(os.sched_getaffinity(PARENT)), within="ENOSYS", setting_up=True
    ),
    "scheduler of another": Act(lambda _: os.sched_getscheduler(PARENT), setting_up=True),
    "capabilities": Act(lambda _: call("capget", struct.pack("Ii", 0x20080522, 0), bytes(24))),
    "sync of a file system": Act(lambda _: call("syncfs", 0)),
    "interfaces": Act(
        lambda _: [*fcntl.ioctl(socket.socketpair()[0], 0x8910, struct.pack("16xi20x", 1))]
    ),
    "maker of a pair": Act(lambda _: [*socket.socketpair()[0].getsockopt(1, 17, 12)]),
    "tee": Act(lambda _: call("tee", -1, -1, 1, 0), "EBADF"),
    "datagrams": Act(
        lambda _: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].close(), within="EACCES"
    ),
    "raw": Act(lambda _: call("socketpair", 1, 3, 0, bytes(8)), within="EACCES"),
    "udp": Act(lambda _: socket.socket(type=socket.SOCK_DGRAM).close(), within="EACCES"),
    "netlink": Act(lambda _: socket.socket(16, 3).close(), within="EACCES"),
}


@pytest.fixture
def place(tmp_path):
    (tmp_path / "file").write_text("x")
    return tmp_path


def without_filter(act, place):
    """Do it without a filter, which proves the test; or skip where it can't be told."""
    found = in_child(lambda: act.do(place))
    if found == "ENOSYS" or (found != act.without and act.root and not IS_ROOT):
        pytest.skip(f"cannot be told here: {found}")
    if found in {"EPERM", "EOPNOTSUPP", "ENOTTY", "EIO"}:
        pytest.skip(f"something else forbids it: {found}")
    assert found == act.without


def clean(place):
    for name in set(os.listdir(place)) - {"file"}:
        os.unlink(place / name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ACTS)
def test_what_is_forbidden(place, name, kind):
    act = ACTS[name]
    without_filter(act, place)
    clean(place)
    assert in_child(lambda: act.do(place), *filtered(kind)) == act.within
    assert in_child(lambda: act.do(place), *filtered(kind, "base", "final")) == act.within
    # A base leaves to the final filter what setting up takes, and no more.
    expected = act.without if act.setting_up else act.within
    assert in_child(lambda: act.do(place), *filtered(kind, "base")) == expected


def spawn():
    os.waitpid(os.posix_spawn("/bin/true", ["/bin/true"], {}), 0)


def fork_and_wait():
    pid = fork()
    if pid == 0:
        leave()
    os.waitpid(pid, 0)


def become():
    os.execv("/bin/true", ["/bin/true"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act", [spawn, fork_and_wait, become])
def test_processes(act, kind):
    free = "ended" if act is become else "ok"
    assert in_child(act) == free
    for parts in (["whole"], ["base", "final"]):
        assert in_child(act, *filtered(kind, *parts)) == "EPERM"
        assert in_child(act, *filtered(kind, *parts, subprocesses=True)) == free
    # A fork server forks, but starts no programs.
    assert in_child(act, *filtered(kind, "base")) == ("ok" if act is fork_and_wait else "EPERM")


@pytest.mark.parametrize("kind", KINDS)
def test_no_namespaces_by_clone(kind):
    def act():
        pid = call("clone", 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            leave()
        os.waitpid(pid, 0)

    without = in_child(act)
    if without != "ok":
        pytest.skip(f"no user namespaces here: {without}")
    assert in_child(act, *filtered(kind, subprocesses=True)) == "EPERM"
    assert in_child(act, *filtered(kind, "base")) == "ok"


@pytest.mark.parametrize("kind", KINDS)
def test_the_network(kind):
    def bind():
        with socket.socket() as mine:
            mine.bind(("127.0.0.1", 0))
            mine.listen()

    with socket.create_server(("127.0.0.1", 0)) as server:

        def connect():
            with socket.socket() as client:
                client.connect(server.getsockname())

        def accept():
            server.setblocking(False)
            server.accept()

        def listen_again():
            server.listen()

        for act, free in ((bind, "ok"), (connect, "ok"), (accept, "EAGAIN"), (listen_again, "ok")):
            for network, expected in ((False, "EACCES"), (True, free)):
                layers = filtered(kind, network=network)
                while act is accept and in_child(act) == "ok":
                    pass  # those that connect made
                assert in_child(act, *layers) == expected
        assert in_child(lambda: socket.socket(38, 5).close()) in {"ok", "EAFNOSUPPORT"}
        assert in_child(lambda: socket.socket(17, 3), *filtered(kind, network=True)) == (
            "EAFNOSUPPORT"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_that_is_there_already(kind):
    """A connected pair carries data and descriptors; a new pair does, too."""
    here, there = socket.socketpair()
    read, write = os.pipe()

    def act():
        assert there.recv(1) == b"a"
        there.send(b"b")
        socket.send_fds(there, [b"c"], [read])
        mine, yours = socket.socketpair()
        mine.sendall(b"d")
        assert yours.recv(1) == b"d"
        there.shutdown(socket.SHUT_WR)

    with here, there:
        here.send(b"a")
        assert in_child(act, *filtered(kind)) == "ok"
        assert here.recv(1) == b"b"
        data, (fd,), *_ = socket.recv_fds(here, 1, 1)
        assert data == b"c"
        os.write(write, b"e")
        assert os.read(fd, 1) == b"e"
        for number in (fd, read, write):
            os.close(number)


OWN = {
    "signal": lambda: os.kill(os.getpid(), 0),
    "group": lambda: os.kill(0, 0),
    "raise": lambda: signal.raise_signal(signal.SIGCHLD),
    "thread": lambda: signal.pthread_kill(threading.get_ident(), 0),
    "prlimit": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    "prlimit by pid": lambda: resource.prlimit(os.getpid(), resource.RLIMIT_CORE),
    "nice": lambda: os.nice(1),
    "affinity": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "group of its own": lambda: os.setpgid(0, 0),
    "session": os.setsid,
    "personality": lambda: call("personality", 0xFFFFFFFF),
    "name": lambda: call("prctl", 15, b"x", 0, 0, 0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OWN)
def test_what_is_about_the_process_itself(name, kind):
    for layers in ([], filtered(kind), filtered(kind, "base", "final")):
        assert in_child(OWN[name], *layers) == "ok"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("question", [51, 64])  # PR_SVE_GET_VL, PR_SME_GET_VL
def test_the_width_of_vectors_may_be_asked_for(question, kind):
    def act():
        call("prctl", question, 0, 0, 0, 0)

    # A processor without such vectors says that there are none; the filter must not say more.
    without = in_child(act)
    assert without in {"ok", "EINVAL"}
    for parts in (["whole"], ["base", "final"]):
        assert in_child(act, *filtered(kind, *parts)) == without


@pytest.mark.parametrize("kind", KINDS)
def test_signals_with_subprocesses(kind):
    assert in_child(lambda: os.kill(PARENT, 0), *filtered(kind, subprocesses=True)) == "ok"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [500, 9999, 0x40000027, 0x7FFFFFFF])
def test_calls_that_are_unknown(kind, number):
    assert in_child(lambda: syscalls.syscall(number), *filtered(kind)) == "ENOSYS"
    # clone3 is known, but the C library must go on without it.
    assert in_child(lambda: call("clone3", 0, 0)) == "EINVAL"
    assert in_child(lambda: call("clone3", 0, 0), *filtered(kind)) == "ENOSYS"


@pytest.mark.skipif(MACHINE != "x86_64", reason="code for x86-64")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["whole", "base"])
def test_the_old_interface_kills(kind, part):
    code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20 (getpid); int 0x80; ret

    def act():
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = mmap.mmap(-1, 4096, flags, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        memory.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert machine_code.function_at(address, ctypes.c_int, [])() == os.getpid()

    if in_child(act) != "ok":
        pytest.skip("this kernel has no 32-bit interface")
    assert in_child(act, *filtered(kind, part)) == "SIGSYS"


# A program for the 32-bit interface that does nothing but end: the machine in its header, its code.
PROGRAMS_OF_32_BITS = {
    "x86_64": (3, "b801000000 31db cd80"),  # mov eax, 1 (exit); xor ebx, ebx; int 0x80
    "aarch64": (40, "0170a0e3 0000a0e3 000000ef"),  # mov r7, 1 (exit); mov r0, 0; svc 0
}


@pytest.mark.skipif(MACHINE not in PROGRAMS_OF_32_BITS, reason="no such program is known")
@pytest.mark.parametrize("kind", KINDS)
def test_a_program_of_32_bits_is_killed(tmp_path, kind):
    machine, code = PROGRAMS_OF_32_BITS[MACHINE]
    code = bytes.fromhex(code)
    base, headers = 0x400000, 52 + 32
    size = headers + len(code)
    flags = 0x5000000 if machine == 40 else 0  # of ARM: EABI 5
    path = tmp_path / "program"
    path.write_bytes(
        struct.pack(
            "<16s2H5I6H",
            *(b"\x7fELF\1\1\1", 2, machine, 1, base + headers, 52, 0, flags),
            *(52, 32, 1, 40, 0, 0),
        )
        + struct.pack("<8I", 1, 0, base, base, size, size, 5, 0x10000)
        + code
    )
    path.chmod(0o755)

    def act():
        os.execv(path, [path])

    if (without := in_child(act)) != "ended":
        pytest.skip(f"this kernel has no 32-bit interface: {without}")
    assert in_child(act, *filtered(kind, subprocesses=True)) == "SIGSYS"


def test_a_filter_needs_no_new_privs():
    def become_nobody():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)

    install = filtered()[-1]
    assert in_child(install, become_nobody) == "EACCES"
    assert in_child(install, become_nobody, prctl.set_no_new_privs) == "ok"
    assert in_child(lambda: seccomp.install(b""), prctl.set_no_new_privs) == "EINVAL"


def test_a_filter_laid_out_ahead():
    program = seccomp.compile_filter("default", "final", subprocesses=False, network=False)
    prepared = seccomp.Prepared(program, of_a_pid=True)
    install = [prctl.set_no_new_privs, lambda: prepared.install(os.getpid())]
    for _ in range(2):  # each child has a pid of its own
        assert in_child(lambda: os.kill(os.getpid(), 0), *install) == "ok"
        assert in_child(lambda: os.kill(PARENT, 0), *install) == "EPERM"
    with pytest.raises(ValueError, match="no place"):
        seccomp.Prepared(seccomp.bind_pid(program, 1), of_a_pid=True)


def test_where_there_is_none(monkeypatch):
    monkeypatch.setattr(syscalls, "machine", lambda: None)
    assert seccomp.why_unavailable.__wrapped__()
    with pytest.raises(OSError, match="not implemented"):
        seccomp.install(b"")
    monkeypatch.setattr(syscalls, "machine", lambda: MACHINE)
    assert not seccomp.why_unavailable.__wrapped__()

    def missing(*args):
        raise OSError(38, "no")

    monkeypatch.setattr(seccomp, "syscall", missing)
    assert seccomp.why_unavailable.__wrapped__()


WORK = """
    import sys
    from tests.internals import prctl, seccomp
    import os
    kind, parts, subprocesses, place = sys.argv[1:]
    prctl.set_no_new_privs()
    for part in parts.split("+"):
        program = seccomp.compile_filter(
            kind, part, subprocesses=subprocesses == "yes", network=False
        )
        seccomp.install(program if part == "base" else seccomp.bind_pid(program, os.getpid()))
    # All that follows is imported under the filter, too.
    import asyncio, concurrent.futures, tempfile, threading, subprocess, shutil, json, sqlite3
    import faulthandler, multiprocessing, glob, zipfile, logging
    faulthandler.enable()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(abs, range(100))) == 4950

    async def main():
        await asyncio.sleep(0.001)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(15, lambda: None)
        assert await asyncio.to_thread(os.getpid) == os.getpid()
        return await asyncio.gather(*[asyncio.sleep(0, n) for n in range(9)])

    assert asyncio.run(main()) == list(range(9))

    tempfile.tempdir = place
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "file")
        with open(path, "w") as file:
            json.dump([1], file)
            file.flush()
            os.fsync(file.fileno())
        shutil.copyfile(path, path + "2")
        os.rename(path + "2", path + "3")
        assert sorted(os.listdir(directory)) == ["file", "file3"]
        with sqlite3.connect(os.path.join(directory, "db")) as db:
            db.execute("create table t (x)")
        db.close()
        with zipfile.ZipFile(path + ".zip", "w") as archive:
            archive.write(path)
    with tempfile.NamedTemporaryFile() as file, tempfile.TemporaryFile() as other:
        other.write(b"x")

    import numpy
    a = numpy.random.default_rng(1).random((300, 300))
    assert numpy.allclose(a @ numpy.linalg.inv(a), numpy.eye(300))
    try:
        from PIL import Image
    except ImportError:
        pass
    else:
        import io
        Image.new("RGB", (640, 480)).rotate(30).resize((99, 99)).save(io.BytesIO(), "JPEG")
    try:
        import uvloop
    except ImportError:
        pass
    else:
        assert uvloop.run(main()) == list(range(9))
    if subprocesses == "yes":
        assert subprocess.run(["sh", "-c", "echo a | cat"], capture_output=True).stdout == b"a\\n"
        sleeper = subprocess.Popen(["sleep", "60"])
        sleeper.kill()
        sleeper.wait()

        async def pipe():
            process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
            return await process.communicate(b"b")

        assert asyncio.run(pipe()) == (b"b", None)
    else:
        try:
            subprocess.run(["true"])
        except PermissionError:
            pass
        else:
            raise AssertionError("a program was run")
    print("done")
"""


@pytest.mark.parametrize("subprocesses", ["yes", "no"])
@pytest.mark.parametrize("parts", ["whole", "base+final"])
@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_work(tmp_path, kind, parts, subprocesses):
    result = python(WORK, kind, parts, subprocesses, str(tmp_path), env={"PYTHONWARNINGS": ""})
    assert (result.stdout, result.stderr) == ("done\n", "")
