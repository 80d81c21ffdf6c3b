"""The rules for each system call of a sandboxed process: lists, and their combination.

They forbid more than a container's usual profile, which relies on namespaces that a sandboxed
process may not have: the process can't change scheduling or limits of other processes, can't change
file modes, can't create sockets, and so on. Names that a machine lacks are ignored.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from .bpf import ALLOW, Check, Rule, errno_rule
from .process_count import CLONE_FLAGS, NOWHERE

__all__ = ["ALWAYS_DENIED", "OWN_PID", "SETTING_UP", "STRICT", "UNKNOWN", "rules"]

# A placeholder for the pid of the process; no process has this number.
OWN_PID = 0xA105_01A7

_DENY = errno_rule(errno.EPERM)
_NO_NETWORK = errno_rule(errno.EACCES)
_NO_FAMILY = errno_rule(errno.EAFNOSUPPORT)
# The error of a kernel without the call; a C library then falls back to another one.
UNKNOWN = errno_rule(errno.ENOSYS)

_ALWAYS_DENIED = """
io_uring_setup io_uring_enter io_uring_register bpf perf_event_open userfaultfd
io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents
keyctl add_key request_key
ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd
mount umount2 pivot_root move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick
mount_setattr statmount listmount chroot setns unshare
swapon swapoff reboot kexec_load kexec_file_load
init_module finit_module delete_module create_module query_module get_kernel_syms
quotactl quotactl_fd acct
settimeofday clock_settime adjtimex clock_adjtime
syslog iopl ioperm modify_ldt vhangup sethostname setdomainname
lookup_dcookie nfsservctl sysfs _sysctl uselib ustat
vserver security tuxcall afs_syscall getpmsg putpmsg
name_to_handle_at open_by_handle_at
fanotify_init fanotify_mark inotify_init inotify_init1 inotify_add_watch
chmod fchmod fchmodat fchmodat2 chown lchown fchown fchownat
utime utimes futimesat utimensat file_setattr
setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat
mknod mknodat memfd_create memfd_secret
shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
vmsplice splice tee sync syncfs
setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset
seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self lsm_set_self_attr
"""
ALWAYS_DENIED = frozenset(_ALWAYS_DENIED.split())

# The calls that an interpreter and its usual libraries need to compute, in memory and in files.
_STRICT = """
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile
copy_file_range open openat creat close close_range dup dup2 dup3 fcntl ioctl flock
stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2
readlink readlinkat getdents getdents64 getcwd chdir fchdir umask
mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat
truncate ftruncate fallocate fsync fdatasync sync_file_range fadvise64 readahead
getxattr lgetxattr fgetxattr getxattrat listxattr llistxattr flistxattr listxattrat
mmap munmap mprotect mremap madvise brk msync mincore mlock mlock2 munlock mseal map_shadow_stack
clone futex futex_waitv futex_wake futex_wait futex_requeue set_robust_list get_robust_list
set_tid_address rseq membarrier arch_prctl exit exit_group restart_syscall uretprobe
sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam
sched_getscheduler sched_setscheduler sched_getattr sched_setattr sched_get_priority_max
sched_get_priority_min sched_rr_get_interval getpriority setpriority getcpu get_mempolicy
getpid getppid gettid getpgrp getpgid setpgid getsid setsid
getuid geteuid getgid getegid getresuid getresgid getgroups capget
getrlimit setrlimit prlimit64 getrusage times sysinfo uname getrandom personality prctl
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend
sigaltstack signalfd signalfd4 kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pause
alarm getitimer setitimer nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday
time timer_create timer_settime timer_gettime timer_getoverrun timer_delete
timerfd_create timerfd_settime timerfd_gettime
wait4 waitid poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait
epoll_pwait epoll_pwait2 eventfd eventfd2 pipe pipe2
socketpair sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown getsockopt setsockopt
getsockname getpeername
"""
STRICT = frozenset(_STRICT.split())

_PROGRAMS = ("fork", "vfork", "execve", "execveat")
_SIGNALS = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
_PIDFDS = ("pidfd_open", "pidfd_send_signal")
_WRITING_OUT = ("fsync", "fdatasync", "sync_file_range")
# Landlock does not restrict extended attributes, which can hold data, too; those of a socket may
# name the security label of its creator.
_ATTRIBUTES = (
    *("getxattr", "lgetxattr", "fgetxattr", "getxattrat"),
    *("listxattr", "llistxattr", "flistxattr", "listxattrat"),
)
_NO_ATTRIBUTES = errno_rule(errno.EOPNOTSUPP)
_NETWORK = ("socket", "connect", "bind", "listen", "accept", "accept4")
_CLOCKS = ("clock_gettime", "clock_getres", "clock_nanosleep", "timer_create")
# These calls query a process; their errors tell which processes exist.
_ABOUT_A_PID = (
    "getpgid",
    "getsid",
    "sched_getscheduler",
    "sched_getparam",
    "sched_getattr",
    "sched_rr_get_interval",
    "get_robust_list",
)
_OF_A_PID = (
    "prlimit64",
    "sched_setaffinity",
    "sched_setscheduler",
    "sched_setparam",
    "sched_setattr",
    "migrate_pages",
    "move_pages",
)

# The calls that a fork server makes for its children after it has restricted itself, and those that
# the children make before fn runs.
_SETTING_UP = """
fork vfork clone unshare setns mount umount2 setpgid prctl seccomp memfd_create
landlock_create_ruleset landlock_add_rule landlock_restrict_self
setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset
setpriority getpriority ioprio_set ioprio_get sched_getaffinity
"""
SETTING_UP = frozenset(_SETTING_UP.split()).union(_SIGNALS, _PIDFDS, _OF_A_PID, _ABOUT_A_PID)


def _own(argument: int) -> Check:
    """Allow a call about the process itself only, by its pid or 0."""
    return Check(argument, (0, OWN_PID), ALLOW, _DENY)


# Every CLONE_NEW* of clone (CLONE_NEWTIME shares its bit with the signal there), and CLONE_PARENT,
# which makes a process its parent's sibling.
_CLONE_NEW = 0x7E02_0000
_CLONE_PARENT = 0x0000_8000
_CLONE_THREAD = 0x0001_0000
# CLONE_VM, FS, FILES, SIGHAND and THREAD, as C libraries set them. A thread with its own descriptor
# table would get the limit on descriptors a second time.
_CLONE_SHARING = 0x0001_0F00
_THREAD_ONLY = Check(0, (_CLONE_SHARING,), ALLOW, _DENY, mask=_CLONE_SHARING)
_THREAD_OR_PROCESS = _THREAD_ONLY._replace(
    otherwise=Check(0, (0,), ALLOW, _DENY, mask=_CLONE_THREAD)
)
_CLOSE_RANGE_UNSHARE = 2  # gives a thread its own descriptor table as well

# The clone call of `process_count`, which never creates a process because its address is invalid.
_UPPER = Check(2, (NOWHERE >> 32 & 0xFFFF_FFFF,), ALLOW, _DENY, upper=True)
_NOWHERE = Check(2, (NOWHERE & 0xFFFF_FFFF,), _UPPER, _DENY)

# The mode with which a file is created can make it set-user-ID, as chmod can. The mode has a
# meaning only with O_CREAT or __O_TMPFILE.
_CREATING = 0o100 | 0o20000000
_SET_ID = 0o6000


_MAP_HUGETLB = 0x4_0000  # pages of the machine's hugetlb pool
# MAP_SHARED (or MAP_SHARED_VALIDATE) and MAP_ANONYMOUS: an unnamed file. Its unmapped pages stay
# allocated until its last page is unmapped, so a limit on the address space does not bound it.
_MAP_UNNAMED = 0x21
_MS_SYNC = 4

# O_TRUNC truncates in every access mode: also with read-only, and with mode 3 (neither), which
# Landlock does not check.
_O_TRUNC = 0o1000
_ACCESS_MODE = 3


def _opening(flags: int, *, truncate: bool) -> Check:
    mode = Check(flags + 1, (0,), ALLOW, _DENY, mask=_SET_ID)
    found = Check(flags, (0,), ALLOW, mode, mask=_CREATING)
    if not truncate:
        unseen = (_O_TRUNC, _O_TRUNC | _ACCESS_MODE)
        found = Check(flags, unseen, _DENY, found, mask=_O_TRUNC | _ACCESS_MODE)
    return found


_FCNTL = (
    8,  # F_SETOWN: makes the kernel signal any process of the same user
    15,  # F_SETOWN_EX
    1024,  # F_SETLEASE: blocks other processes that open the file
    1026,  # F_NOTIFY: watches a directory, as inotify does
    1031,  # F_SETPIPE_SZ: the capacity of all pipes of a user is limited together
)
# A process that can't write needs no locks. A lock on a file that others use blocks them, and takes
# kernel memory that no limit counts. F_GETLK tells which process has locked a file.
_LOCKS = (5, 6, 7, 36, 37, 38)  # F_GETLK, SETLK, SETLKW, OFD_GETLK, OFD_SETLK, OFD_SETLKW
_NO_LOCKS = errno_rule(errno.ENOLCK)
_IOCTL = (
    0x5412,  # TIOCSTI: inserts input into the terminal, as if the user typed it
    0x541C,  # TIOCLINUX
    0x541D,  # TIOCCONS
    0x5423,  # TIOCSETD
    0x8901,  # FIOSETOWN: like F_SETOWN
    0x8902,  # SIOCSPGRP
    0x4008_6602,  # FS_IOC_SETFLAGS: like chmod, also for files that are open for reading
    0x4008_7602,  # FS_IOC_SETVERSION
    0x401C_5820,  # FS_IOC_FSSETXATTR
    0x4080_6685,  # FS_IOC_ENABLE_VERITY
    0x800C_6613,  # FS_IOC_SET_ENCRYPTION_POLICY
)
# All requests for sockets: the channel to the parent belongs to the parent's network namespace, and
# such requests can list its interfaces and, with the privilege, change them. 0x89 is for SIOC*
# (0x8946 is ethtool), 0x8B for wireless networks.
_TYPE_OF_IOCTL = 0xFF00
_TYPES_OF_SOCKETS = (0x8900, 0x8A00, 0x8B00)
_IOCTL_STRICT = (
    0x5401,  # TCGETS, which isatty uses
    0x802C_542A,  # TCGETS2
    0x5413,  # TIOCGWINSZ
    0x541B,  # FIONREAD
    0x5421,  # FIONBIO
    0x5450,  # FIONCLEX
    0x5451,  # FIOCLEX
    0xC040_FF0B,  # PIDFD_GET_INFO
)
# Without a network and writable devices, only terminals can remain. They need no requests that are
# not known yet, so the allowed ones are listed.
_IOCTL_LISTED = (
    *_IOCTL_STRICT,
    *range(0x5402, 0x5406),  # TCSETS, TCSETSW, TCSETSF, TCGETA
    *range(0x5409, 0x540C),  # TCSBRK, TCXONC, TCFLSH
    *range(0x540E, 0x5412),  # TIOCSCTTY, TIOCGPGRP, TIOCSPGRP, TIOCOUTQ
    0x5414,  # TIOCSWINSZ
    0x5422,  # TIOCNOTTY
    0x5429,  # TIOCGSID
    *range(0x402C_542B, 0x402C_542E),  # TCSETS2, TCSETSW2, TCSETSF2
    0x8004_5430,  # TIOCGPTN
    0x4004_5431,  # TIOCSPTLCK
)
_PRCTL_STRICT = (
    2,  # PR_GET_PDEATHSIG
    3,  # PR_GET_DUMPABLE
    15,  # PR_SET_NAME
    16,  # PR_GET_NAME
    21,  # PR_GET_SECCOMP
    23,  # PR_CAPBSET_READ
    27,  # PR_GET_SECUREBITS
    29,  # PR_SET_TIMERSLACK
    30,  # PR_GET_TIMERSLACK
    37,  # PR_GET_CHILD_SUBREAPER
    38,  # PR_SET_NO_NEW_PRIVS
    39,  # PR_GET_NO_NEW_PRIVS
    41,  # PR_SET_THP_DISABLE
    42,  # PR_GET_THP_DISABLE
    51,  # PR_SVE_GET_VL, which tells libraries on aarch64 the vector length
    64,  # PR_SME_GET_VL
    0x5356_4D41,  # PR_SET_VMA, with which allocators name their memory
)

# A list of allowed operations, not of forbidden ones: most kernels add new ones, one of which (78,
# PR_FUTEX_HASH) takes any amount of kernel memory.
_PRCTL_DEFAULT = (
    *_PRCTL_STRICT,
    5,  # PR_GET_UNALIGN
    6,  # PR_SET_UNALIGN
    7,  # PR_GET_KEEPCAPS
    25,  # PR_GET_TSC
    40,  # PR_GET_TID_ADDRESS
    50,  # PR_SVE_SET_VL
    52,  # PR_GET_SPECULATION_CTRL
    54,  # PR_PAC_RESET_KEYS
    55,  # PR_SET_TAGGED_ADDR_CTRL, for allocators that tag addresses
    56,  # PR_GET_TAGGED_ADDR_CTRL
    61,  # PR_PAC_GET_ENABLED_KEYS
    63,  # PR_SME_SET_VL
    65,  # PR_SET_MDWE
    66,  # PR_GET_MDWE
    0x4155_5856,  # PR_GET_AUXV
)
_SOL_SOCKET = 1
# This option returns a pidfd of the creator of a socket pair, that is, of the parent.
_GETSOCKOPT = (77,)  # SO_PEERPIDFD
# With socket pairs only, the allowed options are listed: not those that tell the creator of the
# pair (pid, user, groups, security label) or a cookie of the parent's network namespace.
_GETSOCKOPT_WITHOUT = (
    *range(2, 11),  # SO_REUSEADDR, TYPE, ERROR, DONTROUTE, BROADCAST, SNDBUF, RCVBUF, KEEPALIVE...
    13,  # SO_LINGER
    15,  # SO_REUSEPORT
    *range(18, 22),  # SO_RCVLOWAT, SNDLOWAT, RCVTIMEO, SNDTIMEO
    30,  # SO_ACCEPTCONN
    38,  # SO_PROTOCOL
    39,  # SO_DOMAIN
    66,  # SO_RCVTIMEO_NEW
    67,  # SO_SNDTIMEO_NEW
)
_SETSOCKOPT = (
    26,  # SO_ATTACH_FILTER: loads a BPF program into the kernel
    32,  # SO_SNDBUFFORCE
    33,  # SO_RCVBUFFORCE
    50,  # SO_ATTACH_BPF
    51,  # SO_ATTACH_REUSEPORT_CBPF
    52,  # SO_ATTACH_REUSEPORT_EBPF
    76,  # SO_PASSPIDFD: passes pidfds of all senders
)
# With socket pairs only, the allowed options are listed. SO_SNDBUF bounds the kernel memory of a
# pair, and would allow some MiB if it could be raised. The call succeeds without effect, as if the
# kernel had set less than requested, because trio sets a smaller size.
_SNDBUF = Check(2, (7,), errno_rule(0), _DENY)
_SETSOCKOPT_WITHOUT = (
    2,  # SO_REUSEADDR
    8,  # SO_RCVBUF, which has no effect in a pair
    9,  # SO_KEEPALIVE
    13,  # SO_LINGER
    15,  # SO_REUSEPORT
    18,  # SO_RCVLOWAT
    20,  # SO_RCVTIMEO
    21,  # SO_SNDTIMEO
    66,  # SO_RCVTIMEO_NEW
    67,  # SO_SNDTIMEO_NEW
)
# A futex with priority inheritance holds a thread id, and the kernel's answer tells whether that
# thread exists. FUTEX_LOCK_PI, UNLOCK_PI, TRYLOCK_PI, WAIT_REQUEUE_PI, CMP_REQUEUE_PI, LOCK_PI2.
_FUTEX_PI = (6, 7, 8, 11, 12, 13)
_FUTEX_COMMAND = 0x7F
_MSG_OOB = 1
# A negative clock id stands for the CPU time of another process or thread.
_NO_CLOCK = Check(0, (0,), ALLOW, errno_rule(errno.EINVAL), mask=0x8000_0000)

# Unix, IPv4, IPv6 and netlink, from which a resolver gets this machine's addresses.
_FAMILIES = (1, 2, 10, 16)
# A datagram socket, even one of a pair, can send to any address; a socket for streams (1) or
# sequenced packets (5) only to its peer. (The kernel treats raw ones as datagram sockets.)
_CONNECTED = Check(1, (1, 5), ALLOW, _NO_NETWORK, mask=0xF)


def rules(
    kind: str,
    part: str,
    names: Mapping[str, int],
    *,
    subprocesses: bool,
    network: bool,
    truncate: bool = True,
    threads: bool = True,
    counting: bool = False,
    writes: bool = True,
) -> dict[str, Rule]:
    """Return the rule for each call in *names*.

    See `seccomp.compile_filter` for the arguments.
    """
    strict = kind == "strict"
    checks = _checks(strict=strict, subprocesses=subprocesses, network=network)
    checks.update(_for_files(truncate=truncate, writes=writes))
    if not strict and not network:
        checks["ioctl"] = _ioctl_without_network(writes=writes)
    if not threads:
        checks["clone"] = _DENY
    elif counting:
        checks["clone"] = Check(0, (CLONE_FLAGS,), _NOWHERE, checks["clone"])
    whole = _whole(names, checks, strict=strict, subprocesses=subprocesses)
    if part == "whole":
        return whole
    base = {name: ALLOW if name in SETTING_UP else rule for name, rule in whole.items()}
    if part == "base":
        return base
    # The kernel runs both filters for every call, and the stricter result counts.
    return {name: rule if rule != base[name] else ALLOW for name, rule in whole.items()}


def _whole(
    names: Mapping[str, int], checks: Mapping[str, Rule], *, strict: bool, subprocesses: bool
) -> dict[str, Rule]:
    allowed = set(STRICT) if strict else set(names) - ALWAYS_DENIED
    if subprocesses:
        allowed.update(_PROGRAMS, _PIDFDS)
    else:
        allowed.difference_update(_PROGRAMS, _PIDFDS)
    allowed.update(_NETWORK)
    found: dict[str, Rule] = {name: ALLOW if name in allowed else _DENY for name in names}
    found.update({name: rule for name, rule in checks.items() if name in allowed})
    # The arguments of these calls are in memory, which a filter can't read. If the calls fail with
    # ENOSYS, C libraries use others.
    found.update(clone3=UNKNOWN, openat2=UNKNOWN)
    return {name: found[name] for name in names}


def _for_files(*, truncate: bool, writes: bool) -> dict[str, Rule]:
    """Return the rules for calls about files."""
    found: dict[str, Rule] = {
        "open": _opening(1, truncate=truncate),
        "openat": _opening(2, truncate=truncate),
        "creat": Check(1, (0,), ALLOW, _DENY, mask=_SET_ID),
        "fcntl": Check(1, _FCNTL, _DENY, ALLOW if writes else Check(1, _LOCKS, _NO_LOCKS, ALLOW)),
    }
    if not truncate:
        found["truncate"] = _DENY
    if not writes:
        found["flock"] = _NO_LOCKS
        found.update(dict.fromkeys(_ATTRIBUTES, _NO_ATTRIBUTES))
        # On a file that is open for reading, these calls flush the data that other processes have
        # written, and wait for that.
        found.update(dict.fromkeys(_WRITING_OUT, _DENY))
        found["msync"] = Check(2, (0,), ALLOW, _DENY, mask=_MS_SYNC)
    return found


def _ioctl_without_network(*, writes: bool) -> Check:
    if not writes:
        return Check(1, _IOCTL_LISTED, ALLOW, _DENY)
    of_sockets = Check(1, _TYPES_OF_SOCKETS, _DENY, ALLOW, mask=_TYPE_OF_IOCTL)
    return Check(1, _IOCTL, _DENY, of_sockets)


def _checks(*, strict: bool, subprocesses: bool, network: bool) -> dict[str, Rule]:
    """Return the rules for calls that are allowed conditionally."""
    clone = _THREAD_OR_PROCESS if subprocesses else _THREAD_ONLY
    found: dict[str, Rule] = {
        "clone": Check(0, (0,), clone, _DENY, mask=_CLONE_NEW | _CLONE_PARENT),
        "ioctl": Check(1, _IOCTL_STRICT, ALLOW, _DENY)
        if strict
        else Check(1, _IOCTL, _DENY, ALLOW),
        "prctl": Check(0, _PRCTL_STRICT if strict else _PRCTL_DEFAULT, ALLOW, _DENY),
        "mmap": Check(3, (0,), ALLOW, _DENY, mask=_MAP_HUGETLB),
        "close_range": Check(2, (0,), ALLOW, _DENY, mask=_CLOSE_RANGE_UNSHARE),
        "personality": Check(0, (0, 0xFFFF_FFFF), ALLOW, _DENY),
        # The first argument tells whether the second is a process, a group or a user.
        "setpriority": Check(0, (0,), _own(1), _DENY),
        "ioprio_set": Check(0, (1,), _own(1), _DENY),
        "getpriority": Check(0, (0,), _own(1), _DENY),
        "ioprio_get": Check(0, (1,), _own(1), _DENY),
        "getsockopt": Check(1, (_SOL_SOCKET,), Check(2, _GETSOCKOPT, _DENY, ALLOW), ALLOW),
        "setsockopt": Check(1, (_SOL_SOCKET,), Check(2, _SETSOCKOPT, _DENY, ALLOW), ALLOW),
        "socketpair": Check(0, (1,), ALLOW if network else _CONNECTED, _NO_FAMILY),
    }
    found.update(dict.fromkeys(_OF_A_PID, _own(0)))
    found.update(dict.fromkeys(_CLOCKS, _NO_CLOCK))
    if not subprocesses:
        # There is no other process with which to share memory.
        unnamed = Check(3, (_MAP_UNNAMED,), _DENY, ALLOW, mask=_MAP_UNNAMED)
        found["mmap"] = Check(3, (0,), unnamed, _DENY, mask=_MAP_HUGETLB)
        found.update(dict.fromkeys(_ABOUT_A_PID, _own(0)))
        # A C library that queries a thread continues if the call does not exist.
        found["sched_getaffinity"] = _own(0)._replace(otherwise=UNKNOWN)
        found["futex"] = Check(1, _FUTEX_PI, UNKNOWN, ALLOW, mask=_FUTEX_COMMAND)
        # The pid is in memory, which a filter can't read.
        found["capget"] = _DENY
        found.update(dict.fromkeys(_SIGNALS, _own(0)))
        # In another process group, it could signal all members with pid 0.
        found["setpgid"] = _own(1)
    if network:
        found["socket"] = Check(0, _FAMILIES, ALLOW, _NO_FAMILY)
    else:
        found.update(dict.fromkeys(_NETWORK, _NO_NETWORK))
        # sendfile into a socket pair moves pages, not bytes: a few bytes keep whole (huge) pages of
        # a file allocated, even after it is truncated. Programs fall back to read and write.
        found["sendfile"] = _DENY
        found["getsockopt"] = Check(
            1, (_SOL_SOCKET,), Check(2, _GETSOCKOPT_WITHOUT, ALLOW, _DENY), ALLOW
        )
        found["setsockopt"] = Check(
            1, (_SOL_SOCKET,), Check(2, _SETSOCKOPT_WITHOUT, ALLOW, _SNDBUF), ALLOW
        )
        # Out-of-band data wakes up the reader, but is not returned by its reads.
        found["sendto"] = found["sendmmsg"] = Check(3, (0,), ALLOW, _DENY, mask=_MSG_OOB)
        found["sendmsg"] = Check(2, (0,), ALLOW, _DENY, mask=_MSG_OOB)
    return found
