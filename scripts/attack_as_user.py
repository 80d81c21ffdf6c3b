#!/usr/bin/env python3
"""Run the tests of attacks as an ordinary user: to be called as root.

    scripts/attack_as_user.py [--python PYTHON] [--uid UID] [arguments of pytest]

The user needs no entry in /etc/passwd, but must be able to run PYTHON; packages come from
where this interpreter has them, so the two must be of one version.
"""

from __future__ import annotations

import argparse
import os
import shutil
import site
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--uid", type=int, default=2000)
    options, rest = parser.parse_known_args()
    uid = options.uid
    with tempfile.TemporaryDirectory(prefix="attack-user-") as home:
        for name in ("aioisolate", "tests", "examples"):
            shutil.copytree(os.path.join(ROOT, name), os.path.join(home, name))
        shutil.copy(os.path.join(ROOT, "pyproject.toml"), home)
        for folder, _, files in os.walk(home):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                os.chown(path, uid, uid)
        done = subprocess.run(
            [
                options.python,
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                *rest,
                "tests/test_attacks.py",
            ],
            cwd=home,
            env={
                "HOME": home,
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join([home, *site.getsitepackages()]),
            },
            user=uid,
            group=uid,
            extra_groups=[],
            check=False,
        )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
