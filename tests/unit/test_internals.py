"""Tests reach the private modules of the package through tests/internals.py alone."""

from __future__ import annotations

import re

import pytest

from tests import internals
from tests.helpers import ROOT

pytestmark = [pytest.mark.quick, pytest.mark.once]

# Text that runs or is read where tests/internals.py is not, or must not be imported.
ALLOWED = {
    "channel": "pickles, which name their classes",
    "internals": "the table",
    "test_code_interpreter": "programs that run in the interpreter's sandbox",
    "test_layers": "looks at what an import of a module imports",
    "test_plain": "looks at what an import of a module imports",
    "test_start": "a copy of the package in another directory",
}


def naming():
    """The files of tests that name a private module."""
    return {
        path.stem
        for path in (ROOT / "tests").rglob("*.py")
        if re.search(r"aioisolate\._[a-z]", path.read_text())
    }


def test_no_other_file_names_a_private_module():
    assert naming() == set(ALLOWED)


def test_each_name_is_there_and_used():
    paths = (ROOT / "tests").rglob("*.py")
    texts = [path.read_text() for path in paths if path.stem != "internals"]
    words = {word for text in texts if "internals" in text for word in re.findall(r"\w+", text)}
    for name in internals.PLACES:
        assert getattr(internals, name) is not None
    assert set(internals.PLACES) <= words, "nothing takes these"


def test_a_name_that_is_not_in_the_table():
    with pytest.raises(AttributeError, match="add it to PLACES"):
        _ = internals.nonsense
