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
from tests.docker_profile import DEFAULT_CAPABILITIES, KILLS, allow_all_but, compile_profile
from tests.helpers import ROOT

__all__ = ["CHECK", "ENVIRONMENTS", "GROUPS", "SHOWN", "Environment", "missing", "results", "run"]

# The program, and what it needs to see of files.
CHECK = [sys.executable, "-m", "tests.environment_check"]
_NEEDED = (sys.prefix, sys.base_prefix, str(ROOT))
SHOWN = sorted({*_NEEDED, *map(os.path.realpath, _NEEDED)})
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
        allows: Calls that are added to Docker's profile.
        docker: Options of `docker run` that start a real one; None: there is none of Docker's.
        full, portable, crash_guard: "works", or what the refusal's text has in it (an expression).
        vain: Attacks that do not succeed in it even without a sandbox.
    """

    name: str
    title: str
    spec: Spec = field(default_factory=Spec)
    make_filter: Callable[[], bytes] | None = None
    prefix: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    allows: tuple[str, ...] = ()
    docker: tuple[str, ...] | None = None
    full: str = "works"
    portable: str = "works"
    crash_guard: str = "works"
    vain: tuple[str, ...] = ()


def _without(*names: str) -> tuple[str, ...]:
    return tuple(name for name in CAPABILITIES if name not in names)


def _docker(
    *added: str, dropped: tuple[str, ...] = (), allows: tuple[str, ...] = (), **more: Any
) -> dict[str, Any]:
    """Return what a container of Docker's is: its capabilities, its filter, what it hides."""
    held = tuple(name for name in (*DEFAULT_CAPABILITIES, *added) if name not in dropped)
    spec = Spec(capabilities=held, mask=True, init=False)
    return {
        "spec": replace(spec, **more),
        "make_filter": lambda: compile_profile(held, dict.fromkeys(allows, 0)),
        "allows": allows,
    }


def _machine(refused: Mapping[str, int] | None = None, **more: Any) -> dict[str, Any]:
    """Return what a machine of its own is, or one with a filter that refuses some calls."""
    if refused is None:
        return {"spec": Spec(**more)}
    return {"spec": Spec(**more), "make_filter": lambda: allow_all_but(refused)}


