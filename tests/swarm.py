"""Functions for children that use multiprocessing; importable by whatever that starts."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings


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
