"""What keeps a parent busy: functions for children that say little, and that often."""

from __future__ import annotations

import array
import fcntl
import os
import select
import socket
import struct
import termios
import time

from tests.attacks.channel import begin, find_line, frame

_VALUE, _PROGRESS = 2, 7


def _wait_until_taken(fd, request, end):
    left = array.array("i", [1])
    while left[0] and time.monotonic() < end:
        fcntl.ioctl(fd, request, left)
        os.sched_yield()


def print_bytes(seconds):
    """Write one byte after the other, each as soon as the last one has been read."""
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        count += os.write(1, b"x")
        _wait_until_taken(1, termios.FIONREAD, end)
    return count


def print_text(text):
    """Write it, as much as a pipe takes at a time."""
    data = memoryview(text.encode())
    while data:
        data = data[os.write(1, data) :]


def dribble(seconds):
    """Send an answer byte by byte."""
    line = find_line()
    begin(line)
    end = time.monotonic() + seconds
    data = frame(line.nonce, _VALUE, struct.pack("<BH", 0, 0) + b'"' + b"x" * 10_000_000 + b'"')
    at = 0
    while time.monotonic() < end:
        at += os.write(line.channel, data[at : at + 1])
        _wait_until_taken(line.channel, termios.TIOCOUTQ, end)
    with socket.socket(fileno=line.channel) as channel:
        channel.setblocking(True)
        channel.sendall(memoryview(data)[at:])
        os._exit(0)


def ring(seconds):
    """Wake the parent up for something that it does not read."""
    line = find_line()
    end = time.monotonic() + seconds
    with socket.socket(fileno=os.dup(line.channel)) as channel:
        while time.monotonic() < end:
            try:
                channel.send(b"!", socket.MSG_OOB | socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            _wait_until_taken(line.channel, termios.TIOCOUTQ, min(end, time.monotonic() + 0.01))
    return 0


def report(seconds):
    """Report again and again, a few at once."""
    line = find_line()
    begin(line)
    end = time.monotonic() + seconds
    some = frame(line.nonce, _PROGRESS, struct.pack("<2sqq", b"qq", 1, 2)) * 10
    while time.monotonic() < end:
        select.select((), [line.channel], ())
        os.write(line.channel, some)
        _wait_until_taken(line.channel, termios.TIOCOUTQ, end)
    os._exit(0)


def items(count, seconds):
    """Yield as fast as is wanted, and print a little beside that."""
    end = time.monotonic() + seconds
    for i in range(count):
        yield i
        if time.monotonic() < end:
            os.write(1, b"x")
            _wait_until_taken(1, termios.FIONREAD, end)
