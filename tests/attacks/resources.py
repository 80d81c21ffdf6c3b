"""Attacks on time and space. Each has bounds of its own, for when nothing else stops it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import resource
import signal
import threading
import time

from .processes import leave_behind_by_clone
from .scene import Attack, Scene
from .system import call, libc

__all__ = ["ATTACKS", "MOST"]

_FORKS = 40
_TIMERS = 500
MOST = 1 << 30
_STEP = 32 << 20
_FAILED = ctypes.c_void_p(-1).value  # MAP_FAILED
_PAGE = 4096
_stacks: list[ctypes.Array] = []


def fork_bomb():
    """Fork forty processes that live at the same time; they end with this one."""
    read, write = os.pipe()
    children = []
    try:
        for _ in range(_FORKS):
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(write)
                    signal.alarm(10)
                    os.read(read, 1)
                finally:
                    os._exit(0)
            children.append(pid)
    finally:
        os.close(write)
        for pid in children:
            os.waitpid(pid, 0)
    return len(children)


def start_threads():
    gate = threading.Event()
    threads = []
    try:
        for _ in range(_FORKS):
            thread = threading.Thread(target=gate.wait, args=(5,))
            thread.start()
            threads.append(thread)
    finally:
        gate.set()
        for thread in threads:
            thread.join()
    return len(threads)


def open_many():
    # Where the soft limit is low, as 1024 is in most places, anybody may raise it.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    fds = [os.open("/dev/null", os.O_RDONLY)]
    try:
        while len(fds) < 2000:
            fds.append(os.dup(fds[0]))
        return len(fds)
    finally:
        for fd in fds:
            os.close(fd)


def open_many_in_threads():
    """Open in each thread as many as the process may, in a table of its own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(hard, 256)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    gate = threading.Barrier(4)
    counts, errors = [], []

    def fill():
        fds = []
        try:
            call("close_range", 1 << 20, 1 << 20, 2)  # CLOSE_RANGE_UNSHARE
            while len(fds) < most // 2:
                fds.append(os.dup(0))
        except OSError as exc:
            errors.append(exc)
        counts.append(len(fds))
        with contextlib.suppress(threading.BrokenBarrierError):
            gate.wait(5)
        for fd in fds:
            os.close(fd)

    threads = [threading.Thread(target=fill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(counts) - most


def start_thread_with_own_descriptors():
    """Start a thread that shares memory and handlers, but not descriptors."""
    code = ctypes.cast(libc.getpid, ctypes.c_void_p)  # all that it does
    stack = ctypes.create_string_buffer(1 << 16)
    _stacks.append(stack)
    top = (ctypes.addressof(stack) + len(stack)) & ~63
    libc.clone.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    # CLONE_VM, CLONE_FS, CLONE_SIGHAND, CLONE_THREAD
    found = libc.clone(code, top, 0x100 | 0x200 | 0x800 | 0x10000, None)
    if found < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    time.sleep(0.1)  # it has ended by then
    return found


def _raise_limit(which):
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (hard, hard))


def open_beyond_the_limit(promised):
    """Use what room there is above the limit that is felt."""
    fds = []
    _raise_limit(resource.RLIMIT_NOFILE)
    try:
        while len(fds) <= promised:
            fds.append(os.dup(0))
    except OSError:
        pass
    for fd in fds:
        os.close(fd)
    return len(fds)


def map_beyond_the_limit(promised):
    areas = []
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    _raise_limit(resource.RLIMIT_AS)
    try:
        while len(areas) << 20 <= promised:
            areas.append(mmap.mmap(-1, 1 << 20, flags))
    except (OSError, MemoryError):
        pass
    count = len(areas)
    for area in areas:
        area.close()
    return count << 20


def make_timers():
    """Take of a user's one budget of signals that wait, RLIMIT_SIGPENDING."""
    timer = (ctypes.c_int * 1)()
    for count in range(_TIMERS):  # noqa: B007 - told after it
        call("timer_create", 1, None, ctypes.addressof(timer))
    return count + 1


def enlarge_a_pipe():
    """Take of a user's one budget of large pipes."""
    read, _write = os.pipe()
    return fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, 1 << 17)


def take_memory(most):
    kept = []
    while len(kept) * _STEP < most:
        piece = bytearray(_STEP)
        piece[::_PAGE] = b"x" * len(piece[::_PAGE])
        kept.append(piece)
    return len(kept) * _STEP


