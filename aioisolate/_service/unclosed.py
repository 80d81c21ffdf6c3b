"""What an Isolator that nobody has closed comes to: a warning, and the end of its processes."""

from __future__ import annotations

import atexit
import threading
import warnings
from collections.abc import Sequence

from .service import Service, entered

__all__ = ["warn_unclosed"]

# So many seconds a loop in another thread may take, at the end of the interpreter.
_PATIENCE = 1.0


def warn_unclosed(cores: Sequence[Service], source: object = None, *, stacklevel: int = 2) -> None:
    """Warn of Isolators that were not closed; *source*: such an Isolator."""
    places = ", ".join(dict.fromkeys(service.made_at for service in cores))
    what = "an Isolator was" if len(cores) == 1 else f"{len(cores)} Isolators were"
    warnings.warn(
        f"{what} not closed (made at {places}): use `async with`, or await aclose() before the "
        "event loop ends",
        ResourceWarning,
        stacklevel=stacklevel + 1,
        source=source,
    )


@atexit.register
def _put_all_down() -> None:
    # Here and not when they are collected: by then little of the interpreter may be left.
    left = [service for service in list(entered) if service.is_owned()]  # in a forked copy: none
    try:
        for service in left:
            service.abandon()
        _await_ends(left)
    finally:
        if left:
            warn_unclosed(left)


def _await_ends(cores: Sequence[Service]) -> None:
    """Give those a moment whose loops run in other threads, which put them down."""
    for service in cores:
        if service.state != "closed":
            ended = threading.Event()
            try:
                service.post(ended.set)  # behind what puts it down
            except RuntimeError:
                continue  # its loop has ended
            ended.wait(_PATIENCE)
