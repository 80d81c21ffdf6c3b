"""Functions that leave something unfinished; importable by fork servers, and without pytest."""

from __future__ import annotations

import atexit
import concurrent.futures
import multiprocessing
import multiprocessing.util
import os
import signal
import tempfile
import threading
import time
import weakref

from aioisolate import report_progress


class Thing:
    pass


_pid = os.getpid()
left = []
kept = Thing()


def never(what="exit function"):
    if os.getpid() != _pid:
        print(f"{what} of a preloaded module")


# What is registered by an import belongs to the process that imports.
atexit.register(never)
weakref.finalize(kept, never, "finalizer")
multiprocessing.util.Finalize(None, never, ("finalizer of multiprocessing",), exitpriority=1)


def fail(path):
    file = open(path, "w")
    file.write("written")
    raise LookupError(path)


def fail_with_a_cycle(path):
    file = open(path, "w")
    file.write("written")
    try:
        raise LookupError(path)
    except LookupError as error:
        again = error
        raise again from None


def leave_everything(directory):
    """Leave something of every kind, which prints when it comes to its end."""
    atexit.register(print, "exit function", 1)
    atexit.register(lambda: 1 / 0)
    atexit.register(print, "exit function", 2)
    weakref.finalize(kept, print, "finalizer")
    multiprocessing.util.Finalize(None, print, ("finalizer of multiprocessing",), exitpriority=1)
    left.append(tempfile.TemporaryDirectory(dir=directory))
    threading.Thread(target=lambda: (time.sleep(0.05), print("thread"))).start()
    multiprocessing.get_context("fork").Process(target=print, args=("process",)).start()
    return "value"


def leave_and_fail(directory):
    raise LookupError(leave_everything(directory))


def leave_thread(name, seconds=60.0, daemon=False):
    threading.Thread(target=time.sleep, args=(seconds,), name=name, daemon=daemon).start()
    return os.getpid()


def leave_process(name):
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), name=name).start()
    return os.getpid()


def leave_pools():
    """Leave pools whose threads and processes wait for work."""
    threads = concurrent.futures.ThreadPoolExecutor(1)
    pool = multiprocessing.get_context("fork").Pool(1)
    left.extend((threads, pool))
    return [threads.submit(abs, -1).result(), pool.apply(abs, (-2,))]


def leave_exit_function(name):
    functions = {
        "hangs": lambda: time.sleep(60),
        "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "exits": lambda: os._exit(3),
        "raises": lambda: exec("raise SystemExit(3)"),
    }
    atexit.register(print, "first", name)
    atexit.register(functions[name])
    return name


def report_on():
    """Leave a thread that reports more than a pipe holds."""

    def work():
        for number in range(300):
            report_progress(number, 300, "x" * 2000)

    threading.Thread(target=work).start()
    return "value"


def count():
    atexit.register(print, "exit function")
    yield 1
    yield 2


async def wait():
    atexit.register(print, "exit function")
    return "value"


class Odd:
    """Stands for a module that somebody has replaced."""


def replace_modules():
    import sys

    sys.modules["weakref"] = Odd
    atexit.register(print, "exit function")
    return "value"


def write_late(path):
    """Leave a thread that leaves an exit function, which writes a file."""

    def work():
        time.sleep(0.05)
        atexit.register(lambda: path.write_text("written"))

    threading.Thread(target=work).start()


def leave_print():
    atexit.register(print, "ran")


class Joiner(threading.Thread):
    def join(self):  # as many have it that return something
        raise AssertionError


def leave_joiner():
    atexit.register(print, "exit function")
    Joiner(target=lambda: (time.sleep(0.05), print("thread"))).start()
    return "value"


def leave_threading_exit():
    threading._register_atexit(print, "fn's")
    threading.Thread(target=time.sleep, args=(0.05,)).start()


def leave_fork():
    def fork():
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)

    atexit.register(print, "ended")
    atexit.register(fork)


def close_all():
    atexit.register(print, "ended")
    os.closerange(3, 1000)
