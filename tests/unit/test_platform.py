"""Where this library can't be used, its import says so."""

from __future__ import annotations

import sys
import sysconfig

import pytest

from tests.helpers import python
from tests.internals import why_not_here

pytestmark = pytest.mark.quick


def said(has_fork=True, abiflags="", executable="/usr/bin/python3.14t"):
    return why_not_here(has_fork=has_fork, abiflags=abiflags, executable=executable)


def test_where_it_works():
    assert said() == ""
    assert said(abiflags="d") == ""


def test_where_there_is_no_fork():
    assert "needs os.fork" in said(has_fork=False)


@pytest.mark.parametrize("abiflags", ["t", "td"])
def test_a_free_threaded_build(abiflags):
    why = said(abiflags=abiflags)
    assert "free-threaded" in why
    assert "/usr/bin/python3.14t" in why
    assert "use the default build" in why
    assert "\n" not in why


def test_this_build_is_told_right():
    """What `sys.abiflags` says is what the build was configured for."""
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    assert ("t" in sys.abiflags) == free_threaded
    assert not free_threaded  # or nothing here could have been imported


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("sys.abiflags += 't'", "aioisolate does not support free-threaded builds of Python, and "),
        ("del os.fork", "aioisolate needs os.fork"),
    ],
)
def test_the_import_refuses(change, why):
    result = python(f"import os, sys; {change}; import aioisolate")
    assert result.returncode == 1
    assert f"\nImportError: {why}" in result.stderr
