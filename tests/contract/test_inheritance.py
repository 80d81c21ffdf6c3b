"""What a copy of the process inherits: what it writes there is not lost in silence."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os

import pytest

from aioisolate import run_isolated
from tests.helpers import isolator, python
from tests.internals import NUMBERS, syscalls

pytestmark = pytest.mark.once


@pytest.mark.one_loop
@pytest.mark.parametrize("kind", ["fork", "template"])
async def test_11_12_writing_to_what_the_child_has_lost_is_an_error(kind):
    """Reading still finds the end, and the parent's own goes on."""
    read, write = os.pipe()
    event = os.eventfd(0, os.EFD_NONBLOCK)
    passed = os.dup(write)

    def use():
        errors = []
        for fd in (write, event):
            try:
                os.write(fd, bytes(8))
            except OSError as exc:
                errors.append(exc.errno)
        return errors, os.read(read, 1), os.write(passed, b"passed"), os.write(1, b"")

    try:
        async with isolator({"start": kind}) as iso:
            answer = await iso.run(use, pass_fds=[passed])
        assert answer == ([errno.EBADF] * 2, b"", 6, 0)
        assert os.read(read, 10) == b"passed"
        with pytest.raises(BlockingIOError):
            os.read(event, 8)
    finally:
        for fd in (read, write, event, passed):
            os.close(fd)


@pytest.mark.one_loop
@pytest.mark.filterwarnings("ignore::aioisolate.ForkSafetyWarning")  # a queue has a thread
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
async def test_11_12_a_queue_of_the_parent_refuses_what_is_put_in(used):
    """What writes is a thread, or none at all in a copy: put would return all the same."""
    context = multiprocessing.get_context("fork")
    queue, simple = context.Queue(1), context.SimpleQueue()
    try:
        if used:
            queue.put("before")
            assert queue.get(timeout=20) == "before"
        for put in (queue.put, queue.put_nowait, simple.put):
            with pytest.raises(OSError, match=r"the parent process.*pass_fds|Bad file") as raised:
                await run_isolated(put, "lost")
            assert raised.value.errno == errno.EBADF
        # Nor has one of them taken the place of an object.
        queue.put("after", timeout=5)
        assert queue.get(timeout=20) == "after"
    finally:
        queue.close()
        queue.join_thread()
        simple.close()


@pytest.mark.one_loop
async def test_11_12_a_queue_of_the_childs_own_works():
    parents = multiprocessing.get_context("fork").Queue()

    def use():
        queue = multiprocessing.get_context("fork").Queue()
        queue.put("own")
        return queue.get(timeout=20)

    assert await run_isolated(use) == "own"
    parents.close()


REOPENING = """
import asyncio, json, os, select, socket, sys, threading, time, warnings

from aioisolate import Isolator, Sandbox, run_isolated

epoll, event, (one, other) = select.epoll(), os.eventfd(0), socket.socketpair()
numbers = epoll.fileno(), event, one.fileno()
lost, (read, write), kept = select.epoll(), os.pipe(), []

def reopen():
    # As gRPC does: closed, and opened anew under the same numbers.
    kept.extend([select.epoll(), *socket.socketpair()])
    new = os.eventfd(7)
    for fd, number in zip((kept[0].fileno(), new, kept[1].fileno()), numbers):
        os.dup2(fd, number)
    os.close(new)
    # What is the parent's stays that under another number.
    os.dup2(other.fileno(), read)

os.register_at_fork(after_in_child=reopen)

def look():
    fds = (*numbers, lost.fileno(), other.fileno(), read, write)
    return [os.readlink(f"/proc/self/fd/{fd}").rstrip("[]0123456789:") for fd in fds]

async def main():
    warnings.simplefilter("ignore")
    data = Sandbox(read=None, write=None, namespaces="off", codec="json")
    return [await run_isolated(look), await run_isolated(look, sandbox=data)]

if sys.argv[1] == "threads":
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print(json.dumps(asyncio.run(main())))
"""


def _has_kcmp():
    """Return whether kcmp is allowed (Docker's seccomp filter forbids it)."""
    pid = os.getpid()
    try:
        return syscalls.syscall(NUMBERS[syscalls.machine() or ""]["kcmp"], pid, pid, 0, 1, 2) >= 0
    except (KeyError, OSError):
        return False


@pytest.mark.skipif(not _has_kcmp(), reason="descriptors of two processes can't be compared here")
@pytest.mark.parametrize("threads", ["alone", "threads"])
def test_11_13_what_a_library_reopens_after_the_fork_is_the_childs(threads):
    """Whatever its number was; a library that loses it may end the process, as gRPC does."""
    result = python(REOPENING, threads)
    assert result.returncode == 0, result.stderr
    trusted, stranger = json.loads(result.stdout)
    null = "/dev/null"
    assert trusted == ["anon_inode:[eventpoll", "anon_inode:[eventfd", "socket", *[null] * 4]
    assert stranger == [null] * 7
