"""Run a program in a container made here: what a container runtime does, in one file.

python -m tests.container SPEC PLACE COMMAND...

SPEC is a `Spec`, as JSON; PLACE an empty directory.

All of it happens in new mount and process namespaces, so that nothing is left of it when the
program has ended. Needs root.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from tests.internals import NUMBERS, namespaces, prctl, seccomp, syscalls

__all__ = ["CAPABILITIES", "Spec", "arguments"]

_NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE"
    " NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO"
    " SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME"
    " SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG"
    " WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
CAPABILITIES = tuple(_NAMES.split())

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC = 1, 2, 4, 8, 32, 4096, 16384
_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP = 24
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _UP = 0x8913, 0x8914, 1
# What runc covers in /proc, and what it makes read-only there.
_MASKED = ("acpi", "kcore", "keys", "latency_stats", "timer_list", "sched_debug", "scsi")
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Spec:
    """What a container is like.

    Attributes:
        show: Directories that are to be there, where they are outside; read-only.
        capabilities: The bounding set, and root's capabilities; None: all.
        uid: As whom the program runs; only root has capabilities.
        filter: A seccomp program, base64; "": none.
        no_new_privs: Programs with set-uid gain nothing.
        pivot: / is a mount of its own; if not, it is a directory that was entered by chroot.
        read_only: / can't be written to.
        tmp: There is a /tmp that can be written to.
        mask: What a container runtime hides of /proc is hidden, and /sys is read-only.
        proc: "fresh"; "missing"; "covered" by an empty file system; or "subset", nothing but the
            user's own processes.
        noexec: What can be written to is mounted without the right to execute, and so are memfds.
        network: A network namespace, in which there is only the loopback interface.
        init: Process 1 collects orphans; if not, the program itself is process 1.
        mapped: How many user ids there are in a user namespace, which root enters; 0: it does not.
        user_namespaces: How many may be made in there; -1: as outside.
        pids: How many processes its control group may have; 0: as many as they like.
        memory: How many bytes its control group may have; 0: as many as they like.
        nofile: The limit of open files; 0: as outside.
    """

    show: tuple[str, ...] = ()
    capabilities: tuple[str, ...] | None = None
    uid: int = 0
    filter: str = ""
    no_new_privs: bool = False
    pivot: bool = True
    read_only: bool = False
    tmp: bool = True
    mask: bool = False
    proc: str = "fresh"
    noexec: bool = False
    network: bool = True
    init: bool = True
    mapped: int = 0
    user_namespaces: int = -1
    pids: int = 0
    memory: int = 0
    nofile: int = 0


def arguments(spec: Spec, place: str, command: list[str]) -> list[str]:
    """Return the command line that runs *command* in a container; *place* is an empty directory."""
    return [sys.executable, "-m", "tests.container", json.dumps(asdict(spec)), place, *command]


def _mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    texts = [text.encode() or None for text in (source, target, kind)]
    result = _libc.mount(*texts, ctypes.c_ulong(flags), options.encode() or None)
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _bind(source: str, target: str, flags: int = 0) -> None:
    _mount(source, target, "", _BIND | _REC)
    if flags:
        _mount("", target, "", _REMOUNT | _BIND | flags)


def _show(path: str, root: str, flags: int) -> None:
    """Have what is at *path* there too, unless something above is there already."""
    target = root + path
    if os.path.islink(path):
        if not os.path.lexists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(os.readlink(path), target)
        return
    if not os.path.isdir(path) or os.path.exists(target):
        return
    os.makedirs(target, 0o755)
    _bind(path, target, flags)


def _build_root(spec: Spec, root: str, groups: list[str]) -> None:
    flags = _RDONLY | (_NOSUID if spec.noexec else 0)
    if spec.pivot:
        _mount("root", root, "tmpfs", _NOSUID if spec.noexec else 0, "mode=755,size=16m")
    os.chmod(root, 0o755)
    system = ["/usr", "/etc", *(f"/{name}" for name in ("bin", "sbin", "lib", "lib32", "lib64"))]
    noexec = _NOSUID | _NODEV | (_NOEXEC if spec.noexec else 0)
    if spec.tmp:
        os.mkdir(f"{root}/tmp")
        _mount("tmp", f"{root}/tmp", "tmpfs", noexec, "mode=1777,size=64m")
    for path in (*system, *sorted(spec.show)):
        _show(path, root, flags)
    for name in ("proc", "sys", "dev", "dev/shm", "tmp", "old", "var", "run"):
        os.makedirs(f"{root}/{name}", 0o755, exist_ok=True)
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        with open(f"{root}/dev/{name}", "w"):
            pass
        _bind(f"/dev/{name}", f"{root}/dev/{name}")
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        if spec.proc in {"fresh", "subset"}:
            os.symlink(f"/proc/self/fd{target}", f"{root}/dev/{name}")
    _mount("shm", f"{root}/dev/shm", "tmpfs", noexec, "mode=1777,size=64m")
    _bind("/proc", f"{root}/proc")
    _bind("/sys", f"{root}/sys")
    if spec.mask:
        _close_sys(f"{root}/sys", groups)


def _close_sys(sys_: str, groups: list[str]) -> None:
    """Make /sys read-only; of the control groups, show only the container's own."""
    _mount("", sys_, "", _REMOUNT | _BIND | _RDONLY)
    if not groups:
        return
    place = f"{sys_}/fs/cgroup"
    _mount("cgroup", place, "tmpfs", _NOSUID | _NODEV | _NOEXEC, "mode=755,size=64k")
    for group in groups:
        # By its controller in version 1; in version 2 there is but one hierarchy.
        target = os.path.dirname(group).replace("/sys/fs/cgroup", place)
        os.makedirs(target, exist_ok=True)
        _bind(group, target, _RDONLY)


