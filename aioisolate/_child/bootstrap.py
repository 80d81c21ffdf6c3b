"""From the fork to fn: turn a copy of the parent into a process of its own.

The order of the steps is the design; each has its reason beside it. Signals have been blocked
since before the fork, so nothing of the parent's runs here uninvited until they are let in
again. Nothing here returns to the parent's code: the last word is always os._exit.

It is one long function on purpose. Each function called here for the first time after the fork
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

__all__ = ["main", "volunteer"]

_KILL = int(signal.SIGKILL)
_OOM_SCORE = b"/proc/self/oom_score_adj"
_LINUX = sys.platform == "linux"


def main(spec: ChildSpec) -> NoReturn:  # noqa: C901, PLR0912, PLR0915 - see above
    """Carry out *spec* in the forked child and end the process."""
    code = 1
    step = "parent-death signal"
    try:
        try:
            # First, since a parent that dies before it is set leaves an orphan; and it counts
            # only if the parent was still there afterwards. (Ends are the parent's, or nobody's: if
            # it has died by now, closing them here kills this process.)
            if spec.ends:
                alive_pipe.tie(spec.ends, os.getpid())
                if spec.policy is None:
                    for end in spec.ends:
                        os.close(end)
            else:
                set_parent_death_signal(_KILL)
                if os.getppid() != spec.parent_pid:
                    os._exit(1)
            step = "control group"
            # Before anything is used that it counts.
            for entrance in spec.entrances:
                os.write(entrance, b"0")
            step = "session"
            # Before anything that could start a process. A session of its own: a Ctrl-C in the
            # terminal is the parent's business, and a terminal that is no child's stops none that
            # uses it. It is a process group, too, which can be killed by one number.
            os.setsid()
            step = "garbage collector"
            # Before anything is collected: the parent's unreachable objects must not be finalized
            # here (a temporary directory would be deleted under the parent), and a full
            # collection would touch, so copy, every object of the parent.
            gc.freeze()
            step = "signals"
            # Handlers before the mask: a signal in between finds none of the parent's.
            if spec.faulthandler:
                faulthandler.disable()
            signals.reset(spec.signals)
            step = "descriptors"
            # Before user code and before anything that opens files: replaced in place rather
            # than closed, because an inherited socket object that is collected later closes its
            # number, whoever has it by then.
            sever = spec.sever
            if sever is None:
                foreign: dict[int, int] = {}
                listed = fds.listed()
                sever = fds.severable(listed, spec.keep, files=spec.confined, foreign=foreign)
            else:
                foreign = spec.foreign or {}
            # What a library has opened here, by a function that runs after a fork, is not the
            # parent's, whatever its number; a library that loses that may end the process (gRPC).
            if foreign and not spec.confined:
                own = fds_after_fork.opened_here(
                    foreign, spec.foreign, spec.parent_pid, threaded=spec.threaded
                )
                if own:
                    sever = [fd for fd in sever if fd not in own]
            fds.ours.clear()  # they were the parent's
            null = spec.null
            empty = spec.empty
            for fd in sever:
                try:
                    os.dup2(null if fd <= 2 else empty, fd, fd <= 2)
                except OSError:
                    # RLIMIT_NOFILE has been put below it: it can't be replaced, and nothing that is
                    # opened later can have its number.
                    os.close(fd)
            if spec.confined and fds.kept:
                from . import descriptors  # noqa: PLC0415 - only then; the parent has imported it

                descriptors.renew([fd for fd in fds.kept if fd not in spec.keep], empty)
            if spec.stdout >= 0:
                os.dup2(spec.stdout, 1)
                os.dup2(spec.stderr, 2)
                if spec.stdout != null:
                    os.dup2(null, spec.stdout, False)
                    os.dup2(null, spec.stderr, False)
            step = "imports"
            # The parent waited until no other thread was importing anything; if one began at the
            # last moment, its module's lock will never be released here.
            if spec.threaded and (names := imports.in_progress()):
                message = f"another thread was just importing {', '.join(names)}"
                raise RuntimeError(message)  # noqa: TRY301 - every failure goes one way
            step = "output"
            # After the descriptors: the streams write to 1 and 2 as they are now.
            if spec.purge_c_stdout:
                cstdio.purge()
            stdin, *streams = spec.streams or stdio.build()
            sys.stdin = sys.__stdin__ = stdin  # type: ignore[misc]  # final for others
            sys.stdout, sys.stderr = streams
            sys.__stdout__, sys.__stderr__ = streams  # type: ignore[misc]  # likewise
            step = "event loop"
            # After the descriptors: what is dropped here can't reach the parent's epoll.
            for forget, arguments in spec.forget_loop:
                forget(*arguments)
            for forget, arguments in spec.disown:
                forget(*arguments)
            step = "environment"
            if spec.environment is not None:
                from .environment import change  # noqa: PLC0415 - only then; the parent has it

                change(*spec.environment)
            step = "random seed"
            # `random` reseeds itself after a fork; others do not.
            if spec.reseed is not None:
                spec.reseed()
            step = "out-of-memory score"
            # When memory runs out the kernel must take the child, not the server.
            if _LINUX:
                volunteer()
            step = "crash reports"
            # Last, since it takes over five signals; from here on a crash names its line.
            faulthandler.enable(spec.scratch)
            if spec.deadline_stack:
                faulthandler.register(STACK_SIGNAL, spec.scratch)
            if spec.policy is not None or spec.bounds is not None:
                step = "confinement"
                # After all that needs /proc, files or privileges; the limits last of all, since
                # what comes before needs memory and descriptors, too.
                from . import confine  # noqa: PLC0415 - only then; the parent has imported it

                step = confine.confine(spec)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, fn must not run
            _report_failure(spec, step, exc)
        else:
            code = spec.then(spec, streams)
    finally:
        # Whatever happened, even a KeyboardInterrupt or a MemoryError in the lines above:
        # unwinding from here would run the caller's `finally` blocks a second time.
        os._exit(code)


def volunteer() -> None:
    """Have the kernel kill this process and its children first when memory runs out."""
    try:
        fd = os.open(_OOM_SCORE, os.O_WRONLY)
    except OSError:
        return  # no /proc here, or not ours: then the kernel chooses as it would anyway
    try:
        os.write(fd, b"1000")
    finally:
        os.close(fd)


def _report_failure(spec: ChildSpec, step: str, exc: BaseException) -> None:
    os.write(spec.channel, encode_failure(spec.nonce, step, exc))
