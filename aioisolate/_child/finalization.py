"""Finish the unfinished work of fn, as the interpreter does at exit.

The child joins fn's threads, then runs fn's exit functions, finalizers, and the finalizers of
multiprocessing. It never runs those of the parent or of a preloaded module. The answer has been
sent before, so an error here can't lose the answer; the parent returns it when this process has
ended.

Most calls have no unfinished work, so the check must be cheap.
"""

from __future__ import annotations

import _thread
import atexit
import gc
import os
import sys
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from .._wire import safe_text
from .._wire.frames import Kind, encode
from . import progress
from .multiprocessing_state import TRACKERS
from .spec import ChildSpec

__all__ = ["finish", "forget_frames", "mark", "set_mark", "thread_exits", "unfinished_work"]

# The time in seconds for a resource tracker of multiprocessing to clean up, and between polls.
_TRACKER_PATIENCE = 2.0
_PAUSE = 0.002
_NAMES_MAX = 100
# The longest timeout in seconds for joining a thread (longer ones may overflow).
_TIMEOUT_MAX = 1e6
_PREFIX = "aioisolate-"  # of the names of this package's threads

# The function that runs after the exit functions of fn.
_rest: Callable[[], object] | None = None
# Objects of the parent, kept alive: garbage collection in this process would finalize them.
_kept_alive: list[object] = []


def mark() -> None:
    """Mark the boundary between exit functions of the parent and those of fn in atexit."""
    if _rest is not None:
        _rest()


def set_mark(spec: ChildSpec) -> None:
    """Record, in a fork server, the exit functions and finalizers that precede those of fn."""
    atexit.unregister(mark)  # the mark of an earlier call of set_mark
    atexit.register(mark)
    spec.exits = atexit._ncallbacks()
    spec.thread_exits = thread_exits()
    if "weakref" in sys.modules:
        spec.weak = weak = sys.modules["weakref"].finalize._index_iter
        spec.finalizers = next(weak)


def thread_exits() -> int:
    """Return the number of exit functions that are registered with `threading`."""
    threading: Any = sys.modules.get("threading")
    return 0 if threading is None else len(threading._threading_atexits)


def unfinished_work(*, due: bool) -> bytes | None:
    """Return the names of threads and processes that fn has left; None: no work is unfinished.

    *due*: whether the caller knows that some work is unfinished.
    """
    names: list[str] = []
    try:
        if _thread._count():
            names += map(_name, _threads())
        if "multiprocessing.util" in sys.modules:
            names += map(_name, _processes())
            due |= bool(_finalizers(own=True)) or bool(_trackers())
    except Exception:  # noqa: BLE001 - fn may have replaced any of these modules
        due = True  # `finish` reports the error
    return _encode(names) if due or names else None


def _encode(names: Iterable[str]) -> bytes:
    return "\n".join(list(names)[:_NAMES_MAX]).encode(errors="backslashreplace")


def _name(worker: Any) -> str:
    kind = "process" if hasattr(worker, "pid") else "thread"
    return f"{kind} {str(worker.name)[:200]}".replace("\n", " ")


def _threads() -> list[Any]:
    threading = sys.modules.get("threading")
    if threading is None:
        return []
    me = threading.current_thread()
    return [
        thread
        for thread in threading.enumerate()
        if thread is not me and not thread.daemon and not thread.name.startswith(_PREFIX)
    ]


def _processes() -> list[Any]:
    """Return the running non-daemonic multiprocessing processes that fn has started."""
    process = sys.modules.get("multiprocessing.process")
    if process is None:
        return []
    pid = os.getpid()
    children = list(process._children)
    own = [child for child in children if child._parent_pid == pid]
    return [child for child in own if not child.daemon and child.is_alive()]


def _finalizers(*, own: bool) -> dict[Any, Any]:
    registry = sys.modules["multiprocessing.util"]._finalizer_registry
    pid = os.getpid()
    return {key: found for key, found in list(registry.items()) if (found._pid == pid) == own}


def finish(spec: ChildSpec, end: Callable[[], object], flush: Callable[[], object]) -> None:
    """Do the work of an interpreter's exit, report late threads and processes, and call *end*."""
    global _rest
    pid = os.getpid()
    names: list[str] = []
    try:
        try:
            names = _wait(time.monotonic() + spec.exit_timeout, spec.thread_exits)
        except BaseException as exc:  # noqa: BLE001 - fn's classes of threads may raise anything
            sys.excepthook(type(exc), exc, exc.__traceback__)

        def rest() -> None:
            try:
                _finalize(spec)
                _stop_trackers()
                flush()
                if os.getpid() == pid:  # not in a process that an exit function has forked
                    body = encode(spec.nonce, Kind.LEAVING, _encode(names))
                    _send(spec, body)
            except BaseException as exc:  # noqa: BLE001 - as the interpreter does at its end
                sys.excepthook(type(exc), exc, exc.__traceback__)
            finally:
                end()

        _rest = rest
        # Exit functions run in reverse order of registration: those of fn, then the mark, which
        # does not return.
        atexit._run_exitfuncs()
        rest()  # fn has unregistered the mark
    except BaseException as exc:  # noqa: BLE001 - as the interpreter does at its end
        sys.excepthook(type(exc), exc, exc.__traceback__)
    finally:
        end()


def _send(spec: ChildSpec, body: bytes) -> None:
    try:
        progress.send(spec.channel, body)
    except OSError:
        pass  # fn has closed the channel, or the parent has ended


