"""Environments that people run programs in, made here; what is expected of each is beside it."""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from tests.container import CAPABILITIES, Spec, arguments
from tests.docker_profile import DEFAULT_CAPABILITIES, allow_all_but, compile_profile
from tests.helpers import ROOT

__all__ = ["ENVIRONMENTS", "Environment", "missing", "run"]

_CHECK = [sys.executable, "-m", "tests.environment_check"]
_LANDLOCK = ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self")


@dataclass(frozen=True)
class Environment:
    """One place where the library runs.

    Attributes:
        name: What it is called in tests.
        title: What it is called in docs/containers.md.
        spec: The container, but for what is to be seen of files.
        make_filter: Makes its system call filter.
        prefix: A command that the program is started by, in the container.
        options: Arguments of the program.
        needs: Commands that it takes.
        full, portable, crash_guard: "works", or what the refusal's text has in it (an expression).
        lacks: Findings of the report that must not hold in it.
        open: Attacks that `level="portable"` does not stop in it.
    """

    name: str
    title: str
    spec: Spec = field(default_factory=Spec)
    make_filter: Callable[[], bytes] | None = None
    prefix: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    full: str = "works"
    portable: str = "works"
    crash_guard: str = "works"
    lacks: tuple[str, ...] = ()
    open: tuple[str, ...] = ()


def _without(*names: str) -> tuple[str, ...]:
    return tuple(name for name in CAPABILITIES if name not in names)


def _docker(
    *added: str, dropped: tuple[str, ...] = (), changes: Mapping[str, int] | None = None, **more: Any
) -> dict[str, Any]:
    """Return what a container of Docker's is: its capabilities, its filter, what it hides."""
    held = tuple(name for name in (*DEFAULT_CAPABILITIES, *added) if name not in dropped)
    spec = Spec(capabilities=held, mask=True, init=False)
    return {
        "spec": replace(spec, **more),
        "make_filter": lambda: compile_profile(held, changes),
    }


def _machine(refused: Mapping[str, int] | None = None, **more: Any) -> dict[str, Any]:
    """Return what a machine of its own is, or one with a filter that refuses some calls."""
    if refused is None:
        return {"spec": Spec(**more)}
    return {"spec": Spec(**more), "make_filter": lambda: allow_all_but(refused)}


_ALL = DEFAULT_CAPABILITIES
_EPERM, _ENOSYS = errno.EPERM, errno.ENOSYS
_RESTRICTED: dict[str, Any] = {"dropped": _ALL, "uid": 1000, "no_new_privs": True}
_BWRAP = "bwrap --bind / / --dev /dev --unshare-all --new-session --die-with-parent".split()

