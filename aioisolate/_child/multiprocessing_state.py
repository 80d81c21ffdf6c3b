"""What a copy of the process must not take for its own: helpers of multiprocessing."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NoReturn, TypeAlias

from .spec import Steps

__all__ = ["TRACKERS", "steps_to_begin_anew", "steps_to_disown"]

Step: TypeAlias = tuple[Callable[..., object], tuple[Any, ...]]

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
    steps = [*_helpers(keep), *_queues(keep)]
    module = sys.modules.get(TRACKERS[0])
    if module is not None:
        from .attached_memory import register_only_what_is_made  # noqa: PLC0415 - for few

        steps.append((register_only_what_is_made, (module,)))
    return steps


def steps_to_begin_anew() -> Sequence[Step]:
    """List, in a fork server, what makes its children start helpers of their own.

    Its tracker would remove only at its own end what a child has left. (The pipes of its queues are
    its children's, too.)
    """
    return list(_helpers(())) if "multiprocessing.util" in sys.modules else ()


def _helpers(keep: Collection[int]) -> Iterator[Step]:
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


def _queues(keep: Collection[int]) -> Iterator[Step]:
    queues = sys.modules.get("multiprocessing.queues")
    if queues is not None:
        # All at once: other threads may register more meanwhile.
        references = sys.modules["multiprocessing.util"]._afterfork_registry.valuerefs()
        registered = [reference() for reference in references]
        for queue in [found for found in registered if isinstance(found, queues.Queue)]:
            if queue._closed or queue._writer.closed:
                continue
            if queue._writer.fileno() not in keep:
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
