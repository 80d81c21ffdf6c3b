"""The versions that scripts/ installs: requirements/ and pyproject.toml agree."""

from __future__ import annotations

import itertools
import re
import runpy
import subprocess
import tomllib

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.helpers import ROOT

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


def test_the_scripts_support_what_the_classifiers_tell():
    shell = "source scripts/env.sh && supported"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.decode().split() == SUPPORTED


def test_lowest_versions_replace_those_locked():
    lowest = runpy.run_path(str(ROOT / "scripts/lowest.py"))
    lines = dict(line.split("==") for line in lowest["constraints"](lock_of("3.11")))
    assert {canonicalize_name(name) for name in lines} == set(locked("3.11"))
    for requirement in map(Requirement, RUNTIME):
        assert str(requirement.specifier) == f">={lines[requirement.name]}"
    assert lines["trio"] == locked("3.11")["trio"]


def test_an_interpreter_without_a_lock_is_told_so(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/env.sh").write_text((ROOT / "scripts/env.sh").read_text())
    shell = "source scripts/env.sh && environment python3 some locked test"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 1
    assert "no versions have been tested with that Python" in done.stderr.decode()