ENVIRONMENTS: list[Environment] = [
    # A machine
    Environment("root", "a machine, as root", **_machine()),
    Environment("user", "a machine, as an ordinary user", **_machine(uid=1000)),
    Environment(
        "setuid", "the same, after `os.setuid()` in the process", **_machine(), options=("--setuid", "1000")
    ),
    # Docker, Podman as root, containerd
    Environment("docker-root", "Docker's default, as root", **_docker()),
    Environment("docker-root-pids", "the same with `--pids-limit 100`", **_docker(pids=100)),
    Environment("docker-user", "Docker with `--user 1000`", **_docker(uid=1000)),
    Environment("docker-drop-all", "Docker with `--cap-drop ALL`, as root", **_docker(dropped=_ALL)),
    Environment("docker-drop-kill", "Docker with `--cap-drop KILL`", **_docker(dropped=("KILL",))),
    Environment(
        "docker-drop-setuid",
        "Docker with `--cap-drop SETUID --cap-drop SETGID`",
        **_docker(dropped=("SETUID", "SETGID")),
    ),
    Environment("docker-sys-admin", "Docker with `--cap-add SYS_ADMIN`", **_docker("SYS_ADMIN")),
    Environment("kubernetes", 'Kubernetes, "restricted"', **_docker(**_RESTRICTED)),
    Environment(
        "kubernetes-read-only",
        "the same with `readOnlyRootFilesystem` and a /tmp",
        **_docker(**_RESTRICTED, read_only=True, noexec=True),
    ),
    Environment(
        "kubernetes-no-tmp", "the same without a /tmp", **_docker(**_RESTRICTED, read_only=True, tmp=False)
    ),
    # User namespaces
    Environment(
        "rootless",
        "rootless Podman or Docker, `userns-remap`: a user namespace with 65536 ids, as root",
        **_docker(mapped=65536),
    ),
    Environment("userns-65536", "a user namespace with 65536 ids, no filter", **_machine(mapped=65536)),
    Environment(
        "unshare-root",
        "`unshare -Urpf --mount-proc`, by root",
        **_machine(),
        prefix=("unshare", "-Urpf", "--mount-proc"),
        needs=("unshare",),
    ),
    Environment(
        "unshare-user",
        "`unshare -Urpf --mount-proc`, by an ordinary user",
        **_machine(uid=1000),
        prefix=("unshare", "-Urpf", "--mount-proc"),
        needs=("unshare",),
    ),
    Environment(
        "bwrap", "Bubblewrap, `--unshare-all`", **_machine(uid=1000), prefix=(*_BWRAP, "--proc", "/proc"), needs=("bwrap",)
    ),
    Environment(
        "bwrap-no-proc", "the same without `--proc`", **_machine(uid=1000), prefix=(*_BWRAP, "--tmpfs", "/proc"), needs=("bwrap",)
    ),
    Environment(
        "no-userns-sysctl",
        "an ordinary user, `user.max_user_namespaces=0`",
        **_machine(uid=1000, user_namespaces=0, mapped=65536),
    ),
    Environment(
        "no-userns-filter",
        "an ordinary user, a filter refuses user namespaces",
        spec=Spec(uid=1000),
        make_filter=lambda: allow_all_but({}, user_namespaces=False),
    ),
    # Root with less
    Environment(
        "no-sys-admin", "root without SYS_ADMIN", **_machine(capabilities=_without("SYS_ADMIN"))
    ),
    Environment("no-setuid", "root without SETUID", **_machine(capabilities=_without("SETUID"))),
    Environment("no-kill", "root without KILL", **_machine(capabilities=_without("KILL"))),
    Environment("no-capabilities", "root without capabilities", **_machine(capabilities=())),
    # What is missing
    Environment("no-proc", "no /proc, as root", **_machine(proc="missing")),
    Environment("covered-proc", "an empty /proc, as root", **_machine(proc="covered")),
    Environment("no-proc-user", "no /proc, as an ordinary user", **_machine(proc="missing", uid=1000)),
    Environment("nofile-32", "`ulimit -n 32`", **_machine(nofile=32)),
    Environment("chroot", "a chroot, as root", **_machine(pivot=False)),
    Environment("chroot-user", "a chroot, as an ordinary user", **_machine(pivot=False, uid=1000)),
    Environment("noexec", "noexec and nosuid everywhere", **_machine(noexec=True)),
    Environment("memfd-eperm", "memfd_create refused", **_machine({"memfd_create": _EPERM})),
    Environment("memfd-enosys", "no memfd_create", **_machine({"memfd_create": _ENOSYS})),
    Environment(
        "landlock-eperm", "Landlock refused by a filter", **_machine(dict.fromkeys(_LANDLOCK, _EPERM))
    ),
    Environment("landlock-enosys", "no Landlock", **_machine(dict.fromkeys(_LANDLOCK, _ENOSYS))),
    Environment("seccomp-eperm", "seccomp refused by a filter", **_machine({"seccomp": _EPERM})),
    Environment("seccomp-enosys", "no seccomp", **_machine({"seccomp": _ENOSYS})),
    Environment(
        "pidfd-signal", "pidfd_send_signal refused", **_machine({"pidfd_send_signal": _EPERM})
    ),
    Environment("pidfd-open", "pidfd_open refused", **_machine({"pidfd_open": _EPERM})),
]


@cache
def cannot_make_containers() -> str:
    """Return why no container can be made here, or ""."""
    if sys.platform != "linux":
        return "containers are Linux'"
    if os.geteuid():
        return "only root makes containers here"
    command = ["unshare", "--mount", "--pid", "--net", "--fork", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as exc:
        return f"unshare can't be run: {exc}"
    return f"no namespaces can be made: {done.stderr.strip()}" if done.returncode else ""


def missing(environment: Environment) -> str:
    """Return why an environment can't be had here, or ""."""
    for name in environment.needs:
        if shutil.which(name) is None:
            return f"there is no {name}"
    if environment.spec.pids and not _counts_processes():
        return "there is no control group that counts processes"
    return cannot_make_containers()


def _counts_processes() -> bool:
    for path in ("/sys/fs/cgroup/pids/cgroup.procs", "/sys/fs/cgroup/cgroup.subtree_control"):
        if os.path.exists(path):
            return path.endswith("procs") or "pids" in open(path).read()
    return False


def run(environment: Environment, place: str, command: list[str] | None = None) -> Any:
    """Run the checks in an environment, or *command*; return the finished process."""
    shown = {sys.prefix, sys.base_prefix, str(ROOT), *filter(None, [os.environ.get("VIRTUAL_ENV")])}
    program = b"" if environment.make_filter is None else environment.make_filter()
    spec = replace(
        environment.spec,
        show=tuple(sorted(shown)),
        filter=base64.b64encode(program).decode(),
    )
    inner = command or [*_CHECK, *environment.options]
    process = subprocess.Popen(
        arguments(spec, place, [*environment.prefix, *inner]),
        cwd=ROOT,
        env={
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/tmp",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            out, err = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            # The container's process 1 goes with it, and with that one all others.
            os.killpg(process.pid, 9)
            out, err = process.communicate()
            err += "\nit did not end in time"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def results(done: Any) -> dict[str, Any]:
    """Return what the program in an environment has found."""
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


def main() -> None:
    """Run the checks in one environment, or a command, and print what comes of it."""
    _, name, *command = sys.argv
    environment = next(one for one in ENVIRONMENTS if one.name == name)
    if why := missing(environment):
        sys.exit(why)
    with tempfile.TemporaryDirectory(prefix="environment-") as place:
        done = run(environment, place, command or None)
    sys.stderr.write(done.stderr)
    sys.stdout.write(done.stdout if command else json.dumps(json.loads(done.stdout), indent=2))
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
