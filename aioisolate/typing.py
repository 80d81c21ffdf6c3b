"""The types of options, for annotations of code that wraps aioisolate.

Keyword options, as `typing.TypedDict`, for functions that pass them on (PEP 692):

- `RunArgs`: the options of `run_isolated`, `capture_isolated` and `isolated`.
- `StreamArgs`: the options of `stream_isolated`.
- `JobArgs`: the options of `Isolator.run`, `capture`, `stream` and `open_job`.
- `MapArgs`: the options of `Isolator.map` except *capture*, which decides the type of the results.
- `CommonArgs`: the options that all of these functions have.

Results:

- `SharedArray`: the result of `shared_array`. It is not in ``__all__``, since it needs numpy.

Values of arguments:

- `Codec`: *codec*. `Output`: *output*; `OnLine`: an *output* that is called with each line.
- `OnEvent`, `OnProgress`: *on_event*, *on_progress*.
- `Paths`: *read* and *write* of a `Sandbox`.
- `Readable`, `Writable`: files for `PagedArray.fromfile` and `tofile`.
- `Size`: a number of bytes for `Limits`, as a number or as text such as ``"512 MiB"``.
- `Start`: *start* of an `Isolator`. `Stdin`: *stdin*.

Example::

    from typing import Unpack
    from aioisolate.typing import JobArgs

    async def parse(data: bytes, **options: Unpack[JobArgs]) -> Tree:
        return await iso.run(parse_tree, data, **options)
"""

from typing import TYPE_CHECKING

from ._child.layers import Start
from ._limits import Size
from ._memory.paged_array import Readable, Writable
from ._options import (
    Codec,
    CommonArgs,
    JobArgs,
    MapArgs,
    OnEvent,
    OnLine,
    OnProgress,
    Output,
    RunArgs,
    Stdin,
    StreamArgs,
)
from .sandbox import Paths

if TYPE_CHECKING:
    from ._memory.arrays import SharedArray as SharedArray  # noqa: PLC0414 - exported

__all__ = [
    "Codec",
    "CommonArgs",
    "JobArgs",
    "MapArgs",
    "OnEvent",
    "OnLine",
    "OnProgress",
    "Output",
    "Paths",
    "Readable",
    "RunArgs",
    "Size",
    "Start",
    "Stdin",
    "StreamArgs",
    "Writable",
]


def __getattr__(name: str) -> object:
    if name == "SharedArray":
        from ._memory.arrays import SharedArray  # noqa: PLC0415 - it imports numpy

        return SharedArray
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
