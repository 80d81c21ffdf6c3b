"""The types of options, for annotations of code that wraps aioisolate.

Keyword options, as `typing.TypedDict`, for functions that pass them on (PEP 692):

- `RunArgs`: those of `run_isolated`, `capture_isolated` and `isolated`.
- `StreamArgs`: those of `stream_isolated`.
- `JobArgs`: those of `Isolator.run`, `capture`, `stream` and `open_job`.
- `MapArgs`: those of `Isolator.map`, but *capture*, on which the type of the results depends.
- `CommonArgs`: those that all of these have.

Values of options:

- `Codec`: *codec*. `Output`: *output*; `OnLine`: an *output* that is called with each line.
- `OnEvent`, `OnProgress`: *on_event*, *on_progress*.
- `Paths`: *read* and *write* of a `Sandbox`.
- `Size`: a number of bytes for `Limits`, as a number or as text such as ``"512 MiB"``.
- `Start`: *start* of an `Isolator`. `Stdin`: *stdin*.

Example::

    from typing import Unpack
    from aioisolate.typing import JobArgs

    async def parse(data: bytes, **options: Unpack[JobArgs]) -> Tree:
        return await iso.run(parse_tree, data, **options)
"""

from ._child.policy import Start
from ._limits import Size
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
    "RunArgs",
    "Size",
    "Start",
    "Stdin",
    "StreamArgs",
]
