"""Limits and sandboxes where they are harder to hold: for a user who is not root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.internals import platform_features

pytestmark = [pytest.mark.slow, pytest.mark.part(name="ordinary_user")]

UID = 2000

# Begins in a mount namespace of its own, in which that user can reach the interpreter wherever it
# is: a directory above it that is closed to others is covered by one that isn't.
BECOME = """
import os, sys
from tests.internals import namespaces
uid, stash, *command = sys.argv[1:]
namespaces.unshare(namespaces.NEWNS)
namespaces.make_mounts_private()
needed = sorted({sys.base_prefix, sys.prefix, os.getcwd()})

def closed(path):
    parts = path.split("/")
    for count in range(2, len(parts) + 1):
        above = "/".join(parts[:count])
        if not os.stat(above).st_mode & 0o001:
            return above
    return ""

hidden = [path for path in needed if closed(path)]
for number, path in enumerate(hidden):
    os.mkdir(f"{stash}/{number}")
    namespaces.bind(path, f"{stash}/{number}")
for number, path in enumerate(hidden):
    above = closed(path)
    if above:
        namespaces.mount_tmpfs(above, "mode=755,size=4m")
    os.makedirs(path, exist_ok=True)
    namespaces.bind(f"{stash}/{number}", path)
if any(map(closed, needed)):
    sys.exit(f"{needed} can't be made readable")
os.chdir(os.getcwd())
os.setgroups([])
os.setresgid(int(uid), int(uid), int(uid))
os.setresuid(int(uid), int(uid), int(uid))
os.execv(command[0], command)
"""

# What differs for an ordinary user, and what must not.
CORE = (
    "(test_sandbox and asyncio and (test_users or test_scratch or test_files or test_network"
    " or test_daemons_end_with_the_call or test_an_end_is_told or test_a_layer_that"
    " or test_codecs or test_standard_input or test_untrusted_works or test_environment))"
    " or test_daemons_end_with_this_process"
    " or (test_limits and asyncio and (look_after or refusal or own_limits))"
    " or (test_descriptors and asyncio and on_their_way)"
    " or (test_ending_threads and (in_sandboxes or die_with_the_process))"
)


@pytest.fixture
def place():
    """A directory that others can reach, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="aioisolate-tests-"))
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path)


# Where it makes a difference who one is.
ATTACKS = (
    "with_the_sandbox or daemons"
    " or (test_untrusted and (files or processes or kernel or inherit or preloaded))"
)
PARTS = {
    "sandbox": (
        CORE,
        [
            "tests/security/test_sandbox.py",
            "tests/contract/test_limits.py",
            "tests/contract/test_descriptors.py",
            "tests/contract/test_ending_threads.py",
        ],
    ),
    "attacks": (ATTACKS, ["tests/security/test_attacks.py"]),
    "preloaded": ("not uvloop and not trio", ["tests/security/test_preloaded.py"]),
}


@pytest.mark.skipif(
    not platform_features.containment().becomes, reason="only root can become another user"
)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", PARTS)
def test_the_same_for_an_ordinary_user(part, place):
    chosen, tests = PARTS[part]
    stash, base = place / "stash", place / "base"
    stash.mkdir()
    base.mkdir()
    os.chown(base, UID, UID)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    command += [f"--basetemp={base}/run", "-k", chosen, *tests]
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": str(base),
        "TMPDIR": str(base),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", BECOME, str(UID), str(stash), *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    if "can't be made readable" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert " passed" in done.stdout
