"""Query the filters of `warnings`, for which there is no public API."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["action_for", "filters"]


def filters() -> Sequence[Any]:
    """Return the active filters, in the order in which they are tried."""
    # With `-X context_aware_warnings` (Python 3.14, the default without a GIL) each context has its
    # own filters.
    current = getattr(warnings, "_get_filters", None)
    found: Sequence[Any] = warnings.filters if current is None else current()
    return found


def action_for(
    text: str,
    category: type[Warning],
    module: str,
    line: int,
    among: Iterable[Any] | None = None,
) -> str:
    """Return the action for a warning: "default", "error", "ignore", ...

    *among* are the filters to try instead of the active ones.
    """
    for action, message, kind, name, number in filters() if among is None else among:
        if (
            issubclass(category, kind)
            and (message is None or _matches(message, text))
            and (name is None or _matches(name, module))
            and number in (0, line)
        ):
            return str(action)
    return str(getattr(warnings, "defaultaction", "default"))


def _matches(pattern: Any, text: str) -> bool:
    # The patterns of Python's initial filters are plain strings.
    return text == pattern if isinstance(pattern, str) else pattern.match(text) is not None
