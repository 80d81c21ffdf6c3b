"""Policies for the access of isolated code to the system: plain data.

A `Sandbox` describes the policy; `_call/confinement.py` derives the layers from it, and
`_child/confine.py` engages them. docs/security.md explains the protection of each layer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, Self, TypeAlias

from ._limits import Limits, Size, as_bytes

__all__ = ["PYTHON", "Sandbox"]

PYTHON: Final = "aioisolate:python"
"""Stands for the files that the interpreter itself reads: its library and site-packages, the
shared libraries that these need (with ``subprocesses=True`` all of the system's), time zones and a
few harmless devices. The rest of `sys.path`, with the application's own code, is not included."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "network": ("none", "inherit"),
    "namespaces": ("auto", "require", "off"),
    "syscalls": ("default", "strict", "off"),
    "cgroup": ("auto", "require", "off"),
    "codec": ("pickle", "msgspec", "json"),
    "missing": ("refuse", "warn"),
}
_LEVELS = ("full", "portable")
# Names that can be required, and removed from a preset, and the arguments that remove them.
_WITHOUT: dict[str, dict[str, Any]] = {
    "namespaces": {"namespaces": "off", "scratch": None},
    "view of files": {},
    "user": {"user": "unprivileged"},
    "capabilities": {"user": "keep"},
    "landlock": {"read": None, "write": None},
    "seccomp": {"syscalls": "off", "network": "inherit"},
    "environment": {"env": None},
    "scratch": {"scratch": None},
    "control group": {"cgroup": "off"},
    "process namespace": {},
    "no_new_privs": {},
}
_NAMES = (*_WITHOUT, *(f"limits.{name}" for name in Limits.__slots__))
Paths: TypeAlias = Iterable[str | os.PathLike[str]] | None


