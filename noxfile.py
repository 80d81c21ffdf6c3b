"""Sessions of nox, for contributors and for the forge's workflows.

    nox                    lint, types and a short run of the tests
    nox -s tests-3.13      all tests on one interpreter; arguments after -- go to pytest
    nox -s all             everything, including what continuous integration has no time for
    nox --list             all sessions

``./scripts/test`` runs the same tests without nox. Sessions that test the library install the
versions of ``requirements/``, which are the tested ones, unless the session's name says otherwise.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "quick"]
nox.options.reuse_venv = "yes"

PYPROJECT = nox.project.load_toml("pyproject.toml")
# The classifiers are the one list of supported versions.
PYTHONS = nox.project.python_versions(PYPROJECT)
LOWEST, NEWEST = PYTHONS[0], PYTHONS[-1]

# The marks that select tests; pyproject.toml describes them.
QUICK = ["-m", "quick"]
CONTRACT = ["-m", "dependencies"]
# The tests of races: cancellation, closing, several tasks at once, the order of events.
CONCURRENCY = ["cancel", "deadlines", "executor", "life", "orphans", "service", "stream"]
REPETITIONS = 20
# The benchmarks that have an option --quick.
BENCHMARKS = ["bench", "service", "memory", "containment"]

# The lowest versions of other packages warn about each other: anyio's plugin about this pytest,
# starlette about this python-multipart and, on trio, about its own generators.
LOWEST_OPTIONS = [
    *("-p", "no:anyio"),
    *("-W", "ignore:Please use `import python_multipart` instead.:PendingDeprecationWarning"),
    *("-W", "ignore:Async generator 'starlette.requests.Request.stream':ResourceWarning"),
]

SMOKE = """
import anyio, os, sys
from aioisolate import run_isolated

assert anyio.run(run_isolated, os.getpid) != os.getpid()
print("a call on Python", sys.version.split()[0], "on", sys.platform)
"""


def lock(version: str) -> str:
    """Return the name of the file with the tested versions for one version of Python."""
    return f"requirements/locked-{version}.txt"


def files(names: list[str]) -> list[str]:
    """Return the test files with these names, in whatever folder of tests/ they lie."""
    return [str(path) for name in names for path in Path("tests").rglob(f"test_{name}.py")]


def install(session: nox.Session, *what: str, constraint: str | None) -> None:
    """Install the package, editable, with other requirements; *constraint* limits the versions."""
    # The pip of an old venv knows neither dependency groups nor constraints for building.
    session.install("--upgrade", "pip>=25.3")
    limits = ["--upgrade", "--upgrade-strategy", "eager"]
    if constraint:
        limits = ["--constraint", constraint, "--build-constraint", lock(str(session.python))]
    session.install(*limits, "--editable", ".", *what)


def pytest(session: nox.Session, *args: str, loops: str = "all") -> None:
    """Run pytest on some of the event loops."""
    # With CI a missing browser would fail its tests; only ./scripts/test installs one there.
    session.run("python", "-m", "pytest", *args, env={"AIOISOLATE_LOOPS": loops, "CI": None})


@nox.session(python=LOWEST)
def lint(session: nox.Session) -> None:
    """Check style, format and types."""
    install(session, "--group", "test", "--group", "lint", constraint=lock(LOWEST))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("mypy", "--platform", "darwin")
    python = str(Path(session.bin) / "python")
    session.run("pyright", "--pythonpath", python)
    # Fails unless every public name has a type. PYTHONPATH: pyright looks for py.typed there.
    session.run(
        *("pyright", "--pythonpath", python, "--verifytypes", "aioisolate", "--ignoreexternal"),
        env={"PYTHONPATH": str(Path.cwd())},
    )


@nox.session(python=LOWEST)
def quick(session: nox.Session) -> None:
    """Run a selection of tests in about a minute, on asyncio only."""
    install(session, "--group", "test", constraint=lock(LOWEST))
    pytest(session, *(session.posargs or QUICK), loops="asyncio")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run all tests on one interpreter, on each event loop."""
    install(session, "--group", "test", constraint=lock(str(session.python)))
    pytest(session, *session.posargs)


@nox.session(python=PYTHONS)
def smoke(session: nox.Session) -> None:
    """Install the package without extras and make one call; runs on macOS and the BSDs, too."""
    install(session, constraint=lock(str(session.python)))
    session.run("python", "-c", SMOKE)


