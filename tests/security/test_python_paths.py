"""What of the system's files a sandbox's children may read: all that Python needs, and no more."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

from aioisolate import IsolationError, Isolator, Limits, Sandbox
from tests import actions
from tests.internals import elf, platform_features, python_paths

HERE = platform_features.containment()
one_loop = pytest.mark.one_loop
confinable = pytest.mark.skipif(
    not HERE.landlock or not HERE.seccomp, reason="a sandbox would be refused here"
)
linux = pytest.mark.skipif(sys.platform != "linux", reason="about Linux")

# It opens a browser; these print, or wait for a terminal.
_NOT_THESE = {"antigravity", "this", "idlelib", "turtledemo"}
STANDARD = sorted(set(sys.stdlib_module_names) - _NOT_THESE)
OTHERS = [
    name
    for name in ("msgspec", "numpy", "numpy.linalg", "scipy.linalg", "scipy.stats", "PIL.Image")
    if importlib.util.find_spec(name.partition(".")[0])
]


@confinable
@pytest.mark.parametrize("names", [STANDARD, OTHERS], ids=["standard", "others"])
@one_loop
async def test_everything_can_be_imported_that_can_without_a_sandbox(names):
    limits = Limits(memory="2 GiB", open_files=500, cpu_time=60)
    found = []
    for options in ({}, {"sandbox": Sandbox.untrusted(limits=limits)}):
        async with Isolator(start="zygote", preload=["tests.actions"], **options) as iso:
            found.append(await iso.run(actions.import_all, names, timeout=90, output="null"))
    free, confined = found
    assert confined == free
    assert sum(error is None for error in free.values()) > len(names) * 0.8


@linux
def test_the_systems_directories_are_not_among_them():
    paths = python_paths()
    for directory in ("/usr/lib", "/lib", "/usr/local/lib", "/usr/share", "/etc"):
        assert directory not in paths
    libraries = [path for path in paths if ".so" in path and not path.startswith("/etc")]
    assert all(os.path.isfile(path) for path in libraries)
    # Programs may need any of the libraries.
    assert "/usr/lib" in python_paths(programs=True)


@linux
@pytest.mark.skipif(shutil.which("ldd") is None, reason="there is no ldd")
@pytest.mark.parametrize("module", ["_ssl", "_sqlite3", "_ctypes", "_bz2", "_lzma", "zlib"])
def test_libraries_are_found_as_by_the_dynamic_linker(module):
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin in {None, "built-in"}:
        pytest.skip("it is no file here")
    done = subprocess.run(["ldd", spec.origin], capture_output=True, text=True, check=True)
    theirs = {
        os.path.realpath(line.partition("=>")[2].split()[0])
        for line in done.stdout.splitlines()
        if "=> /" in line
    }
    ours = {os.path.realpath(path) for path in elf.Finder().closure([spec.origin])}
    assert theirs
    assert theirs <= ours


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"#!/bin/sh\n",
        b"\x7fELF",
        b"\x7fELF\x02\x01" + bytes(58),
        b"\x7fELF\x02\x01" + b"\xff" * 9000,
    ],
)
def test_what_is_no_library_needs_nothing(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert elf.needs(str(tmp_path / "file")) == elf.Needs()
    assert elf.needs(str(tmp_path / "missing")) == elf.Needs()


def test_relative_directories_are_not_looked_into(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libown.so").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for more, paths in ((["lib"], []), ([], ["lib"])):
        assert elf.Finder(more).find("libown.so", paths) is None
    assert elf.Finder().find("lib/libown.so") is None
    whole = str(tmp_path / "lib")
    assert elf.Finder([whole]).find("libown.so") == f"{whole}/libown.so"


@linux
def test_an_embedded_interpreter_has_no_program(monkeypatch):
    expected = python_paths.__wrapped__()
    monkeypatch.setattr(sys, "executable", None)
    found = python_paths.__wrapped__()
    assert found
    assert set(found) <= set(expected)


@confinable
@pytest.mark.parametrize("kind", ["fork", "zygote"])
@one_loop
async def test_a_library_that_has_been_replaced_since(kind, monkeypatch):
    """A package was upgraded under a running process, say."""
    from tests.internals import confinement

    confinement.survey.cache_clear()
    gone = "/usr/lib/libgone.so.1.2.3"
    monkeypatch.setattr(confinement, "python_paths", lambda **_: (*python_paths(), gone))
    async with Isolator(start=kind, sandbox=Sandbox()) as iso:
        assert await iso.run(abs, -4) == 4
    monkeypatch.undo()
    confinement.survey.cache_clear()
    with pytest.raises(IsolationError, match=gone):
        async with Isolator(start=kind, sandbox=Sandbox(read=["aioisolate:python", gone])) as iso:
            await iso.run(abs, -4)
    confinement.survey.cache_clear()
