"""Facts of the operating system: each function does the thing or raises OSError. No policy."""

import os

if not hasattr(os, "fork"):
    raise ImportError("aioisolate needs os.fork: it runs on Linux, macOS and the BSDs")
