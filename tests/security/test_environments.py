"""The library where people run it: what is promised holds there, or is refused by a sentence.

Each environment is a container that is made here, in which one program tries all of it; see
tests/environments.py. In containers of a real Docker daemon the same is tried by
scripts/docker-matrix.
"""

from __future__ import annotations

import pytest

from tests.environment_expectations import complaints
from tests.environment_table import cells, rows_of_page
from tests.environments import ENVIRONMENTS, GROUPS, missing, results, run

pytestmark = [
    pytest.mark.sole,
    pytest.mark.slow,
    pytest.mark.part(name="environments"),
    pytest.mark.one_loop,
]

_page = {group: rows_of_page(group) for group in GROUPS}


def test_the_page_has_every_environment():
    for group, environments in GROUPS.items():
        assert list(_page[group]) == [environment.title for environment in environments]


def test_names_and_titles_are_unique():
    assert len({environment.name for environment in ENVIRONMENTS}) == len(ENVIRONMENTS)
    for environments in GROUPS.values():
        assert len({environment.title for environment in environments}) == len(environments)


@pytest.mark.parametrize(
    ("group", "environment"),
    [(group, environment) for group, some in GROUPS.items() for environment in some],
    ids=[environment.name for environment in ENVIRONMENTS],
)
def test_what_is_promised_holds(group, environment, tmp_path):
    if why := missing(environment):
        pytest.skip(why)
    done = run(environment, str(tmp_path))
    found = results(done)
    wrong = complaints(environment, found, done.stderr)
    assert not wrong, "\n".join(wrong)
    # What is missing besides is a matter of the kernel, too.
    assert cells(environment, found)[:4] == _page[group][environment.title][:4]
