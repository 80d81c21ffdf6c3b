"""The verdict over its whole table, against rules written down independently."""

from __future__ import annotations

import itertools
import signal

import pytest

from aioisolate import (
    CallableDidNotExecuteError,
    CallableExecutedError,
    CallableStatusUnknownError,
    Exit,
    Reason,
)
from tests.internals import Answer, Evidence, KilledFor, Kind, judge

pytestmark = [pytest.mark.quick, pytest.mark.once]

EXITS = [None, *map(Exit, (0, 1, 3, 255, -9, -11, -15, -34))]
TABLE = list(
    itertools.product(
        [False, True],
        [None, Kind.VALUE, Kind.RAISED, Kind.LOST, Kind.FAILED],
        [None, *KilledFor],
        EXITS,
    )
)


# What it has sent may be fn's own doing, whatever marks are missing.
_ITS_OWN_WORD = (
    *(KilledFor.PROTOCOL, KilledFor.CHANNEL_READ),
    *(KilledFor.RESULT_TOO_LARGE, KilledFor.ITEM_TOO_LARGE),
)


def evidence(started, answer, killed_for, exit_):
    detail = {Kind.LOST: "RESULT_ENCODING\nwhy", Kind.FAILED: "descriptors\n0\nOSError: why"}
    return Evidence(
        started, answer, detail.get(answer, "nonsense arrived"), killed_for, exit_, seconds=1.5
    )


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_the_table(row):
    started, answer, killed_for, exit_ = row
    verdict = judge(evidence(*row))

    # A whole answer counts, whatever happened to the child afterwards; but not if it has written
    # more than it may, which is told whether it had ended by then or not.
    if answer is not Kind.FAILED and killed_for is KilledFor.OUTPUT_LIMIT:
        assert not isinstance(verdict, Answer)
        assert verdict.reason is Reason.OUTPUT_LIMIT
        executed = CallableStatusUnknownError if started else CallableDidNotExecuteError
        assert issubclass(verdict.error, CallableExecutedError if answer else executed)
        return
    if answer in (Kind.VALUE, Kind.RAISED):
        assert verdict is (Answer.VALUE if answer is Kind.VALUE else Answer.RAISED)
        return
    assert not isinstance(verdict, Answer)
    error, reason, message = verdict.error, verdict.reason, verdict.message

    # Whether it may be retried follows from what is proved, and from nothing else.
    if answer is Kind.LOST:
        assert issubclass(error, CallableExecutedError)
    elif answer is Kind.FAILED:
        # Who has begun can't say that he has not.
        lies = started and reason is Reason.PROTOCOL
        assert lies or issubclass(error, CallableDidNotExecuteError)
        assert lies is started
    elif started and killed_for is KilledFor.RESULT_TOO_LARGE:
        assert issubclass(error, CallableExecutedError)
    elif killed_for is not KilledFor.UNCONFINED and (started or killed_for in _ITS_OWN_WORD):
        assert issubclass(error, CallableStatusUnknownError)
    else:  # one that is not confined was never let go
        assert issubclass(error, CallableDidNotExecuteError)

    # A deadline is a TimeoutError; nothing else is.
    deadline = answer is None and killed_for in (KilledFor.TIMEOUT, KilledFor.START_TIMEOUT)
    assert issubclass(error, TimeoutError) is deadline
    if deadline:
        assert reason is (Reason.TIMEOUT if started else Reason.START_TIMEOUT)
        assert "1.5 s" in message

    # Exit codes and signals are reported, never interpreted.
    if answer is None and killed_for in (None, KilledFor.LINGERING) and started:
        if exit_ is None:
            assert reason is Reason.WAIT
        elif exit_ < 0:
            assert reason is Reason.SIGNAL
            assert str(exit_) in message
            assert ("memory" in message) is (exit_ == -signal.SIGKILL)
        else:
            assert reason is (Reason.EXIT if exit_ else Reason.NO_RESULT)
    assert message
    assert message == message.strip()


def test_a_lost_result_of_unknown_kind():
    verdict = judge(Evidence(started=True, answer=Kind.LOST, detail="NONSENSE\ntext"))
    assert verdict.reason is Reason.RESULT_WRITE
    verdict = judge(Evidence(started=True, answer=Kind.LOST, detail="SIGNAL\ntext"))
    assert verdict.reason is Reason.RESULT_WRITE


def test_an_item_that_is_too_large():
    """A generator that was stopped has not run to its end."""
    for evidence_ in (
        Evidence(started=True, answer=Kind.LOST, detail="ITEM_TOO_LARGE\ntext"),
        Evidence(started=True, killed_for=KilledFor.ITEM_TOO_LARGE, detail="text"),
    ):
        verdict = judge(evidence_)
        assert verdict.error is CallableStatusUnknownError
        assert verdict.reason is Reason.RESULT_TOO_LARGE
        assert "text" in verdict.message


def test_no_row_depends_on_an_exit_code_being_a_message():
    """mem-isolate reads exit(3) of the callable as "safe to retry"."""
    for code in range(256):
        verdict = judge(evidence(True, None, None, Exit(code)))
        assert issubclass(verdict.error, CallableStatusUnknownError)