def _mask_proc() -> None:
    for name in _MASKED:
        path = f"/proc/{name}"
        if os.path.isdir(path):
            _mount("tmpfs", path, "tmpfs", _RDONLY, "size=0k")
        elif os.path.exists(path):
            _bind("/dev/null", path)
    for name in _READ_ONLY:
        path = f"/proc/{name}"
        if os.path.exists(path):
            _bind(path, path, _RDONLY)


def _enter_root(spec: Spec, root: str) -> None:
    if spec.pivot:
        number = NUMBERS[os.uname().machine]["pivot_root"]
        syscalls.syscall(number, f"{root}\0".encode(), f"{root}/old\0".encode())
        os.chdir("/")
        namespaces.detach("/old")
    else:
        os.chroot(root)
        os.chdir("/")
    os.rmdir("/old")


def _settle_proc(spec: Spec) -> None:
    if not spec.mapped:  # there it could not be taken away, only covered
        namespaces.detach("/proc")
    if spec.proc == "missing":
        os.rmdir("/proc")
    elif spec.proc == "covered":
        _mount("nothing", "/proc", "tmpfs", 0, "size=4k")
    else:
        options = "subset=pid,hidepid=invisible" if spec.proc == "subset" else ""
        _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC, options)
        if spec.noexec:
            with contextlib.suppress(OSError), open("/proc/sys/vm/memfd_noexec", "w") as file:
                file.write("1")
        if spec.mask:
            _mask_proc()


def _bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH22x", b"lo", 0)
        flags = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | _UP))


def _restrict(spec: Spec) -> None:
    """Give up what the program is not to have; from then on it can't be had again."""
    held = set(CAPABILITIES if spec.capabilities is None else spec.capabilities)
    for number, name in enumerate(CAPABILITIES):
        if name not in held:
            # EINVAL: this kernel has no such capability.
            _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0)
    if spec.no_new_privs:
        prctl.set_no_new_privs()
    if spec.nofile:
        resource.setrlimit(resource.RLIMIT_NOFILE, (spec.nofile, spec.nofile))
    if spec.filter:
        # While there is the privilege to: without it no_new_privs would have to be set.
        seccomp.install(base64.b64decode(spec.filter))
    os.setgroups([])
    os.setresgid(spec.uid, spec.uid, spec.uid)
    os.setresuid(spec.uid, spec.uid, spec.uid)
    mask = sum(1 << number for number, name in enumerate(CAPABILITIES) if name in held)
    if spec.uid == 0:
        header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
        low, high = mask & 0xFFFFFFFF, mask >> 32
        # What the kernel does not have here can't be asked for.
        with open("/dev/null"):
            _libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0))


