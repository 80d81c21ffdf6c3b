"""What children try under limits and in sandboxes; imported by them, so nothing heavy here."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from tests import internals

MiB = 1 << 20


def double(x):
    return 2 * x


def code_of(act, *args):
    """Do it; return 0, the errno of what it raises, or the exception's name."""
    try:
        act(*args)
    except OSError as exc:
        return exc.errno
    except BaseException as exc:
        return type(exc).__name__
    return 0


# Memory


def allocate(size):
    return len(bytearray(size))


def allocate_numpy(size):
    import numpy as np

    return int(np.ones(size, dtype=np.uint8).sum())


def map_memory(size):
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        return len(area)


def return_memory(size):
    return bytearray(size)


def catch_and_go_on(size):
    """Notice that there is no memory, and do without, as good code does."""
    try:
        bytearray(size)
    except MemoryError:
        return "did without"


def fill_up_and_raise():
    held = []
    size = 16 * MiB
    while size > 1:
        try:
            held.append(bytearray(size))
        except MemoryError:
            size //= 2
    raise ValueError("full")


def many_small():
    held = []
    while True:
        held.append([None] * 100)


def leave_somebody():
    """Leave a process behind that is in no group or session of ours, and give its number."""
    if pid := os.fork():
        return pid
    os.setsid()
    time.sleep(60)
    os._exit(0)


def touch_in_forks(size, count):
    """Have children use memory that none of them alone may not have."""
    # Had before there is any want, so that all of it is in touching: a system call at the limit
    # may fail instead, and then nobody is killed.
    held = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    offsets = range(0, size, mmap.PAGESIZE)
    for _ in range(count):
        if not os.fork():
            for offset in offsets:
                held[offset] = 120
            time.sleep(60)
            os._exit(0)
    while (end := os.waitstatus_to_exitcode(os.wait()[1])) >= 0:
        pass
    # Whoever depends on a child that the kernel has killed goes with it.
    os.kill(os.getpid(), -end)
    time.sleep(60)


def import_all(names):
    """Import each; tell what was in the way, by name."""
    import importlib
    import warnings

    warnings.simplefilter("ignore")
    found = {}
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException as exc:
            found[name] = f"{type(exc).__name__}: {exc}"
        else:
            found[name] = None
    return found


# CPU time


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return "done"


def ignore_and_spin():
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    spin(60)


def sleep(seconds):
    time.sleep(seconds)
    return "slept"


# Descriptors, files, processes


def open_more(count):
    """Open so many; return how many it were when it was refused, and how."""
    opened = []
    try:
        for _ in range(count):
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as exc:
        return [len(opened), exc.errno]
    finally:
        for fd in opened:
            os.close(fd)
    return [len(opened), 0]


def open_more_beside(something, count):
    return open_more(count)


class OpensAFile:
    """It opens one when it is unpickled."""

    def __reduce__(self):
        return open, ("/dev/null",)


_kept = []


def open_for_good():
    """Open until it is refused, and close none."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    while True:
        _kept.append(os.open("/dev/null", os.O_RDONLY))


def open_all_for_good():
    """Use up the descriptors, whatever the limit on them is, and raise."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        while True:
            _kept.append(os.dup(0))
    except OSError:
        raise ValueError("no more descriptors") from None


def keep_all_memory():
    """Use up the memory for good, but for what the answer is made in."""
    size = MiB
    while size > 64:
        try:
            _kept.append(bytearray(size))
        except MemoryError:
            size //= 2
    return "kept"


def write_file(path, size):
    with open(path, "wb", buffering=0) as file:
        written = 0
        while written < size:
            written += file.write(b"x" * min(size - written, 1 << 16))
    return written


def write_memory_file(size):
    fd = os.memfd_create("more")
    try:
        return os.ftruncate(fd, size)
    finally:
        os.close(fd)


def count_forks(count):
    """Fork so often; return how many it were when it was refused, and the errno."""
    pids = []
    try:
        for _ in range(count):
            pid = os.fork()
            if not pid:
                time.sleep(60)
                os._exit(0)
            pids.append(pid)
    except OSError as exc:
        return [len(pids), exc.errno]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return [len(pids), 0]


def count_threads(count):
    done = threading.Event()
    started = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=done.wait)
            thread.start()
            started.append(thread)
    except RuntimeError:
        pass
    finally:
        done.set()
        for thread in started:
            thread.join()
    return len(started)


def limit_of(name):
    return list(resource.getrlimit(getattr(resource, name)))


# Results and output


def text(size):
    return "x" * size


def zeros(size):
    import numpy as np

    return np.zeros(size, dtype=np.uint8)


def raise_text(size):
    raise ValueError("x" * size)


def texts(sizes):
    for size in sizes:
        yield "x" * size


def numbers(count):
    yield from range(count)


async def slow_numbers(count):
    import anyio

    for number in range(count):
        await anyio.sleep(0.001)
        yield number


async def slow_double(x):
    import anyio

    await anyio.sleep(0.001)
    return 2 * x


def write_out(out, err):
    os.write(1, b"o" * out)
    os.write(2, b"e" * err)
    return "written"


def write_for_ever():
    while True:
        os.write(1, b"y\n" * 512)


def report(count):
    from aioisolate import report_progress

    for number in range(count):
        report_progress(number, count, "on its way")
    return count


# Crashes and ends


def crash():
    os.abort()