def take_memory_by_forks(most):
    """Take a little in each of eight processes at the same time."""
    gate, opened = os.pipe()
    children = []
    reports, report = os.pipe()
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(opened)
                signal.alarm(10)
                take_memory(most // 8)
                os.write(report, b"x")
                os.read(gate, 1)
            finally:
                os._exit(0)
        children.append(pid)
    os.close(report)
    told = 0
    while told < len(children) and os.read(reports, 1):
        told += 1
    os.close(opened)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if told < len(children):
        raise MemoryError(f"{told} of {len(children)}: {codes}")
    return told * (most // 8)


def take_memory_by_memfd(most):
    fd = os.memfd_create("attack")
    piece = b"x" * _STEP
    for at in range(0, most, _STEP):
        if os.pwrite(fd, piece, at) != len(piece):
            raise MemoryError("memfd")
    return os.fstat(fd).st_blocks * 512


def take_memory_by_many_memfds(most):
    """Take a little in each of many files, for a limit on a file's size is none on their sum."""
    piece = b"x" * (512 << 10)
    fds = []
    for _ in range(most // len(piece) // 4):
        fds.append(os.memfd_create("attack"))
        if os.write(fds[-1], piece) != len(piece):
            raise MemoryError("memfd")
    return sum(os.fstat(fd).st_blocks * 512 for fd in fds)


def take_memory_shared(most):
    area = mmap.mmap(-1, most, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    for at in range(0, most, _PAGE):
        area[at] = 1
    return most


def keep_what_is_not_mapped(size, times):
    """Unmap all but a page of shared memory, which stays, and look whether it has."""
    libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
    whole, page = ctypes.c_size_t(size), ctypes.c_size_t(_PAGE)
    starts = []
    for _ in range(times):
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
        start = libc.mmap(None, whole, 3, flags, -1, ctypes.c_long(0))
        if start == _FAILED:
            raise OSError(ctypes.get_errno(), "mmap")
        for at in range(0, size, _PAGE):
            ctypes.memset(start + at, 1, 1)
        libc.munmap(ctypes.c_void_p(start + _PAGE), ctypes.c_size_t(size - _PAGE))
        starts.append(start)
    kept = 0
    for start in starts:
        grown = libc.mremap(ctypes.c_void_p(start), page, whole, 1)  # MREMAP_MAYMOVE
        kept += sum(ctypes.string_at(grown + at, 1) == b"\1" for at in range(0, size, _PAGE))
        libc.munmap(ctypes.c_void_p(grown), whole)
    return kept * _PAGE


def take_memory_of_pipes(most):
    """Have the kernel keep what nobody reads: no limit on a process's memory counts that."""
    kept = 0
    piece = b"x" * (1 << 20)
    fds = []
    while kept < most:
        read, write = os.pipe()
        fds += read, write
        libc.fcntl(write, 1031, 1 << 20)
        os.set_blocking(write, False)
        kept += os.write(write, piece)
    return kept


def leave_shared_memory(size):
    """Make a segment that stays when all its users are gone."""
    return call("shmget", 0, size, 0o1600)


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return True


def burn_regardless(seconds):
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    return burn(seconds)


def burn_in_turns(seconds, turns):
    """Have each of several processes burn less than it may."""
    for _ in range(turns):
        pid = os.fork()
        if pid == 0:
            try:
                burn(seconds)
            finally:
                os._exit(0)
        if os.waitpid(pid, 0)[1]:
            raise TimeoutError("a child was stopped")
    return True


def ignore_everything():
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if number < 32 or number > 34:
            signal.signal(number, signal.SIG_IGN)
    time.sleep(60)
    return True


def block_everything():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(60)
    return True


def stop_oneself():
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)
    return True


def sleep():
    time.sleep(60)
    return True


def leave_group_and_sleep():
    """Be in no group or session that anybody knows of, and have a child that is not, either."""
    if os.fork() == 0:
        os.setsid()
        signal.alarm(3)
        time.sleep(60)
    time.sleep(60)
    return True


def leave_behind(line):
    """Leave a process in a session of its own, which nobody has for a child."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            libc.prctl(1, 0, 0, 0, 0)
            if os.fork() == 0:
                signal.alarm(8)
                os.read(line, 1)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return True


def leave_behind_and_write(line, path):
    """Leave a process that does something when the call is long over."""
    told, tell = os.pipe()
    if os.fork() == 0:
        try:
            os.setsid()
            signal.alarm(8)
            os.write(tell, b"x")
            time.sleep(0.3)
            with open(path, "w") as file:
                file.write("I was here")
            os.read(line, 1)
        finally:
            os._exit(0)
    os.close(tell)
    os.read(told, 1)
    return True


def leave_behind_and_crash(line):
    leave_behind(line)
    os.abort()


def leave_behind_and_hang(line):
    leave_behind(line)
    time.sleep(60)


def crash():
    ctypes.string_at(8)


def abort():
    os.abort()


def leave():
    os._exit(0)


_most = lambda scene: (MOST,)
_all = lambda result, scene: isinstance(result, int) and result >= MOST


def _with_line(scene: Scene):
    if "line" not in scene.notes:
        scene.notes["fd"] = scene.line()
    return {"pass_fds": [scene.notes["fd"]]}


def _arrange_line(scene: Scene):
    _with_line(scene)
    return (scene.notes["fd"],)


def _arrange_writer(scene: Scene):
    return *_arrange_line(scene), scene.path("trace")


def _wrote(result, scene):
    time.sleep(0.5)
    found = os.path.exists(scene.path("trace"))
    return scene.held() or found


def _segment_left(result, scene):
    """Tell whether the segment is there for this process; and remove it."""
    try:
        call("shmctl", result, 0, None)
    except (OSError, TypeError):
        return False
    return True


def _resource(name, run, *more, **rest):
    return Attack(name, "resources", run, *more, **rest)


_held = lambda result, scene: scene.held()
_held_up = lambda result, scene: scene.wall > 6
_memory = {"limits": {"memory": 256 << 20}, "expect": "MEMORY_LIMIT|memory|denied"}
_cpu = {"limits": {"cpu_time": 1}, "expect": "CPU_LIMIT"}
_patience = {"timeout": 1.0, "off": "TIMEOUT", "expect": "TIMEOUT"}

ATTACKS = [
    _resource("fork-bomb", fork_bomb, succeeded=lambda result, scene: result == _FORKS,
              limits={"processes": 16}),
    _resource("thread-bomb", start_threads, succeeded=lambda result, scene: result == _FORKS,
              limits={"processes": 16}, expect="threads|denied"),
    _resource("descriptor-bomb", open_many, succeeded=lambda result, scene: result == 2000,
              limits={"open_files": 256}),
    _resource("descriptors-of-threads", open_many_in_threads,
              succeeded=lambda result, scene: isinstance(result, int) and result > 0,
              limits={"open_files": 256}),
    _resource("thread-with-own-descriptors", start_thread_with_own_descriptors),
    _resource("descriptors-beyond-the-limit", open_beyond_the_limit, lambda scene: (16,),
              lambda result, scene: result > 16, limits={"open_files": 16}, expect="value"),
    _resource("memory-beyond-the-limit", map_beyond_the_limit, lambda scene: (64 << 20,),
              lambda result, scene: result > 64 << 20, limits={"memory": 64 << 20},
              expect="value"),
    _resource("timers", make_timers, succeeded=lambda result, scene: result == _TIMERS),
    _resource("enlarge-a-pipe", enlarge_a_pipe),
    _resource("memory-bomb", take_memory, _most, _all, **_memory),
    _resource("memory-by-forks", take_memory_by_forks, _most, _all, **_memory),
    _resource("memory-by-memfd", take_memory_by_memfd, _most, _all, **_memory),
    _resource("memory-by-many-memfds", take_memory_by_many_memfds, _most,
              lambda result, scene: isinstance(result, int) and result >= MOST // 4,
              limits={"memory": 64 << 20, "file_size": 1 << 20},
              expect="MEMORY_LIMIT|memory|denied"),
    _resource("memory-shared", take_memory_shared, _most, _all, **_memory),
    _resource("memory-not-mapped", keep_what_is_not_mapped, lambda scene: (40 << 20, 4),
              lambda result, scene: isinstance(result, int) and result >= 128 << 20,
              limits={"memory": 64 << 20}),
    _resource("memory-of-pipes", take_memory_of_pipes, lambda scene: (128 << 20,),
              lambda result, scene: isinstance(result, int) and result >= 128 << 20,
              limits={"memory": 64 << 20}, expect="MEMORY_LIMIT|memory|denied"),
    _resource("sysv-shm", leave_shared_memory, lambda scene: (1 << 20,), _segment_left,
              expect="value|denied"),
    _resource("busy-loop", burn, lambda scene: (1.5,), **_cpu),
    _resource("busy-ignoring-sigxcpu", burn_regardless, lambda scene: (2.5,), **_cpu),
    _resource("busy-in-turns", burn_in_turns, lambda scene: (0.4, 4),
              limits={"cpu_time": 1}, expect="CPU_LIMIT|denied"),
    _resource("ignore-signals", ignore_everything, options=lambda scene: {"grace": 0.2},
              **_patience),
    _resource("block-signals", block_everything, options=lambda scene: {"grace": 0.2},
              **_patience),
    _resource("stop-oneself", stop_oneself, **_patience),
    _resource("sleep", sleep, **_patience),
    _resource("leave-group", leave_group_and_sleep, **(_patience | {"expect": "TIMEOUT|denied"})),
    _resource("daemon", leave_behind, _arrange_line, _held,
              options=_with_line, expect="value|denied"),
    _resource("daemon-writes", leave_behind_and_write, _arrange_writer, _wrote,
              options=_with_line, expect="value|denied"),
    _resource("daemon-and-crash", leave_behind_and_crash, _arrange_line, _held,
              options=_with_line, expect="SIGNAL|denied"),
    _resource("daemon-and-hang", leave_behind_and_hang, _arrange_line, _held,
              options=_with_line, expect="TIMEOUT|denied", timeout=1.0),
    _resource("daemon-by-clone", leave_behind_by_clone, _arrange_line, _held,
              options=_with_line, expect="value|denied"),
    _resource("daemon-holds-channel", leave_behind, _arrange_line, _held_up,
              options=_with_line, off="value", expect="value|denied"),
    _resource("segfault", crash, off="SIGNAL", expect="SIGNAL"),
    _resource("abort", abort, off="SIGNAL", expect="SIGNAL"),
    _resource("leave", leave, off="NO_RESULT", expect="NO_RESULT"),
]  # fmt: skip