_ALL_CAPABILITIES = DEFAULT_CAPABILITIES
_EPERM, _ENOSYS = errno.EPERM, errno.ENOSYS
_RESTRICTED: dict[str, Any] = {"dropped": _ALL_CAPABILITIES, "uid": 1000, "no_new_privs": True}
_DOCKER_RESTRICTED = ("--user", "1000", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
_BWRAP = ("bwrap", "--bind", "/", "/", "--dev", "/dev", "--unshare-all", "--die-with-parent")
_UNSHARE = ("unshare", "-Urpf", "--mount-proc")
# What docs/containers.md says has to be allowed.
_FOR_USER_NAMESPACES = ("clone", "unshare", "mount", "umount2", "pivot_root")
_NO_CAPABILITIES = ("capabilities",)
_USER: dict[str, Any] = {"vain": _NO_CAPABILITIES}
_FILTERED = "filter"

# A machine, or a virtual one.
_MACHINES = [
    Environment("root", "a machine, as root", **_machine()),
    Environment("user", "a machine, as an ordinary user", **_machine(uid=1000), **_USER),
    Environment(
        "setuid",
        "the same, after `os.setuid()` in the process",
        **_machine(),
        **_USER,
        options=("--setuid", "1000"),
    ),
    Environment("chroot", "a chroot, as root", **_machine(pivot=False)),
    Environment(
        "chroot-user", "a chroot, as an ordinary user", **_machine(pivot=False, uid=1000), **_USER
    ),
    Environment(
        "systemd",
        "a systemd unit: `DynamicUser`, `ProtectSystem=strict`, `ProcSubset=pid`",
        **_machine(uid=61500, no_new_privs=True, read_only=True, proc="subset", network=False),
        **_USER,
    ),
    Environment(
        "systemd-filter",
        "the same with `SystemCallFilter=@system-service @sandbox`, which kills",
        **_machine(
            dict.fromkeys(("mount", "umount2", "pivot_root", "open_tree"), KILLS),
            uid=61500,
            no_new_privs=True,
            read_only=True,
            proc="subset",
            network=False,
        ),
        **_USER,
    ),
    Environment("noexec", "`noexec` and `nosuid` wherever one can write", **_machine(noexec=True)),
]

# Docker, Podman as root, containerd.
_CONTAINERS = [
    Environment("docker-root", "Docker's default, as root", **_docker(), docker=()),
    Environment(
        "docker-root-pids",
        "Docker with `--pids-limit 100`, as root",
        **_docker(pids=100),
        docker=("--pids-limit", "100"),
    ),
    Environment(
        "docker-root-memory",
        "Docker with `--memory 1g`, as root",
        **_docker(memory=1 << 30),
        docker=("--memory", "1g"),
    ),
    Environment(
        "docker-user",
        "Docker with `--user 1000`",
        **_docker(uid=1000),
        **_USER,
        docker=("--user", "1000"),
    ),
    Environment(
        "docker-user-pids",
        "Docker with `--user 1000 --pids-limit 100`",
        **_docker(uid=1000, pids=100),
        **_USER,
        docker=("--user", "1000", "--pids-limit", "100"),
    ),
    Environment(
        "docker-user-userns",
        "Docker with `--user 1000`, user namespaces allowed (see below)",
        **_docker(uid=1000, allows=_FOR_USER_NAMESPACES),
        **_USER,
        docker=("--user", "1000"),
    ),
    Environment(
        "docker-drop-all",
        "Docker with `--cap-drop ALL`, as root",
        **_docker(dropped=_ALL_CAPABILITIES),
        **_USER,
        docker=("--cap-drop", "ALL"),
    ),
    Environment(
        "docker-drop-all-pids",
        "Docker with `--cap-drop ALL --pids-limit 100`, as root",
        **_docker(dropped=_ALL_CAPABILITIES, pids=100),
        **_USER,
        docker=("--cap-drop", "ALL", "--pids-limit", "100"),
    ),
    Environment(
        "docker-drop-kill",
        "Docker with `--cap-drop KILL`",
        **_docker(dropped=("KILL",)),
        docker=("--cap-drop", "KILL"),
    ),
    Environment(
        "docker-drop-setuid",
        "Docker with `--cap-drop SETUID --cap-drop SETGID`",
        **_docker(dropped=("SETUID", "SETGID")),
        docker=("--cap-drop", "SETUID", "--cap-drop", "SETGID"),
    ),
    Environment(
        "docker-sys-admin",
        "Docker with `--cap-add SYS_ADMIN`",
        **_docker("SYS_ADMIN"),
        docker=("--cap-add", "SYS_ADMIN"),
    ),
    Environment(
        "kubernetes",
        'Kubernetes, "restricted"',
        **_docker(**_RESTRICTED),
        **_USER,
        docker=_DOCKER_RESTRICTED,
    ),
    Environment(
        "kubernetes-read-only",
        "the same with `readOnlyRootFilesystem` and an `emptyDir` at /tmp",
        **_docker(**_RESTRICTED, read_only=True, noexec=True),
        **_USER,
        docker=(*_DOCKER_RESTRICTED, "--read-only", "--tmpfs", "/tmp"),
    ),
    Environment(
        "kubernetes-no-tmp",
        "the same without a /tmp",
        **_docker(**_RESTRICTED, read_only=True, tmp=False),
        **_USER,
        docker=(*_DOCKER_RESTRICTED, "--read-only"),
    ),
]

_USER_NAMESPACES = [
    Environment(
        "rootless",
        "rootless Podman or Docker, `userns-remap`: 65536 ids, as root",
        **_docker(mapped=65536),
    ),
    Environment(
        "rootless-user",
        "the same, as an ordinary user",
        **_docker(mapped=65536, uid=1000),
        **_USER,
    ),
    Environment(
        "userns-65536",
        "a user namespace with 65536 ids, without a filter",
        **_machine(mapped=65536),
    ),
    Environment(
        "unshare-root",
        "`unshare -Urpf --mount-proc`, by root: one id",
        **_machine(),
        prefix=_UNSHARE,
        needs=("unshare",),
    ),
    Environment(
        "unshare-user",
        "`unshare -Urpf --mount-proc`, by an ordinary user: one id",
        **_machine(uid=1000),
        prefix=_UNSHARE,
        needs=("unshare",),
    ),
    Environment(
        "bwrap",
        "Bubblewrap, `--unshare-all`",
        **_machine(uid=1000),
        **_USER,
        prefix=(*_BWRAP, "--proc", "/proc"),
        needs=("bwrap",),
    ),
    Environment(
        "no-userns-sysctl",
        "an ordinary user, `user.max_user_namespaces=0`",
        **_machine(uid=1000, user_namespaces=0, mapped=65536),
        **_USER,
    ),
    Environment(
        "no-userns-filter",
        "an ordinary user, a filter refuses user namespaces",
        spec=Spec(uid=1000),
        make_filter=lambda: allow_all_but({}, user_namespaces=False),
        **_USER,
    ),
]

_LESS_PRIVILEGE = [
    Environment(
        "no-sys-admin", "root without SYS_ADMIN", **_machine(capabilities=_without("SYS_ADMIN"))
    ),
    Environment("no-setuid", "root without SETUID", **_machine(capabilities=_without("SETUID"))),
    Environment("no-kill", "root without KILL", **_machine(capabilities=_without("KILL"))),
    Environment(
        "no-capabilities", "root without capabilities", **_machine(capabilities=()), **_USER
    ),
]

_MISSING = [
    Environment("no-proc", "no /proc, as root", **_machine(proc="missing")),
    Environment("covered-proc", "an empty /proc, as root", **_machine(proc="covered")),
    Environment(
        "no-proc-user",
        "no /proc, as an ordinary user",
        **_machine(proc="missing", uid=1000),
        **_USER,
    ),
    Environment(
        "bwrap-no-proc",
        "Bubblewrap without `--proc`",
        **_machine(uid=1000),
        **_USER,
        prefix=(*_BWRAP, "--tmpfs", "/proc"),
        needs=("bwrap",),
    ),
    Environment("nofile-32", "`ulimit -n 32`", **_machine(nofile=32), vain=("200 descriptors",)),
    Environment("memfd-eperm", "memfd_create is refused", **_machine({"memfd_create": _EPERM})),
    Environment("memfd-enosys", "there is no memfd_create", **_machine({"memfd_create": _ENOSYS})),
    Environment(
        "landlock-eperm",
        "a filter refuses Landlock's calls",
        **_machine(dict.fromkeys(_LANDLOCK, _EPERM)),
        full=_FILTERED,
        portable=_FILTERED,
    ),
    Environment(
        "landlock-enosys",
        "there is no Landlock, or a filter hides it",
        **_machine(dict.fromkeys(_LANDLOCK, _ENOSYS)),
        full="Landlock",
        portable="Landlock",
    ),
    Environment(
        "seccomp-eperm",
        "a filter refuses the call seccomp",
        **_machine({"seccomp": _EPERM}),
        full=_FILTERED,
        portable=_FILTERED,
    ),
    Environment(
        "seccomp-enosys",
        "there is no seccomp, or a filter hides it",
        **_machine({"seccomp": _ENOSYS}),
        full="seccomp",
        portable="seccomp",
    ),
    Environment(
        "pidfd-signal", "pidfd_send_signal is refused", **_machine({"pidfd_send_signal": _EPERM})
    ),
    Environment("pidfd-open", "pidfd_open is refused", **_machine({"pidfd_open": _EPERM})),
]

# By the headings of docs/containers.md.
GROUPS: dict[str, list[Environment]] = {
    "A machine": _MACHINES,
    "Containers": _CONTAINERS,
    "User namespaces": _USER_NAMESPACES,
    "Root with less privilege": _LESS_PRIVILEGE,
    "Something is missing": _MISSING,
}
ENVIRONMENTS = [environment for group in GROUPS.values() for environment in group]


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
    program = b"" if environment.make_filter is None else environment.make_filter()
    spec = replace(
        environment.spec,
        show=tuple(SHOWN),
        filter=base64.b64encode(program).decode(),
    )
    inner = command or [*CHECK, *environment.options]
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
