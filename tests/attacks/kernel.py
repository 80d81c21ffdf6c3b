"""Attacks on the kernel, and on what it forbids to ordinary users."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
import shutil
import signal
import socket
import stat
import struct
import time

from .scene import Attack, Scene
from .system import call, libc

__all__ = ["ATTACKS"]

_NEW = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "net": 0x40000000,
    "pid": 0x20000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
    "time": 0x00000080,
}
_MS_PRIVATE = 0x40000 | 0x4000
_ORDINARY = 54321


def unshare(name):
    flags = _NEW[name]
    before = os.readlink(f"/proc/self/ns/{'mnt' if name == 'mount' else name}") if flags else ""
    try:
        call("unshare", flags)
    except PermissionError:
        call("unshare", flags | _NEW["user"])
    return before


def clone_namespace():
    pid = call("clone", _NEW["user"] | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def clone3_namespace():
    arguments = struct.pack("8Q", _NEW["user"], 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    pid = call("clone3", ctypes.create_string_buffer(arguments, len(arguments)), len(arguments))
    if pid == 0:
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def enter_namespace(pid):
    """Enter somebody else's namespaces."""
    fd = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY)
    call("setns", fd, 0)
    return True


def enter_namespaces_by_pidfd(pid):
    call("setns", call("pidfd_open", pid, 0), _NEW["uts"] | _NEW["ipc"])
    return True


def _own_mounts():
    try:
        call("unshare", _NEW["mount"])
    except PermissionError:
        call("unshare", _NEW["mount"] | _NEW["user"])
    call("mount", b"none", b"/", None, _MS_PRIVATE, None)


def mount(path):
    _own_mounts()
    call("mount", b"tmpfs", path.encode(), b"tmpfs", 0, None)
    with open("/proc/self/mountinfo") as file:
        return path in file.read()


def mount_the_new_way():
    _own_mounts()
    return call("fsopen", b"tmpfs", 0)


def copy_mounts():
    """Get a tree of mounts of one's own, without what has been mounted over it."""
    _own_mounts()
    return call("open_tree", -100, b"/", 1 | 0x8000)


def change_root(path):
    try:
        os.chroot(path)
    except PermissionError:
        call("unshare", _NEW["user"])
        os.chroot(path)
    return sorted(os.listdir("/"))


def use_bpf():
    attributes = ctypes.create_string_buffer(struct.pack("IIII", 2, 4, 4, 1), 72)
    return call("bpf", 0, attributes, 72)


def use_perf():
    attributes = ctypes.create_string_buffer(struct.pack("II", 1, 112), 112)
    return call("perf_event_open", attributes, 0, -1, -1, 0)


def use_userfaultfd():
    try:
        return call("userfaultfd", os.O_CLOEXEC | 1)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        return call("userfaultfd", os.O_CLOEXEC)  # before Linux 5.11


def use_io_uring():
    return call("io_uring_setup", 1, ctypes.create_string_buffer(120))


def use_keys():
    """Leave a key with the session's keyring, and look at what is there."""
    return call("add_key", b"user", b"attack", b"x", 1, -1)


def use_keyctl():
    return call("keyctl", 0, -2, 1)


def read_kernel_log():
    return call("syslog", 3, ctypes.create_string_buffer(64), 64)


def change_personality():
    """Have all that may be read be executed, too."""
    call("personality", 0x0400000)
    return call("personality", 0xFFFFFFFF) & 0x0400000


def become_root():
    os.setresuid(0, 0, 0)
    with open("/etc/shadow") as file:
        return file.read()


def run_setuid_program(program):
    """Run, as somebody ordinary, a program that belongs to root and says so."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setresuid(_ORDINARY, _ORDINARY, _ORDINARY)
            os.dup2(write, 1)
            os.execv(program, [program, "-u"])
        except OSError as exc:
            os._exit(exc.errno or 1)
        os._exit(1)
    os.close(write)
    answer = os.read(read, 100)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(abs(code), os.strerror(abs(code)))
    if answer != b"0\n":
        raise PermissionError(errno.EPERM, "it ran without its owner's rights")
    return True


def give_file_capabilities(path):
    """Give the bit of root's rights to a file."""
    os.chmod(path, 0o4755)
    return bool(os.stat(path).st_mode & 0o4000)


