"""The loop that waits for a child, and the end of a child whose call is cancelled."""

from __future__ import annotations

import anyio

from .supervision import Supervision

__all__ = ["supervise"]

# Number of checks, a millisecond apart, for processes that were killed with the child and may not
# have ended yet; the kernel reports no event.
_CHECKS = 500


async def supervise(supervision: Supervision, grace: float) -> None:
    """Start the child and wait until it has ended.

    If cancelled, end the child, wait until it has ended, and raise the cancellation.
    """
    child = supervision.child
    waiter = child.waiter
    # Before the fork: afterwards the loop's memory is shared with the child, and each page that
    # arming touches would be copied.
    waiter.arm(supervision.next_time())
    child.launch()
    try:
        if supervision.listens:
            supervision.announce()
        await waiter.wait()
        supervision.step()
        while not supervision.gone:
            waiter.arm(supervision.next_time())
            await waiter.wait()
            supervision.step()
    except waiter.cancelled:
        await _end_cancelled_call(supervision, grace)
        raise
    except BaseException:
        # A callable of the caller has raised, or Ctrl-C was pressed, or this coroutine is being
        # closed and may not await any more.
        if not supervision.gone:
            supervision.gone = True
            child.kill_now()
        raise
    checks = _CHECKS
    while checks and child.reap_adopted():
        checks -= not child.waits_for_trackers()
        await anyio.sleep(0.001)


async def _end_cancelled_call(supervision: Supervision, grace: float) -> None:
    """End a child whose call was cancelled; further cancellations do not change that."""
    waiter = supervision.child.waiter
    with anyio.CancelScope(shield=True):
        supervision.terminate(grace)
        while not supervision.gone:
            waiter.arm(supervision.next_time())
            try:
                await waiter.wait()
            except waiter.cancelled:
                continue
            supervision.step()
        checks, child = _CHECKS, supervision.child
        while checks and child.reap_adopted():
            checks -= not child.waits_for_trackers()
            try:
                await anyio.sleep(0.001)
            except waiter.cancelled:
                continue
