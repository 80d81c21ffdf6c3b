"""The table of docs/security.md is true: it has every attack, and what it says was tried again."""

from __future__ import annotations

import os
import re

import pytest

from tests.attack_table import BEGIN, END, LAYERS, PATH, stopped
from tests.attacks import ATTACKS
from tests.internals import landlock

_page = PATH.read_text()
_rows = {
    cells[0]: {name for name, mark in zip(LAYERS, cells[1:], strict=True) if mark}
    for line in _page.partition(BEGIN)[2].partition(END)[0].splitlines()
    if (cells := [cell.strip() for cell in line.split("|")[1:-1]])
    and not re.match(r"attack$|-|\*\*", cells[0])
}
_by_name = {attack.name: attack for attack in ATTACKS}

pytestmark = [
    pytest.mark.one_loop,
    pytest.mark.skipif(
        os.geteuid() != 0 or landlock.abi() < 7, reason="the table is of root and Landlock 7"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::aioisolate.ForkSafetyWarning"),
    pytest.mark.filterwarnings("ignore::aioisolate.SandboxWarning"),
]


def test_it_has_every_attack_that_succeeds_without_a_sandbox():
    expected = {attack.name for attack in ATTACKS if attack.off == "success"}
    missing = expected - set(_rows)
    # Those that this machine does not let succeed, whoever tries.
    assert all(_by_name[name].needs() for name in missing)
    assert set(_rows) <= expected


def test_each_layer_stops_something_that_no_other_one_stops():
    alone = {next(iter(layers)) for layers in _rows.values() if len(layers) == 1}
    assert alone >= {"seccomp", "codec", "limits"}


# Those that hang on one layer: it had better be there.
@pytest.mark.parametrize("name", sorted(name for name, found in _rows.items() if len(found) < 2))
async def test_what_it_says_is_so(name):
    """One layer that is marked stops it; without any of those that are, nothing does."""
    layers = _rows[name]
    for layer in list(LAYERS)[1:]:
        if layer in layers:
            assert await stopped(_by_name[name], layer)
            break
    else:
        assert await stopped(_by_name[name], "fresh") is ("fresh" in layers)