# Threads and processes


def _wait(until: float, thread_exits: int) -> list[str]:
    """Wait for threads and processes; return the names of those that have not ended in time.

    *thread_exits*: the number of the parent's exit functions in `threading`.
    """
    threading: Any = sys.modules.get("threading")
    if _thread._count():
        _wake_pools(thread_exits)
    while threads := _threads():
        if time.monotonic() >= until:
            break
        for thread in threads:
            # fn's thread class may override join() without a timeout.
            threading.Thread.join(thread, _seconds_until(until))
    processes = _processes() if "multiprocessing.util" in sys.modules else []
    for process in processes:
        process.join(_seconds_until(until))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()  # multiprocessing's exit function waits without a timeout
    return [*map(_name, threads), *map(_name, late)]


def _seconds_until(until: float) -> float:
    return min(max(0.0, until - time.monotonic()), _TIMEOUT_MAX)


def _wake_pools(thread_exits: int) -> None:
    """End the pool threads of concurrent.futures, which wait for work."""
    threading = sys.modules.get("threading")
    if threading is None or not _threads():
        return
    for name, table in (("thread", "_threads_queues"), ("process", "_threads_wakeups")):
        module = sys.modules.get(f"concurrent.futures.{name}")
        workers = getattr(module, table, {})
        ended = [thread for thread in workers if not thread.is_alive()]  # by the fork
        _kept_alive.extend((thread, workers.pop(thread)) for thread in ended)
    # The functions join their threads without a timeout, so a daemon thread calls them. The exit
    # functions of the pools can't be distinguished in the list of `threading`, so they may be
    # called twice, which is harmless.
    calls = [*reversed(threading._threading_atexits[thread_exits:])]
    for name in ("thread", "process"):
        module = sys.modules.get(f"concurrent.futures.{name}")
        if module is not None:
            calls.append(module._python_exit)
    if calls:
        helper = threading.Thread(target=_call_all, args=(calls,), name=f"{_PREFIX}exit")
        helper.daemon = True
        try:
            helper.start()
        except RuntimeError:
            return  # no thread can be started, so the pool threads do not end in time


def _call_all(calls: Iterable[Callable[[], object]]) -> None:
    for call in calls:
        call()


# Frames


def forget_frames(exc: BaseException) -> None:
    """Clear the frames of fn that *exc* keeps alive.

    The garbage collector may discard unwritten data of a file that is part of a reference cycle.
    Frames of the parent, in an exception that was created there, are not cleared.
    """
    young = {id(frame) for frame in gc.get_objects() if type(frame) is FrameType}
    found: list[BaseException | None] = [exc]
    seen = set()
    while found:
        error = found.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        found += (safe_text.part(error, "__cause__"), safe_text.part(error, "__context__"))
        if issubclass(type(error), BaseExceptionGroup):
            found += BaseExceptionGroup.__dict__["exceptions"].__get__(error)
        traceback = safe_text.part(error, "__traceback__")
        while traceback is not None:
            if id(traceback.tb_frame) in young:
                try:
                    traceback.tb_frame.clear()
                except RuntimeError:
                    pass  # the frame is executing
            traceback = traceback.tb_next


# Finalizers


def _finalize(spec: ChildSpec) -> None:
    if "weakref" in sys.modules:
        _run_weak_finalizers(spec.finalizers)
    if "multiprocessing.util" in sys.modules:
        _end_multiprocessing()


def _run_weak_finalizers(before: int) -> None:
    """Call the `weakref.finalize` finalizers that fn has made, the latest first."""
    registry = sys.modules["weakref"].finalize._registry
    while True:
        own = [
            (info.index, finalizer)
            for finalizer, info in list(registry.items())
            if info.atexit and info.index > before
        ]
        if not own:
            return
        for _, finalizer in sorted(own, key=_index, reverse=True):
            try:
                finalizer()
            except Exception as exc:  # noqa: BLE001 - as weakref's exit function does
                sys.excepthook(type(exc), exc, exc.__traceback__)


def _index(pair: tuple[int, object]) -> int:
    return pair[0]


def _end_multiprocessing() -> None:
    """Run the exit function of multiprocessing, with only fn's finalizers and processes."""
    util = sys.modules["multiprocessing.util"]
    for key, finalizer in _finalizers(own=False).items():
        _kept_alive.append(finalizer)
        del util._finalizer_registry[key]
    process: Any = sys.modules["multiprocessing.process"]
    pid = os.getpid()
    for child in list(process._children):
        if child._parent_pid != pid:
            _kept_alive.append(child)
            process._children.discard(child)
    util._exit_function()


def _trackers() -> list[Any]:
    found = [getattr(sys.modules.get(name), "_resource_tracker", None) for name in TRACKERS]
    return [tracker for tracker in found if tracker is not None and tracker._pid is not None]


def _stop_trackers() -> None:
    """Let the resource trackers that fn has started remove files in /dev/shm, and end."""
    until = time.monotonic() + _TRACKER_PATIENCE
    for tracker in _trackers():
        try:
            os.waitpid(tracker._pid, os.WNOHANG)
            os.close(tracker._fd)
            tracker._fd = None
            while os.waitpid(tracker._pid, os.WNOHANG)[0] == 0 and time.monotonic() < until:
                time.sleep(_PAUSE)
        except OSError:
            continue  # not a child of this process, or already reaped
