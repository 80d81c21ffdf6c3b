"""How a fork server starts as a fresh interpreter: from where it imports, and which version."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
import zipfile
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

import aioisolate
from aioisolate import CallableDidNotExecuteError, Isolator, Reason
from tests.helpers import ROOT, error_of
from tests.internals import protocol

pytestmark = pytest.mark.part(name="start")

hazard = pytest.mark.hazard

DEPENDENCIES = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
SANDBOXES = {"none": "None", "guard": "Sandbox.crash_guard()", "untrusted": "Sandbox.untrusted()"}

# A program as users have them: what it prints tells whether calls work, and what ran them.
PROGRAM = """
import asyncio, json, os, sys
from aioisolate import Isolator, Sandbox

def look(x):
    import aioisolate
    return [x + 1, aioisolate.__file__, sys.path, [*sys.flags], sys.argv]

async def main(sandbox):
    # (A confined child could not read it, where it is here.)
    async with Isolator(sandbox=sandbox, preload=["cloudpickle"] if sandbox else []) as iso:
        return await iso.run(look, 1)

if __name__ == "__main__":
    import aioisolate
    here = [2, aioisolate.__file__, [entry or os.getcwd() for entry in sys.path], [*sys.flags]]
    *there, arguments = asyncio.run(main(SANDBOX))
    names = sys.flags.__match_args__
    ignored = {"safe_path": None, "utf8_mode": None}  # without a locale it is on
    flags = [dict(zip(names, found.pop())) | ignored for found in (here, there)]
    print(json.dumps([aioisolate.__file__, here == there, flags[0] == flags[1], arguments]))
