"""Limits of the resources of one call: plain data."""

from __future__ import annotations

import re
from typing import Any, TypeAlias

__all__ = ["Limits", "Size", "as_bytes"]

Size: TypeAlias = int | str

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    _UNITS[f"{_letter}b"] = 1000**_power
    _UNITS[f"{_letter}ib"] = 1024**_power

_SIZES = ("memory", "address_space", "file_size", "core_size", "result_size", "output_size")
_COUNTS = ("open_files", "processes")
# The kernel and the frames have no larger numbers.
_SIZE_MAX = 1 << 62
_COUNT_MAX = 1 << 31


def as_bytes(name: str, size: object, *, least: int = 0) -> int:
    """Convert a size, a whole number of bytes or a string such as "512 MiB", to bytes.

    Raises TypeError or ValueError, with the *name* of the size, for anything else.
    """
    if isinstance(size, str):
        found = _SIZE.fullmatch(size)
        unit = _UNITS.get(found[2].lower()) if found else None
        if found is None or unit is None:
            raise ValueError(
                f"{name} must be a number of bytes or a size such as '512 MiB' or '2 GB', "
                f"not {size!r}"
            )
        # No useful size has more digits, and Python limits the digits that it converts.
        number = found[1] if len(found[1]) < 40 else "1" + "0" * 40
        size = int(float(number) * unit) if "." in number else int(number) * unit
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(
            f"{name} must be a number of bytes or a size such as '512 MiB', not {size!r}"
        )
    if not least <= size <= _SIZE_MAX:
        raise ValueError(f"{name} must be {least} to {_SIZE_MAX} bytes, not {_shown(size)}")
    return size


class Limits:
    """Limits of the resources of one call. A limit of None limits nothing.

    Sizes are in bytes, or strings such as ``"512 MiB"`` or ``"2 GB"``; they are kept as bytes. A
    limit that can't be enforced on this machine as described is refused before the fork
    (`Reason.FEATURE_UNAVAILABLE`, by name).

    Args:
        memory: address space that each process of the call may have beyond its size at its start.
            With a `Sandbox` that uses a cgroup, it also limits the memory of all processes of the
            call together. Under a data-only codec an eighth of it, 64 MiB at most, is reserved for
            the answer. Overrun: `Reason.MEMORY_LIMIT`, which is also a MemoryError.
        cpu_time: seconds of CPU time of each process of the call, in user and kernel mode; the
            kernel counts whole seconds, so the limit is rounded up. Overrun: `Reason.CPU_LIMIT`.
        address_space: address space that each process may have, its size at its start included.
        open_files: how many descriptors each process may have besides those that it starts with.
            Overrun: OSError (EMFILE) in fn.
        file_size: maximum size of a file, or anonymous memory file, that fn writes. Overrun:
            OSError (EFBIG) in fn.
        processes: how many processes and threads the call may have, the child included. Overrun:
            BlockingIOError (EAGAIN) in fn.
        core_size: maximum size of a core dump.
        result_size: maximum encoded size of the result or exception of fn, or of each item of a
            stream. Overrun: `Reason.RESULT_TOO_LARGE`.
        output_size: maximum output of fn, standard output and error together, where this process
            reads it (``output="capture"`` or a callable). Overrun: `Reason.OUTPUT_LIMIT`.

    Raises:
        TypeError, ValueError: a limit is invalid.

    Example::

        limits = Limits(memory="512 MiB", cpu_time=10, open_files=32, result_size="1 MiB")
        text = await run_isolated(extract, upload, limits=limits, timeout=30)
    """

    __slots__ = (
        "address_space",
        "core_size",
        "cpu_time",
        "file_size",
        "memory",
        "open_files",
        "output_size",
        "processes",
        "result_size",
    )

    memory: int | None
    cpu_time: float | None
    address_space: int | None
    open_files: int | None
    file_size: int | None
    processes: int | None
    core_size: int | None
    result_size: int | None
    output_size: int | None

    def __init__(  # noqa: PLR0917 - in the documented order
        self,
        memory: Size | None = None,
        cpu_time: float | None = None,
        address_space: Size | None = None,
        open_files: int | None = None,
        file_size: Size | None = None,
        processes: int | None = None,
        core_size: Size | None = 0,
        result_size: Size | None = None,
        output_size: Size | None = None,
    ) -> None:
        given = {
            "memory": memory,
            "cpu_time": cpu_time,
            "address_space": address_space,
            "open_files": open_files,
            "file_size": file_size,
            "processes": processes,
            "core_size": core_size,
            "result_size": result_size,
            "output_size": output_size,
        }
        for name, value in given.items():
            checked: object = value
            if value is not None:
                if name in _SIZES:
                    least = 1 if name in ("memory", "address_space", "result_size") else 0
                    checked = as_bytes(f"limits.{name}", value, least=least)
                elif name in _COUNTS:
                    checked = _as_count(f"limits.{name}", value, 1 if name == "processes" else 0)
                else:
                    checked = _as_seconds(f"limits.{name}", value)
            object.__setattr__(self, name, checked)

    def over(self, others: Limits | None) -> Limits:
        """Return these limits, completed by the *others*."""
        if others is None:
            return self
        own = {name: getattr(self, name) for name in self.__slots__}
        defaults = {name: getattr(others, name) for name in self.__slots__}
        return Limits(**{n: defaults[n] if value is None else value for n, value in own.items()})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Limits can't be changed; create another instance")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("Limits can't be changed; create another instance")

    def _key(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Limits) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        given = [
            f"{name}={getattr(self, name)!r}"
            for name in self.__slots__
            if getattr(self, name) is not None
        ]
        return f"Limits({', '.join(given)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, ({name: getattr(self, name) for name in self.__slots__},)


def _rebuild(fields: dict[str, Any]) -> Limits:
    return Limits(**fields)


def _as_count(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if not least <= value <= _COUNT_MAX:
        raise ValueError(f"{name} must be {least} to {_COUNT_MAX}, not {_shown(value)}")
    return value


def _as_seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 < value <= _COUNT_MAX:
        raise ValueError(f"{name} must be above 0 and at most {_COUNT_MAX}, not {_shown(value)}")
    return value


def _shown(value: object) -> str:
    # The number may have more digits than Python converts to text.
    large = isinstance(value, int) and abs(value) >= 1 << 200
    return "a number of more than 60 digits" if large else repr(value)
