"""How much `import aioisolate` adds to `import anyio, cloudpickle`.

python benchmarks/import_time.py [--rounds N] [--detail]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = str(Path(__file__).parent.parent)
CODE = """
import time
import anyio, cloudpickle
start = time.perf_counter()
{then}
print(time.perf_counter() - start)
"""


def seconds(then: str) -> float:
    environment = {**os.environ, "PYTHONPATH": ROOT}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(then=then)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--detail", action="store_true", help="print what takes longest")
    options = parser.parse_args()
    seconds("import aioisolate")  # compiles it; an installed package is compiled, too
    times = [seconds("import aioisolate") for _ in range(options.rounds)]
    median = statistics.median(times) * 1000
    print(
        f"import aioisolate adds {median:.1f} ms to import anyio, cloudpickle "
        f"(fastest {min(times) * 1000:.1f} ms, wanted: at most 20)"
    )
    if options.detail:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import anyio, cloudpickle, aioisolate"],
            env={**os.environ, "PYTHONPATH": ROOT},
            capture_output=True,
            text=True,
            check=True,
        )
        lines = done.stderr.splitlines()
        first = next(i for i, line in enumerate(lines) if line.endswith("cloudpickle"))
        rows = sorted(lines[first + 1 :], key=lambda line: -int(line[12:].split("|")[0]))
        print("\n".join(rows[:15]))


if __name__ == "__main__":
    main()