"""


def program(sandbox: str = "none") -> str:
    return PROGRAM.replace("SANDBOX", SANDBOXES[sandbox])


def run(*command: object, cwd: Path, **env: str) -> str:
    """Run a program with nothing in its environment that is not named here."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=kept | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def works(output: str, *, home: Path = ROOT) -> None:
    """Check what `PROGRAM` has printed: the fork server runs the package in *home*, as it does."""
    assert json.loads(output) == [f"{home}/aioisolate/__init__.py", True, True, ["-c"]]


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory):
    """A virtual environment with what this package needs, but not the package."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    return home


@pytest.fixture
def environment(empty_environment, tmp_path):
    """A copy of it: its interpreter, and its site-packages."""
    home = tmp_path / "environment"
    shutil.copytree(empty_environment, home, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "zz_dependencies.pth").write_text("\n".join(DEPENDENCIES))
    return home / "bin" / "python", site


def plant(folder: Path, witness: Path, *more: str) -> None:
    """Put modules into *folder* with the names of all in the standard library, and of *more*.

    Each one that is imported says so in the file *witness*, with the process that did it.
    """
    source = (
        "import posix\n"
        f"fd = posix.open({str(witness)!r}, posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND)\n"
        "posix.write(fd, f'{posix.getpid()} {__name__}\\n'.encode())\n"
        "posix.close(fd)\n"
    )
    folder.mkdir(exist_ok=True)
    library = [sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED")]
    names = {name for name in sys.stdlib_module_names if PathFinder.find_spec(name, library)}
    assert {"signal", "enum", "pickle", "types", "linecache"} <= names
    for name in names | {"aioisolate", *more}:
        if (folder / name).exists():
            continue
        if name in ("aioisolate", "collections", "ctypes", "encodings", "importlib"):
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(source)
        else:
            (folder / f"{name}.py").write_text(source)


# Nothing that somebody has put in its way


@hazard(46)
@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_9_1_nothing_of_the_current_directory_is_imported(tmp_path, sandbox):
    cwd, witness, script = tmp_path / "cwd", tmp_path / "witness", tmp_path / "app" / "script.py"
    plant(cwd, witness, "anyio", "cloudpickle", "tblib")
    script.parent.mkdir()
    script.write_text(f"import sys; sys.path.append({str(ROOT)!r})\n" + program(sandbox))
    works(run(sys.executable, "-S", script, cwd=cwd, PYTHONPATH=":".join(DEPENDENCIES)))
    assert not witness.exists(), witness.read_text()


@hazard(46)
@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_9_1_nothing_beside_the_package_comes_before_the_standard_library(
    tmp_path, environment, sandbox
):
    python, site = environment
    (site / "aioisolate").symlink_to(ROOT / "aioisolate")
    (site / "aaa_first.pth").write_text(DEPENDENCIES[0])
    plant(site, tmp_path / "witness")
    script = tmp_path / "script.py"
    script.write_text(program(sandbox))
    works(run(python, script, cwd=tmp_path), home=site)
    assert not (tmp_path / "witness").exists(), (tmp_path / "witness").read_text()


@hazard(46)
def test_9_1_the_server_itself_imports_nothing_from_where_the_parents_path_begins(tmp_path):
    """Preloaded modules and functions are found as in the parent; what the server needs is not."""
    hostile, witness = tmp_path / "hostile", tmp_path / "witness"
    plant(hostile, witness)
    output = run(
        sys.executable,
        "-c",
        textwrap.dedent("""
            import asyncio, sys
            from aioisolate import CallableDidNotExecuteError, Isolator, Limits, Sandbox

            async def use(path, **options):
                sys.path[:0] = path
                servers = []
                try:
                    async with Isolator(**options) as iso:
                        del sys.path[: len(path)]
                        servers.append(iso._service._source._pool.pid)
                        for more in ({"codec": "msgspec"}, {"limits": Limits(open_files=50)}, {}):
                            for _ in range(2):  # the server learns what its children needed
                                await iso.capture(lambda x: x, 1, **more)
                        assert iso._service._source._pool.pid == servers[0]
                except CallableDidNotExecuteError as error:
                    del sys.path[: len(path)]
                    servers.append(error.pid)
                return servers

            async def main():
                for path in ([], sys.argv[1:]):  # first this process imports what it needs
                    servers = []
                    for sandbox in (None, Sandbox.crash_guard(), Sandbox.untrusted()):
                        servers += await use(path, sandbox=sandbox)
                    servers += await use(path, preload=["no_such_module"])
                print(*servers)

            asyncio.run(main())
        """),
        hostile,
        cwd=tmp_path,
        PYTHONPATH=str(ROOT),
    )
    servers = output.split()
    assert len(servers) == 4
    told = witness.read_text().splitlines() if witness.exists() else []
    assert not [line for line in told if line.split()[0] in servers]


@hazard(46)
def test_9_1_what_the_start_of_the_interpreter_has_imported_is_not_taken_for_ours(tmp_path):
    """A sitecustomize that imports another aioisolate, as a debugger's or a tracer's may."""
    other = tmp_path / "other"
    (other / "aioisolate").mkdir(parents=True)
    (other / "aioisolate" / "__init__.py").write_text("__version__ = 'another'\n")
    (other / "sitecustomize.py").write_text("import aioisolate\nassert aioisolate.__version__\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "assert sys.modules.pop('aioisolate').__version__ == 'another'\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n" + program()
    )
    works(run(sys.executable, script, cwd=tmp_path, PYTHONPATH=str(other)))


# Ways to install it, and to run a program


def install_copy(site: Path) -> Path:
    shutil.copytree(ROOT / "aioisolate", site / "aioisolate")
    return site


def install_path(site: Path) -> Path:
    (site / "__editable__.pth").write_text(str(ROOT))
    return ROOT


def install_hook(site: Path) -> Path:
    """Install as setuptools does an editable package: a finder, which a .pth file puts in place."""
    (site / "__editable___finder.py").write_text(
        textwrap.dedent(f"""
            import sys
            from importlib.util import spec_from_file_location

            MAPPING = {{"aioisolate": {f"{ROOT}/aioisolate/__init__.py"!r}}}

            class Finder:
                @classmethod
                def find_spec(cls, name, path=None, target=None):
                    if name in MAPPING:
                        return spec_from_file_location(name, MAPPING[name])

            def install():
                sys.meta_path.append(Finder)
        """)
    )
    (site / "__editable__.pth").write_text("import __editable___finder as f; f.install()\n")
    return ROOT


@pytest.mark.parametrize("install", [install_copy, install_path, install_hook])
def test_9_1_ways_to_install(tmp_path, environment, install):
    python, site = environment
    home = install(site)
    (tmp_path / "script.py").write_text(program())
    works(run(python, "script.py", cwd=tmp_path), home=home)


def test_9_1_user_site(tmp_path):
    """Where the interpreter itself has the package in the user's folder."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    site = tmp_path / "home" / "lib" / version / "site-packages"
    site.mkdir(parents=True)
    install_copy(site)
    (site / "dependencies.pth").write_text("\n".join(DEPENDENCIES))
    (tmp_path / "script.py").write_text(program())
    python = os.path.realpath(sys.executable)
    works(run(python, "script.py", cwd=tmp_path, PYTHONUSERBASE=f"{tmp_path}/home"), home=site)


