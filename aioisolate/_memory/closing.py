"""Closing at the end of a `with` block."""

from __future__ import annotations

from types import TracebackType
from typing import Self

__all__ = ["Closing"]


class Closing:
    """Something that is closed when its `with` block is left."""

    __slots__ = ()

    def close(self) -> None:
        """Give it up."""
        raise NotImplementedError

    def _check_open(self) -> None:
        """Raise ValueError if it is closed."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
