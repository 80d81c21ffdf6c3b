"""numpy, an optional dependency."""

from __future__ import annotations

from typing import Any

__all__ = ["numpy_for"]


def numpy_for(caller: str) -> Any:
    """Import numpy for the function *caller*. Raises ImportError, with instructions, without it."""
    try:
        import numpy as np  # noqa: PLC0415 - an optional dependency
    except ModuleNotFoundError as exc:
        if exc.name != "numpy":  # numpy is installed, but a module that it needs is not
            raise
        raise ImportError(f"{caller} needs numpy: pip install numpy", name="numpy") from exc
    return np
