"""Trying something in a real child that has put layers of containment on itself."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable
from typing import Any

from tests.helpers import fork


def leave() -> None:
    """End this child; what counts coverage at its end may be forbidden to."""
    with contextlib.suppress(BaseException):
        os._exit(0)
    while True:
        os.kill(os.getpid(), signal.SIGKILL)


def outcome(act: Callable[[], Any]) -> str:
    """Do it, and tell "ok", the name of the errno, or whatever else was raised."""
    try:
        result = act()
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, repr(exc))
    except BaseException as exc:
        return repr(exc)
    return "ok" if result is None or isinstance(result, (int, list, tuple)) else str(result)


def in_child(act: Callable[[], Any], *layers: Callable[[], Any]) -> str:
    """Fork, put the *layers* on in the child, do *act* there and tell what came of it.

    "SIGSYS" and the like, if a signal ended the child before it could tell; "ended" if it just did.
    """
    read, write = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            os.close(read)
            for layer in layers:
                layer()
        except BaseException as exc:
            os.write(write, f"layer: {exc!r}".encode())
            leave()
        os.write(write, outcome(act).encode() or b"nothing")
        leave()
    os.close(write)
    with open(read, "rb") as file:
        text = file.read().decode()
    _, status = os.waitpid(pid, 0)
    return text or (signal.Signals(os.WTERMSIG(status)).name if status else "ended")