def get_capability():
    """Become the root of a user namespace."""
    call("unshare", _NEW["user"])
    with open("/proc/self/status") as file:
        return "CapEff:\t000001ff" in file.read()


class _Limit(ctypes.Structure):
    _fields_ = (("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64))


def raise_limits():
    """Take every limit away that counts."""
    without = (1 << 64) - 1
    wanted = _Limit(without, without)
    for which in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_AS):
        call("prlimit64", 0, which, ctypes.addressof(wanted), 0)
    return min(resource.getrlimit(resource.RLIMIT_CPU)) == resource.RLIM_INFINITY


def raise_process_limit():
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    wanted = _Limit(hard + 1, hard + 1)
    call("prlimit64", 0, resource.RLIMIT_NPROC, ctypes.addressof(wanted), 0)
    return True


def allow_new_privileges():
    """Have no_new_privs taken back: PR_SET_NO_NEW_PRIVS to 0."""
    if libc.prctl(38, 0, 0, 0, 0) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return True


def be_traceable():
    """Be dumpable again, so that /proc/self belongs to one's own user."""
    if libc.prctl(4, 1, 0, 0, 0) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return libc.prctl(3, 0, 0, 0, 0)


def _machine_code(code: bytes) -> int:
    libc.mmap.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    area = mmap.mmap(-1, 4096, flags, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    area.write(code)
    at = ctypes.addressof(ctypes.c_char.from_buffer(area))
    return ctypes.CFUNCTYPE(ctypes.c_int)(at)()


def call_as_32_bit():
    """Open a TCP socket by a system call of another architecture, which has other numbers."""
    # push rbx; ebx = 2, ecx = 1, edx = 0; eax = 359 (socket); int 0x80; pop rbx; ret
    code = "53 bb02000000 b901000000 31d2 b867010000 cd80 5b c3"
    result = _machine_code(bytes.fromhex(code))
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def call_as_x32():
    return call(0x40000000 | 41, 2, 1, 0)


def _not_x86() -> str:
    return "" if platform.machine() == "x86_64" else "not an x86-64"


def _no_x32() -> str:
    try:
        return _not_x86() or (call(0x40000000 | 39) and "")
    except OSError:
        return "this kernel has no x32"


def _no_bpf() -> str:
    return "" if os.getuid() == 0 else "unprivileged_bpf_disabled"


def use_aio():
    """Take of the machine's one budget of requests, fs.aio-max-nr."""
    context = (ctypes.c_long * 1)()
    call("io_setup", 128, ctypes.addressof(context))
    call("io_destroy", context[0])
    return True


def take_hash_slots():
    """Have the kernel take memory that no limit counts, as much as is asked for."""
    call("prctl", 78, 1, 1 << 16, 0, 0)  # PR_FUTEX_HASH, PR_FUTEX_HASH_SET_SLOTS
    return True


def lock_a_library(path):
    """Hold up whoever wants to lock a file that this process may only read."""
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    fcntl.flock(fd, fcntl.LOCK_UN)
    fcntl.fcntl(fd, 37, struct.pack("hhqqi", fcntl.F_RDLCK, 0, 0, 1, 0))  # F_OFD_SETLK
    return True


def take_huge_page():
    """Take of the machine's pool of huge pages."""
    with mmap.mmap(-1, 2 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000) as area:
        area[0] = 1
        return area[0]


def write_everything_out():
    """Have all that the machine has not written yet be written, and hold up whoever writes."""
    call("sync")
    return True


def write_file_system_out(path):
    fd = os.open(path, os.O_RDONLY)
    call("syncfs", fd)
    return True


def write_out(path):
    """Have what others have written to a file be written, by a descriptor that only reads."""
    fd = os.open(path, os.O_RDONLY)
    call("fsync", fd)
    return True


def write_mapping_out(path):
    fd = os.open(path, os.O_RDONLY)
    libc.mmap.restype = ctypes.c_void_p
    at = libc.mmap(None, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    call("msync", at, mmap.PAGESIZE, 4)  # MS_SYNC
    return True


def watch_a_directory(path):
    fd = os.open(path, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_NOTIFY, fcntl.DN_ACCESS)
    return True


def read_clock_of(pid):
    return time.clock_gettime(~pid << 3 | 2)


def list_processes(pid):
    return os.getpgid(pid) and os.getsid(pid)


def get_pidfd_of_peer():
    """Get a descriptor of the process that made a socket that this one has."""
    for fd in range(4096):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                break
        except OSError:
            continue
    found = ctypes.c_int(-1)
    size = ctypes.c_int(4)
    call("getsockopt", fd, 1, 77, ctypes.addressof(found), ctypes.addressof(size))
    return found.value


def _ask_channel(option, size):
    """Ask a socket that this process has been given about who made it."""
    error = OSError(errno.EBADF, "there is no socket")
    for fd in range(3, 4096):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as sock:
                    return sock.getsockopt(socket.SOL_SOCKET, option, size)
        except OSError as exc:
            if exc.errno != errno.EBADF:
                error = exc
    raise error


def identify_peer():
    """Learn the pid and the user of who made the channel."""
    pid, uid, _gid = struct.unpack("3i", _ask_channel(17, 12))  # SO_PEERCRED
    return [pid, uid]


def groups_of_peer():
    return len(_ask_channel(59, 1024)) // 4  # SO_PEERGROUPS


def cookie_of_network():
    return struct.unpack("=Q", _ask_channel(71, 8))[0]  # SO_NETNS_COOKIE


def have_senders_identified():
    """Get a pidfd of each who sends something through a socket."""
    here, there = socket.socketpair()
    with here, there:
        here.setsockopt(socket.SOL_SOCKET, 76, 1)  # SO_PASSPIDFD
        there.send(b"x")
        return len(here.recvmsg(1, 100)[1])


def capabilities_of(pid):
    """Learn the capabilities of another process."""
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, pid), 8)
    data = ctypes.create_string_buffer(24)
    call("capget", header, data)
    return True


def scheduling_of(pid):
    """Learn how another process is scheduled, and so that it is there."""
    return os.sched_getscheduler(pid) >= 0 and os.sched_getparam(pid) is not None


def affinity_of(pid):
    return sorted(os.sched_getaffinity(pid))


def _lock_of(pid):
    """Wait for a lock that a process seems to have; tell why that is refused."""
    word = (ctypes.c_uint32 * 1)(pid)
    at_once = (ctypes.c_long * 2)(0, 0)
    try:
        call("futex", ctypes.addressof(word), 6 | 128, 0, ctypes.addressof(at_once), None, 0)
    except OSError as exc:
        if exc.errno == errno.ENOSYS:
            raise
        return exc.errno
    return 0


def existence_by_futex(pid):
    """Find out that there is a process of a certain number."""
    return _lock_of(pid) != _lock_of((1 << 22) + 1)


def host_name():
    return os.uname().nodename


def filter_a_socket():
    """Give the kernel a program to run."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFF), 8)
    fprog = struct.pack("HxxxxxxP", 1, ctypes.addressof(program))
    here, _there = socket.socketpair()
    here.setsockopt(socket.SOL_SOCKET, 26, fprog)
    return True


def _before(major: int, minor: int) -> str:
    release = tuple(map(int, platform.release().split("-")[0].split(".")[:2]))
    return f"Linux {major}.{minor} is needed" if release < (major, minor) else ""


def _no_pool() -> str:
    try:
        with open("/proc/sys/vm/nr_hugepages") as file:
            return "" if int(file.read()) else "the machine has no pool of huge pages"
    except OSError as exc:
        return f"the machine has no pool of huge pages: {exc}"


def _no_raising() -> str:
    with open("/proc/self/status") as file:
        found = next(line for line in file if line.startswith("CapEff"))
    has = int(found.split()[1], 16) >> 24 & 1
    return "" if has else "CAP_SYS_RESOURCE is missing"


def _setuid_program(scene: Scene):
    path = scene.path("id")
    shutil.copy("/usr/bin/id", path)
    os.chmod(path, 0o4755)
    return (path,)


_is_number = lambda result, scene: isinstance(result, int) and result >= 0
_shadow = lambda result, scene: isinstance(result, str) and "root:" in result
_folder = lambda scene: (scene.directory,)
_victim = lambda scene: (scene.victim,)
_library = lambda scene: ("/etc/ld.so.cache",)


def _kernel(name, run, *more, **rest):
    return Attack(name, "kernel", run, *more, **rest)


ATTACKS = [
    *(
        _kernel(
            f"unshare-{name}", unshare, lambda scene, name=name: (name,),
        )
        for name in _NEW
    ),
    _kernel("clone-namespace", clone_namespace),
    _kernel("clone3-namespace", clone3_namespace),
    _kernel("setns", enter_namespace, _victim, needs_root=True),
    _kernel("setns-by-pidfd", enter_namespaces_by_pidfd, _victim, needs_root=True),
    _kernel("mount", mount, _folder),
    _kernel("fsopen", mount_the_new_way, succeeded=_is_number),
    _kernel("open-tree", copy_mounts, succeeded=_is_number),
    _kernel("chroot", change_root, _folder, lambda result, scene: result == []),
    _kernel("bpf", use_bpf, succeeded=_is_number, needs=_no_bpf),
    _kernel("perf-event-open", use_perf, succeeded=_is_number, needs_root=True),
    _kernel("userfaultfd", use_userfaultfd, succeeded=_is_number),
    _kernel("io-uring", use_io_uring, succeeded=_is_number),
    _kernel("aio", use_aio),
    _kernel("futex-hash", take_hash_slots, needs=lambda: _before(6, 16)),
    _kernel("lock-a-library", lock_a_library, _library),
    _kernel("huge-page", take_huge_page, needs=_no_pool),
    _kernel("sync", write_everything_out),
    _kernel("syncfs", write_file_system_out, _library),
    _kernel("fsync", write_out, _library),
    _kernel("msync", write_mapping_out, _library),
    _kernel("watch-a-directory", watch_a_directory, lambda scene: ("/usr/lib",)),
    _kernel("clock-of-a-process", read_clock_of, _victim, expect="denied"),
    _kernel("session-of-a-process", list_processes, _victim),
    _kernel("pidfd-of-peer", get_pidfd_of_peer, succeeded=_is_number,
            needs=lambda: _before(6, 5)),
    _kernel("credentials-of-peer", identify_peer,
            succeeded=lambda result, scene: result is not None and result[0] == os.getpid()),
    _kernel("groups-of-peer", groups_of_peer, succeeded=lambda result, scene: result is not None),
    _kernel("cookie-of-network", cookie_of_network, needs=lambda: _before(5, 14)),
    _kernel("pidfds-of-senders", have_senders_identified, needs=lambda: _before(6, 5)),
    _kernel("capabilities-of-a-process", capabilities_of, _victim),
    _kernel("scheduling-of-a-process", scheduling_of, _victim),
    _kernel("affinity-of-a-process", affinity_of, _victim),
    _kernel("existence-by-futex", existence_by_futex, _victim),
    _kernel("host-name", host_name, succeeded=lambda result, scene: result == os.uname().nodename,
            expect="value"),
    _kernel("filter-a-socket", filter_a_socket),
    _kernel("add-key", use_keys),
    _kernel("keyctl", use_keyctl),
    _kernel("syslog", read_kernel_log, succeeded=_is_number, needs_root=True),
    _kernel("personality", change_personality),
    _kernel("setresuid", become_root, succeeded=_shadow, needs_root=True),
    _kernel("su", run_setuid_program, _setuid_program, needs_root=True),
    _kernel("make-setuid", give_file_capabilities, lambda scene: (scene.file(),)),
    _kernel("get-capability", get_capability),
    _kernel("raise-limits", raise_limits),
    _kernel("raise-process-limit", raise_process_limit, needs=_no_raising),
    _kernel("32-bit-call", call_as_32_bit, succeeded=_is_number, expect="SIGNAL|denied",
            needs=_not_x86),
    _kernel("x32-call", call_as_x32, succeeded=_is_number, needs=_no_x32),
]  # fmt: skip
