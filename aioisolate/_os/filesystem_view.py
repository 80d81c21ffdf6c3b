"""Give a process its own view of the file system: a root in which only some paths exist (Linux)."""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Iterable, Mapping
from typing import Any

from . import namespaces

__all__ = ["make_view"]

# Directories at which the new root may be mounted; they are hidden in this mount namespace only.
_STAGES = ("/tmp", "/mnt", "/media", "/srv", "/opt", "/home", "/var", "/run")  # noqa: S108
_SPARE = ".old"
_os: Any = os


def make_view(paths: Iterable[str], directories: Iterable[str] = ()) -> None:
    """Make *paths* and empty *directories* all that exists in this mount namespace.

    A tmpfs becomes the root, and *paths* are mounted into it. The caller must be in a mount
    namespace of its own. Raises OSError with the path that caused it.
    """
    # Before the first mount, so that no mount propagates to other namespaces.
    namespaces.make_mounts_private()
    # Each path is shown as given, and under its resolved name.
    resolve = _Resolver()
    sources = {path: resolve(path) for path in paths}
    sources.update({source: source for source in list(sources.values())})
    whole: set[str] = set()
    shown: list[str] = []
    for path in sorted(sources):
        if not any(path.startswith(other.rstrip("/") + "/") for other in whole):
            shown.append(path)
            if os.path.isdir(sources[path]):
                whole.add(path)
    stage = _choose_stage(set(sources.values()))
    _mount(stage, {path: sources[path] for path in shown}, whole)
    for directory in directories:
        os.makedirs(stage + directory, 0o755)
    namespaces.make_root(stage, _SPARE)
    namespaces.keep_access_times("/")
    namespaces.make_root_read_only()


def _choose_stage(sources: Iterable[str]) -> str:
    """Return a directory at which to mount the new root.

    It is neither one of *sources* nor inside one: the new root would appear in its own view.
    """
    tops = [source.rstrip("/") + "/" for source in sources]
    for directory in _STAGES:
        stage = os.path.realpath(directory)
        if os.path.isdir(stage) and not any(f"{stage}/".startswith(top) for top in tops):
            return stage
    raise OSError(errno.EBUSY, "no directory is free to mount the new root at", "/")


def _mount(stage: str, sources: Mapping[str, str], whole: Container[str]) -> None:
    """Build the new root, in which each path shows its source; those in *whole* are directories."""
    # Symbolic links where possible: there are many libraries, and a mount costs much more.
    links = {path for path, source in sources.items() if path != source and path not in whole}
    # Sources below the stage must be opened before the new root covers them.
    held = {
        path: _open_source(source)
        for path, source in sources.items()
        if source.startswith(stage + "/") and path not in links
    }
    namespaces.mount_tmpfs(stage, "mode=755,size=4m")
    os.mkdir(f"{stage}/{_SPARE}")
    made = set()
    for path, source in sources.items():
        target = stage + path
        directory = target if path in whole else os.path.dirname(target)
        if directory not in made:
            made.add(directory)
            os.makedirs(directory, 0o755, exist_ok=True)
        if path in links:
            os.symlink(source, target)
            continue
        if path not in whole:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        name = source
        if path in held:
            fd, name = held[path]
            os.fchdir(fd)
            os.close(fd)
        try:
            namespaces.bind(name, target)
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, path) from exc


def _open_source(path: str) -> tuple[int, str]:
    """Open a directory, or the directory of a file; return its descriptor and the name in it."""
    flags = _os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY
    try:
        return os.open(path, flags), "."
    except NotADirectoryError:
        directory, name = os.path.split(path)
        return os.open(directory, flags), name


class _Resolver:
    """Resolves links like `os.path.realpath`, but caches directories."""

    def __init__(self) -> None:
        self._directories: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        directory, name = os.path.split(path.rstrip("/") or "/")
        if name in ("", ".", ".."):
            return os.path.realpath(path)
        real = self._directories.get(directory)
        if real is None:
            real = self._directories[directory] = os.path.realpath(directory)
        resolved = os.path.join(real, name)
        return os.path.realpath(resolved) if os.path.islink(resolved) else resolved
