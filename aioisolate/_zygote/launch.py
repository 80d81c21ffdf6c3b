"""Starting the process of a fork server that is a fresh interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Launch", "launch_interpreter"]

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Starts the server's process with one end of a socket pair, and returns its pid.
Launch = Callable[[int], int]


def launch_interpreter(environment: Mapping[str, str] | None) -> Launch:
    """Make a launcher of fresh interpreters like this one."""

    def launch(fd: int) -> int:
        source = (
            f"import sys; sys.path.insert(0, {_ROOT!r}); "
            # Whatever flag has come from here: what is not imported there, each child would import.
            "from aioisolate._os.imports import be_eager; be_eager(); "
            f"from aioisolate._zygote.server import main; main({fd if fd != 3 else 4})"
        )
        flags: Any = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        return os.posix_spawn(
            sys.executable,
            [sys.executable, *flags, "-c", source],
            # What the dynamic linker resolves only when it is called first, each child would have
            # to resolve anew.
            {"LD_BIND_NOW": "1", **(os.environ if environment is None else environment)},
            # Under its own number it would be closed on exec.
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, 3), (os.POSIX_SPAWN_DUP2, 3, fd)]
            if fd != 3
            else [(os.POSIX_SPAWN_DUP2, fd, 4)],
            setsid=True,
            setsigmask=(),
            setsigdef=set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP},
        )

    return launch
