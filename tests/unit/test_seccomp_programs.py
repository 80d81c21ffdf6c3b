"""The compiled filters, run by an interpreter: for both machines, and for every number.

What a filter should say is written down here a second time, by hand, and by laws that hold between
filters.
"""

from __future__ import annotations

import functools
import itertools
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.internals import ARCHITECTURE, NUMBERS, bpf, seccomp, seccomp_rules

pytestmark = [pytest.mark.quick, pytest.mark.once]

MACHINES = ["x86_64", "aarch64"]
KINDS = ["default", "strict"]
PARTS = ["whole", "base", "final"]
YES_NO = [False, True]
PID = 4711
ALLOW, EPERM, EACCES, EINVAL, ENOSYS, EAFNOSUPPORT = "allow", 1, 13, 22, 38, 97
ENOLCK = 37
EOPNOTSUPP = 95
HIGHEST = 469


@functools.cache
def instructions(program):
    return list(struct.iter_unpack("=HBBI", program))


def run(program, number, args=(), architecture=ARCHITECTURE["x86_64"]):
    """Run a program as the kernel would; an error in it is an IndexError or an AssertionError."""
    words = [number, architecture, 0, 0]
    for arg in (*args, *[0] * (6 - len(args))):
        words += [arg & 0xFFFFFFFF, (arg >> 32) & 0xFFFFFFFF]
    code = instructions(program)
    at, accumulator = 0, None
    while True:
        operation, then, otherwise, k = code[at]
        at += 1
        if operation == 0x20:
            assert k % 4 == 0
            accumulator = words[k // 4]
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x05:
            at += k
        elif operation == 0x15:
            at += then if accumulator == k else otherwise
        elif operation == 0x35:
            at += then if accumulator >= k else otherwise
        else:
            assert operation == 0x06
            if k == 0x80000000:
                return "kill"
            if k == 0x7FFF0000:
                return "allow"
            assert k >> 16 == 5
            return k & 0xFFFF


@functools.cache
def program(kind, part, subprocesses, network, machine):
    found = seccomp.compile_filter(
        kind, part, subprocesses=subprocesses, network=network, machine=machine
    )
    return found if part == "base" else seccomp.bind_pid(found, PID)


EVERY = list(itertools.product(KINDS, PARTS, YES_NO, YES_NO, MACHINES))


@pytest.mark.parametrize(("kind", "part", "subprocesses", "network", "machine"), EVERY)
def test_every_number_on_every_interface(kind, part, subprocesses, network, machine):
    code = program(kind, part, subprocesses, network, machine)
    assert len(code) // 8 < 380
    named = set(NUMBERS[machine].values())
    for number in [*range(600), 0x3FFFFFFF, 0x40000000, 0x40000027, 0xFFFFFFFF]:
        result = run(code, number, architecture=ARCHITECTURE[machine])
        assert result in {"allow", EPERM, EACCES, ENOSYS, EAFNOSUPPORT}
        if number not in named:
            assert result == ENOSYS
        for other in (0x40000003, 0x40000028, 0, ARCHITECTURE[MACHINES[machine == "x86_64"]]):
            assert run(code, number, architecture=other) == "kill"
    # Nothing is there for nothing, and nothing leads out of the program.
    reached, todo = set(), [0]
    while todo:
        at = todo.pop()
        if at not in reached:
            reached.add(at)
            operation, then, otherwise, k = instructions(code)[at]
            if operation == 0x05:
                todo.append(at + 1 + k)
            elif operation in (0x15, 0x35):
                todo += [at + 1 + then, at + 1 + otherwise]
            elif operation != 0x06:
                todo.append(at + 1)
    assert reached == set(range(len(instructions(code))))


ANY, NO, SUB, NET = ALLOW, EPERM, "with subprocesses", "with network"
UNKNOWN_ELSE = "with subprocesses, else ENOSYS"
NETWORKED, SILENT = "with network, else EPERM", "with network, else nothing is done"
FORBIDDEN = """
io_uring_setup io_uring_enter io_uring_register bpf perf_event_open userfaultfd keyctl
add_key request_key ptrace process_vm_readv process_vm_writev process_madvise
process_mrelease kcmp mount umount2 pivot_root move_mount open_tree open_tree_attr fsopen
fsconfig fsmount fspick mount_setattr chroot setns unshare swapon swapoff reboot kexec_load
kexec_file_load init_module finit_module delete_module quotactl quotactl_fd acct
settimeofday clock_settime adjtimex clock_adjtime syslog iopl ioperm modify_ldt vhangup
sethostname setdomainname name_to_handle_at open_by_handle_at fanotify_init fanotify_mark
lookup_dcookie nfsservctl chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime
utimes futimesat utimensat file_setattr setxattr lsetxattr fsetxattr setxattrat removexattr
lremovexattr fremovexattr removexattrat mknod mknodat memfd_create memfd_secret shmget shmat
shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl mq_open mq_unlink
mq_timedsend mq_timedreceive mq_notify mq_getsetattr setuid setgid setreuid setregid
setresuid setresgid setgroups setfsuid setfsgid capset seccomp landlock_create_ruleset
landlock_add_rule landlock_restrict_self lsm_set_self_attr statmount listmount sysfs ustat
_sysctl uselib create_module query_module get_kernel_syms vserver security tuxcall
afs_syscall getpmsg putpmsg pidfd_getfd inotify_init inotify_init1 inotify_add_watch
io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents vmsplice splice tee
sync syncfs
"""
# name, arguments, "default", "strict": allowed, an errno, or allowed only with something.
TABLE = [
    ("read", (0,), ANY, ANY),
    ("openat", (3, 0, 0, 0o4755), ANY, ANY),  # nothing is created
    ("openat", (3, 0, 0o101, 0o644), ANY, ANY),
    ("openat", (3, 0, 0o101, 0o4755), NO, NO),
    ("openat", (3, 0, 0o101, 0o2755), NO, NO),
    ("openat", (3, 0, 0o20200001, 0o4755), NO, NO),
    ("open", (0, 0o101, 0o644), ANY, ANY),
    ("open", (0, 0o101, 0o4755), NO, NO),
    ("creat", (0, 0o644), ANY, ANY),
    ("creat", (0, 0o6644), NO, NO),
    ("openat2", (), ENOSYS, ENOSYS),
    ("clone3", (), ENOSYS, ENOSYS),
    ("clone", (0x3D0F00,), ANY, ANY),  # a thread of glibc
    ("clone", (0x7D0F00,), ANY, ANY),  # of musl
    ("clone", (0x1200011,), SUB, SUB),  # a fork
    ("clone", (0x8011,), NO, NO),
    ("clone", (0x4111,), SUB, SUB),  # a vfork
    # Threads that share not all of memory, files, directory and handlers.
    *[("clone", (0x10F00 & ~(1 << n),), NO, NO) for n in (8, 9, 10, 11)],
    ("clone", (0x10900,), NO, NO),
    ("close_range", (3, 9, 0), ANY, ANY),
    ("close_range", (3, 9, 4), ANY, ANY),
    ("close_range", (3, 9, 2), NO, NO),
    ("close_range", (3, 9, 6), NO, NO),
    *[("clone", (flag | 0x10000,), NO, NO) for flag in (1 << 17, *(1 << n for n in range(25, 31)))],
    ("fork", (), SUB, SUB),
    ("vfork", (), SUB, SUB),
    ("execve", (), SUB, SUB),
    ("execveat", (), SUB, SUB),
    ("pidfd_open", (PID,), SUB, SUB),
    ("pidfd_send_signal", (3,), SUB, SUB),
    ("pidfd_getfd", (3,), NO, NO),
    *[(name, (PID, 9, 9), ANY, ANY) for name in ("kill", "tgkill", "tkill", "rt_sigqueueinfo")],
    *[(name, (77, 9, 9), SUB, SUB) for name in ("kill", "tgkill", "tkill", "rt_sigqueueinfo")],
    ("kill", (0, 9), ANY, ANY),
    ("kill", (-1, 9), SUB, SUB),
    ("kill", (-PID, 9), SUB, SUB),
    ("kill", ((1 << 32) + 77, 9), SUB, SUB),
    ("rt_tgsigqueueinfo", (77, PID), SUB, SUB),
    ("setpgid", (0, 0), ANY, ANY),
    ("setpgid", (0, PID), ANY, ANY),
    ("setpgid", (0, 77), SUB, SUB),
    ("prlimit64", (0, 7), ANY, ANY),
    ("prlimit64", (PID, 7), ANY, ANY),
    ("prlimit64", (77, 7), NO, NO),
    ("sched_setaffinity", (0,), ANY, ANY),
    ("sched_setaffinity", (77,), NO, NO),
    ("sched_setscheduler", (77,), NO, NO),
    ("sched_setparam", (77,), NO, NO),
    ("sched_setattr", (77,), NO, NO),
    *[("sched_getaffinity", (pid,), ANY, ANY) for pid in (0, PID)],
    ("sched_getaffinity", (77,), UNKNOWN_ELSE, UNKNOWN_ELSE),
    *[
        (name, (pid,), ANY if pid in (0, PID) else SUB, ANY if pid in (0, PID) else SUB)
        for name in (
            "sched_getscheduler",
            "sched_getparam",
            "sched_getattr",
            "sched_rr_get_interval",
            "get_robust_list",
        )
        for pid in (0, PID, 77)
    ],
    ("capget", (3, 4), SUB, SUB),
    ("migrate_pages", (0,), ANY, NO),
    ("migrate_pages", (77,), NO, NO),
    ("move_pages", (77,), NO, NO),
    ("setpriority", (0, 0, 5), ANY, ANY),
    ("setpriority", (0, PID, 5), ANY, ANY),
    ("setpriority", (0, 77, 5), NO, NO),
    ("setpriority", (1, 0, 5), NO, NO),
    ("setpriority", (2, 0, 5), NO, NO),  # all of the user's processes
    ("ioprio_set", (1, 0, 5), ANY, NO),
    ("ioprio_set", (1, 77, 5), NO, NO),
    ("ioprio_set", (3, 0, 5), NO, NO),
    ("fcntl", (3, 1, 0), ANY, ANY),
    ("fcntl", (3, 1030, 64), ANY, ANY),
    *[("fcntl", (3, command, 77), NO, NO) for command in (8, 15, 1024, 1026, 1031)],
    *[("fcntl", (3, command, 77), ANY, ANY) for command in (5, 6, 7, 36, 37, 38)],
    ("flock", (3, 2), ANY, ANY),
    *[
        (name, (clock,), ANY if clock < 12 else EINVAL, ANY if clock < 12 else EINVAL)
        for name in ("clock_gettime", "clock_getres", "clock_nanosleep", "timer_create")
        for clock in (0, 1, 2, 3, 11, (~77 << 3 | 2) & 0xFFFFFFFF, (~PID << 3 | 6) & 0xFFFFFFFF)
    ],
    *[(name, (pid,), ANY, ANY) for name in ("getpgid", "getsid") for pid in (0, PID)],
    *[(name, (77,), SUB, SUB) for name in ("getpgid", "getsid")],
    ("getpriority", (0, 0), ANY, ANY),
    ("getpriority", (0, 77), NO, NO),
    ("getpriority", (2, 0), NO, NO),
    ("ioprio_get", (1, 0), ANY, NO),
    ("ioprio_get", (1, 77), NO, NO),
    *[("getsockopt", (3, 1, option), ANY, ANY) for option in (3, 4, 7, 8, 30, 38, 39)],
    *[("getsockopt", (3, 1, option), NETWORKED, NETWORKED) for option in (17, 31, 57, 59, 71, 99)],
    *[("setsockopt", (3, 1, option), NETWORKED, NETWORKED) for option in (16, 34)],
    ("setsockopt", (3, 1, 76), NO, NO),
    ("getsockopt", (3, 1, 77), NO, NO),
    ("getsockopt", (3, 6, 77), ANY, ANY),
    ("setsockopt", (3, 1, 7), SILENT, SILENT),  # SO_SNDBUF
    *[("setsockopt", (3, 1, option), ANY, ANY) for option in (2, 8, 9, 20, 21, 66, 67)],
    *[("setsockopt", (3, 1, option), NETWORKED, NETWORKED) for option in (60, 100)],
    ("sendfile", (3, 4, 0, 1), NETWORKED, NETWORKED),
    ("setsockopt", (3, 6, 26), ANY, ANY),
    *[("setsockopt", (3, 1, option), NO, NO) for option in (26, 32, 33, 50, 51, 52)],
    ("ioctl", (0, 0x5401), ANY, ANY),
    ("ioctl", (0, 0x5402), ANY, NO),
    *[
        ("ioctl", (0, command), NO, NO)
        for command in (0x5412, 0x541C, 0x5423, 0x541D, 0x8901, 0x8902, 0x40086602, 0x401C5820)
    ],
    ("ioctl", (0, (7 << 32) + 0x5412), NO, NO),
    ("prctl", (15,), ANY, ANY),
    ("prctl", (38, 1), ANY, ANY),
    *[("prctl", (option,), ANY, ANY) for option in (51, 64)],
    *[("prctl", (option,), ANY, NO) for option in (7, 25, 40, 66, 0x41555856)],
    *[("prctl", (option,), NO, NO) for option in (1, 4, 22, 28, 33, 35, 36, 53, 57, 59, 62)],
    # Those that a later kernel has or will have: PR_FUTEX_HASH, and any other.
    *[("prctl", (option,), NO, NO) for option in (67, 77, 78, 79, 200, 0x59616D61)],
    ("personality", (0xFFFFFFFF,), ANY, ANY),
    ("personality", (0,), ANY, ANY),
    ("personality", (0x40000,), NO, NO),
    ("socketpair", (1, 1), ANY, ANY),
    ("socketpair", (1, 0o2004001), ANY, ANY),
    ("socketpair", (1, 5), ANY, ANY),
    ("socketpair", (1, 2), NET, NET),
    ("socketpair", (1, 0o2000002), NET, NET),
    ("socketpair", (1, 3), NET, NET),
    ("socketpair", (30, 1), EAFNOSUPPORT, EAFNOSUPPORT),
    *[("socket", (family, 1), NET, NET) for family in (1, 2, 10, 16)],
    *[(name, (3,), NET, NET) for name in ("connect", "bind", "listen", "accept", "accept4")],
    *[(name, (3,), ANY, ANY) for name in ("sendmsg", "recvmsg", "sendto", "recvfrom")],
    ("sendto", (3, 0, 1, 0x4041), NETWORKED, NETWORKED),
    ("sendmsg", (3, 0, 1), NETWORKED, NETWORKED),
    ("sendmmsg", (3, 0, 1, 1), NETWORKED, NETWORKED),
    *[(name, (), NO, NO) for name in FORBIDDEN.split()],
    ("mmap", (), ANY, ANY),
    ("mmap", (0, 4096, 3, 0x22), ANY, ANY),
    ("mmap", (0, 4096, 3, 0x4022), ANY, ANY),  # MAP_NORESERVE
    ("mmap", (0, 4096, 3, 0x1), ANY, ANY),  # MAP_SHARED, of a file
    ("mmap", (0, 4096, 3, 0x21), SUB, SUB),
    ("mmap", (0, 4096, 3, 0x23), SUB, SUB),
    ("mmap", (0, 1 << 21, 3, 0x40022), NO, NO),
    ("mmap", (0, 1 << 30, 3, 0x40022 | 30 << 26), NO, NO),  # pages of 1 GiB
    *[(name, (3,), ANY, ANY) for name in ("fsync", "fdatasync", "sync_file_range")],
    ("msync", (0, 4096, 4), ANY, ANY),
    ("futex", (), ANY, ANY),
    *[("futex", (0, op | flag), ANY, ANY) for op in (0, 1, 3, 5, 9, 10) for flag in (0, 128, 384)],
    *[
        ("futex", (0, op | flag), UNKNOWN_ELSE, UNKNOWN_ELSE)
        for op in (6, 7, 8, 11, 12, 13)
        for flag in (0, 128, 256, 384)
    ],
    ("mbind", (), ANY, NO),
]


def expected(entry, subprocesses, network):
    if entry == SUB:
        return ALLOW if subprocesses else EPERM
    if entry == NETWORKED:
        return ALLOW if network else EPERM
    if entry == UNKNOWN_ELSE:
        return ALLOW if subprocesses else ENOSYS
    if entry == SILENT:
        return ALLOW if network else 0
    if entry == NET:
        return ALLOW if network else EACCES
    return entry


@pytest.mark.parametrize(
    ("kind", "subprocesses", "network", "machine"),
    list(itertools.product(KINDS, YES_NO, YES_NO, MACHINES)),
)
def test_what_is_written_down(kind, subprocesses, network, machine):
    code = program(kind, "whole", subprocesses, network, machine)
    for name, args, *entries in TABLE:
        number = NUMBERS[machine].get(name)
        assert number is not None or machine != "x86_64"
        if number is not None:
            result = run(code, number, args, ARCHITECTURE[machine])
            wanted = expected(entries[KINDS.index(kind)], subprocesses, network)
            assert result == wanted, (name, args)


def test_families_of_sockets():
    code = program("default", "whole", False, True, "x86_64")
    for family in range(50):
        wanted = ALLOW if family in {1, 2, 10, 16} else EAFNOSUPPORT
        assert run(code, NUMBERS["x86_64"]["socket"], (family, 2)) == wanted


# Arguments that rules are about, and any others.
WORDS = st.one_of(
    st.sampled_from(sorted({arg for _, args, *_ in TABLE for arg in args})),
    st.sampled_from([PID, 77, 1 << 31, (1 << 32) - 1, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)
CALLS = st.tuples(
    st.one_of(st.integers(0, HIGHEST + 5), st.integers(0, (1 << 32) - 1)),
    st.lists(WORDS, min_size=6, max_size=6),
    st.sampled_from(MACHINES),
)
CHECKED = [name for name, args, *_ in TABLE if args]
NAMED = st.tuples(st.sampled_from(CHECKED), st.lists(WORDS, min_size=6, max_size=6))


def results(number, args, machine):
    return {
        key: run(program(*key, machine), number, args, ARCHITECTURE[machine])
        for key in itertools.product(KINDS, PARTS, YES_NO, YES_NO)
    }


def check_the_laws(number, args, machine):
    found = results(number, args, machine)
    for kind, sub, net in itertools.product(KINDS, YES_NO, YES_NO):
        whole, base, final = (found[kind, part, sub, net] for part in PARTS)
        # Both parts together say what the whole says, and neither says it twice.
        assert whole == (base if final == ALLOW else final)
        if base != ALLOW:
            assert final in {ALLOW, ENOSYS}
        # Options and the milder kind only ever allow more.
        if whole == ALLOW:
            assert found[kind, "whole", True, net] == ALLOW
            assert found["default", "whole", sub, net] == ALLOW
            if number != NUMBERS[machine]["socket"]:
                assert found[kind, "whole", sub, True] == ALLOW


@given(CALLS)
@settings(max_examples=150)
def test_the_parts_make_up_the_whole(call):
    check_the_laws(*call)


@given(NAMED)
@settings(max_examples=300)
def test_the_parts_make_up_the_whole_where_arguments_count(call):
    name, args = call
    check_the_laws(NUMBERS["x86_64"][name], args, "x86_64")


@pytest.mark.parametrize("name", sorted(seccomp_rules.SETTING_UP - {"execve"}))
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_leaves_setting_up_alone(name, kind):
    for machine in MACHINES:
        code = seccomp.compile_filter(
            kind, "base", subprocesses=False, network=False, machine=machine
        )
        if name in NUMBERS[machine]:
            for args in ((77, 77, 77), (1, 0), (0x7E020011,), (4,)):
                number = NUMBERS[machine][name]
                assert run(code, number, args, ARCHITECTURE[machine]) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("part", ["whole", "base"])
@pytest.mark.parametrize("kind", KINDS)
def test_cutting_off_what_is_not_open_for_writing(kind, part, machine):
    def outcome(name, *args, truncate=False):
        code = seccomp.compile_filter(
            kind, part, subprocesses=False, network=False, truncate=truncate, machine=machine
        )
        assert len(code) // 8 < 380
        return run(code, NUMBERS[machine][name], args, ARCHITECTURE[machine])

    for flags in (0o1000, 0o1003, 0o2001000, 0o1101, 0o1102, 0, 1, 2, 3, 0o101):
        cuts = bool(flags & 0o1000 and flags & 3 in (0, 3))
        assert outcome("openat", 3, 0, flags, 0o644) == (EPERM if cuts else ALLOW)
        assert outcome("openat", 3, 0, flags, 0o644, truncate=True) == ALLOW
        if machine == "x86_64":
            assert outcome("open", 0, flags, 0o644) == (EPERM if cuts else ALLOW)
    assert outcome("truncate", 0, 0) == EPERM
    assert outcome("truncate", 0, 0, truncate=True) == ALLOW
    assert outcome("ftruncate", 3, 0) == ALLOW
    assert outcome("openat", 3, 0, 0o1101, 0o4755) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("writes", YES_NO)
def test_requests_without_a_network(writes, machine):
    def outcome(request, network=False):
        code = seccomp.compile_filter(
            "default", "whole", subprocesses=False, network=network, writes=writes, machine=machine
        )
        assert len(code) // 8 < 380
        args = (3, request)
        return run(code, NUMBERS[machine]["ioctl"], args, ARCHITECTURE[machine])

    # SIOCGIFNAME, SIOCGIFCONF, SIOCSIFFLAGS, SIOCETHTOOL, SIOCGSTAMP_NEW, SIOCUNIXFILE,
    # SIOCDEVPRIVATE, wireless
    for request in (0x8910, 0x8912, 0x8914, 0x8946, 0x80108906, 0x89E0, 0x89F0, 0x8B01, 0x8BFF):
        assert outcome(request) == EPERM
        assert outcome(request, network=True) == ALLOW
    for request in (0x5401, 0x5402, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x540F, 0x402C542B):
        assert outcome(request) == ALLOW
    for request in (0x5412, 0x541C, 0x5423, 0x8901, 0x8902, 0x40086602):
        assert outcome(request) == outcome(request, network=True) == EPERM
    # Of a device that may be written to (DRM_IOCTL_VERSION), or what nobody has heard of yet.
    for request in (0xC0406400, 0x1234):
        assert outcome(request) == (ALLOW if writes else EPERM)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("kind", KINDS)
def test_locks_and_writing_out(kind, machine):
    def outcome(name, *args):
        code = seccomp.compile_filter(
            kind, "whole", subprocesses=False, network=False, writes=False, machine=machine
        )
        return run(code, NUMBERS[machine][name], args, ARCHITECTURE[machine])

    assert outcome("flock", 3, 2) == ENOLCK
    for command in (5, 6, 7, 36, 37, 38):
        assert outcome("fcntl", 3, command, 77) == ENOLCK
    for command in (0, 1, 1030):
        assert outcome("fcntl", 3, command, 77) == ALLOW
    assert outcome("fcntl", 3, 1024, 77) == EPERM
    for how, where in itertools.product(("get", "list"), ("", "l", "f")):
        assert outcome(f"{where}{how}xattr", 3) == EOPNOTSUPP
        assert outcome(f"{how}xattrat", 3) == EOPNOTSUPP
    for name in ("fsync", "fdatasync", "sync_file_range"):
        assert outcome(name, 3) == EPERM
    for flags, wanted in ((1, ALLOW), (2, ALLOW), (4, EPERM), (6, EPERM)):
        assert outcome("msync", 0, 4096, flags) == wanted


def test_names_in_the_lists_are_names_of_calls():
    known = set(NUMBERS["x86_64"]) | set(NUMBERS["aarch64"])
    checked = {
        *seccomp_rules._checks(strict=False, subprocesses=False, network=False),
        *seccomp_rules._for_files(truncate=False, writes=False),
    }
    for names in (
        seccomp_rules.ALWAYS_DENIED,
        seccomp_rules.STRICT,
        seccomp_rules.SETTING_UP,
        checked,
        {name for name, *_ in TABLE},
    ):
        assert set(names) <= known
    assert not seccomp_rules.STRICT & seccomp_rules.ALWAYS_DENIED
    # Nothing is forbidden that is not written down here, too.
    assert {name for name, *_ in TABLE} >= seccomp_rules.ALWAYS_DENIED


@pytest.mark.parametrize(
    ("machine", "header"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("x86_64", "/usr/include/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_the_numbers_are_those_of_the_headers(machine, header):
    try:
        text = Path(header).read_text()
    except FileNotFoundError:
        pytest.skip("no such header here")
    pairs = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", text, re.MULTILINE)
    # 403 to 423 are for machines of 32 bits only, and so is the last name.
    theirs = {
        name: int(number)
        for name, number in pairs
        if int(number) <= HIGHEST and not 403 <= int(number) <= 423 and name != "sync_file_range2"
    }
    for name in ("syscalls", "arch_specific_syscall"):
        theirs.pop(name, None)
    if machine == "aarch64":
        theirs["newfstatat"] = theirs.pop("fstatat")
    known = NUMBERS[machine]
    assert {name: known.get(name) for name in theirs} == theirs
    missing = {name for name in known if name not in theirs}
    assert all(known[name] > 424 or name in {"uretprobe", "uprobe"} for name in missing)
    assert len(set(known.values())) == len(known)


def test_the_place_for_a_pid():
    for kind, part, sub, net, machine in EVERY:
        code = seccomp.compile_filter(kind, part, subprocesses=sub, network=net, machine=machine)
        if part == "base":
            with pytest.raises(ValueError, match="no place"):
                seccomp.bind_pid(code, PID)
        else:
            bound = seccomp.bind_pid(code, PID)
            assert len(bound) == len(code)
            assert seccomp._OWN_PID not in bound
            places = code.count(seccomp._OWN_PID)
            assert sum(a != b for a, b in zip(code, bound, strict=True)) <= 4 * places
            with pytest.raises(ValueError, match="already bound"):
                seccomp.bind_pid(bound, PID)
    assert struct.pack("=I", seccomp_rules.OWN_PID) == seccomp._OWN_PID
    with pytest.raises(ValueError, match="no place"):
        seccomp.bind_pid(b"\0" + seccomp._OWN_PID + bytes(3), PID)
    own = struct.pack("=I", PID)
    assert seccomp.bind_pid((bytes(4) + seccomp._OWN_PID) * 2, PID) == (bytes(4) + own) * 2


def test_a_machine_that_nobody_knows():
    with pytest.raises(OSError, match="no system call numbers"):
        seccomp.compile_filter(
            "default", "whole", subprocesses=False, network=False, machine="pdp11"
        )


def test_filters_are_made_once():
    options = {"subprocesses": False, "network": False}
    first = seccomp.compile_filter("strict", "whole", **options)
    assert seccomp.compile_filter("strict", "whole", **options) is first


@given(
    st.dictionaries(st.integers(0, 2000), st.integers(0, 3), min_size=1, max_size=400),
    st.integers(0, 2200),
    st.integers(0, 9),
)
@settings(max_examples=100)
def test_programs_that_are_too_long_for_short_jumps(choices, number, argument):
    rules = {
        key: [bpf.ALLOW, bpf.errno_rule(1), bpf.errno_rule(2)][choice]
        if choice < 3
        else bpf.Check(key % 6, (key % 7, key % 5), bpf.ALLOW, bpf.errno_rule(key % 50), mask=7)
        for key, choice in choices.items()
    }
    code = bpf.assemble(rules, bpf.errno_rule(38), ARCHITECTURE["x86_64"])
    rule = rules.get(number, bpf.errno_rule(38))
    if isinstance(rule, bpf.Check):
        rule = rule.then if argument & rule.mask in rule.values else rule.otherwise
    wanted = ALLOW if rule == bpf.ALLOW else rule & 0xFFFF
    assert run(code, number, [argument] * 6) == wanted


@pytest.mark.parametrize("machine", MACHINES)
def test_a_program_of_thousands_of_rules(machine):
    rules = {
        n: bpf.Check(n % 6, (n % 3,), bpf.ALLOW, bpf.errno_rule(n % 90), mask=n + 3)
        for n in range(1000)
    }
    code = bpf.assemble(rules, bpf.errno_rule(38), ARCHITECTURE[machine])
    for n, rule in rules.items():
        for argument in (0, 1, 2, n):
            yes = argument & rule.mask in rule.values
            wanted = ALLOW if yes else n % 90
            assert run(code, n, [argument] * 6, ARCHITECTURE[machine]) == wanted
    assert run(code, 1000, (), ARCHITECTURE[machine]) == 38
