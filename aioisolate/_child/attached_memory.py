"""Keep shared memory that a child only attaches to from being removed when the child ends.

`multiprocessing.shared_memory` registers memory with the resource tracker when it creates the
memory, and also when it attaches to it. That is harmless if all processes share a tracker. A child
has its own tracker, which would remove the memory of the parent, or of another process, when the
child ends.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["register_only_created", "watch_for_module"]

_MODULE = "multiprocessing.resource_tracker"
_KIND = "shared_memory"


def register_only_created(module: Any) -> None:
    """Make the resource tracker's module register only shared memory that this process creates."""
    register, unregister = module.register, module.unregister
    created: set[str] = set()

    def register_created(name: str, rtype: str) -> None:
        if rtype == _KIND:
            # The caller is SharedMemory.__init__; only its local variables show the difference.
            if not sys._getframe(1).f_locals.get("create", True) and name not in created:
                return
            created.add(name)
        register(name, rtype)

    def unregister_any(name: str, rtype: str) -> None:
        # The tracker reports an error for a name that is not registered. Another process that
        # shares the tracker may have registered the name, so unregistering can't be skipped.
        if rtype == _KIND and name not in created:
            register(name, rtype)
        unregister(name, rtype)
        created.discard(name)

    module.register, module.unregister = register_created, unregister_any


def watch_for_module() -> None:
    """Patch the module now, or when this process or a child of it imports the module."""
    module = sys.modules.get(_MODULE)
    if module is not None:
        register_only_created(module)
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds multiprocessing.resource_tracker by the other finders, and wraps its loader."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """Loads the module by the original loader, patches it, and restores the loader attributes."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        spec.loader = self._loader
        module: ModuleType | None = self._loader.create_module(spec)
        spec.loader = self  # type: ignore[assignment]  # has the methods of a loader
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        register_only_created(module)
