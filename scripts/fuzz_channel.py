"""Feed what reads the channel with hostile bytes for as long as is wanted.

With atheris, which is guided by coverage:

    pip install atheris msgspec
    PYTHONPATH=. python scripts/fuzz_channel.py -max_total_time=300 [directory of a corpus]

Without it, tests/unit/test_fuzz.py does the same by hypothesis:

    AIOISOLATE_FUZZ=long python -m pytest tests/unit/test_fuzz.py
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["aioisolate"]):
    import aioisolate._wire.conversation
    import aioisolate._wire.data_limits
    import aioisolate._wire.frames
    import aioisolate._wire.plain_data
    import aioisolate._wire.safe_text  # noqa: F401 - to be instrumented, as the others

from tests import channel_checks


def main() -> None:
    atheris.Setup(sys.argv, channel_checks.check_all)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
