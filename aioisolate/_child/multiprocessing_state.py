"""Detach a copy of the process from the parent's multiprocessing helper processes and queues."""

from __future__ import annotations

import errno
import sys
from collections.abc import Collection, Iterator
from typing import Any, NoReturn

from .spec import Step, Steps

__all__ = ["TRACKERS", "steps_for_server", "steps_to_disown"]


# The modules that may have started a resource tracker, which removes leaked files in /dev/shm.
# (joblib contains a copy of loky.)
TRACKERS = (
    "multiprocessing.resource_tracker",
    "joblib.externals.loky.backend.resource_tracker",
    "loky.backend.resource_tracker",
)


def steps_to_disown(keep: Collection[int]) -> Steps:
    """Return, in the parent, the steps that reset multiprocessing in a copy.

    Processes that the parent's multiprocessing fork server starts are not the child's own: the
    child gets an error, since it can't wait for that server. The pipe to the parent's resource
    tracker is not open in the child. The parent's queues refuse objects, except those whose pipe is
    in *keep*.
    """
    if "multiprocessing.util" not in sys.modules:  # all of these modules import it
        return ()
    steps = [*_helpers(keep), *_queues(keep)]
    module = sys.modules.get(TRACKERS[0])
    if module is not None:
        from .attached_memory import register_only_created  # noqa: PLC0415 - rarely needed

        steps.append((register_only_created, (module,)))
    return steps


def steps_for_server() -> Steps:
    """Return, in a fork server, the steps that make its children start helpers of their own.

    The fork server's resource tracker would not remove the files that a child leaked until the
    server ends. (The server's queues stay usable: the children inherit their pipes.)
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
        # One call copies the registry, since other threads may add to it at the same time.
        references = sys.modules["multiprocessing.util"]._afterfork_registry.valuerefs()
        registered = [reference() for reference in references]
        for queue in [found for found in registered if isinstance(found, queues.Queue)]:
            if queue._closed or queue._writer.closed:
                continue
            if queue._writer.fileno() not in keep:
                yield setattr, (queue, "_sem", _Refusal(queue._sem))


class _Refusal:
    """Replaces the semaphore that the parent's queue acquires in put().

    The child can't write to the queue's pipe. A thread does the writing, so without this class
    put() would return as if it had succeeded.
    """

    def __init__(self, semaphore: Any) -> None:
        self._semaphore = semaphore

    def __getattr__(self, name: str) -> Any:
        return getattr(self._semaphore, name)

    def acquire(self, *_: object, **__: object) -> NoReturn:
        raise OSError(
            errno.EBADF,
            "this multiprocessing.Queue belongs to the parent process, and an isolated call is not "
            "connected to its pipe: return the object, report_progress(), use a stream, or name "
            "the descriptor of its pipe in pass_fds",
        )