def _collect(main: int) -> int:
    """Be the init: collect whoever ends, until *main* does."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == main:
            return status


def _exit_like(status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _enter_users(spec: Spec, ready: int, mapped: int) -> None:
    """Enter a user namespace whose ids the parent, which is root outside, maps."""
    namespaces.unshare(namespaces.NEWUSER)
    os.write(ready, b"x")
    os.read(mapped, 1)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _be_inside(spec: Spec, place: str, groups: list[str], ready: int, mapped: int) -> None:
    namespaces.unshare(namespaces.NEWNS)
    namespaces.make_mounts_private()
    working = os.getcwd()
    _build_root(spec, place, groups)
    _enter_root(spec, place)
    if spec.mapped:
        _enter_users(spec, ready, mapped)
    more = namespaces.NEWIPC | namespaces.NEWUTS | (namespaces.NEWNET if spec.network else 0)
    namespaces.unshare(more | namespaces.NEWNS | namespaces.NEWPID)
    pid = os.fork()
    if pid:
        # Whoever is killed takes the other one along.
        _exit_like(os.waitpid(pid, 0)[1])
    prctl.set_parent_death_signal(signal.SIGKILL)
    _settle_proc(spec)
    if spec.user_namespaces >= 0:
        with open("/proc/sys/user/max_user_namespaces", "w") as file:
            file.write(str(spec.user_namespaces))
    if spec.network:
        _bring_loopback_up()
    if spec.read_only:
        _mount("", "/", "", _REMOUNT | _BIND | _RDONLY)
    os.chdir(working)


def _map_users(pid: int, count: int) -> None:
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(f"0 100000 {count}\n")


def _make_groups(spec: Spec) -> list[str]:
    """Make the container's control groups, in which the library may make others."""
    if os.path.isdir("/sys/fs/cgroup/pids"):
        parents = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"]
    else:
        parents = ["/sys/fs/cgroup"]
    groups = []
    for parent in parents:
        path = f"{parent}/environment-{os.getpid()}"
        try:
            os.mkdir(path)
        except OSError:
            continue  # none can be made here
        groups.append(path)
        for name, limit in (
            ("pids.max", spec.pids),
            ("memory.max", spec.memory),
            ("memory.limit_in_bytes", spec.memory),
        ):
            if limit and os.path.exists(f"{path}/{name}"):
                with open(f"{path}/{name}", "w") as file:
                    file.write(str(limit))
    return groups


def _enter_groups(groups: list[str]) -> None:
    for path in groups:
        with open(f"{path}/cgroup.procs", "w") as file:
            file.write("0")


def _remove_groups(groups: list[str]) -> None:
    """Remove the container's control groups, with those that a killed program has left in them."""
    for group in groups:
        for path, _, _ in os.walk(group, topdown=False):
            # The kernel needs a moment after the last process has ended.
            for _ in range(200):
                try:
                    os.rmdir(path)
                except OSError:
                    time.sleep(0.01)
                else:
                    break


def main() -> None:
    _, text, place, *command = sys.argv
    fields: dict[str, Any] = json.loads(text)
    for name in ("show", "capabilities"):
        if fields[name] is not None:
            fields[name] = tuple(fields[name])
    spec = Spec(**fields)
    groups = _make_groups(spec)
    try:
        ready, be_ready = os.pipe()
        mapped, be_mapped = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.close(ready)
                os.close(be_mapped)
                prctl.set_parent_death_signal(signal.SIGKILL)
                _enter_groups(groups)
                _run(spec, place, groups, command, be_ready, mapped)
            except BaseException as exc:
                os.write(2, f"the container can't be made: {exc!r}\n".encode())
            finally:
                os._exit(125)
        os.close(be_ready)
        os.close(mapped)
        if spec.mapped and os.read(ready, 1):
            _map_users(pid, spec.mapped)
            os.write(be_mapped, b"x")
        _, status = os.waitpid(pid, 0)
    finally:
        _remove_groups(groups)
    _exit_like(status)


def _run(
    spec: Spec, place: str, groups: list[str], command: list[str], ready: int, mapped: int
) -> None:
    _be_inside(spec, place, groups, ready, mapped)
    if spec.init:
        pid = os.fork()
        if pid:
            _exit_like(_collect(pid))
    _restrict(spec)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
