"""A secret that a forked child does not get, although all else of this process's memory is there.

python examples/wiped_secrets.py
"""

from __future__ import annotations

import asyncio
import secrets

from aioisolate import Advice, Pages, run_isolated

# Wiped before anything secret is in it: a fork that comes in between must not get it.
key = Pages(32)
key.advise(Advice.WIPEONFORK)
key[:] = secrets.token_bytes(32)

ordinary = b"not wiped"


def look() -> tuple[bytes, bytes]:
    """Return what a stranger's code in the child could read; runs in the child."""
    return bytes(key), ordinary


async def main() -> None:
    wiped, copied = await run_isolated(look)
    print(f"here:         {key[:8].hex()}...  {ordinary!r}")
    print(f"in the child: {wiped[:8].hex()}...  {copied!r}")
    # A str or bytes object made of it would be ordinary memory again: use it where it is.
    key.close()


if __name__ == "__main__":
    asyncio.run(main())
