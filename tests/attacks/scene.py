"""What an attack is, and the scene that the parent sets up for it.

Everything that an attack needs is imported where its module is: a child that may not read the
standard library any more must fail at the attack, not at an import.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from .system import find_in, read_memory

__all__ = ["ENVIRONMENT", "Attack", "Scene", "without_imports"]

ENVIRONMENT = "AIOISOLATE_ATTACK_SECRET"

_VICTIM = """
import sys, time
marker = bytearray(bytes.fromhex(sys.argv[1]))
file = open(sys.argv[2])
print("ready", flush=True)
time.sleep(60)
"""


def _no_arguments(scene: Scene) -> tuple[Any, ...]:
    return ()


def _no_options(scene: Scene) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Attack:
    """Something that a stranger's code may try.

    Attributes:
        name, group: what it is called.
        run: what runs in the child. It returns a proof, or raises OSError if it was denied.
        arrange: makes its arguments, in the parent, before.
        succeeded: whether it did what it was to do, as seen from the parent, after.
        expect: what may be seen under `Sandbox.untrusted()`, names joined by ``|``: "denied" (it
            raised OSError), "memory" (MemoryError), "nothing" (LookupError: there is nothing to
            be found), "threads" (RuntimeError), "value" (it returned, in vain), or a `Reason`.
        off: what must be seen without a sandbox: "success", or some of these where the library
            alone withstands it, and never has it succeed.
        off_start: how the child is started without a sandbox.
        needs_root: only root can do that anyway.
        needs: why it can't succeed here even without a sandbox; asked when it is tried.
        limits: what `Limits` it is to be tried with.
        options: of the call, made of the scene, with and without a sandbox.
        off_options: of the call without a sandbox; they stand for what a sandbox takes away.
        preload: makes modules for the fork server to import, and names them; before it starts.
        sibling: a second child has to be there.
        timeout: of the call.
    """

    name: str
    group: str
    run: Callable[..., Any]
    arrange: Callable[[Scene], tuple[Any, ...]] = _no_arguments
    succeeded: Callable[[Any, Scene], bool] = lambda result, scene: bool(result)
    expect: str = "denied"
    off: str = "success"
    off_start: str = "zygote"
    needs_root: bool = False
    needs: Callable[[], str] = lambda: ""
    limits: dict[str, Any] = field(default_factory=dict)
    options: Callable[[Scene], dict[str, Any]] = _no_options
    off_options: Callable[[Scene], dict[str, Any]] = _no_options
    preload: Callable[[Scene], list[str]] = lambda scene: []
    sibling: bool = False
    timeout: float = 10.0


class Scene:
    """What is there to be attacked. Closing it puts everything back.

    Attributes:
        secret: what nobody else may learn.
        marker: bytes in the memory of the victim and of the sibling.
        directory: anybody may write to it, as far as modes of files go.
        private: a directory of the parent's own.
        sibling_pid: a second child, if the attack wants one.
        outcome: what became of the attack's call.
        wall: how many seconds that took.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.secret = secrets.token_hex(12)
        self.marker = secrets.token_bytes(24)
        self.directory = self._folder(0o777)
        self.private = self._folder(0o700)
        self.sibling_pid = 0
        self.outcome: Any = None
        self.wall = 0.0
        self.notes: dict[str, Any] = {}
        self._victim: subprocess.Popen[str] | None = None
        self._before = os.environ.get(ENVIRONMENT)
        os.environ[ENVIRONMENT] = self.secret
        self._stack.callback(os.environ.pop, ENVIRONMENT, None)
        self.affinity = os.sched_getaffinity(0)
        # What should change in the parent is changed back.
        self._stack.callback(os.sched_setaffinity, 0, self.affinity)

    def _folder(self, mode: int) -> str:
        path = tempfile.mkdtemp(prefix="attack-")
        os.chmod(path, mode)
        self._stack.callback(shutil.rmtree, path, ignore_errors=True)
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def own(self, closeable: Any) -> Any:
        """Have it closed at the end."""
        self._stack.callback(closeable.close)
        return closeable

    def own_fd(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def call_later(self, what: Callable[..., Any], *args: Any) -> None:
        self._stack.callback(what, *args)

    # Files

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def file(self, name: str = "file", mode: int = 0o666, private: bool = False) -> str:
        """Make a file that holds the secret."""
        path = os.path.join(self.private if private else self.directory, name)
        with open(path, "w") as file:
            file.write(self.secret)
        os.chmod(path, mode)
        self.notes[path] = os.stat(path)
        return path

    def content(self, name: str = "file") -> str:
        with open(self.path(name)) as file:
            return file.read()

    def touched(self, name: str = "file") -> bool:
        """Tell whether a file's metadata are no longer what they were."""
        path = self.path(name)
        return os.stat(path).st_ctime_ns != self.notes[path].st_ctime_ns

    # Sockets

    def listener(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, address: Any = None
    ) -> Any:
        sock = self.own(socket.socket(family, kind))
        sock.settimeout(1)
        sock.bind(("127.0.0.1", 0) if address is None else address)
        if isinstance(address, str) and not address.startswith("\0"):
            os.chmod(address, 0o777)
        if kind == socket.SOCK_STREAM:
            sock.listen()
        self.notes["listener"] = sock
        return sock

    def heard(self) -> bool:
        """Tell whether the secret word has arrived at the listener."""
        sock = self.notes["listener"]
        sock.settimeout(0.3)
        try:
            if sock.type == socket.SOCK_STREAM:
                connection, _ = sock.accept()
                with connection:
                    connection.settimeout(0.3)
                    return connection.recv(100) == self.secret.encode()
            return sock.recv(100) == self.secret.encode()
        except TimeoutError:
            return False

    # Processes

    @property
    def victim(self) -> int:
        """A process of the parent's own user that is in no sandbox."""
        if self._victim is None:
            path = self.file("held", 0o600, private=True)
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _VICTIM, self.marker.hex(), path],
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            self._victim = process
            self._stack.callback(self._end_victim, process)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        return self._victim.pid

    @staticmethod
    def _end_victim(process: subprocess.Popen[str]) -> None:
        with process:
            process.kill()

    def target(self, sibling: bool) -> int:
        return self.sibling_pid if sibling else self.victim

    def address(self, pid: int) -> int:
        """Find the marker in a process, or give an address where something might be."""
        try:
            found = find_in(pid, self.marker)
        except OSError:
            found = []
        self.notes["address"] = found[0] if found else 0
        return found[0] if found else id(None)

    def overwritten(self, pid: int) -> bool:
        """Tell whether the marker, whose address was given, is no longer there."""
        address = self.notes["address"]
        if not address:
            return False
        return read_memory(pid, address, len(self.marker)) != self.marker

    def died(self, pid: int) -> bool:
        """Tell whether a process ends very soon."""
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            try:
                with open(f"/proc/{pid}/stat") as file:
                    if file.read().rpartition(")")[2].split()[0] in "ZX":
                        return True
            except OSError:
                return True
            time.sleep(0.01)
        return False

    # What somebody keeps

    def line(self) -> int:
        """Open a line to the child and return its end: whoever holds that is still alive."""
        here, there = socket.socketpair()
        self.own(here).settimeout(2)
        self.own(there)
        self.notes["line"] = here, there
        return there.fileno()

    def held(self) -> bool:
        """Tell whether somebody still holds the other end, although the call is over."""
        here, there = self.notes["line"]
        there.close()
        until = time.monotonic() + 1
        here.settimeout(0.05)
        while time.monotonic() < until:
            try:
                if not here.recv(100):
                    return False
            except TimeoutError:
                pass
            except ConnectionResetError:
                return False
        # Whoever waits there ends now; and is gone before the test is over.
        here.shutdown(socket.SHUT_WR)
        here.settimeout(5)
        while here.recv(100):
            pass
        return True

    # Memory of the parent

    def watch_memory(self) -> None:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak is that of from now on
        self.notes["memory"] = _status("VmRSS")

    def swollen(self) -> int:
        """Return how many MiB the parent has had more, at most."""
        return (_status("VmHWM") - self.notes["memory"]) >> 20


class _Refusal:
    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> None:
        raise PermissionError(f"the attack imports {name}, and may be stopped by that alone")


def without_imports(run: Callable[..., Any], *args: Any) -> Any:
    """Run an attack as where no module can be read any more: it has to do without more of them."""
    refusal = _Refusal()
    sys.meta_path.insert(0, refusal)
    try:
        return run(*args)
    finally:
        sys.meta_path.remove(refusal)


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        found = re.search(rf"^{name}:\s+(\d+) kB", file.read(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


def soft_limit(pid: int, which: int) -> int:
    return resource.prlimit(pid, which)[0]
