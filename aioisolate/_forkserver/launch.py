"""Start a fork server that is a fresh interpreter."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .._os import alive_pipe
from . import protocol

__all__ = ["Launch", "explain", "launch_interpreter"]

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Launch(NamedTuple):
    """A way to start the process of a fork server.

    Attributes:
        start: starts the process with one end of a socket pair, ties it to the ends of an
            `alive_pipe`, if there are any, and returns its pid. Raises OSError.
        python: the program, if the user named one; or "".
        hint: returns a possible cause why a process sends nothing; None for a copy.
    """

    start: Callable[[int, Sequence[int]], int]
    python: str = ""
    hint: Callable[[], str] | None = None


_UNKNOWN = "of unknown version"
_REMEDY = (
    "Name the interpreter, Isolator(python='/path/to/python'), or use start='template' or 'fork'"
)
# errnos that mean the program is wrong, and not the system.
_OF_A_PROGRAM = frozenset(
    {errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
)

# The first code that the fresh interpreter runs. This text is of the same version as this process;
# the files on disk may have been upgraded. So the code can compare the two versions and report them
# before data is sent whose format depends on the version.
#
# The fork server is not confined, so it must not import files that another user may have created.
# The current directory is not on its path (-P), and the path begins with the standard library. The
# package is loaded from the place where this process found it. Its parent directory is not added to
# the path: it may be site-packages, and contain an old backport of typing or enum.
_SOURCE = f"""\
def start():
    import sys
    library = getattr(sys, "_stdlib_dir", None)
    if library in sys.path:
        at = sys.path.index(library)
        zipped = "/python%d%d.zip" % sys.version_info[:2]
        del sys.path[:at - 1 if at and sys.path[at - 1].endswith(zipped) else at]
    root, fd, *wanted = sys.argv[1:]
    del sys.argv[1:]
    fd = int(fd)
    found = [str(sys.implementation.cache_tag) + getattr(sys, "abiflags", "")]
    trouble = ""
    try:
        if found == wanted[:1]:
            from _frozen_importlib import module_from_spec
            from _frozen_importlib_external import PathFinder
            spec = PathFinder.find_spec("aioisolate", [root])
            if spec is None or spec.loader is None:
                raise ImportError("there is no package aioisolate in " + root)
            package = sys.modules.get("aioisolate")
            try:
                if getattr(package, "__file__", None) != spec.origin:
                    # Not imported yet, or imported from elsewhere when the interpreter started.
                    for name in list(sys.modules):
                        if name.partition(".")[0] == "aioisolate":
                            del sys.modules[name]
                    package = sys.modules["aioisolate"] = module_from_spec(spec)
                    spec.loader.exec_module(package)
            finally:
                found.append(str(getattr(package, "__version__", "{_UNKNOWN}")))
            if found == wanted[:2]:
                from aioisolate._forkserver.protocol import PROTOCOL
                found.append(str(PROTOCOL))
                if found == wanted:
                    # Even if the parent's flags make imports lazy: each child would run the imports
                    # that the server has not run.
                    from aioisolate._os.imports import disable_lazy_imports
                    disable_lazy_imports()
                    from aioisolate._forkserver.server import main
                    return main, fd
    except BaseException:
        import traceback
        trouble = traceback.format_exc()
    import marshal, os
    body = marshal.dumps([("strange", found, trouble)], 4)
    try:
        os.write(fd, len(body).to_bytes(4, "little") + body)
        while os.read(fd, 65536):  # closing a socket with unread data may discard the record
            pass
    finally:
        os._exit(1)

main, fd = start()
main(fd)
"""


def _identity() -> list[str]:
    """Return the bytecode tag, the version of this package, and the protocol version."""
    package: Any = sys.modules[__name__.partition(".")[0]]
    build = str(sys.implementation.cache_tag) + getattr(sys, "abiflags", "")
    return [build, package.__version__, str(protocol.PROTOCOL)]


def explain(found: Sequence[str], trouble: str, named: str) -> tuple[str, bool]:
    """Return why a fresh interpreter cannot serve, and whether its successors could not either.

    *found*: the `_identity` of the interpreter, as far as known; *trouble*: a traceback, or "";
    *named*: the program, if the user named one, or "".
    """
    program, (python, version, protocol) = "aioisolate", _identity()
    there, here = found[1] if len(found) > 1 else _UNKNOWN, version
    if found[0] != python:
        if named:
            return (
                f"{named} is Python {found[0]}, and this process is {python}: python= must name an "
                "interpreter of the same version and build"
            ), True
        program, there, here = "Python", found[0], python
    elif there in (_UNKNOWN, version):
        if len(found) < 3 or trouble:
            # The package may be in the middle of an upgrade.
            return (
                f"it can't import aioisolate {there} from {_ROOT}; this process runs {version}. If "
                f"the package was upgraded under a running process, restart it\n{trouble}".rstrip()
            ), False
        there, here = f"{there} (protocol {found[2]})", f"{here} (protocol {protocol})"
    return (
        f"the fork server runs {program} {there} and this process {here}: {program} was upgraded "
        "under a running process; restart it"
    ), True


def launch_interpreter(environment: Mapping[str, str] | None, python: str) -> Launch:
    """Return a launcher of fresh interpreters like this one, or of the program *python*."""

    def start(fd: int, ends: Sequence[int]) -> int:
        flags: Any = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        arguments = [_ROOT, str(fd if fd != 3 else 4), *_identity()]
        program = python or _find_program()
        pid = _spawn(
            program,
            [program, *flags, "-P", "-c", _SOURCE, *arguments],
            # Bind symbols at start: every child would have to resolve again each symbol that the
            # dynamic linker resolves only at its first use.
            {"LD_BIND_NOW": "1", **(os.environ if environment is None else environment)},
            # A descriptor duplicated to its own number would be closed on exec.
            file_actions=[
                # The terminal's input is not for the server.
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                *(
                    [(os.POSIX_SPAWN_DUP2, fd, 3), (os.POSIX_SPAWN_DUP2, 3, fd)]
                    if fd != 3
                    else [(os.POSIX_SPAWN_DUP2, fd, 4)]
                ),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP},
        )
        # If this process ends before that, the server gets no setup, and ends.
        with contextlib.suppress(ProcessLookupError):  # if SIGCHLD is ignored
            alive_pipe.tie(ends, pid)
        return pid

    return Launch(start, python, lambda: _hint(python))


def _spawn(program: str, *arguments: Any, **options: Any) -> int:
    try:
        return os.posix_spawn(program, *arguments, **options)
    except OSError as exc:
        if exc.errno in _OF_A_PROGRAM:
            text = f"{program} can't be executed: {exc.strerror}. {_REMEDY}"
            raise OSError(exc.errno, text) from exc
        raise


def _hint(python: str) -> str:
    version = ".".join(map(str, sys.version_info[:2]))
    return f"is {python or sys.executable} Python {version}? {_REMEDY}"


def _find_program() -> str:
    """Return the program of this interpreter. Raises OSError if it is not known."""
    program: Any = sys.executable  # the user may have set it
    if isinstance(program, os.PathLike):
        program = os.fspath(program)
    # A relative path would be searched in the current directory.
    if not program or not isinstance(program, str) or not os.path.isabs(program):
        raise OSError(
            errno.ENOENT,
            f"sys.executable is {program!r}; it must be the path of a Python interpreter. "
            f"{_REMEDY}",
        )
    if getattr(sys, "frozen", None) is True:
        raise OSError(
            errno.ENOEXEC,
            f"this is a frozen application: {program} is the application, not a Python "
            f"interpreter. {_REMEDY}",
        )
    return program
