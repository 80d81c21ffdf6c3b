"""The original functions of `select` and `os`, even if a library has replaced them.

gevent and eventlet replace blocking functions by functions that wait in their own event loop
("monkey patching"), before or after this package is imported: their fork watches and reaps the
child, their poll runs other code meanwhile, and they remove epoll. This package needs the original
functions: it blocks only for bounded times, reaps its children itself, and a forked child has no
such loop.
"""

from __future__ import annotations

import sys
from posix import fork, waitpid
from typing import TYPE_CHECKING, Any

__all__ = ["fork", "select", "waitpid"]


def _load(name: str) -> Any:
    """Load a second copy of a C module of the standard library, for this package."""
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