@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_9_1_in_a_zip_file(tmp_path, environment, sandbox):
    python, _ = environment
    app = tmp_path / "app.pyz"
    with zipfile.ZipFile(app, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("__main__.py", program(sandbox))
        for path in (ROOT / "aioisolate").rglob("*.py"):
            file.write(path, path.relative_to(ROOT))
    works(run(python, "app.pyz", cwd=tmp_path), home=app)


@pytest.mark.parametrize(
    "flags",
    ["-P", "-s", "-I", "-E", "-B", "-O", "-X dev -W ignore", "-X frozen_modules=off"],
)
def test_9_1_flags(tmp_path, environment, flags):
    python, site = environment
    install_path(site)
    (tmp_path / "script.py").write_text(program())
    works(run(python, *flags.split(), "script.py", cwd=tmp_path))


def test_9_1_environment_variables(tmp_path, environment):
    python, _ = environment
    (tmp_path / "script.py").write_text(program())
    output = run(python, "script.py", cwd=tmp_path, PYTHONSAFEPATH="1", PYTHONPATH=str(ROOT))
    works(output)


@pytest.mark.parametrize("way", ["-m", "-c", "-"])
def test_9_1_ways_to_run_a_program(tmp_path, environment, way):
    python, site = environment
    install_path(site)
    (tmp_path / "app.py").write_text(program())
    if way == "-":
        works(run("sh", "-c", 'exec "$0" - < app.py', python, cwd=tmp_path))
    else:
        works(run(python, way, "app" if way == "-m" else program(), cwd=tmp_path))


@pytest.mark.one_loop
async def test_9_1_a_path_with_things_that_are_no_strings(monkeypatch, tmp_path):
    """Python passes over them; what can't be sent is left out."""

    class Text(str):
        __slots__ = ()

    (tmp_path / "by_text.py").write_text("")
    monkeypatch.setattr(sys, "path", [Path("/nowhere"), Text(tmp_path), *sys.path])
    async with Isolator(preload=["by_text"]) as iso:
        assert await iso.run(abs, -1) == 1


@pytest.mark.one_loop
@pytest.mark.parametrize("program", [None, "", "python3"])
async def test_9_1_an_interpreter_that_does_not_know_its_program(monkeypatch, tmp_path, program):
    trap = tmp_path / "python3"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/witness\n")
    trap.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", program)
    error = await error_of(Isolator().__aenter__())
    assert isinstance(error, CallableDidNotExecuteError)
    assert f"sys.executable is {program!r}" in str(error)
    assert not (tmp_path / "witness").exists()


@pytest.mark.one_loop
async def test_9_1_a_frozen_application(monkeypatch):
    """Its program would be started again, and again there."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    error = await error_of(Isolator().__aenter__())
    assert isinstance(error, CallableDidNotExecuteError)
    assert "frozen application" in str(error)


@hazard(46)
@pytest.mark.one_loop
async def test_9_1_nothing_that_the_environment_puts_first_is_imported(tmp_path):
    """An empty entry of PYTHONPATH, as in ``PYTHONPATH=$PYTHONPATH:lib``, is the current directory.

    What the interpreter itself imports when it starts is the environment's business.
    """
    plant(tmp_path / "lib", tmp_path / "witness")
    for path in list((tmp_path / "lib").iterdir()):
        if path.stem not in ("ctypes", "fcntl", "mmap", "pickle", "resource", "signal", "struct"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    async with Isolator(env={"PYTHONPATH": f"{tmp_path}/lib"}) as iso:
        assert await iso.run(abs, -1) == 1
        assert f"{tmp_path}/lib" not in await iso.run(lambda: sys.path)
    assert not (tmp_path / "witness").exists(), (tmp_path / "witness").read_text()


# An upgrade under a running process

UPGRADED = """
import asyncio, json, logging, os, pathlib, shutil, signal, sys, time
from aioisolate import CallableDidNotExecuteError, Isolator, Reason
from aioisolate._forkserver import protocol

package = pathlib.Path(sys.argv[1]) / "aioisolate"
assert package.samefile(sys.modules["aioisolate"].__path__[0])
logged = []
handler = logging.Handler()
handler.emit = lambda record: logged.append(record.getMessage())
logging.getLogger("aioisolate.zygote").addHandler(handler)

def rewrite(name, old, new):
    path = package / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))

def move_away():
    package.rename(package.with_name("away"))

def move_back():
    package.with_name("away").rename(package)

def double(x):
    return 2 * x

def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.01)
    return "done"

async def refusals(iso, count):
    found = []
    for i in range(count):
        started = time.monotonic()
        try:
            await iso.run(double, i)
        except CallableDidNotExecuteError as error:
            found.append([str(error), error.reason.name, error.crash_traceback])
            found[-1].append(time.monotonic() - started)
        else:
            found.append(None)
    return found

async def main():
    async with Isolator(warm=2, max_concurrency=4) as iso:
        server = await iso.run(os.getppid)
        running = asyncio.create_task(iso.run(wait_for, sys.argv[2]))
        assert await iso.run(double, 1) == 2
        UPGRADE
        # The old server and what it forks go on.
        for i in range(4):
            assert await iso.run(double, i) == 2 * i
        pathlib.Path(sys.argv[2]).touch()
        assert await running == "done"
        os.kill(server, signal.SIGKILL)
        while iso.statistics().restarts == 0:
            await asyncio.sleep(0.005)
        found = await refusals(iso, REFUSALS)
        AFTERWARDS
        print(json.dumps([found, iso.statistics().restarts, logged]))

