"""What becomes of each system call in a process that is contained: lists, and how they combine.

They go beyond a container's usual lists where those count on namespaces that a contained process
may not have: it may change nobody else's scheduling, limits or files' modes, make no socket, and so
on. Names that a machine lacks do no harm in a list.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from .bpf import ALLOW, Check, Rule, errno_rule
from .process_count import CLONE_FLAGS, NOWHERE

__all__ = ["ALWAYS_DENIED", "OWN_PID", "SETTING_UP", "STRICT", "UNKNOWN", "rules"]

# Stands for the pid of the process; no process has such a number.
OWN_PID = 0xA105_01A7

_DENY = errno_rule(errno.EPERM)
_NO_NETWORK = errno_rule(errno.EACCES)
_NO_FAMILY = errno_rule(errno.EAFNOSUPPORT)
# What a kernel answers that does not have the call; a C library then does without it.
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

# What an interpreter and its usual libraries need to compute, in memory and in files.
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
# Extended attributes, which Landlock does not see, are contents, too; those of a socket may name
# the security label of who made it.
_ATTRIBUTES = (
    *("getxattr", "lgetxattr", "fgetxattr", "getxattrat"),
    *("listxattr", "llistxattr", "flistxattr", "listxattrat"),
)
_NO_ATTRIBUTES = errno_rule(errno.EOPNOTSUPP)
_NETWORK = ("socket", "connect", "bind", "listen", "accept", "accept4")
_CLOCKS = ("clock_gettime", "clock_getres", "clock_nanosleep", "timer_create")
# These ask, also which processes there are.
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

# What a fork server does for its children after it has restricted itself, and they before fn.
_SETTING_UP = """
fork vfork clone unshare setns mount umount2 setpgid prctl seccomp memfd_create
landlock_create_ruleset landlock_add_rule landlock_restrict_self
setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset
setpriority getpriority ioprio_set ioprio_get sched_getaffinity
"""
SETTING_UP = frozenset(_SETTING_UP.split()).union(_SIGNALS, _PIDFDS, _OF_A_PID, _ABOUT_A_PID)


def _own(argument: int) -> Check:
    """Let a call be about the process itself only; 0 says so, too."""
    return Check(argument, (0, OWN_PID), ALLOW, _DENY)


# Every CLONE_NEW* that clone has (CLONE_NEWTIME shares its bit with the signal there), and
# CLONE_PARENT, by which a process becomes its parent's sibling.
_CLONE_NEW = 0x7E02_0000
_CLONE_PARENT = 0x0000_8000
_CLONE_THREAD = 0x0001_0000
# CLONE_VM, FS, FILES, SIGHAND and THREAD, as C libraries have it. A thread with descriptors of its
# own would have the limit on them once more.
_CLONE_SHARING = 0x0001_0F00
_THREAD_ONLY = Check(0, (_CLONE_SHARING,), ALLOW, _DENY, mask=_CLONE_SHARING)
_THREAD_OR_PROCESS = _THREAD_ONLY._replace(
    otherwise=Check(0, (0,), ALLOW, _DENY, mask=_CLONE_THREAD)
)
_CLOSE_RANGE_UNSHARE = 2  # the same, once a thread is there

# What `counting` asks, which never makes a process, for what its address is.
_UPPER = Check(2, (NOWHERE >> 32 & 0xFFFF_FFFF,), ALLOW, _DENY, upper=True)
_NOWHERE = Check(2, (NOWHERE & 0xFFFF_FFFF,), _UPPER, _DENY)

# A file may be made for anybody to run as its owner by the mode that it is created with, not by
# chmod only. O_CREAT or __O_TMPFILE: only then the mode means something.
_CREATING = 0o100 | 0o20000000
_SET_ID = 0o6000


_MAP_HUGETLB = 0x4_0000  # pages of a pool of the machine's
# MAP_SHARED (or MAP_SHARED_VALIDATE) and MAP_ANONYMOUS: a file that has no name. Of that pages stay
# that are mapped no more, until its last page is unmapped; so the address space does not bound it.
_MAP_UNNAMED = 0x21
_MS_SYNC = 4

# Opening cuts a file off whatever it is opened for: for reading, or for neither (3), which Landlock
# does not even look at.
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
    8,  # F_SETOWN: have signals sent to any process of the same user
    15,  # F_SETOWN_EX
    1024,  # F_SETLEASE: make others wait who open the file
    1026,  # F_NOTIFY: watch a directory, as inotify does
    1031,  # F_SETPIPE_SZ: what a user's pipes may hold is counted for all of them together
)
# Where nothing can be written nothing need be locked. A lock of a file that others use holds them
# up, and takes memory of the kernel's that no limit counts.
# F_GETLK tells by which process a file is locked.
_LOCKS = (5, 6, 7, 36, 37, 38)  # F_GETLK, SETLK, SETLKW, OFD_GETLK, OFD_SETLK, OFD_SETLKW
_NO_LOCKS = errno_rule(errno.ENOLCK)
_IOCTL = (
    0x5412,  # TIOCSTI: type into the terminal, as the user
    0x541C,  # TIOCLINUX
    0x541D,  # TIOCCONS
    0x5423,  # TIOCSETD
    0x8901,  # FIOSETOWN: as F_SETOWN
    0x8902,  # SIOCSPGRP
    0x4008_6602,  # FS_IOC_SETFLAGS: as chmod, of files that are open for reading
    0x4008_7602,  # FS_IOC_SETVERSION
    0x401C_5820,  # FS_IOC_FSSETXATTR
    0x4080_6685,  # FS_IOC_ENABLE_VERITY
    0x800C_6613,  # FS_IOC_SET_ENCRYPTION_POLICY
)
# Whatever is asked of a socket: the channel to the parent is a handle on the parent's network
# namespace, whose interfaces can be listed by it and, with the privilege, changed. 0x89 is for
# SIOC* (0x8946 is ethtool), 0x8B for wireless networks.
_TYPE_OF_IOCTL = 0xFF00
_TYPES_OF_SOCKETS = (0x8900, 0x8A00, 0x8B00)
_IOCTL_STRICT = (
    0x5401,  # TCGETS, by which isatty asks
    0x802C_542A,  # TCGETS2
    0x5413,  # TIOCGWINSZ
    0x541B,  # FIONREAD
    0x5421,  # FIONBIO
    0x5450,  # FIONCLEX
    0x5451,  # FIOCLEX
    0xC040_FF0B,  # PIDFD_GET_INFO
)
# Where there is neither a network nor a device that may be written to, terminals are all that may
# be there: a request that nobody has heard of yet is none of theirs.
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
    51,  # PR_SVE_GET_VL, by which libraries on aarch64 learn how wide its vectors are
    64,  # PR_SME_GET_VL
    0x5356_4D41,  # PR_SET_VMA, by which allocators name their memory
)

# Listed, not what is forbidden: there are new ones in most kernels, one of which (78,
# PR_FUTEX_HASH) takes any amount of the kernel's memory.
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
    55,  # PR_SET_TAGGED_ADDR_CTRL, for allocators that mark addresses
    56,  # PR_GET_TAGGED_ADDR_CTRL
    61,  # PR_PAC_GET_ENABLED_KEYS
    63,  # PR_SME_SET_VL
    65,  # PR_SET_MDWE
    66,  # PR_GET_MDWE
    0x4155_5856,  # PR_GET_AUXV
)
_SOL_SOCKET = 1
# A pidfd of whoever made the pair, that is, of the parent.
_GETSOCKOPT = (77,)  # SO_PEERPIDFD
# Where there are only pairs of sockets, what may be asked is listed: not who made the pair (pid,
# user, groups, security label), nor a cookie of the parent's network namespace.
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
    26,  # SO_ATTACH_FILTER: programs for the kernel
    32,  # SO_SNDBUFFORCE
    33,  # SO_RCVBUFFORCE
    50,  # SO_ATTACH_BPF
    51,  # SO_ATTACH_REUSEPORT_CBPF
    52,  # SO_ATTACH_REUSEPORT_EBPF
    76,  # SO_PASSPIDFD: pidfds of all who send something
)
# Where there are only pairs of sockets, what may be set is listed. SO_SNDBUF is what bounds the
# memory that the kernel keeps for a pair, up to some MiB if it may be raised. It seems to succeed,
# as where the kernel sets less than was asked for, and changes nothing: trio makes one smaller.
_SNDBUF = Check(2, (7,), errno_rule(0), _DENY)
_SETSOCKOPT_WITHOUT = (
    2,  # SO_REUSEADDR
    8,  # SO_RCVBUF, which counts for nothing in a pair
    9,  # SO_KEEPALIVE
    13,  # SO_LINGER
    15,  # SO_REUSEPORT
    18,  # SO_RCVLOWAT
    20,  # SO_RCVTIMEO
    21,  # SO_SNDTIMEO
    66,  # SO_RCVTIMEO_NEW
    67,  # SO_SNDTIMEO_NEW
)
# A futex with priority inheritance holds the number of a thread, and the kernel tells whether there
# is such a one. FUTEX_LOCK_PI, UNLOCK_PI, TRYLOCK_PI, WAIT_REQUEUE_PI, CMP_REQUEUE_PI, LOCK_PI2.
_FUTEX_PI = (6, 7, 8, 11, 12, 13)
_FUTEX_COMMAND = 0x7F
_MSG_OOB = 1
# Clocks that are negative as an int are about a process of some number.
_NO_CLOCK = Check(0, (0,), ALLOW, errno_rule(errno.EINVAL), mask=0x8000_0000)

# Unix, IPv4, IPv6 and netlink, which tells a resolver which addresses this machine has.
_FAMILIES = (1, 2, 10, 16)
# A datagram socket, even one of a pair, can send to any address; one for streams (1) or sequenced
# packets (5) to its peer only. (The kernel takes raw ones for datagram sockets.)
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
    """Tell the rule of every call in *names*, whatever number it has.

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
    # Both filters see every call, and the stricter answer counts.
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
    # Their arguments lie in memory, where a filter can't look. Who uses them does without.
    found.update(clone3=UNKNOWN, openat2=UNKNOWN)
    return {name: found[name] for name in names}


