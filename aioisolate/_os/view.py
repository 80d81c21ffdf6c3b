"""A view of the files of one's own (Linux): a root directory in which only some paths exist."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Mapping
from typing import Any

from . import namespaces

__all__ = ["make_view"]

_STAGE = "/tmp"  # noqa: S108 - any directory: it is covered, in a mount namespace of our own
_SPARE = ".old"
_os: Any = os


def make_view(paths: Iterable[str], directories: Iterable[str] = ()) -> None:
    """Let nothing exist but *paths*, and empty *directories*, in this mount namespace.

    A file system in memory becomes the root, and what may be reached is mounted into it. To be
    called in a mount namespace of one's own. Raises OSError, with the path that it is about.
    """
    # Before anything is mounted: outside nobody is to see it.
    namespaces.seclude_mounts()
    # A path is there as it was given, and where its links lead to.
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
    _mount({path: sources[path] for path in shown}, whole)
    for directory in directories:
        os.makedirs(_STAGE + directory, 0o755)
    namespaces.make_root(_STAGE, _SPARE)
    namespaces.seal_root()


def _mount(sources: Mapping[str, str], whole: Container[str]) -> None:
    """Put the new root together: have each path show its source; the *whole* are directories."""
    # A link instead of a mount, which costs much more: there are many libraries.
    links = {path for path, source in sources.items() if path != source and path not in whole}
    # What is below the place where the new root is put together has to be opened before that.
    held = {
        path: _open_source(source)
        for path, source in sources.items()
        if source.startswith(_STAGE + "/") and path not in links
    }
    namespaces.mount_tmpfs(_STAGE, "mode=755,size=4m")
    os.mkdir(f"{_STAGE}/{_SPARE}")
    made = set()
    for path, source in sources.items():
        target = _STAGE + path
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
    """Open a directory, or the directory of a file; return the descriptor and the name in it."""
    flags = _os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY
    try:
        return os.open(path, flags), "."
    except NotADirectoryError:
        directory, name = os.path.split(path)
        return os.open(directory, flags), name


class _Resolver:
    """Follows links as `os.path.realpath` does, which looks at each directory again each time."""

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