class Sandbox:
    """A policy for isolated code: the files, system calls and other resources that it may use.

    Start from a preset, `untrusted` or `crash_guard`; the defaults of the arguments confine, too.
    Every layer is engaged, and proved by the child, before fn is called; if a layer can't be
    engaged, fn is not called (`Reason.CHILD_SETUP`, with the layer's name and errno).

    Args:
        read: files and directories that may be read, with all below them (Landlock). `PYTHON`
            stands for the files that the interpreter needs. None: all that this user may read.
        write: files and directories that may be written and read, as far as *user* has access:
            the user id that a call gets under root owns no files. None: all that this user may
            write. With neither paths here nor *scratch* no file can be locked (ENOLCK), unless
            *syscalls* is "off".
        scratch: the size of an empty directory in memory that only the call can access. It is the
            HOME, the TMPDIR and the working directory of the call, and is deleted at its end.
            Needs namespaces, and paths in *read*. None: no such directory.
        network: ``"none"``: no sockets except pairs of Unix sockets, and a network namespace
            without interfaces. ``"inherit"``: the network of this process.
        subprocesses: whether fn may start processes and programs. In a process namespace or a
            control group all of them end with the call; with neither, only those in the child's
            process group. To run programs, add their paths to *read*.
        namespaces: separate namespaces for the network, interprocess communication, mounts and
            host names, and for processes if *subprocesses* is true. ``"auto"``: where possible.
        syscalls: the allowed system calls (seccomp). ``"default"``: all but those that reach
            beyond the call or that enlarge the attack surface of the kernel. ``"strict"``: those
            needed for computing in memory and in allowed files. ``"off"``: no filter.
        user: ``"auto"``: if this process is root, and may become another user and end the processes
            of that user, each call gets a user id of its own, which owns no files; otherwise as
            ``"unprivileged"``. ``"unprivileged"``: the user id does not change, and all
            capabilities are dropped, also those of root. ``"keep"``: user id and capabilities do
            not change. A number: that user id.
        cgroup: a control group for the limits that apply to all processes of the call together.
            ``"auto"``: if a limit needs one, and one can be made.
        env: the environment of the call. None: that of this process.
        codec: how results are encoded. ``"msgspec"`` (MessagePack) and ``"json"``: plain data,
            even if the child is hostile. ``"pickle"``, for trusted code: unpickling can run any
            code in this process.
        limits: the limits of each call; a call's own limits take precedence.
        fresh: whether only children of a fresh interpreter may run the call, `Isolator` with
            ``start="zygote"``: a copy of this process has all data of this process in memory,
            secrets included.
        missing: the consequence if this machine lacks a layer. ``"refuse"``: the call is refused
            (`Reason.FEATURE_UNAVAILABLE`, by name). ``"warn"``: it runs without the layer, with a
            `SandboxWarning`.
        require: names of layers and limits without which calls are refused, independent of the
            other arguments: ``"user"``, ``"namespaces"``, ``"view of files"``, ``"limits.memory"``
            and other names in `features.report`.

    Raises:
        TypeError, ValueError: an argument is invalid.

    Example::

        tools = Sandbox(read=[PYTHON, "/srv/fonts"], scratch="64 MiB", codec="msgspec")
        async with Isolator(sandbox=tools, preload=["render"]) as iso:
            page = await iso.run(render.page, text, timeout=10)
    """

    __slots__ = (
        "cgroup",
        "codec",
        "env",
        "fresh",
        "limits",
        "missing",
        "namespaces",
        "network",
        "read",
        "require",
        "scratch",
        "subprocesses",
        "syscalls",
        "user",
        "write",
    )

    read: tuple[str, ...] | None
    write: tuple[str, ...] | None
    scratch: int | None
    network: Literal["none", "inherit"]
    subprocesses: bool
    namespaces: Literal["auto", "require", "off"]
    syscalls: Literal["default", "strict", "off"]
    user: Literal["auto", "keep", "unprivileged"] | int
    cgroup: Literal["auto", "require", "off"]
    env: Mapping[str, str] | None
    codec: Literal["pickle", "msgspec", "json"]
    limits: Limits | None
    fresh: bool
    missing: Literal["refuse", "warn"]
    require: tuple[str, ...]

    def __init__(  # noqa: PLR0917 - in the documented order
        self,
        read: Paths = (PYTHON,),
        write: Paths = (),
        scratch: Size | None = None,
        network: Literal["none", "inherit"] = "none",
        subprocesses: bool = False,
        namespaces: Literal["auto", "require", "off"] = "auto",
        syscalls: Literal["default", "strict", "off"] = "default",
        user: Literal["auto", "keep", "unprivileged"] | int = "auto",
        cgroup: Literal["auto", "require", "off"] = "auto",
        env: Mapping[str, str] | None = {},
        codec: Literal["pickle", "msgspec", "json"] = "msgspec",
        *,
        limits: Limits | None = None,
        fresh: bool = False,
        missing: Literal["refuse", "warn"] = "refuse",
        require: Iterable[str] = (),
    ) -> None:
        choices = {
            "network": network,
            "namespaces": namespaces,
            "syscalls": syscalls,
            "cgroup": cgroup,
            "codec": codec,
            "missing": missing,
        }
        for name, value in choices.items():
            if value not in _CHOICES[name]:
                allowed = ", ".join(map(repr, _CHOICES[name]))
                raise ValueError(f"sandbox.{name} must be one of {allowed}, not {value!r}")
        for name, flag in (("subprocesses", subprocesses), ("fresh", fresh)):
            if not isinstance(flag, bool):
                raise TypeError(f"sandbox.{name} must be True or False, not {flag!r}")
        if limits is not None and not isinstance(limits, Limits):
            raise TypeError(f"sandbox.limits must be Limits, not {limits!r}")
        put = object.__setattr__
        for name, value in choices.items():
            put(self, name, value)
        put(self, "subprocesses", subprocesses)
        put(self, "fresh", fresh)
        put(self, "limits", limits)
        put(self, "read", _checked_paths("read", read))
        put(self, "write", _checked_paths("write", write))
        if (read is None) != (write is None):
            raise ValueError("sandbox.read and sandbox.write are both None or both paths")
        put(self, "scratch", _checked_scratch(scratch, namespaces, read))
        put(self, "user", _checked_user(user))
        put(self, "require", _checked_names("require", require))
        put(self, "env", _checked_env(env))

    @classmethod
    def crash_guard(cls, *, without: Iterable[str] = (), **changes: Any) -> Self:
        """Return the policy for code that is trusted, but leaks, crashes or never ends.

        The code may access everything that this process may access. It has 1 GiB of memory above
        the size at its start, leaves no core dump, and gains no privileges from programs that it
        starts. Where a cgroup can be made, the memory limit applies to all processes of the call
        together. To make a cgroup takes a millisecond with version 1 and ten with version 2; set
        ``cgroup="off"`` for code that starts no processes.

        *changes* are arguments of `Sandbox`; *without* names layers and limits to leave out,
        ``without=["limits.memory"]`` for example.

        Example::

            guard = Sandbox.crash_guard(limits=Limits(memory="4 GiB", cpu_time=60))
            await run_isolated(convert, path, sandbox=guard)
        """
        defaults: dict[str, Any] = {
            "read": None,
            "write": None,
            "network": "inherit",
            "subprocesses": True,
            "namespaces": "off",
            "syscalls": "off",
            "user": "keep",
            "env": None,
            "codec": "pickle",
            "limits": Limits(memory="1 GiB"),
        }
        return cls(**_reduced(defaults, changes, without))

    @classmethod
    def untrusted(
        cls,
        *,
        level: Literal["full", "portable"] = "full",
        without: Iterable[str] = (),
        **changes: Any,
    ) -> Self:
        """Return the policy for untrusted code, such as that of users or of a language model.

        The policy allows only children of a fresh interpreter, no files but Python's own, no
        network, no programs, an empty environment, results as plain data, 512 MiB of memory, 10 s
        of CPU time, 16 threads, 1 MiB of output and 16 MiB of results. Calls are refused where one
        of these can't be enforced.

        Args:
            level: ``"full"``: all layers that this machine has. Landlock, the system call filter
                and resource limits suffice for the above; namespaces and a separate user id are a
                second line of defence (`features.report` lists them, and *require* makes them
                mandatory). ``"portable"``: only layers that need no privilege and no namespaces, so
                that servers, containers and laptops behave alike. A call of root then can't start
                threads, since the kernel does not count them.
            without: names of layers and limits to leave out, such as
                ``["limits.processes"]``; see *require* of `Sandbox`. Without "seccomp" the
                network is open, too; without "namespaces" there is no *scratch*.
            changes: arguments of `Sandbox`; ``codec="pickle"`` and ``fresh=False`` are refused.

        Example::

            async with Isolator(sandbox=Sandbox.untrusted(), warm=2) as iso:
                answer = await iso.run(evaluate, source, timeout=5)
        """
        limits = Limits(
            memory="512 MiB",
            cpu_time=10,
            open_files=64,
            file_size="64 MiB",
            processes=16,
            result_size="16 MiB",
            output_size="1 MiB",
        )
        given = changes.get("limits")
        if isinstance(given, Limits):
            limits = given.over(limits)
        elif given is not None:
            raise TypeError(f"sandbox.limits must be Limits, not {given!r}")
        if changes.get("codec") == "pickle":
            raise ValueError(
                "results of untrusted code are never unpickled: unpickling would run its code in "
                "this process. Use codec='msgspec' or 'json'"
            )
        if not changes.get("fresh", True):
            raise ValueError(
                "Sandbox.untrusted() is for children of a fresh interpreter: a copy of this "
                "process has every secret of this process in memory"
            )
        if level not in _LEVELS:
            raise ValueError(f"level must be one of {', '.join(map(repr, _LEVELS))}, not {level!r}")
        defaults: dict[str, Any] = {"codec": _data_codec(), "fresh": True}
        if level == "portable":
            defaults |= {"namespaces": "off", "user": "unprivileged", "cgroup": "off"}
        return cls(**_reduced(defaults, changes | {"limits": limits}, without))

    @property
    def confines_files(self) -> bool:
        """Whether only some files may be accessed."""
        return self.read is not None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Sandbox can't be changed; create another instance")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a Sandbox can't be changed; create another instance")

    def _key(self) -> tuple[Any, ...]:
        env = None if self.env is None else tuple(sorted(self.env.items()))
        return (env, *(getattr(self, name) for name in self.__slots__ if name != "env"))

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Sandbox) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        fields = [f"{name}={getattr(self, name)!r}" for name in self.__slots__ if name != "env"]
        # Its values may be secrets, which must not be logged.
        fields.append(f"env={'None' if self.env is None else sorted(self.env)}")
        return f"Sandbox({', '.join(fields)})"

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["env"] = None if self.env is None else dict(self.env)
        return _rebuild, (type(self), fields)


