"""What Python itself has in `select` and `os`, whatever a library has put in its place.

gevent and eventlet replace what blocks by functions that wait in an event loop of their own
("monkey patching"), before or after this package is imported: a fork that watches the child, and
collects it; a poll that runs other code meanwhile. And they take epoll away. Here nothing waits
longer than it may, children are collected by who has forked them, and a forked child has no such
loop.
"""

from __future__ import annotations

import sys
from posix import fork, waitpid
from typing import TYPE_CHECKING, Any

__all__ = ["fork", "select", "waitpid"]


def _load(name: str) -> Any:
    """Load a module of the standard library that is written in C once more, for this package."""
    from importlib._bootstrap import module_from_spec  # noqa: PLC0415

    __import__(name)
    spec: Any = sys.modules[name].__spec__
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    import select
else:
    select = _load("select")
