"""The steps between the fork and fn: turn a copy of the parent into an independent process.

The order of the steps matters; a comment at each step gives the reason. Signals are blocked before
the fork, so no signal handler of the parent runs here. No function here returns to the parent's
code: the process always ends by os._exit.

`main` is one long function on purpose. Each function called here for the first time after the fork
costs two to four page copies, a tenth of a per cent of the whole call.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
from typing import NoReturn

from .._os import alive_pipe, cstdio, fds, fds_after_fork, imports, signals
from .._os.prctl import set_parent_death_signal
from .._wire.frames import encode_failure
from .._wire.shared_constants import STACK_SIGNAL
from . import stdio
from .spec import ChildSpec

__all__ = ["main", "set_oom_score_adj"]

_KILL = int(signal.SIGKILL)
_OOM_SCORE = b"/proc/self/oom_score_adj"
_LINUX = sys.platform == "linux"


def main(spec: ChildSpec) -> NoReturn:  # noqa: C901, PLR0912, PLR0915 - see above
    """Set up the forked child according to *spec*, run the call, and end the process."""
    code = 1
    step = "parent-death signal"
    try:
        try:
            # First: a parent that dies before the signal is set leaves an orphan. The signal works
            # only if the parent is still alive afterwards. (If the parent has died by now, this
            # process holds the last ends of the pipe, and closing the ends kills it.)
            if spec.ends:
                alive_pipe.tie(spec.ends, os.getpid())
                if spec.confinement is None:
                    for end in spec.ends:
                        os.close(end)
            else:
                set_parent_death_signal(_KILL)
                if os.getppid() != spec.parent_pid:
                    os._exit(1)
            step = "control group"
            # Before the child uses any resource that the control group accounts for.
            for entrance in spec.entrances:
                os.write(entrance, b"0")
            step = "session"
            # Before anything that could start a process. In a session of its own, the child gets no
            # SIGINT from Ctrl-C, which the parent handles, and no SIGTTIN or SIGTTOU when it uses
            # the terminal. The session is also a process group, which one kill() can signal.
            os.setsid()
            step = "garbage collector"
            # Before anything is collected: the parent's unreachable objects must not be finalized
            # here (a temporary directory would be deleted under the parent), and a full
            # collection would touch, so copy, every object of the parent.
            gc.freeze()
            step = "signals"
            # Reset handlers before the mask, so that no signal reaches a handler of the parent.
            if spec.faulthandler:
                faulthandler.disable()
            signals.reset(spec.signals)
            step = "descriptors"
            # Before user code and before anything that opens files. Descriptors are replaced, not
            # closed: an inherited socket object that is collected later closes its number, which
            # could then belong to another file.
            sever = spec.sever
            if sever is None:
                foreign: dict[int, int] = {}
                listed = fds.listed()
                sever = fds.severable(listed, spec.keep, files=spec.confined, foreign=foreign)
            else:
                foreign = spec.foreign or {}
            # Files that a library's after-fork hook has opened in this process are not the
            # parent's, and stay open: without them, the library may end the process (gRPC).
            if foreign and not spec.confined:
                own = fds_after_fork.opened_here(
                    foreign, spec.foreign, spec.parent_pid, threaded=spec.threaded
                )
                if own:
                    sever = [fd for fd in sever if fd not in own]
            fds.ours.clear()  # the list is the parent's
            null = spec.null
            empty = spec.empty
            for fd in sever:
                try:
                    os.dup2(null if fd <= 2 else empty, fd, fd <= 2)
                except OSError:
                    # The number is above RLIMIT_NOFILE: it can't be replaced, and no file that is
                    # opened later can get it.
                    os.close(fd)
            if spec.confined and fds.kept:
                from . import descriptors  # noqa: PLC0415 - rare; the parent has imported it

                descriptors.reopen_or_replace([fd for fd in fds.kept if fd not in spec.keep], empty)
            if spec.stdout >= 0:
                os.dup2(spec.stdout, 1)
                os.dup2(spec.stderr, 2)
                if spec.stdout != null:
                    os.dup2(null, spec.stdout, False)
                    os.dup2(null, spec.stderr, False)
            step = "imports"
            # The parent waited until no other thread was importing a module. If an import began
            # right before the fork, the module's lock is never released in this process.
            if spec.threaded and (names := imports.in_progress()):
                message = f"another thread was just importing {', '.join(names)}"
                raise RuntimeError(message)  # noqa: TRY301 - all errors are handled below
            step = "output"
            # After the descriptors: the streams write to the new files 1 and 2.
            if spec.purge_c_stdout:
                cstdio.purge()
            stdin, *streams = spec.streams or stdio.build()
            sys.stdin = sys.__stdin__ = stdin  # type: ignore[misc]  # declared Final
            sys.stdout, sys.stderr = streams
            sys.__stdout__, sys.__stderr__ = streams  # type: ignore[misc]  # declared Final
            step = "event loop"
            # After the descriptors: objects deleted here can't change the parent's epoll set.
            for forget, arguments in spec.forget_loop:
                forget(*arguments)
            for forget, arguments in spec.disown:
                forget(*arguments)
            step = "environment"
            if spec.environment is not None:
                from .environment import change  # noqa: PLC0415 - rare; the parent has imported it

                change(*spec.environment)
            step = "random seed"
            # `random` reseeds itself after a fork; numpy's generators, for example, do not.
            if spec.reseed is not None:
                spec.reseed()
            step = "out-of-memory score"
            # When memory runs out, the kernel must kill the child, not the parent.
            if _LINUX:
                set_oom_score_adj()
            step = "crash reports"
            # Last: faulthandler installs handlers for five signals. From here on, a crash writes
            # its stack.
            faulthandler.enable(spec.scratch)
            if spec.deadline_stack:
                faulthandler.register(STACK_SIGNAL, spec.scratch)
            if spec.confinement is not None or spec.rlimits is not None:
                step = "confinement"
                # After all steps that need /proc, files or privileges. The resource limits come
                # last, since the other steps need memory and descriptors.
                from . import confine  # noqa: PLC0415 - rare; the parent has imported it

                step = confine.confine(spec)
        except BaseException as exc:  # noqa: BLE001 - after any error, fn must not run
            _report_failure(spec, step, exc)
        else:
            code = spec.then(spec, streams)
    finally:
        # Even after a KeyboardInterrupt or a MemoryError in the lines above: unwinding the stack
        # would run the caller's `finally` blocks a second time.
        os._exit(code)


def set_oom_score_adj() -> None:
    """Make the kernel kill this process and its children first when memory runs out."""
    try:
        fd = os.open(_OOM_SCORE, os.O_WRONLY)
    except OSError:
        return  # /proc is missing or not writable: the kernel uses the default score
    try:
        os.write(fd, b"1000")
    finally:
        os.close(fd)


def _report_failure(spec: ChildSpec, step: str, exc: BaseException) -> None:
    os.write(spec.channel, encode_failure(spec.nonce, step, exc))
