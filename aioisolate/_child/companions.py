"""What a copy of the process must not take for its own: helpers of multiprocessing."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any, NoReturn

from .order import Steps

__all__ = ["TRACKERS", "steps_to_disown"]

# The modules that may have a process that removes what is left in /dev/shm. (loky's is joblib's.)
TRACKERS = (
    "multiprocessing.resource_tracker",
    "joblib.externals.loky.backend.resource_tracker",
    "loky.backend.resource_tracker",
)


def steps_to_disown(keep: Collection[int]) -> Steps:
    """List, in the parent, what makes multiprocessing in a copy begin anew.

    From the fork server of the parent a child would get processes that are not its own, or rather
    an error, since it can't wait for it; to the parent's tracker there is no way. The queues refuse
    what is put in, but for those whose pipe is in *keep*.
    """
    if "multiprocessing.util" not in sys.modules:  # which all of these import
        return ()
    return list(_steps(keep))


def _steps(keep: Collection[int]) -> Iterator[tuple[Callable[..., object], tuple[Any, ...]]]:
    modules = sys.modules
    forkserver = modules.get("multiprocessing.forkserver")
    if forkserver is not None and forkserver._forkserver._forkserver_pid is not None:
        server = forkserver._forkserver
        fresh = vars(type(server)()).items()
        unused = {name: value for name, value in fresh if name.startswith(("_forkserver", "_lock"))}
        yield vars(server).update, (unused,)
    for name in TRACKERS:
        tracker: Any = getattr(modules.get(name), "_resource_tracker", None)
        if tracker is not None and tracker._fd is not None and tracker._fd not in keep:
            yield vars(tracker).update, (vars(type(tracker)()),)
    queues = modules.get("multiprocessing.queues")
    if queues is not None:
        registered = modules["multiprocessing.util"]._afterfork_registry.values()
        for queue in [found for found in registered if isinstance(found, queues.Queue)]:
            if not queue._closed and queue._writer.fileno() not in keep:
                yield setattr, (queue, "_sem", _Refusal(queue._sem))


class _Refusal:
    """Stands in for the semaphore that a queue of the parent's acquires before it takes an object.

    The pipe is not the child's to write to; and what writes to it is a thread, so put would return.
    """

    def __init__(self, semaphore: Any) -> None:
        self._semaphore = semaphore

    def __getattr__(self, name: str) -> Any:
        return getattr(self._semaphore, name)

    def acquire(self, *_: object, **__: object) -> NoReturn:
        raise OSError(
            errno.EBADF,
            "this multiprocessing.Queue is the parent's, and its pipe does not lead there from an "
            "isolated call: return the object, report_progress(), use a stream, or name the "
            "descriptor of its pipe in pass_fds",
        )
