"""Functions for children that use multiprocessing; importable by whatever that starts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from multiprocessing import shared_memory

from aioisolate import report_progress


def square(number):
    return number * number, os.getpid(), os.getppid()


def use_pool(method=None):
    """Use a pool and locks; return its results, who computed them, and how it was started."""
    # The queue has a thread by the time the pool forks; and a copy has pytest's filters.
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)
    context = multiprocessing.get_context(method)
    lock, queue = context.Lock(), context.Queue()
    queue.put(3)
    with lock, context.Pool(2) as pool:
        found = pool.map(square, range(queue.get()))
    pids = {pid for _, *pids in found for pid in pids} - {os.getpid()}
    return [number for number, *_ in found], sorted(pids), context.get_start_method()


held = []


def hold_lock(method):
    """Make a lock that nobody lets go; return the name of its semaphore."""
    held.append(multiprocessing.get_context(method).Lock())
    return held[0]._semlock.name


def hold_lock_and_fail(method):
    raise LookupError(hold_lock(method))


def leave_process(report=None):
    """Leave a process behind that would run for long; return its pid."""
    process = multiprocessing.Process(target=time.sleep, args=(300,))
    process.start()
    if report is not None:
        report(process.pid)
        time.sleep(300)
    return process.pid


def share(how):
    """Make shared memory and a semaphore, tell their names, and come to an end some way."""
    memory = shared_memory.SharedMemory(create=True, size=1 << 20)
    lock = multiprocessing.get_context("spawn").Lock()
    held.append((memory, lock))
    # A process that has the other end of the tracker's pipe, too.
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,), daemon=True).start()
    names = [memory.name.lstrip("/"), "sem." + lock._semlock.name.lstrip("/")]
    report_progress(1, 1, " ".join(names))
    match how:
        case "raises":
            raise LookupError(names)
        case "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exits":
            os._exit(3)
        case "hangs":
            time.sleep(300)
    return names


def pose_as_tracker():
    """Leave a process that looks like a tracker, and never ends; fail."""
    claim = "import time; time.sleep(300)  # resource_tracker import main"
    process = subprocess.Popen([sys.executable, "-S", "-c", claim])
    report_progress(process.pid)
    os._exit(3)


def attach(name, how):
    """Write to shared memory of somebody else's, and come to an end some way."""
    memory = shared_memory.SharedMemory(name)
    memory.buf[:1] = b"1"
    match how:
        case "hangs":
            time.sleep(300)
        case "unlinks":
            memory.unlink()
    memory.close()


def spread(names):
    """Have a tracker, leave processes that fork and end all the time, and wait."""
    memory = shared_memory.SharedMemory(create=True, size=16)
    memory.close()
    until = time.monotonic() + 15
    for _ in range(names):
        if os.fork() == 0:
            while time.monotonic() < until:
                if os.fork():
                    os._exit(0)
            os._exit(0)
    time.sleep(300)


_FORK_ON = """
import os, sys, time
os.write(int(sys.argv[1]), b"1")
os.close(int(sys.argv[1]))
until = time.monotonic() + 60
while time.monotonic() < until:
    if os.fork():
        os._exit(0)
    time.sleep(0.002)  # resource_tracker import main
"""


def fork_on(line, poses):
    """Leave a process that forks another one and ends, and so on, beside what looks like a tracker.

    *line* is a descriptor that all of them have. *poses*: they look like one themselves.
    """
    claim = "import time; time.sleep(300)  # resource_tracker import main"
    command = [sys.executable, "-S", "-c"]
    # A comment is on the command line, too.
    source = _FORK_ON.replace("0.002", "0.1") if poses else _FORK_ON.replace("resource_tracker", "")
    begun, begins = os.pipe()
    subprocess.Popen([*command, source, str(begins)], pass_fds=[line, begins])
    if not poses:
        subprocess.Popen([*command, claim])
    os.read(begun, 1)
    os._exit(3)
