"""Warnings about other threads of a process that is about to be forked.

Python threads may hold any lock. Most native threads belong to a pool, and the library that owns
the pool waits for ever in a child, which does not have the threads. Some libraries are prepared for
a fork. A table lists these, each with its reason, so that not every program that imports numpy is
warned.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from .._errors import ForkSafetyWarning
from .._os import native_threads
from .._os.native_threads import NativeThread
from .._os.process import suppress_fork_warning
from .caller_warnings import warn

__all__ = ["SAFE", "OtherThreads", "Safe", "other_threads"]

_NAMED_MAX = 3
_HELP = (
    'Isolator(start="zygote", preload=[...]) starts children from a process that has no other '
    "threads"
)


class Safe(NamedTuple):
    """Native threads that are safe in a fork.

    Attributes:
        reason: the reason, and its source.
        library: matches the path of the library that started the threads; "" matches any.
        name: matches the names of the threads; "" matches any.
    """

    reason: str
    library: str = ""
    name: str = ""


SAFE = (
    Safe(
        "OpenBLAS with threads of its own ends them right before a fork (pthread_atfork of "
        "blas_thread_shutdown; OpenMathLib/OpenBLAS#343) and starts others when it is used. If it "
        "is built with OpenMP, it has the threads of libgomp, which are not in this table",
        library=r"openblas[^/]*$",
    ),
    Safe(
        "libuv makes a new pool in the child (pthread_atfork of reset_once, src/threadpool.c); "
        "uvloop contains a copy of libuv",
        library=r"/uvloop/[^/]*$|/libuv[^/]*$",
    ),
    Safe(
        "jemalloc takes its locks before a fork, and in the child its background threads are off "
        "(background_thread_postfork_child, src/background_thread.c)",
        name=r"jemalloc_bg_thd$",
    ),
    Safe(
        "Arrow makes new pools in the child (apache/arrow#2363, since 12.0 by at-fork handlers: "
        "#14594)",
        library=r"/libarrow[^/]*$",
    ),
    Safe(
        "numexpr compares process ids, and starts new threads in the child (init_threads, "
        "numexpr/module.cpp)",
        library=r"/numexpr/[^/]*$",
    ),
    Safe(
        "the OpenMP library of LLVM and Intel starts new threads in the child (__kmp_atfork_child, "
        "z_Linux_util.cpp)",
        library=r"/lib(omp|iomp5)[^/]*$",
    ),
    Safe(
        "tokenizers computes with one thread in the child (child_after_fork, "
        "bindings/python/src/lib.rs)",
        library=r"/tokenizers/[^/]*$",
    ),
    Safe(
        "polars starts this thread, which deletes temporary files, when it is imported. If polars "
        "was imported and not used, it works in a child (tested with 1.36); if it was used, it has "
        "other threads, which are not in this table",
        name=r"polars-ooc-",
    ),
    Safe(
        "faulthandler's watchdog (dump_traceback_later) runs code of the interpreter without a "
        "Python thread state; no other thread uses the locks that it holds",
        library=f"{native_threads.PYTHON}$",
    ),
)


class OtherThreads:
    """The threads of the process other than the one that forks.

    Attributes:
        python: the names of the Python threads.
        natives: descriptions of the native threads that may be unsafe in a fork.
    """

    __slots__ = ("natives", "python")

    def __init__(self, python: Sequence[str], native_threads: Sequence[str]) -> None:
        self.python = python
        self.natives = native_threads

    def __bool__(self) -> bool:
        return bool(self.python or self.natives)

    def warn(self) -> None:
        """Warn, once for each line that calls this package, if there are other threads."""
        if not self:
            return
        names = [*self.python, *self.natives]
        text = (
            f"forking while {len(names)} other thread(s) run ({_listed(names)}): a lock that one "
            "of them holds now stays locked in the child for ever"
        )
        if self.natives:
            text += ", and a library that waits there for its native threads waits for ever"
        text += (
            f". {_HELP}. Or make such calls before threads are started, or call only functions "
            "that share no lock with them; a child that hangs before fn is killed after "
            "start_timeout."
        )
        warn(text, ForkSafetyWarning, about={re.sub(r"\d+", "", name) for name in names})

    def suspicion(self) -> str:
        """Return a possible reason for which fn blocks, for a message; or ""."""
        if not self.natives:
            return ""
        return (
            f"; when it was forked, this process had native threads ({_listed(self.natives)}), "
            f"which the child does not have: fn may have waited for one of them. {_HELP}"
        )


def _listed(names: Sequence[str]) -> str:
    counted = [name if n == 1 else f"{n} x {name}" for name, n in Counter(names).items()]
    return ", ".join(counted[:_NAMED_MAX]) + (", ..." if len(counted) > _NAMED_MAX else "")


_NO_THREADS = OtherThreads((), ())
# The native threads at the last call of `_harmful`, and its result.
_last: tuple[list[int], list[str]] = [], []


def other_threads(python: Sequence[str]) -> OtherThreads:
    """Return the other threads, before a fork; *python*: the names of the Python threads.

    Python's own warning is suppressed, except where native threads can't be listed.
    """
    harmful: list[str] | None = []
    number = native_threads.count()
    if number != 1:  # the common case is one thread
        harmful = _harmful() if number else None
    suppress_fork_warning(judged=bool(python) or harmful is not None)
    return OtherThreads(python, harmful or ()) if python or harmful else _NO_THREADS


def _harmful() -> list[str] | None:
    """Describe the native threads that may be unsafe in a fork; None if they can't be listed."""
    global _last
    try:
        numbers = native_threads.foreign_thread_ids()
        if not numbers:
            return []
        if numbers == _last[0]:
            return _last[1]
        threads = native_threads.describe(numbers)
    except OSError:
        return None  # there is no /proc, for example, or it belongs to another process
    harmful = [_named(thread) for thread in threads if not why_safe(thread)]
    if len(threads) == len(numbers):  # otherwise a thread may be starting
        _last = numbers, harmful
    return harmful


def why_safe(thread: NativeThread) -> str:
    """Return why a native thread is safe in a fork; "" if that is not known."""
    if thread.runs_python:
        return ""
    for safe in SAFE:
        by_library = safe.library and re.search(safe.library, thread.library)
        if by_library or (safe.name and re.match(safe.name, thread.name)):
            return safe.reason
    return ""


def _named(thread: NativeThread) -> str:
    if not thread.library:
        return thread.name or "of an unknown library"
    if thread.library == native_threads.PYTHON:
        return thread.name or "one of _thread.start_new_thread"
    # A file in site-packages is named with its package.
    package = re.split(r"/(?:site|dist)-packages/", thread.library)[-1]
    library = package if package != thread.library else os.path.basename(thread.library)
    return f"{thread.name} of {library}" if thread.name else library