def _rebuild(cls: type[Sandbox], fields: dict[str, Any]) -> Sandbox:
    return cls(**fields)


def _reduced(
    defaults: dict[str, Any], changes: dict[str, Any], without: Iterable[str]
) -> dict[str, Any]:
    """Return a preset's arguments without some layers and limits.

    Raises ValueError where *changes* contradict *without*.
    """
    arguments = defaults | changes
    limits = arguments["limits"]
    # "capabilities" is always the last one: it also sets the user to "keep".
    for name in sorted(_checked_names("without", without), key="capabilities".__eq__):
        if name.startswith("limits."):
            if limits is None:
                continue
            kept = {limit: getattr(limits, limit) for limit in limits.__slots__}
            limits = Limits(**(kept | {name.removeprefix("limits."): None}))
        elif not _WITHOUT[name]:
            raise ValueError(f"without can't name {name!r}: another layer implies it")
        elif name != "user" or arguments.get("user") != "keep":  # otherwise there is no such layer
            for argument, value in _WITHOUT[name].items():
                if changes.get(argument, value) != value:
                    raise ValueError(
                        f"without={name!r} and {argument}={changes[argument]!r} contradict each "
                        f"other: without that layer it is {value!r}"
                    )
            arguments = arguments | _WITHOUT[name]
    return arguments | {"limits": limits}


