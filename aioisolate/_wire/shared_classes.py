"""Classes that a forked child and its parent both have, though no import leads to them.

A class made in a function, or in ``__main__``, can't be pickled by name. cloudpickle writes such a
class out whole, and the parent would rebuild a second, equal-looking class: ``except
LocalError`` would not catch it. But the child is a copy of the parent, so the class is already
there, at the same address. The child sends that address as a claim, and the parent looks for
it among the living subclasses of the class's base; it never follows the address itself.
"""

from __future__ import annotations

import gc
from typing import Any

from . import ancestry
from .by_value import CodePickler, by_name

__all__ = ["SharedClassPickler", "find_kin"]


class SharedClassPickler(CodePickler):
    """cloudpickle, but classes from before the fork stay what they are."""

    names_culprit = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # The bootstrap froze the garbage collector, so whatever it tracks came after the fork.
        self.born_here: set[int] | None = None

    def reducer_override(self, obj: Any) -> Any:
        """Reduce a class from before the fork to a claim; delegate other objects to cloudpickle."""
        if ancestry.is_copy and isinstance(obj, type) and self._is_kin(obj):
            return find_kin, (obj.__base__, obj.__module__, obj.__qualname__, id(obj))
        return super().reducer_override(obj)

    def _is_kin(self, cls: type) -> bool:
        if cls.__base__ is None or by_name(cls) is cls:
            return False
        if self.born_here is None:
            self.born_here = {id(obj) for obj in gc.get_objects() if isinstance(obj, type)}
        return id(cls) not in self.born_here


def find_kin(base: type, module: str, qualname: str, address: int) -> type:
    """Find the class that a child of this process claims to share with it."""
    cls: type
    for cls in type.__subclasses__(base):
        if id(cls) == address and cls.__qualname__ == qualname and cls.__module__ == module:
            return cls
    raise LookupError(f"the class {module}.{qualname} no longer exists in this process")
