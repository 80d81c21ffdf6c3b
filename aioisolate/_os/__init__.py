"""Operating system primitives: functions that do their work or raise OSError, without policy."""

import os
import sys

__all__ = ["why_not_here"]


def why_not_here(*, has_fork: bool, abiflags: str, executable: str) -> str:
    """Return why this platform or Python build cannot run the library, or "" if it can."""
    if not has_fork:
        return "aioisolate needs os.fork: it runs on Linux, macOS and the BSDs"
    if "t" in abiflags:
        # Untested there. The library relies on facts about a fork (which locks are held, what
        # gc.freeze and reference counts do to pages) that differ without a GIL.
        return (
            f"aioisolate does not support free-threaded builds of Python, and {executable} is one "
            '(its sys.abiflags has a "t"), even with its GIL enabled: use the default build'
        )
    return ""


if _why := why_not_here(
    has_fork=hasattr(os, "fork"), abiflags=getattr(sys, "abiflags", ""), executable=sys.executable
):
    raise ImportError(_why)
