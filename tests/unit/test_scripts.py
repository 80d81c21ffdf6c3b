"""What scripts/ installs, and what decides: requirements/ and pyproject.toml agree."""

from __future__ import annotations

import itertools
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.helpers import ROOT

pytestmark = [pytest.mark.quick, pytest.mark.once]

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SUPPORTED = [
    found[1]
    for classifier in PROJECT["classifiers"]
    if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", classifier))
]
EXTRAS = PROJECT["optional-dependencies"].values()
RUNTIME = list(itertools.chain(PROJECT["dependencies"], *EXTRAS))
INSTALLED = [
    *PYPROJECT["build-system"]["requires"],
    *RUNTIME,
    *(line for name in ("test", "build", "lint") for line in PYPROJECT["dependency-groups"][name]),
]


def lock_of(version):
    return ROOT / f"requirements/locked-{version}.txt"


def locked(version):
    """The locked versions by name; anything but one name and version a line is an error."""
    lines = [line for line in lock_of(version).read_text().splitlines() if line[:1] != "#"]
    found = [re.fullmatch(r"([\w.-]+)==([\w.!]+)", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {canonicalize_name(match[1]): match[2] for match in found}


@pytest.mark.parametrize("version", SUPPORTED)
def test_each_supported_version_has_a_lock_of_all_that_is_asked_for(version):
    versions = locked(version)
    environment = {**default_environment(), "python_version": version}
    for requirement in map(Requirement, INSTALLED):
        if not requirement.marker or requirement.marker.evaluate(environment):
            found = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(found, prereleases=True), requirement
    # The first to know --build-constraint.
    assert Version(versions["pip"]) >= Version("25.3")


def test_no_lock_is_left_of_a_version_no_longer_supported():
    assert {path.name for path in (ROOT / "requirements").iterdir()} == {
        lock_of(version).name for version in SUPPORTED
    }


def bash(text, directory=ROOT, **variables):
    """Run a text of bash; return its status and what it wrote, both streams."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=directory,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_the_scripts_support_what_the_classifiers_tell():
    status, output = bash("source scripts/env.sh && supported")
    assert (status, output.split()) == (0, SUPPORTED)


def test_the_interpreters_found_are_supported_and_by_version():
    _, output = bash("source scripts/env.sh && find_pythons")
    versions = [line.split()[0] for line in output.splitlines()]
    assert versions
    assert versions == [version for version in SUPPORTED if version in versions]


def test_lowest_versions_replace_those_locked():
    lowest = runpy.run_path(str(ROOT / "scripts/lowest.py"))
    lines = dict(line.split("==") for line in lowest["constraints"](lock_of("3.11")))
    assert {canonicalize_name(name) for name in lines} == set(locked("3.11"))
    for requirement in map(Requirement, RUNTIME):
        assert str(requirement.specifier) == f">={lines[requirement.name]}"
    assert lines["trio"] == locked("3.11")["trio"]


def test_an_interpreter_without_a_lock_is_told_so(tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    command = f"source scripts/env.sh && environment {sys.executable} some locked test"
    status, output = bash(command, tmp_path)
    assert status == 1
    assert "no versions have been tested with that Python" in output


def function_of(script, name):
    """The source of one function of a script."""
    found = re.search(
        rf"^{name}\(\) {{\n.*?^}}$", (ROOT / script).read_text(), re.DOTALL | re.MULTILINE
    )
    return found[0]


@pytest.mark.parametrize(
    ("failed", "status", "last"),
    [
        ("", 0, "all passed, in"),
        ("py3.11 lint", 1, "FAILED after"),
        ("sid-3.15 limits", 1, "FAILED after"),
        ("lowest dependencies", 1, "FAILED after"),
        ("newest dependencies", 0, "all passed, in"),
        ("sid-newest dependencies", 0, "all passed, in"),
    ],
)
def test_what_fails_decides_unless_it_is_the_newest(tmp_path, failed, status, last):
    parts = ["py3.11 lint", "sid-3.15 limits", "lowest dependencies", "newest dependencies", failed]
    lines = [f"{int(part == failed)} {part} 7\n" for part in dict.fromkeys(parts) if part]
    (tmp_path / "results").write_text("".join(lines))
    found, output = bash(f"{function_of('scripts/test', 'summary')}\nsummary", RUN=str(tmp_path))
    assert found == status, output
    assert output.splitlines()[-1].startswith(last)
    assert ("newest" in failed) == ("NEWEST VERSIONS FAIL" in output)
    if status:
        assert failed.replace(" ", "/") in output.splitlines()[-1]


def test_each_test_file_is_in_one_part_of_the_suite():
    functions = [
        function_of("scripts/test", name) for name in ("select_files", "each_part", "full")
    ]
    here = f'names=(py3.11); at() {{ shift 2; {sys.executable} "$@"; }}'
    status, output = bash("\n".join([here, *functions, "full py3.11"]))
    assert status == 0, output
    files = [word for line in output.splitlines() for word in line.split()[3:]]
    found = [str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/test_*.py")]
    assert sorted(files) == sorted(found)
    names = [path.rpartition("/")[2] for path in found]
    assert len(set(names)) == len(names), "files of two folders have the same name"
