"""The files around the code agree with each other: versions, pins, links, names of sessions."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import aioisolate

ROOT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").exists())
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SUPPORTED = re.findall(r"Programming Language :: Python :: (3\.\d+)", str(PROJECT["classifiers"]))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/**/*.md")]


def constants_of_noxfile():
    """The literal values that noxfile.py gives to its names, and the names of its sessions."""
    constants, sessions = {}, set()
    for node in ast.parse((ROOT / "noxfile.py").read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name(name)], value=ast.List() | ast.Constant() as value):
                constants[name] = value
            case ast.FunctionDef(decorator_list=[ast.Call(keywords=keywords)]):
                own = [word.value for word in keywords if word.arg == "name"]
                sessions.add(ast.literal_eval(own[0]) if own else node.name)
    return constants, sessions


NOX_CONSTANTS, NOX_SESSIONS = constants_of_noxfile()


@pytest.mark.parametrize(
    "name",
    [
        *("CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "LICENSE", "README.md"),
        *("SECURITY.md", "docs/deprecation.md", ".pre-commit-config.yaml", "noxfile.py"),
        *(".github/PULL_REQUEST_TEMPLATE.md", ".github/dependabot.yml"),
        *(f".github/ISSUE_TEMPLATE/{name}.yml" for name in ("bug", "config", "feature")),
        *(f".github/workflows/{name}.yml" for name in ("build", "release", "tests")),
    ],
)
def test_a_file_of_the_project_exists(name):
    assert (ROOT / name).stat().st_size > 0


def test_all_tools_agree_on_the_lowest_python():
    lowest = SUPPORTED[0]
    assert PROJECT["requires-python"] == f">={lowest}"
    assert PYPROJECT["tool"]["pyright"]["pythonVersion"] == lowest
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + lowest.replace(".", "")


def test_the_workflow_tests_each_supported_python():
    text = (ROOT / ".github/workflows/tests.yml").read_text()
    linux, macos = (re.findall(r'"(.*?)"', line) for line in re.findall(r"python: \[(.*)\]", text))
    assert linux == SUPPORTED
    assert macos == [SUPPORTED[0], SUPPORTED[-1]]
    # Those outside a matrix.
    single = set(re.findall(r'python(?:-version)?: "(3\.\d+)"', text))
    assert single == {SUPPORTED[0], SUPPORTED[-1]}


def test_nox_takes_the_versions_from_the_classifiers():
    text = (ROOT / "noxfile.py").read_text()
    assert "PYTHONS = nox.project.python_versions(PYPROJECT)" in text
    assert not re.findall(r"""["']3\.\d+["']""", text)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_pins_its_actions_to_commits(path):
    for action, comment in re.findall(r"uses: (\S+)(.*)", path.read_text()):
        if not action.startswith("./"):
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


def test_all_workflows_use_one_version_of_an_action():
    found = re.findall(r"uses: (\S+)@(\S+)", "".join(path.read_text() for path in WORKFLOWS))
    assert len(set(found)) == len(dict(found))


def test_the_workflows_run_sessions_that_exist():
    text = "".join(path.read_text() for path in WORKFLOWS)
    names = re.findall(r"nox -s \"?([a-z]+)", text) + re.findall(r"session: ([a-z]+)", text)
    assert len(names) >= 6
    assert set(names) <= NOX_SESSIONS


def test_the_pages_name_sessions_that_exist():
    for path in PAGES:
        assert set(re.findall(r"nox -s ([a-z]+)", path.read_text())) <= NOX_SESSIONS, path.name


def test_nox_repeats_test_files_that_exist():
    for name in ast.literal_eval(NOX_CONSTANTS["CONCURRENCY"]):
        assert len(list(ROOT.glob(f"tests/**/test_{name}.py"))) == 1, name


def test_nox_is_as_new_as_the_workflows_install():
    (group,) = PYPROJECT["dependency-groups"]["nox"]
    texts = [path.read_text() for path in WORKFLOWS]
    assert set(re.findall(r'pip install "(.*)"', "".join(texts))) == {group}
    needed = re.search(r'nox\.needs_version = "(.*)"', (ROOT / "noxfile.py").read_text())
    assert group == f"nox{needed[1]}"


def test_the_hooks_have_the_locked_versions():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    pins = set(re.findall(r"[\w.-]+==[\w.]+", text))
    locked = (ROOT / f"requirements/locked-{SUPPORTED[0]}.txt").read_text().splitlines()
    assert len(pins) >= 2
    assert pins <= set(locked)


def test_the_source_distribution_has_what_the_tests_read():
    included = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    for path in [*PAGES, *WORKFLOWS, ROOT / "noxfile.py", ROOT / ".pre-commit-config.yaml"]:
        top = "/" + path.relative_to(ROOT).parts[0]
        assert top in included or top == "/README.md"


def test_the_changelog_tells_of_the_version():
    headings = re.findall(r"^## \[(.+)\] - (unreleased|\d{4}-\d\d-\d\d)$", CHANGELOG, re.MULTILINE)
    assert len(headings) == len(re.findall(r"^## ", CHANGELOG, re.MULTILINE))
    assert headings[0][0] == aioisolate.__version__
    for version, _ in headings:
        assert f"\n[{version}]: https://" in CHANGELOG


def test_the_changelog_has_the_usual_sections():
    usual = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for release in re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)[1:]:
        sections = re.findall(r"^### (.+)$", release, re.MULTILINE)
        assert sections == [name for name in usual if name in sections]


def test_every_link_to_the_forge_begins_with_the_homepage():
    home = PROJECT["urls"]["Homepage"]
    forms = ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")
    for text in [str(PROJECT["urls"]), *(path.read_text() for path in [*PAGES, *forms])]:
        for url in re.findall(r"https://github\.com/[^\s/]+/aioisolate\b", text):
            assert url == home


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_relative_link_leads_to_a_file(path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_variables_in_the_guide_are_read_somewhere():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    sources = [*ROOT.glob("scripts/*"), *ROOT.glob("tests/*.py"), *ROOT.glob("tests/*/*.py")]
    text = "".join(
        path.read_text() for path in sources if path.is_file() and path != Path(__file__)
    )
    names = re.findall(r"`(AIOISOLATE_\w+)`", guide)
    assert names
    for name in names:
        assert name in text
