"""What runs in the children of tests/environment_check.py: work, and a handful of attacks.

An attack returns a proof that it succeeded, or raises what denied it. All that is needed is
imported here: a confined child may not read modules any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import socket
import struct
import threading
import time

_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def work(number: int) -> dict[str, int]:
    """Return something, with what tells where it ran."""
    names = os.path.lexists("/etc/passwd")
    return {"number": number + 1, "server": os.getppid(), "user": os.geteuid(), "names": names}


def fail(text: str) -> None:
    raise ValueError(text)


def sleep_stubbornly(seconds: float) -> None:
    """Sleep, whatever signal comes that can be ignored."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM, signal.SIGXCPU):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)


def read(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()[:100]


def write(path: str) -> bool:
    with open(path, "w") as file:
        file.write("x")
    return True


def connect(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        sock.connect(("127.0.0.1", port))
    return True


def fork() -> bool:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return True


def kill(pid: int) -> bool:
    os.kill(pid, signal.SIGUSR1)
    return True


def start_threads(count: int) -> int:
    """Start threads, and return how many there were at once, if it was all of them."""
    done = threading.Event()
    threads = [threading.Thread(target=done.wait, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    finally:
        done.set()
    return count


def start_threads_in_time(count: int, seconds: float = 0.2) -> int:
    """Start threads, again and again for a while: others may end and leave their places."""
    end = time.monotonic() + seconds
    while True:
        try:
            return start_threads(count)
        except RuntimeError:
            if time.monotonic() > end:
                raise
        time.sleep(0.02)


def take_memory(size: int) -> int:
    """Map memory, a part of which is used."""
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[0] = memory[size - 1] = 1
        return len(memory)


def open_many(count: int) -> int:
    fds = []
    try:
        for _ in range(count):
            fds.append(os.dup(0))
    finally:
        for fd in fds:
            os.close(fd)
    return count


def hold_capabilities() -> int:
    """Return the capabilities of this process, which is denied if there are none."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    held = ctypes.create_string_buffer(24)
    if _libc.capget(header, held) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    low, _, _, high, _, _ = struct.unpack("=6I", held.raw)
    if not low | high:
        raise PermissionError("there are none")
    return int(low | high << 32)