@nox.session(python=LOWEST)
def lowest(session: nox.Session) -> None:
    """Test the contract with the lowest versions that pyproject.toml allows."""
    limits = Path(session.create_tmp()) / "lowest.txt"
    with limits.open("w") as file:
        session.run("python", "scripts/lowest.py", lock(LOWEST), stdout=file)
    install(session, "--group", "test", constraint=str(limits))
    pytest(session, *LOWEST_OPTIONS, *(session.posargs or CONTRACT))


@nox.session(python=[LOWEST, NEWEST])
def newest(session: nox.Session) -> None:
    """Test the contract with the newest released versions of all dependencies."""
    install(session, "--group", "test", constraint=None)
    session.run("python", "-m", "pip", "list", "--format", "freeze", "--exclude-editable")
    pytest(session, *(session.posargs or CONTRACT))


@nox.session(python=[LOWEST, NEWEST])
def repeat(session: nox.Session) -> None:
    """Run the tests of races again and again; a number after -- says how often."""
    install(session, "--group", "test", constraint=lock(str(session.python)))
    times = int(session.posargs[0]) if session.posargs else REPETITIONS
    for turn in range(times):
        # Each process runs one loop; three successive turns cover all loops.
        loop = ("asyncio", "uvloop", "trio")[turn % 3]
        session.log(f"{turn + 1} of {times}, on {loop}")
        pytest(session, "--quiet", "--exitfirst", *files(CONCURRENCY), loops=loop)


@nox.session(python=LOWEST)
def fuzz(session: nox.Session) -> None:
    """Send many random frames and payloads through the decoders; takes minutes."""
    install(session, "--group", "test", constraint=lock(LOWEST))
    session.run(
        *("python", "-m", "pytest", "--timeout", "3600", *files(["fuzz"])),
        env={"AIOISOLATE_FUZZ": "long"},
    )


@nox.session(python=NEWEST)
def benchmarks(session: nox.Session) -> None:
    """Run each benchmark quickly, and the soak test; look for errors, not for figures."""
    install(session, "--group", "test", "--group", "bench", constraint=lock(NEWEST))
    for name in session.posargs or BENCHMARKS:
        session.run("python", f"benchmarks/{name}.py", "--quick")
    if not session.posargs:
        session.run("python", "benchmarks/import_time.py")
        session.run("python", "benchmarks/soak.py", "--calls", "5000")


@nox.session(python=LOWEST)
def build(session: nox.Session) -> None:
    """Build the source distribution and the wheel into dist/, check both, call from the wheel."""
    session.install("build", "twine")
    output = Path(session.create_tmp()) / "dist"
    for old in output.glob("*"):
        old.unlink()
    # The wheel is built from the source distribution, so that nothing missing there goes unseen.
    session.run("python", "-m", "build", "--outdir", str(output))
    built = sorted(map(str, output.iterdir()))
    session.run("twine", "check", "--strict", *built)
    session.install("--force-reinstall", *(path for path in built if path.endswith(".whl")))
    # -P: the package of the wheel, not the one of this folder.
    session.run("python", "-P", "-c", SMOKE)
    for path in built:
        target = Path("dist") / Path(path).name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(Path(path).read_bytes())


@nox.session(venv_backend="none")
def coverage(session: nox.Session) -> None:
    """Report which lines the tests run; takes twice as long as the tests."""
    session.run("./scripts/coverage", *session.posargs, external=True)


@nox.session(venv_backend="none")
def docker(session: nox.Session) -> None:
    """Run the checks in real containers; skipped where no daemon answers."""
    # The environment is the scripts' own, with the versions of requirements/.
    session.run("./scripts/docker-matrix", *session.posargs, external=True, success_codes=[0, 3])


@nox.session(name="all", venv_backend="none")
def everything(session: nox.Session) -> None:
    """Run every other session: for a release, or overnight."""
    session.log("this takes hours")
    for name in ("lint", "build"):
        session.notify(name)
    for version in PYTHONS:
        session.notify(f"tests-{version}")
        session.notify(f"smoke-{version}")
    session.notify("lowest")
    for version in (LOWEST, NEWEST):
        session.notify(f"newest-{version}")
        session.notify(f"repeat-{version}")
    for name in ("fuzz", "benchmarks", "coverage", "docker"):
        session.notify(name)
