"""Classes that a forked child shares with its parent, although they can't be imported.

A class that was created in a function, or in ``__main__``, can't be pickled by name. cloudpickle
pickles such a class by value, and the parent would create a second class from that: ``except
LocalError`` would not catch its instances. But the child is a copy of the parent, so the parent has
the class, at the same address. The child sends the address, and the parent looks for it among the
existing subclasses of the class's base; it never dereferences the address.
"""

from __future__ import annotations

import gc
from typing import Any

from . import ancestry
from .by_value import CodePickler, by_name

__all__ = ["SharedClassPickler", "find_shared_class"]


class SharedClassPickler(CodePickler):
    """cloudpickle, but classes from before the fork are pickled by address."""

    names_culprit = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # `bootstrap` calls gc.freeze(), so the garbage collector lists only objects from after the
        # fork.
        self.new_classes: set[int] | None = None

    def reducer_override(self, obj: Any) -> Any:
        """Reduce a class from before the fork to its address; delegate other objects."""
        if ancestry.is_copy and isinstance(obj, type) and self._is_shared(obj):
            return find_shared_class, (obj.__base__, obj.__module__, obj.__qualname__, id(obj))
        return super().reducer_override(obj)

    def _is_shared(self, cls: type) -> bool:
        if cls.__base__ is None or by_name(cls) is cls:
            return False
        if self.new_classes is None:
            self.new_classes = {id(obj) for obj in gc.get_objects() if isinstance(obj, type)}
        return id(cls) not in self.new_classes


def find_shared_class(base: type, module: str, qualname: str, address: int) -> type:
    """Find the class that a child of this process shares with it. Raises LookupError."""
    cls: type
    for cls in type.__subclasses__(base):
        if id(cls) == address and cls.__qualname__ == qualname and cls.__module__ == module:
            return cls
    raise LookupError(f"the class {module}.{qualname} no longer exists in this process")