asyncio.run(main())
"""


def upgraded(tmp_path: Path, upgrade: str, afterwards: str = "pass", refusals: int = 2):
    """Run a process whose package is changed by *upgrade* while it runs.

    Return what its calls come to once its fork server has died, how often one was started again,
    and what was logged.
    """
    home = install_copy(tmp_path / "home")
    source = UPGRADED.replace("UPGRADE", upgrade).replace("AFTERWARDS", afterwards)
    source = source.replace("REFUSALS", str(refusals))
    (home / "app.py").write_text(source)
    python = [sys.executable, home / "app.py", home, tmp_path / "go"]
    return json.loads(run(*python, cwd=tmp_path))


VERSION = aioisolate.__version__


@hazard(47)
@pytest.mark.parametrize("missing", [None, "_forkserver/server.py", "_os/__init__.py"])
def test_9_upgrade_to_another_version(tmp_path, missing):
    """If the version is known to be another one, that is told, whatever else is wrong."""
    upgrade = f"rewrite('__init__.py', '\"{VERSION}\"', '\"99.1\"')"
    if missing:
        upgrade += f"; (package / {missing!r}).unlink()"
    # It is not tried again and again: the next time would be long before that.
    found, restarts, logged = upgraded(tmp_path, upgrade, "await asyncio.sleep(0.5)", refusals=5)
    for text, reason, stack, seconds in found:
        assert text == (
            f"the fork server runs aioisolate 99.1 and this process {VERSION}: aioisolate was "
            "upgraded under a running process; restart it"
        )
        assert reason == "CHILD_SETUP"
        assert not stack
        assert seconds < 5
    assert restarts == 1
    assert [line for line in logged if "could not be started" in line] == [
        f"the fork server could not be started: {found[0][0]}"
    ]


@hazard(47)
def test_9_upgrade_of_the_protocol_alone(tmp_path):
    found, restarts, _ = upgraded(
        tmp_path, "rewrite('_forkserver/protocol.py', 'PROTOCOL = ', 'PROTOCOL = 100 + ')"
    )
    assert restarts == 1
    for text, *_ in found:
        assert f"runs aioisolate {VERSION} (protocol 10" in text
        assert f"this process {VERSION} (protocol " in text


@hazard(47)
def test_9_upgrade_of_python(tmp_path):
    """The interpreter's program is another one by now; what is pickled would not fit."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.implementation.cache_tag = 'x-99'")
    found, restarts, _ = upgraded(tmp_path, f"os.environ['PYTHONPATH'] = {str(tmp_path)!r}")
    assert restarts == 1
    tag = sys.implementation.cache_tag
    assert f"runs Python x-99 and this process {tag}: Python was upgraded" in found[0][0]


@hazard(47)
def test_9_upgrade_half_way(tmp_path):
    """Files are missing, for a while: who calls is told so in time, and calls go on afterwards."""
    found, restarts, logged = upgraded(
        tmp_path,
        "move_away()",
        "move_back()\n        while (await refusals(iso, 1))[0]: await asyncio.sleep(0.01)",
    )
    assert restarts == 1
    for text, reason, stack, _ in found:
        assert f"can't import aioisolate of unknown version from {tmp_path}/home" in text
        assert f"this process runs {VERSION}" in text
        assert reason == "CHILD_SETUP"
        assert "there is no package" in stack
    attempts = [line for line in logged if "could not be started" in line]
    assert 3 <= len(attempts) <= 6  # at growing intervals


@hazard(47)
def test_9_upgrade_with_a_module_that_fails(tmp_path):
    found, _, _ = upgraded(
        tmp_path, "rewrite('_forkserver/server.py', 'class Server:', 'class Server(Gone):')"
    )
    assert f"can't import aioisolate {VERSION} from {tmp_path}/home" in found[0][0]
    assert "NameError: name 'Gone' is not defined" in found[0][2]


@hazard(47)
@pytest.mark.one_loop
async def test_9_upgrade_is_told_whatever_has_been_said_to_the_server(monkeypatch):
    """More than a socket holds, so that somebody has to read it."""
    monkeypatch.setattr(protocol, "PROTOCOL", 99)
    monkeypatch.setattr(sys, "path", [*sys.path, *(f"/{i:0999}" for i in range(2000))])
    error = await error_of(Isolator().__aenter__())
    assert isinstance(error, CallableDidNotExecuteError)
    assert f"and this process {VERSION} (protocol 99)" in str(error)
    assert error.reason is Reason.CHILD_SETUP
