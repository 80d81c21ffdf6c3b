"""The environments of tests/environments.py, in real containers of a Docker daemon.

python -m tests.docker_matrix [NAME...]     run the checks, and compare with what is expected
python -m tests.docker_matrix --record      write down which calls a container's filter refuses

The daemon is the one that `docker` talks to (DOCKER_HOST). The image has next to nothing in it: the
system's libraries, the interpreter and this tree are shown to the containers, read-only. The image
is made without a registry, and removed at the end. Exits with 3 where there is no daemon.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.docker_profile import PROFILE
from tests.environment_expectations import complaints
from tests.environments import CHECK, ENVIRONMENTS, SHOWN, Environment
from tests.helpers import ROOT

__all__ = ["docker", "image", "in_docker", "no_daemon", "run_options"]

_IMAGE = f"aioisolate-tests:{os.getpid()}"
# What tests/kernel/test_docker_profile.py compares with.
SEEN = PROFILE.with_name("docker-seccomp-seen.json")
RECORDED = ("docker-root", "docker-sys-admin", "docker-drop-all")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_FILES = {
    "etc/passwd": ("root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n", 0o644),
    "etc/group": ("root:x:0:\nuser:x:1000:\n", 0o644),
    "etc/shadow": ("root:*:20000:0:99999:7:::\n", 0o640),
}


def docker(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of docker's."""
    options = {"capture_output": True, "text": True, "timeout": 120} | options
    return subprocess.run(["docker", *args], check=False, **options)


def no_daemon() -> str:
    """Return why no container can be started here, or ""."""
    try:
        done = docker("version", "--format", "{{.Server.Version}}", timeout=20)
    except OSError as exc:
        return f"docker can't be run: {exc}"
    except subprocess.TimeoutExpired:
        return "the Docker daemon does not answer"
    return f"no Docker daemon answers: {done.stderr.strip()}" if done.returncode else ""


def _layer() -> bytes:
    """Make the file system of the image: links and files; directories for what is shown."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("etc", "dev", "proc", "sys", "tmp"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(entry)
        for path in _SYSTEM:
            if os.path.islink(path):
                entry = tarfile.TarInfo(path[1:])
                entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(path)
                archive.addfile(entry)
        for name, (text, mode) in _FILES.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = mode, len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


@contextmanager
def image() -> Iterator[str]:
    """Make the image; it is gone afterwards."""
    done = docker("import", "-", _IMAGE, input=_layer(), text=False)
    assert done.returncode == 0, done.stderr
    try:
        yield _IMAGE
    finally:
        docker("rmi", "--force", _IMAGE)


def run_options() -> list[str]:
    """Return the options that show the interpreter and this tree to a container."""
    options = ["--rm", "--network", "none", "--workdir", str(ROOT)]
    system = [path for path in _SYSTEM if os.path.isdir(path) and not os.path.islink(path)]
    for path in dict.fromkeys((*system, *SHOWN)):
        options += ["--volume", f"{path}:{path}:ro"]
    for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
        options += ["--env", f"{name}={ROOT if name == 'PYTHONPATH' else 1}"]
    return options


def in_docker(
    name: str, options: tuple[str, ...], command: list[str], profile: str = str(PROFILE)
) -> subprocess.CompletedProcess[str]:
    """Run a command in a container that is started with *options*; *profile*: "": the daemon's."""
    seccomp = ["--security-opt", f"seccomp={profile}"] if profile else []
    # The image has no PATH, and it does without one.
    return docker("run", *run_options(), *seccomp, *options, name, *command)


def _more_allowed(names: tuple[str, ...]) -> dict[str, Any]:
    """Return the profile with calls allowed besides."""
    profile: dict[str, Any] = json.loads(PROFILE.read_text())
    profile["syscalls"].append({"names": list(names), "action": "SCMP_ACT_ALLOW"})
    return profile


def check(environment: Environment, name: str) -> list[str]:
    """Run the checks in a container; return what is not as it is expected."""
    assert environment.docker is not None
    with tempfile.TemporaryDirectory() as place:
        profile = str(PROFILE)
        if environment.allows:
            profile = f"{place}/seccomp.json"
            with open(profile, "w") as file:
                json.dump(_more_allowed(environment.allows), file)
        done = in_docker(name, environment.docker, [*CHECK, *environment.options], profile)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return [f"exit status {done.returncode}: {done.stderr[-2000:]}{done.stdout[-200:]}"]
    return complaints(environment, found, done.stderr)


def refused(name: str, options: tuple[str, ...]) -> dict[str, Any]:
    """Return which calls a container's filter refuses, and with what.

    "unknown" are those that the kernel refuses likewise, for want of a capability.
    """
    command = [sys.executable, "-m", "tests.syscall_prober"]
    filtered, free = (
        json.loads(in_docker(name, options, command, profile).stdout)
        for profile in (str(PROFILE), "unconfined")
    )
    codes = {call: code for call, code in filtered.items() if code in {errno.EPERM, errno.ENOSYS}}
    return {
        "refused": {call: code for call, code in codes.items() if code != free[call]},
        "unknown": [call for call, code in codes.items() if code == free[call]],
    }


def record(name: str) -> None:
    """Write down what the runtime makes of the profile, for tests/kernel/test_docker_profile.py."""
    versions = json.loads(docker("version", "--format", "{{json .Server.Components}}").stdout)
    found = {
        "runtime": [f"{part['Name']} {part['Version']}" for part in versions],
        "kernel": re.sub(r"-.*", "", os.uname().release),
        "containers": {
            one.name: refused(name, one.docker)
            for one in ENVIRONMENTS
            if one.name in RECORDED and one.docker is not None
        },
    }
    SEEN.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    if why := no_daemon():
        print(why, file=sys.stderr)
        sys.exit(3)
    wanted = sys.argv[1:]
    failed = False
    if wanted == ["--record"]:
        with image() as name:
            record(name)
        return
    with image() as name:
        for environment in ENVIRONMENTS:
            if environment.docker is None or (wanted and environment.name not in wanted):
                continue
            wrong = check(environment, name)
            failed = failed or bool(wrong)
            print("FAIL" if wrong else "ok  ", environment.name, *environment.docker, flush=True)
            for line in wrong:
                print(f"      {line}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
