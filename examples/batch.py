"""A batch over a folder: thumbnails of all its pictures, some at a time, with a progress bar.

    python examples/batch.py FOLDER OUT

Each picture is opened in a child of its own, so one that crashes the decoder is a line in the
summary and not the end of the batch.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import sys
from pathlib import Path

from PIL import Image

from aioisolate import Isolator

DECODERS = [f"PIL.{name}ImagePlugin" for name in ("Bmp", "Gif", "Jpeg", "Png", "Ppm", "Tiff")]


def shrink(paths: tuple[str, str]) -> tuple[int, int]:
    """Make one thumbnail; runs in a child. Return the picture's size."""
    source, target = paths
    if source.endswith(".crash"):
        ctypes.string_at(0)  # as a decoder with a hole in it would
    with Image.open(source) as picture:
        size = picture.size
        picture.thumbnail((128, 128))
        picture.convert("RGBA").save(target, "PNG")
    return size


def bar(done: int, total: int) -> None:
    width = 40 * done // total
    end = "" if sys.stdout.isatty() and done < total else "\n"
    print(f"\r[{'#' * width:40}] {done} of {total}", end=end, flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description="Thumbnails of a folder of pictures.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    sources = sorted(path for path in options.folder.iterdir() if path.is_file())
    options.out.mkdir(parents=True, exist_ok=True)
    work = [(str(path), str(options.out / f"{path.name}.png")) for path in sources]
    failed = []
    async with Isolator(preload=DECODERS, warm=2, timeout=30) as isolator:
        done = 0
        async for outcome in isolator.map(shrink, work, capture=True):
            if outcome.error is not None:
                failed.append((sources[done].name, outcome.error))
            done += 1
            bar(done, len(work))
    print(f"{done - len(failed)} thumbnails in {options.out}")
    for name, error in failed:
        print(f"  {name}: {type(error).__name__}: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    asyncio.run(main())
