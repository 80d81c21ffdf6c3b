"""Facts of the operating system: each function does the thing or raises OSError. No policy."""

import os
import sys

__all__ = ["why_not_here"]


def why_not_here(*, has_fork: bool, abiflags: str, executable: str) -> str:
    """Say why this library can't be used, or nothing: a fact about the platform or the build."""
    if not has_fork:
        return "aioisolate needs os.fork: it runs on Linux, macOS and the BSDs"
    if "t" in abiflags:
        # Nobody has tried it there. What it relies on at a fork (who holds which lock, what
        # gc.freeze and reference counts do to pages) is another thing without a GIL.
        return (
            f"aioisolate does not support free-threaded builds of Python, and {executable} is one "
            '(its sys.abiflags has a "t"), even with its GIL enabled: use the default build'
        )
    return ""


if _why := why_not_here(
    has_fork=hasattr(os, "fork"), abiflags=getattr(sys, "abiflags", ""), executable=sys.executable
):
    raise ImportError(_why)
