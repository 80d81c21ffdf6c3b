"""The architecture: imports go down, modules stay small, and what is public is documented."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import aioisolate
from tests.helpers import ROOT, python

pytestmark = [pytest.mark.quick, pytest.mark.once]

PACKAGE = ROOT / "aioisolate"
# From the bottom up. A module may import from its own layer, without circles, and from those below.
LAYERS = [
    ["_errors", "_outcome", "_limits", "sandbox", "_options", "_async_backend"],
    ["_os"],
    ["_wire"],
    ["_memory"],
    ["_child"],
    ["_call"],
    ["_forkserver"],
    ["_service"],
    ["_run", "_isolator", "_stream", "_probes", "features", "typing"],
    ["__init__"],
    ["integrations"],
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def layer_of(name: str) -> int:
    first = name.split(".", maxsplit=1)[0]
    return next(i for i, layer in enumerate(LAYERS) if first in layer)


def imports_of(path: Path) -> set[str]:
    """Every import in a module, those inside functions and `if TYPE_CHECKING` included."""
    found = set()
    package = ["aioisolate", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            known = (ROOT / Path(*module.split("."))).is_dir()
            for alias in node.names:
                found.add(f"{module}.{alias.name}" if known else module)
    return found


def internal(path: Path) -> set[str]:
    names = {name_of(other) for other in MODULES}
    found = set()
    for imported in imports_of(path):
        if imported.startswith("aioisolate."):
            name = imported.removeprefix("aioisolate.")
            found.add(name if name in names else name.rpartition(".")[0] or name)
    return found - {""}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path):
    name = name_of(path)
    for imported in internal(path):
        assert layer_of(imported) <= layer_of(name), f"{name} imports {imported}"


def test_no_circles():
    graph = {name_of(path): internal(path) for path in MODULES}
    done, path = set(), []

    def visit(name):
        assert name not in path, f"a circle: {' -> '.join([*path, name])}"
        if name in done:
            return
        path.append(name)
        for imported in graph.get(name, ()):
            visit(imported)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


def outside(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(path)} - {"aioisolate", "__future__"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_what_may_be_imported_from_elsewhere(path):
    import sys

    layer = LAYERS[layer_of(name_of(path))]
    foreign = {name for name in outside(path) if name not in sys.stdlib_module_names}
    allowed = {
        "_errors": set(),
        "_os": set(),
        "_wire": {"cloudpickle", "msgspec", "tblib"},
        "_memory": {"numpy"},  # inside functions only: arrays are for those who have it
        "_child": {"anyio"},  # in loops.run only, when fn is a coroutine function
        "_call": {"anyio"},
        "_forkserver": {"anyio"},
        "_service": {"anyio"},
        "_run": {"anyio"},
        "__init__": set(),
        "integrations": {"anyio", "starlette"},
    }[layer[0]]
    assert foreign <= allowed
    if layer[0] in ("_child", "_wire", "_os"):
        assert "asyncio" not in outside(path)
    if layer[0] != "_os":
        assert "ctypes" not in outside(path)
    if layer[0] == "_wire":
        assert not {"os", "socket", "select", "signal"} & outside(path) - {"signal"}


def test_the_childs_side_imports_no_event_loop_at_its_head():
    for path in (PACKAGE / "_child").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                text = ast.unparse(node)
                assert "anyio" not in text
                assert "asyncio" not in text


def test_a_fork_server_and_its_children_stay_small():
    source = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import aioisolate._forkserver.server
        print(*sys.modules)
    """
    loaded = set(python(source, str(ROOT)).stdout.split())
    ours = {name.split(".")[1] for name in loaded if name.startswith("aioisolate.")}
    assert ours == {"_async_backend", "_os", "_wire", "_child", "_forkserver"}
    assert not loaded & {"asyncio", "anyio", "cloudpickle", "logging", "inspect", "subprocess"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_fit_in_one_sitting_and_say_what_they_are_for(path):
    source = path.read_text()
    assert source.count("\n") <= 600
    assert ast.get_docstring(ast.parse(source))
    assert "print(" not in source


def test_everything_public_is_exported_and_documented():
    exported = [name for names in aioisolate._PUBLIC_NAMES.values() for name in names]
    assert sorted(exported) == aioisolate.__all__ == sorted(aioisolate.__all__)
    assert set(aioisolate.__all__) <= set(dir(aioisolate))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = aioisolate.nonsense
    for name in aioisolate.__all__:
        thing = getattr(aioisolate, name)
        assert inspect.getdoc(thing), name
        if inspect.isfunction(thing):
            assert "Example::" in thing.__doc__, name
            assert thing.__module__.startswith("aioisolate")


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").exists()


def test_loggers_are_silent_by_default():
    import logging

    assert any(
        isinstance(handler, logging.NullHandler)
        for handler in logging.getLogger("aioisolate").handlers
    )
