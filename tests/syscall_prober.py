"""Makes system calls whose arguments are no good, and tells how each fails.

python -m tests.syscall_prober      one object: what was called, and the errno (0: none)

What a filter refuses fails otherwise than what the kernel refuses: two filters that agree in all of
them are the same as far as this goes. Nothing is changed, whoever runs it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from tests.internals import NUMBERS, syscalls

_NEWUSER, _NEWNS, _FS = 0x10000000, 0x00020000, 0x200
_BAD = -1 & 0xFFFFFFFF

# Calls, with arguments that the kernel refuses, or that change nothing.
_CALLS: list[tuple[str, tuple[int, ...]]] = [
    ("unshare", (0,)),
    ("unshare", (0x00000001,)),
    ("unshare", (_NEWUSER | 0x1,)),
    ("clone", (_FS | _NEWNS, 0, 0, 0, 0)),  # both together make no sense
    ("clone", (_FS | _NEWUSER, 0, 0, 0, 0)),
    ("clone3", (0, 0)),
    ("setns", (-1, 0)),
    ("mount", (0, 0, 0, 0, 0)),
    ("umount2", (0, 0)),
    ("pivot_root", (0, 0)),
    ("chroot", (0,)),
    ("fsopen", (0, 0)),
    ("fsconfig", (-1, 0, 0, 0, 0)),
    ("fsmount", (-1, 0, 0)),
    ("fspick", (-1, 0, 0)),
    ("open_tree", (-1, 0, 0)),
    ("move_mount", (-1, 0, -1, 0, 0)),
    ("mount_setattr", (-1, 0, 0, 0, 0)),
    ("statmount", (0, 0, 0, 0)),
    ("listmount", (0, 0, 0, 0)),
    ("quotactl", (-1, 0, 0, 0)),
    ("quotactl_fd", (-1, 0, 0, 0)),
    ("keyctl", (-1, 0, 0, 0, 0)),
    ("add_key", (0, 0, 0, 0, 0)),
    ("request_key", (0, 0, 0, 0)),
    ("bpf", (-1, 0, 0)),
    ("perf_event_open", (0, 0, 0, -1, 0)),
    ("userfaultfd", (-1,)),
    ("io_uring_setup", (0, 0)),
    ("io_uring_enter", (-1, 0, 0, 0, 0, 0)),
    ("io_uring_register", (-1, 0, 0, 0)),
    ("io_setup", (0, 0)),
    ("ptrace", (-1, -1, 0, 0)),
    ("process_vm_readv", (-1, 0, 0, 0, 0, 0)),
    ("process_vm_writev", (-1, 0, 0, 0, 0, 0)),
    ("process_madvise", (-1, 0, 0, 0, 0)),
    ("process_mrelease", (-1, 0)),
    ("kcmp", (-1, -1, -1, 0, 0)),
    ("pidfd_open", (-1, 0)),
    ("pidfd_getfd", (-1, -1, 0)),
    ("pidfd_send_signal", (-1, 0, 0, 0)),
    ("kill", (-1 & 0x3FFFFFFF, 0)),
    ("personality", (_BAD,)),
    ("personality", (0,)),
    ("personality", (8,)),
    ("personality", (0x20000,)),
    ("personality", (0x20008,)),
    ("personality", (0x0400000,)),
    ("personality", (0,)),
    ("socket", (1, 99, 0)),
    ("socket", (16, 99, 0)),
    ("socket", (37, 99, 0)),
    ("socket", (38, 99, 0)),
    ("socket", (39, 99, 0)),
    ("socket", (40, 99, 0)),
    ("socket", (41, 99, 0)),
    ("socket", (44, 99, 0)),
    ("socket", (_BAD, 99, 0)),
    ("open_by_handle_at", (-1, 0, 0)),
    ("name_to_handle_at", (-1, 0, 0, 0, 0)),
    ("fanotify_init", (-1, 0)),
    ("fanotify_mark", (-1, 0, 0, 0, 0)),
    ("lookup_dcookie", (0, 0, 0)),
    ("syslog", (-1, 0, 0)),
    ("swapon", (0, 0)),
    ("swapoff", (0,)),
    ("reboot", (0, 0, 0, 0)),
    ("init_module", (0, 0, 0)),
    ("finit_module", (-1, 0, 0)),
    ("delete_module", (0, 0)),
    ("kexec_load", (0, -1, 0, -1)),
    ("clock_settime", (-1, 0)),
    ("clock_adjtime", (-1, 0)),
    ("sethostname", (0, -1)),
    ("setdomainname", (0, -1)),
    ("ioperm", (-1, -1, 1)),
    ("iopl", (9,)),
    ("mbind", (1, 1, -1, 0, 0, -1)),
    ("get_mempolicy", (0, 0, 0, 0, -1)),
    ("set_mempolicy", (-1, 0, 0)),
    ("set_mempolicy_home_node", (1, 1, 0, -1)),
    ("move_pages", (0, 0, 0, 0, 0, -1)),
    ("migrate_pages", (-1, 0, 0, 0)),
    ("modify_ldt", (-1, 0, 0)),
    ("landlock_create_ruleset", (0, 0, 1)),
    ("landlock_add_rule", (-1, 0, 0, 0)),
    ("landlock_restrict_self", (-1, 0)),
    ("seccomp", (_BAD, 0, 0)),
    ("memfd_create", (0, 0)),
    ("memfd_secret", (_BAD,)),
    ("close_range", (1, 0, 0)),
    ("openat2", (-1, 0, 0, 0)),
    ("faccessat2", (-1, 0, 0, 0)),
    ("futex_waitv", (0, 0, _BAD, 0, 0)),
    ("cachestat", (-1, 0, 0, 0)),
    ("fchmodat2", (-1, 0, 0, 0)),
    ("map_shadow_stack", (0, 0, _BAD)),
    ("futex_wake", (0, 0, 0, _BAD)),
    ("futex_wait", (0, 0, 0, _BAD, 0, 0)),
    ("futex_requeue", (0, _BAD, 0, 0)),
    ("lsm_get_self_attr", (0, 0, 0, _BAD)),
    ("lsm_set_self_attr", (0, 0, 0, _BAD)),
    ("lsm_list_modules", (0, 0, _BAD)),
    ("mseal", (1, 1, 1)),
    ("setxattrat", (-1, 0, 0, 0, 0, 0)),
    ("getxattrat", (-1, 0, 0, 0, 0, 0)),
    ("listxattrat", (-1, 0, 0, 0, 0)),
    ("removexattrat", (-1, 0, 0, 0)),
    ("open_tree_attr", (-1, 0, 0, 0, 0)),
    ("file_getattr", (-1, 0, 0, 0, 0)),
    ("file_setattr", (-1, 0, 0, 0, 0)),
    ("vmsplice", (-1, 0, 0, 0)),
    ("splice", (-1, 0, -1, 0, 0, 0)),
    ("tee", (-1, -1, 0, 0)),
    ("shmget", (0, -1, 0)),
    ("mq_open", (0, 0, 0, 0)),
    ("nfsservctl", (0, 0, 0)),
    ("uselib", (0,)),
    ("ustat", (0, 0)),
    ("sysfs", (99, 0, 0)),
]


def probe() -> Iterator[tuple[str, int]]:
    numbers = NUMBERS[syscalls.machine() or ""]
    for name, arguments in _CALLS:
        if name in numbers:
            yield f"{name}{arguments}", _errno(numbers[name], arguments)
    for number in (500, 600, 1000):  # nobody knows them
        yield f"number {number}", _errno(number, ())


def _errno(number: int, arguments: tuple[int, ...]) -> int:
    try:
        syscalls.syscall(number, *arguments)
    except OSError as exc:
        return exc.errno or 0
    return 0


if __name__ == "__main__":
    json.dump(dict(probe()), sys.stdout)
