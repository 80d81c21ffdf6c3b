"""Finish what fn has left running, as an interpreter does at exit.

Threads are joined, then exit functions run, finalizers, and those of multiprocessing: those that fn
has left, and never one of the parent's or of a preloaded module. The answer has been sent by then,
so nothing that happens here can lose it; the parent delivers it when this process has ended.

Most calls leave nothing; the check must cost them next to nothing.
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

__all__ = ["finish", "forget_frames", "look", "mark", "set_mark", "thread_exits"]

# How long a tracker of multiprocessing's may take for what is left, and between looks at it.
_TRACKER_PATIENCE = 2.0
_PAUSE = 0.002
_NAMES_MAX = 100
# So long a thread may be waited for at once (what more would mean to the system is an error).
_LONGEST = 1e6
_PREFIX = "aioisolate-"  # of helpers of this package's own

# What is to follow when the exit functions of fn have run.
_rest: Callable[[], object] | None = None
# What belongs to the parent, kept alive: if it were collected here, it would be finalized.
_foreign: list[object] = []


def mark() -> None:
    """Mark the boundary between exit functions of the parent and those of fn in atexit."""
    if _rest is not None:
        _rest()


def set_mark(spec: ChildSpec) -> None:
    """Record in a fork server what is registered before fn is called."""
    atexit.unregister(mark)  # an earlier one
    atexit.register(mark)
    spec.exits = atexit._ncallbacks()
    spec.thread_exits = thread_exits()
    if "weakref" in sys.modules:
        spec.weak = weak = sys.modules["weakref"].finalize._index_iter
        spec.finalizers = next(weak)


def thread_exits() -> int:
    """Count the exit functions that `threading` calls when it has waited for threads."""
    threading: Any = sys.modules.get("threading")
    return 0 if threading is None else len(threading._threading_atexits)


def look(*, due: bool) -> bytes | None:
    """Return the names of threads and processes that fn has left; None: nothing is to be done.

    *due*: something is known to be left to do.
    """
    names: list[str] = []
    try:
        if _thread._count():
            names += map(_name, _threads())
        if "multiprocessing.util" in sys.modules:
            names += map(_name, _processes())
            due |= bool(_finalizers(own=True)) or bool(_trackers())
    except Exception:  # noqa: BLE001 - fn may have replaced any of these modules
        due = True  # what is the matter `finish` will say
    return _encode(names) if due or names else None


def _encode(names: Iterable[str]) -> bytes:
    return "\n".join(list(names)[:_NAMES_MAX]).encode(errors="backslashreplace")


def _name(waited_for: Any) -> str:
    kind = "process" if hasattr(waited_for, "pid") else "thread"
    return f"{kind} {str(waited_for.name)[:200]}".replace("\n", " ")


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
    """List the processes of multiprocessing's that fn has started, waits for, and has left."""
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
    """Do an interpreter's exit work, report what has not ended in time, and call *end*."""
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
                if os.getpid() == pid:  # no copy that an exit function has made
                    body = encode(spec.nonce, Kind.LEAVING, _encode(names))
                    _send(spec, body)
            except BaseException as exc:  # noqa: BLE001 - as the interpreter does at its end
                sys.excepthook(type(exc), exc, exc.__traceback__)
            finally:
                end()

        _rest = rest
        # The last one of these, in this order, is the mark; it does not return.
        atexit._run_exitfuncs()
        rest()  # unless fn has removed it
    except BaseException as exc:  # noqa: BLE001 - likewise
        sys.excepthook(type(exc), exc, exc.__traceback__)
    finally:
        end()


def _send(spec: ChildSpec, body: bytes) -> None:
    try:
        progress.send(spec.channel, body)
    except OSError:
        pass  # fn has closed the channel; or there is nobody any more


# Threads and processes


def _wait(until: float, thread_exits: int) -> list[str]:
    """Wait for threads and processes; return the names of those that have not ended in time.

    *thread_exits*: the number of exit functions of `threading` that are the parent's.
    """
    threading: Any = sys.modules.get("threading")
    if _thread._count():
        _wake_pools(thread_exits)
    while threads := _threads():
        if time.monotonic() >= until:
            break
        for thread in threads:
            # Not by a method of a class of fn's, which may take no timeout.
            threading.Thread.join(thread, _left(until))
    processes = _processes() if "multiprocessing.util" in sys.modules else []
    for process in processes:
        process.join(_left(until))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()  # or who runs multiprocessing's exit function would wait for it
    return [*map(_name, threads), *map(_name, late)]


def _left(until: float) -> float:
    return min(max(0.0, until - time.monotonic()), _LONGEST)


def _wake_pools(thread_exits: int) -> None:
    """Stop the pools of concurrent.futures whose threads wait for work."""
    threading = sys.modules.get("threading")
    if threading is None or not _threads():
        return
    for name, table in (("thread", "_threads_queues"), ("process", "_threads_wakeups")):
        module = sys.modules.get(f"concurrent.futures.{name}")
        workers = getattr(module, table, {})
        ended = [thread for thread in workers if not thread.is_alive()]  # with the fork
        _foreign.extend((thread, workers.pop(thread)) for thread in ended)
    # They join their threads, however long that takes. Those of the pools may be called twice, and
    # that does no harm: there is no telling them from others in the parent's list.
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
            return  # no thread may be started; then these are waited for in vain


def _call_all(calls: Iterable[Callable[[], object]]) -> None:
    for call in calls:
        call()


# What frames hold


def forget_frames(exc: BaseException) -> None:
    """Clear the frames of fn that *exc* keeps alive.

    A file that is found in a cycle by the garbage collector may lose what it has not written yet.
    Frames of the parent's, in an exception that comes from there, are left alone.
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
                    pass  # it is being executed
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
        for _, finalizer in sorted(own, key=_first, reverse=True):
            try:
                finalizer()
            except Exception as exc:  # noqa: BLE001 - as its own exit function does
                sys.excepthook(type(exc), exc, exc.__traceback__)


def _first(pair: tuple[int, object]) -> int:
    return pair[0]


def _end_multiprocessing() -> None:
    """Run the exit function of multiprocessing, which sees nothing that is not fn's."""
    util = sys.modules["multiprocessing.util"]
    for key, finalizer in _finalizers(own=False).items():
        _foreign.append(finalizer)
        del util._finalizer_registry[key]
    process: Any = sys.modules["multiprocessing.process"]
    pid = os.getpid()
    for child in list(process._children):
        if child._parent_pid != pid:
            _foreign.append(child)
            process._children.discard(child)
    util._exit_function()


def _trackers() -> list[Any]:
    found = [getattr(sys.modules.get(name), "_resource_tracker", None) for name in TRACKERS]
    return [tracker for tracker in found if tracker is not None and tracker._pid is not None]


def _stop_trackers() -> None:
    """Let the trackers that fn has started remove what is left in /dev/shm, and end."""
    until = time.monotonic() + _TRACKER_PATIENCE
    for tracker in _trackers():
        try:
            os.waitpid(tracker._pid, os.WNOHANG)
            os.close(tracker._fd)
            tracker._fd = None
            while os.waitpid(tracker._pid, os.WNOHANG)[0] == 0 and time.monotonic() < until:
                time.sleep(_PAUSE)
        except OSError:
            continue  # it is not this process's; or it has ended