def _checked_names(option: str, names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise TypeError(f"{option} must be a list of names, not the one name {names!r}")
    checked = tuple(names)
    for name in checked:
        if name not in _NAMES:
            raise ValueError(f"{option} must hold names of {', '.join(_NAMES)}, not {name!r}")
    return checked


def _data_codec() -> str:
    from importlib.util import find_spec  # noqa: PLC0415 - only for this preset

    return "json" if find_spec("msgspec") is None else "msgspec"


def _checked_paths(name: str, paths: Paths) -> tuple[str, ...] | None:
    if paths is None:
        return None
    if isinstance(paths, (str, bytes, os.PathLike)):
        raise TypeError(f"sandbox.{name} must be a list of paths, not the one path {paths!r}")
    checked = []
    for path in paths:
        text = os.fspath(path) if isinstance(path, os.PathLike) else path
        if not isinstance(text, str):
            raise TypeError(f"sandbox.{name} must hold paths, not {path!r}")
        if text != PYTHON and not os.path.isabs(text):
            raise ValueError(f"sandbox.{name} must hold absolute paths, not {text!r}")
        checked.append(text)
    if name == "write" and PYTHON in checked:
        raise ValueError("sandbox.write can't hold PYTHON, which stands for files to read")
    return tuple(checked)


def _checked_scratch(size: Size | None, namespaces: str, read: Paths) -> int | None:
    if size is None:
        return None
    if namespaces == "off":
        raise ValueError("sandbox.scratch needs namespaces, which are off")
    if read is None:
        raise ValueError("sandbox.scratch needs paths in sandbox.read and sandbox.write")
    return as_bytes("sandbox.scratch", size, least=4096)


def _checked_user(user: object) -> Any:
    if user in ("auto", "keep", "unprivileged"):
        return user
    if isinstance(user, bool) or not isinstance(user, int):
        raise TypeError(
            f"sandbox.user must be 'auto', 'keep', 'unprivileged' or a user id, not {user!r}"
        )
    if not 0 < user < 1 << 32:
        raise ValueError(f"sandbox.user must be an unprivileged user's id, not {user!r}")
    return user


def _checked_env(env: object) -> Mapping[str, str] | None:
    if env is None:
        return None
    if not isinstance(env, Mapping):
        raise TypeError(f"sandbox.env must be a mapping or None, not {env!r}")
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"sandbox.env must map strings to strings, not {name!r}")
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"sandbox.env can't have a variable {name!r}")
    return MappingProxyType(dict(env))
