"""Functions for children that import them; so nothing heavy here."""

from __future__ import annotations

import os
import signal
import sys
import time


def leave(code):
    os._exit(code)


def crash(delay=0.0, data=""):
    time.sleep(delay)
    os.abort()


def double(x):
    return 2 * x


def divide_12(x):
    return 12 // x


class Sum:
    def __init__(self, base):
        self.base = base

    def add(self, x):
        return self.base + x

    def __call__(self, x):
        return self.base * x


class OddError(Exception):
    def __init__(self, message, *, code):
        super().__init__(message)
        self.code = code


def raise_odd():
    raise OddError("odd", code=7)


def count(n):
    yield from range(n)
    if n == 3:
        raise OddError("three", code=3)


async def slow_count(n):
    import anyio

    for i in range(n):
        await anyio.sleep(0)
        yield i


def everything_typed():
    return sys.stdin.read(), sys.__stdin__ is sys.stdin, os.readlink("/proc/self/fd/0")


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)
    return "went on"
