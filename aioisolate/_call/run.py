"""The one loop that waits for a child, and the one place where a cancelled call ends it."""

from __future__ import annotations

import anyio

from .supervision import Supervision

__all__ = ["supervise"]

# How often to look, a millisecond apart, for others who were killed together with the child, but
# are not necessarily dead by now; the kernel gives no event.
_LOOKS = 500


async def supervise(supervision: Supervision, grace: float) -> None:
    """Start the child and wait until it is gone.

    If cancelled, kill it, see it gone, and pass that on.
    """
    child = supervision.child
    waiter = child.waiter
    # Armed before the fork: afterwards each page of the loop's that it touches is a copy.
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
        await _see_off(supervision, grace)
        raise
    except BaseException:
        # A callable of the caller's raised, or Ctrl-C, or this coroutine is being closed and may
        # not wait for anything any more.
        if not supervision.gone:
            supervision.gone = True
            child.kill_now()
        raise
    looks = _LOOKS
    while looks and child.reap_adopted():
        looks -= not child.waits_for_trackers()
        await anyio.sleep(0.001)


async def _see_off(supervision: Supervision, grace: float) -> None:
    """End a child whose call was cancelled; further cancellations don't hurry or stop that."""
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
