"""The files that the interpreter reads, for which `PYTHON` in a `Sandbox` stands."""

from __future__ import annotations

import functools
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator

from .._os.elf import Finder

__all__ = ["python_paths"]

# Installation prefixes whose "lib" directory is the system's.
_SYSTEM_PREFIXES = ("/", "/usr", "/usr/local")
_SYSTEM_LIBRARIES = (
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
)
# Libraries loaded by name at run time, and those on which manylinux wheels (PEP 600) may depend.
_NEEDED_BY_WHEELS = """
libc.so.6 libm.so.6 libmvec.so.1 libdl.so.2 librt.so.1 libpthread.so.0 libutil.so.1 libresolv.so.2
libnsl.so.1 libgcc_s.so.1 libstdc++.so.6 libatomic.so.1 libgomp.so.1 libnss_files.so.2
libnss_dns.so.2 libz.so.1 libexpat.so.1 libX11.so.6 libXext.so.6 libXrender.so.1 libICE.so.6
libSM.so.6 libGL.so.1 libgobject-2.0.so.0 libgthread-2.0.so.0 libglib-2.0.so.0
"""
# Data of the C library, and harmless devices.
_SYSTEM = (
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/lib/locale",
    "/usr/share/zoneinfo",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
)
_PORTABLE_TAGS = ("-any", "-manylinux", "-musllinux", "manylinux", "musllinux")


@functools.lru_cache(2)
def python_paths(*, programs: bool = False) -> tuple[str, ...]:
    """Return the paths that the interpreter reads.

    Args:
        programs: whether other programs may run, which may need any library of the system.
    """
    found = sysconfig.get_paths()
    packages = [found["purelib"], found["platlib"]]
    if site.ENABLE_USER_SITE:
        packages.append(site.getusersitepackages())
    own = [found["stdlib"], found["platstdlib"], *packages]
    own += [
        os.path.join(prefix, "lib")
        for prefix in (sys.base_prefix, sys.base_exec_prefix)
        if os.path.realpath(prefix) not in _SYSTEM_PREFIXES
    ]
    if sys.prefix == sys.base_prefix and os.path.realpath(sys.prefix) in _SYSTEM_PREFIXES:
        # Debian has several such directories.
        packages += [path for path in site.getsitepackages() if path not in packages]
        own += packages
    paths = [*own, os.path.join(sys.prefix, "pyvenv.cfg"), *_SYSTEM]
    if programs:
        paths += _SYSTEM_LIBRARIES
    elif sys.platform == "linux":
        paths += _libraries(own, packages)
    unique = dict.fromkeys(path for path in paths if os.path.exists(path))
    return tuple(unique)


def _libraries(own: list[str], packages: list[str]) -> list[str]:
    """Return the system libraries that Python and its packages may load."""
    finder = Finder(os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    program = sys.executable or ""  # an embedded interpreter may have none
    files = [
        program,
        *_shared_objects(os.path.join(sysconfig.get_path("platstdlib"), "lib-dynload")),
    ]
    files += _shared_objects(sysconfig.get_config_var("DESTSHARED") or "")
    for directory in packages:
        files += _extensions(directory)
    covered = tuple(os.path.realpath(path) + "/" for path in own)
    return [
        path
        for path in finder.closure(files, _NEEDED_BY_WHEELS.split())
        if not os.path.realpath(path).startswith(covered)
    ]


def _shared_objects(directory: str) -> Iterator[str]:
    """Yield the shared objects in a directory and its subdirectories."""
    for parent, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if name != "__pycache__"]
        for name in files:
            if name.endswith(".so") or ".so." in name:
                yield os.path.join(parent, name)


def _extensions(directory: str) -> Iterable[str]:
    """Return the shared objects of packages that were built for one Linux system only.

    Portable wheels need only the libraries in `_NEEDED_BY_WHEELS`; to read all files takes long.
    """
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    found: list[str] = []
    wheels = 0
    for name in names:
        if name.endswith(".dist-info"):
            tags = _lines(os.path.join(directory, name, "WHEEL"), "Tag: ")
            wheels += bool(tags)
            if tags and not any(part in tag for tag in tags for part in _PORTABLE_TAGS):
                record = _lines(os.path.join(directory, name, "RECORD"), "")
                entries = [line.partition(",")[0] for line in record if ".so" in line]
                found += [os.path.join(directory, entry) for entry in entries]
    if not wheels:  # the packages of another package manager, such as Debian's
        return _shared_objects(directory)
    return found


def _lines(path: str, start: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return [line[len(start) :].strip() for line in file if line.startswith(start)]
    except OSError:
        return []