def crash_by(number):
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    time.sleep(60)


def raise_signal(number):
    signal.raise_signal(number)
    time.sleep(60)


def leave(code):
    os._exit(code)


def leave_politely(code):
    sys.exit(code)


def raise_value(message):
    raise ValueError(message)


def touch(path):
    with open(path, "w") as file:
        file.write("called")


def on_term(path):
    """End at SIGTERM, and leave a note."""

    def note(number, frame):
        touch(path)
        os._exit(3)

    signal.signal(signal.SIGTERM, note)
    time.sleep(60)


# Sandboxes


def who():
    return [os.getuid(), os.geteuid(), os.getgid(), list(os.getgroups())]


def who_and_what():
    return [os.getuid(), internals.users.capabilities()]


def start_a_thread():
    threading.Thread(target=len, args=("",)).start()


def meet(seconds):
    time.sleep(seconds)
    return os.getuid()


def read_file(path):
    with open(path) as file:
        return file.read()


def try_files(path):
    """Return what comes of reading, writing, making and listing there."""
    directory = os.path.dirname(path)
    return [
        code_of(read_file, path),
        code_of(lambda: os.close(os.open(path, os.O_WRONLY))),
        code_of(lambda: os.close(os.open(f"{directory}/made", os.O_CREAT | os.O_WRONLY))),
        code_of(os.listdir, directory),
    ]


def try_to_empty(path):
    """Return what comes of cutting off a file by name, and by opening it for this and that."""
    return [
        code_of(os.truncate, path, 0),
        *(
            code_of(lambda: os.close(os.open(path, os.O_TRUNC | mode)))  # noqa: B023
            for mode in (os.O_RDONLY, 3, os.O_WRONLY, os.O_RDWR)
        ),
    ]


def where():
    return {
        "cwd": os.getcwd(),
        "home": os.environ.get("HOME"),
        "tmp": os.environ.get("TMPDIR"),
        "tempfile": tempfile.gettempdir(),
        "files": os.listdir("."),
    }


def fill_scratch(size):
    with open("data", "wb", buffering=0) as file:
        written = 0
        try:
            while written < size:
                written += file.write(b"x" * 65536)
        except OSError as exc:
            return [written, exc.errno]
    return [written, 0]


def many_inodes(count):
    made = 0
    try:
        for number in range(count):
            open(f"file{number}", "w").close()
            made += 1
    except OSError as exc:
        return [made, exc.errno]
    return [made, 0]


def leave_in_scratch(name, seconds):
    open(name, "w").close()
    time.sleep(seconds)
    return sorted(os.listdir("."))


def network():
    def connect():
        with socket.socket() as one:
            one.settimeout(2)
            one.connect(("127.0.0.1", 9))

    def datagram():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.sendto(b"x", ("127.0.0.1", 9))

    def pair():
        for one in socket.socketpair():
            one.close()

    return [code_of(connect), code_of(datagram), code_of(pair)]


def interfaces():
    return sorted(name for _, name in socket.if_nameindex())


def run_program(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [done.returncode, done.stdout, done.stderr]


def lock(path):
    with open(path) as file:
        return [
            code_of(fcntl.flock, file, fcntl.LOCK_SH),
            code_of(fcntl.lockf, file, fcntl.LOCK_SH | fcntl.LOCK_NB),
        ]


def start_daemon(fd, seconds, then=None):
    """Leave a daemon behind, a session of its own and nobody's child, which holds *fd* open."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(fd, b"d")
        os.close(write)
        time.sleep(60)
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    os.read(read, 1)  # until it is there
    if then is not None:
        os.kill(os.getpid(), then)
    time.sleep(seconds)
    return "left"


def environment():
    return dict(os.environ)


def standard_input():
    return [os.read(0, 10), os.isatty(0)]


def is_open(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return os.fstat(fd).st_ino


def same_file(fd):
    """Tell what is behind a descriptor: device and inode."""
    status = os.fstat(fd)
    return [status.st_dev, status.st_ino]


def use_the_library():
    """Import what nobody has imported yet, and use it."""
    import colorsys
    import decimal
    import graphlib
    import sqlite3
    import zoneinfo

    with sqlite3.connect(":memory:") as db:
        (found,) = db.execute("select 6 * 7").fetchone()
    return [
        found,
        str(decimal.Decimal(1) / 8),
        list(graphlib.TopologicalSorter({1: [2]}).static_order()),
        colorsys.rgb_to_hsv(0, 0, 0)[2],
        zoneinfo.ZoneInfo("Europe/Berlin").key,
    ]


def numpy_work(size):
    import numpy as np

    rng = np.random.default_rng(7)
    matrix = rng.random((size, size))
    return bool(np.allclose(matrix @ np.linalg.inv(matrix), np.eye(size)))


def threads_work(count):
    found = []
    lock = threading.Lock()

    def add(number):
        with lock:
            found.append(number)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(found)


def status_of(name):
    """Return a line of /proc/self/status."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return line.split(":", 1)[1].strip()


class Opaque:
    pass


def opaque():
    return Opaque()


class Odd(Exception):
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def raise_odd():
    raise Odd("odd\x1b[31m")


def point():
    return {"x": 1, "y": 2}


def errno_names():
    return errno.errorcode[errno.EPERM]


def numbers_of(source):
    """Run somebody's program."""
    names = {}
    exec(source, names)
    return names["f"]()
