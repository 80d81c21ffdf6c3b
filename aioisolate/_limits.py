"""Bounds on what one call may consume: data only."""

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
# The kernel and the frames count no further.
_SIZE_MAX = 1 << 62
_COUNT_MAX = 1 << 31


def as_bytes(name: str, size: object, *, least: int = 0) -> int:
    """Turn a size, a whole number of bytes or a string such as "512 MiB", into bytes.

    Raises TypeError or ValueError, naming the size by *name*, for anything else.
    """
    if isinstance(size, str):
        found = _SIZE.fullmatch(size)
        unit = _UNITS.get(found[2].lower()) if found else None
        if found is None or unit is None:
            raise ValueError(
                f"{name} must be a number of bytes or a size such as '512 MiB' or '2 GB', "
                f"not {size!r}"
            )
        # Nothing that could be meant has more digits, and there are limits to what can be read.
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
    """What one call may consume. None: no limit of this library's.

    Sizes are in bytes, or strings such as ``"512 MiB"`` or ``"2 GB"``; they are kept as bytes. A
    limit that can't be enforced here as it is described is refused before anything is forked
    (`Reason.FEATURE_UNAVAILABLE`, by name).

    Args:
        memory: how much more address space than at its start each process of the call may have.
            With a `Sandbox` that uses a cgroup, all its processes together may use no more
            memory either. Under a data-only codec an eighth of it, 64 MiB at most, is for the
            answer. Overrun: `Reason.MEMORY_LIMIT`, which is also a MemoryError.
        cpu_time: seconds of CPU time of each process of the call, in user and kernel mode; the
            kernel counts whole seconds, so it is rounded up. Overrun: `Reason.CPU_LIMIT`.
        address_space: how much address space each process may have, what it starts with included.
        open_files: how many descriptors may be open in each process besides those that it starts
            with. Overrun: OSError (EMFILE) in fn.
        file_size: how large a file, or anonymous memory file, fn may write. Overrun: OSError
            (EFBIG) in fn.
        processes: how many processes and threads the call may have, its own included. Overrun:
            BlockingIOError (EAGAIN) in fn.
        core_size: how large a core dump may be.
        result_size: how large what fn returns or raises may be as it travels, in a stream each
            item. Overrun: `Reason.RESULT_TOO_LARGE`.
        output_size: how much fn may write to standard output and error together, where that is
            read (``output="capture"`` or a callable). Overrun: `Reason.OUTPUT_LIMIT`.

    Raises:
        TypeError, ValueError: a limit makes no sense.

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

    def __init__(  # noqa: PLR0917 - in this order they are documented
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
        """Return these limits, and the *others'* where these have none."""
        if others is None:
            return self
        mine = {name: getattr(self, name) for name in self.__slots__}
        theirs = {name: getattr(others, name) for name in self.__slots__}
        return Limits(**{n: theirs[n] if value is None else value for n, value in mine.items()})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("limits are not changed; make others")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("limits are not changed; make others")

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
    # It may have more digits than Python is willing to write.
    large = isinstance(value, int) and abs(value) >= 1 << 200
    return "so many" if large else repr(value)