def _for_files(*, truncate: bool, writes: bool) -> dict[str, Rule]:
    """Tell the rules of calls about files."""
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
        # By a file that is open for reading these have written out, and wait for, what others have
        # written to it.
        found.update(dict.fromkeys(_WRITING_OUT, _DENY))
        found["msync"] = Check(2, (0,), ALLOW, _DENY, mask=_MS_SYNC)
    return found


def _ioctl_without_network(*, writes: bool) -> Check:
    if not writes:
        return Check(1, _IOCTL_LISTED, ALLOW, _DENY)
    of_sockets = Check(1, _TYPES_OF_SOCKETS, _DENY, ALLOW, mask=_TYPE_OF_IOCTL)
    return Check(1, _IOCTL, _DENY, of_sockets)


def _checks(*, strict: bool, subprocesses: bool, network: bool) -> dict[str, Rule]:
    """Tell the rules of those calls that are allowed under conditions."""
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
        # The first argument tells whether the second is about a process, a group or a user.
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
        # Nobody is there to share memory with.
        unnamed = Check(3, (_MAP_UNNAMED,), _DENY, ALLOW, mask=_MAP_UNNAMED)
        found["mmap"] = Check(3, (0,), unnamed, _DENY, mask=_MAP_HUGETLB)
        found.update(dict.fromkeys(_ABOUT_A_PID, _own(0)))
        # A C library that asks about a thread goes on if there is no such call.
        found["sched_getaffinity"] = _own(0)._replace(otherwise=UNKNOWN)
        found["futex"] = Check(1, _FUTEX_PI, UNKNOWN, ALLOW, mask=_FUTEX_COMMAND)
        # The pid lies in memory, where a filter can't look.
        found["capget"] = _DENY
        found.update(dict.fromkeys(_SIGNALS, _own(0)))
        # Into somebody else's group it could signal all of that by pid 0.
        found["setpgid"] = _own(1)
    if network:
        found["socket"] = Check(0, _FAMILIES, ALLOW, _NO_FAMILY)
    else:
        found.update(dict.fromkeys(_NETWORK, _NO_NETWORK))
        # Into a pair of sockets it moves pages, not bytes: a few bytes keep whole (huge) pages
        # of a file, also after that has been cut off. Programs fall back to read and write.
        found["sendfile"] = _DENY
        found["getsockopt"] = Check(
            1, (_SOL_SOCKET,), Check(2, _GETSOCKOPT_WITHOUT, ALLOW, _DENY), ALLOW
        )
        found["setsockopt"] = Check(
            1, (_SOL_SOCKET,), Check(2, _SETSOCKOPT_WITHOUT, ALLOW, _SNDBUF), ALLOW
        )
        # Out-of-band data wakes who reads and is not there to be read.
        found["sendto"] = found["sendmmsg"] = Check(3, (0,), ALLOW, _DENY, mask=_MSG_OOB)
        found["sendmsg"] = Check(2, (0,), ALLOW, _DENY, mask=_MSG_OOB)
    return found
