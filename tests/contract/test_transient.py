"""Which errors may pass by themselves, so that a retry is of any use."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import signal
import sys
import threading
import time

import pytest

from aioisolate import (
    CallableDidNotExecuteError,
    CallableExecutedError,
    IsolationError,
    Isolator,
    Limits,
    Reason,
    run_isolated,
)
from tests.helpers import error_of
from tests.internals import unpatched

pytestmark = pytest.mark.once

# Every reason, decided once more.
PASSING = {
    *(Reason.PIPE_CREATION, Reason.FORK, Reason.CHILD_SETUP, Reason.START_TIMEOUT),
    *(Reason.QUEUE_FULL, Reason.QUEUE_TIMEOUT, Reason.RESULT_WRITE, Reason.SIGNAL),
    *(Reason.TIMEOUT, Reason.SERVER_DIED, Reason.CHANNEL_READ, Reason.WAIT),
}
LASTING = {
    *(Reason.ARGUMENT_ENCODING, Reason.ARGUMENT_DECODING, Reason.CLOSED, Reason.CANCELLED),
    *(Reason.FEATURE_UNAVAILABLE, Reason.RESULT_ENCODING, Reason.RESULT_DECODING),
    *(Reason.RESULT_TOO_LARGE, Reason.EXIT, Reason.NO_RESULT, Reason.BASE_EXCEPTION),
    *(Reason.MEMORY_LIMIT, Reason.CPU_LIMIT, Reason.OUTPUT_LIMIT, Reason.PROTOCOL),
}


@pytest.mark.parametrize("reason", Reason)
def test_11_22_every_reason_is_decided_and_documented(reason):
    assert {*PASSING, *LASTING} == set(Reason)
    assert IsolationError("", reason=reason).transient is (reason in PASSING)
    assert reason.name in IsolationError.__doc__


@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_11_22_copies_keep_what_an_error_knows_better(copied):
    for transient in (True, False, None):
        for reason in (Reason.FORK, Reason.CLOSED):
            error = CallableDidNotExecuteError("", reason=reason, transient=transient)
            assert copied(error).transient is error.transient
            assert error.transient is (reason is Reason.FORK if transient is None else transient)


def raise_it(error):
    raise error


@pytest.mark.one_loop
@pytest.mark.parametrize("kind", ["fork", "zygote"])
async def test_11_22_it_comes_out_of_a_child(kind):
    mine = CallableExecutedError("of a call inside", reason=Reason.FORK, transient=False)
    nested = CallableDidNotExecuteError("likewise", reason=Reason.CLOSED, transient=True)
    async with Isolator(kind) as iso:
        assert not (await error_of(iso.run(raise_it, mine))).transient
        error = await error_of(iso.run(raise_it, nested))
        assert error.transient
        assert type(error) is not CallableDidNotExecuteError


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("fn", "args", "options", "reason", "transient"),
    [
        (os.kill, (0, signal.SIGSEGV), {}, Reason.SIGNAL, False),
        (os.abort, (), {}, Reason.SIGNAL, False),
        (os.kill, (0, signal.SIGKILL), {}, Reason.SIGNAL, True),
        (sys.exit, (3,), {}, Reason.EXIT, False),
        (threading.Lock, (), {}, Reason.RESULT_ENCODING, False),
        (time.sleep, (60,), {"timeout": 0.05}, Reason.TIMEOUT, True),
        (time.sleep, (60,), {"timeout": 0}, Reason.START_TIMEOUT, False),
        (bytearray, (1 << 30,), {"limits": Limits(memory=1 << 27)}, Reason.MEMORY_LIMIT, False),
    ],
)
async def test_11_22_what_really_happens(fn, args, options, reason, transient):
    error = await error_of(run_isolated(fn, *args, **options))
    assert (error.reason, error.transient) == (reason, transient)


@pytest.mark.one_loop
async def test_11_22_of_an_isolator():
    async with Isolator() as iso:
        error = await error_of(iso.run(len, threading.Lock()))
        assert (error.reason, error.transient) == (Reason.ARGUMENT_ENCODING, False)
    assert not (await error_of(iso.run(abs, 1))).transient


@pytest.mark.one_loop
@pytest.mark.parametrize(("number", "transient"), [(errno.EAGAIN, True), (errno.EPERM, False)])
async def test_11_22_what_the_system_says(monkeypatch, number, transient):
    def fork():
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(unpatched, "fork", fork)
        error = await error_of(run_isolated(abs, 1))
    assert (error.reason, error.transient) == (Reason.FORK, transient)


@pytest.mark.one_loop
async def test_11_22_a_server_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    error = await error_of(Isolator().__aenter__())
    assert (error.reason, error.transient) == (Reason.FORK, False)


@pytest.mark.one_loop
async def test_11_22_where_no_thread_can_be_started(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    large = [[number] for number in range(100_000)]
    async with Isolator() as iso:
        await iso.run(len, large)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            error = await error_of(iso.run(len, large))
            assert (error.reason, error.transient) == (Reason.PIPE_CREATION, True)
            assert "can't start new thread" in str(error)
            error = await error_of(iso.run(list, "x" * 100_000))
            assert (error.reason, error.transient) == (Reason.RESULT_DECODING, True)
        assert await iso.run(len, large) == 100_000


class Unopened:
    """Its pickling, which may import modules, finds that there is no descriptor left."""

    def __reduce__(self):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.one_loop
async def test_11_22_a_lack_of_descriptors_while_arguments_are_pickled_passes():
    async with Isolator() as iso:
        error = await error_of(iso.run(id, Unopened()))
    assert error.reason is Reason.ARGUMENT_ENCODING
    assert error.transient
