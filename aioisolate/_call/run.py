"""The loop that waits for a child, and the place where a cancelled call ends it."""

from __future__ import annotations

import anyio

from .supervision import Supervision

__all__ = ["supervise"]

# Number of checks, a millisecond apart, for other processes that were killed with the child but
# may not be dead yet; the kernel reports no event.
_LOOKS = 500


async def supervise(supervision: Supervision, grace: float) -> None:
    """Start the child and wait until it is gone.

    If cancelled, kill the child, wait until it is gone, and raise the cancellation.
    """
    child = supervision.child
    waiter = child.waiter
    # Armed before the fork: afterwards the loop's memory is shared with the child, and each page
    # that arming touches would be copied.
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
        # A callable of the caller's raised, or Ctrl-C was pressed, or this coroutine is being
        # closed and may not await any more.
        if not supervision.gone:
            supervision.gone = True
            child.kill_now()
        raise
    looks = _LOOKS
    while looks and child.reap_adopted():
        looks -= not child.waits_for_trackers()
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
        looks, child = _LOOKS, supervision.child
        while looks and child.reap_adopted():
            looks -= not child.waits_for_trackers()
            try:
                await anyio.sleep(0.001)
            except waiter.cancelled:
                continue
