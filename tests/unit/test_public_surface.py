"""The public surface: what a public function takes or returns has a public, documented name."""

from __future__ import annotations

import ast
import enum
import functools
import importlib
import importlib.util
import inspect
import json
import re
import sys
import textwrap
import typing
from pathlib import Path

import pytest

import aioisolate
from tests.helpers import ROOT, python

pytestmark = pytest.mark.once

PACKAGE = ROOT / "aioisolate"


def public_modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not any(part.startswith("_") for part in parts):
            yield ".".join(parts)


MODULES = list(public_modules())


def load(name):
    if name.startswith("aioisolate.integrations."):
        pytest.importorskip(name.rpartition(".")[2])
    return importlib.import_module(name)


@functools.cache
def exported():
    """All public names, with what they stand for."""
    found = {}
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:  # of what it integrates
            continue
        for each in getattr(module, "__all__", ()):
            found[f"{name}.{each}"] = getattr(module, each)
    return found


CLASSES = {
    thing.__qualname__: thing
    for thing in exported().values()
    if inspect.isclass(thing) and thing.__module__.startswith("aioisolate")
}
FUNCTIONS = {
    thing.__qualname__: thing
    for thing in exported().values()
    if inspect.isfunction(thing) and thing.__module__.startswith("aioisolate")
}
# What some modules import for type checkers only: importing it would make fork servers larger, or
# needs numpy.
NAMES = {name: getattr(aioisolate, name) for name in aioisolate.__all__}
if importlib.util.find_spec("numpy"):
    NAMES["SharedArray"] = importlib.import_module("aioisolate.typing").SharedArray
# The library makes these: what their __init__ takes is nobody's business.
MADE_BY_THE_LIBRARY = {"Executor", "IsolatedDecorator", "Job", "Results", "Stream", "View"}
# Among methods with two underscores, those that a program calls by syntax.
BY_SYNTAX = {
    "__aenter__",
    "__aiter__",
    "__anext__",
    "__call__",
    "__enter__",
    "__iter__",
}


def is_public(name):
    return not name.startswith("_") or name in BY_SYNTAX


def members(cls):
    """The public functions of a class, those of private bases included, by their names."""
    for base in cls.__mro__:
        if not base.__module__.startswith("aioisolate"):
            continue
        for name, member in vars(base).items():
            if not is_public(name) and not (
                name == "__init__" and cls.__name__ not in MADE_BY_THE_LIBRARY
            ):
                continue
            function = member
            if isinstance(member, property):
                function = member.fget
            elif isinstance(member, (classmethod, staticmethod)):
                function = member.__func__
            elif isinstance(member, functools.cached_property):
                function = member.func
            if inspect.isfunction(function):
                yield name, function


def hints_of(function):
    """The annotations of a function and of its overloads, evaluated."""
    whole = inspect.unwrap(function)
    for each in (whole, *typing.get_overloads(whole)):
        if getattr(each, "__module__", "").startswith("aioisolate"):
            yield typing.get_type_hints(each, localns=NAMES)


def attributes_of(cls):
    """The annotations of public attributes, in the class and in its __init__, evaluated."""
    for base in cls.__mro__:
        if not base.__module__.startswith("aioisolate"):
            continue
        scope = vars(sys.modules[base.__module__])
        annotated = {}
        if "__init__" in vars(base) and inspect.isfunction(base.__init__):
            try:
                source = textwrap.dedent(inspect.getsource(base.__init__))
            except OSError:  # of a dataclass, which has its fields in the class
                source = ""
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
                    annotated[node.target.attr] = ast.unparse(node.annotation)
        for name, annotation in annotated.items():
            if is_public(name):
                yield name, eval(annotation, scope, NAMES)
        for name, annotation in typing.get_type_hints(base, localns=NAMES).items():
            if is_public(name):
                yield name, annotation


def classes_in(annotation):
    """The classes that an annotation consists of."""
    if isinstance(annotation, (list, tuple)):  # the parameters of a Callable
        for each in annotation:
            yield from classes_in(each)
        return
    for each in typing.get_args(annotation):
        yield from classes_in(each)
    origin = typing.get_origin(annotation) or annotation
    if inspect.isclass(origin):
        yield origin


def check_public(where, annotation):
    public = {*filter(inspect.isclass, exported().values()), *NAMES.values()}
    for cls in classes_in(annotation):
        if cls.__module__.split(".")[0] == "aioisolate":
            assert cls in public, f"{where}: {cls.__module__}.{cls.__qualname__} is not exported"
        else:
            assert not cls.__module__.split(".")[0].startswith("_"), f"{where}: {cls}"


@pytest.mark.parametrize("name", MODULES)
def test_what_is_exported_is_there_and_documented(name):
    module = load(name)
    assert module.__doc__
    names = getattr(module, "__all__", [])
    assert list(names) == sorted(names)
    for each in names:
        thing = getattr(module, each)
        if getattr(thing, "__module__", name).split(".")[0] != "aioisolate":
            continue  # documented elsewhere
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), each
            # A dataclass or a NamedTuple without a docstring is given its signature.
            assert not thing.__doc__.startswith(f"{each}("), each
        else:
            in_place = f'{each}: Final = "' in inspect.getsource(module)
            assert in_place or f"`{each}`" in module.__doc__, each


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_what_a_program_may_call_is_documented(name):
    cls = CLASSES[name]
    for member, function in members(cls):
        if not member.startswith("__"):
            assert inspect.getdoc(getattr(cls, member, function)), member


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_methods_and_attributes_of_public_types_have_public_types(name):
    cls = CLASSES[name]
    for member, function in members(cls):
        for hints in hints_of(function):
            for parameter, annotation in hints.items():
                check_public(f"{name}.{member}({parameter})", annotation)
    for attribute, annotation in attributes_of(cls):
        check_public(f"{name}.{attribute}", annotation)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_public_functions_have_public_types(name):
    found = list(hints_of(FUNCTIONS[name]))
    assert found
    for hints in found:
        assert "return" in hints
        for parameter, annotation in hints.items():
            check_public(f"{name}({parameter})", annotation)


def test_a_private_type_is_found():
    """These tests see what they are for."""
    from tests.internals import Plan

    for annotation in (Plan, list[Plan | None], typing.Callable[[Plan], int]):
        with pytest.raises(AssertionError, match=r"here: aioisolate\._call\.plan\.Plan is not"):
            check_public("here", annotation)
    check_public("here", dict[str, aioisolate.Job[int] | None])
    assert dict(attributes_of(aioisolate.Job))["progress"] == aioisolate.Progress | None
    assert dict(attributes_of(aioisolate.Statistics))["run"] is aioisolate.Times
    returned = [hints["return"] for hints in hints_of(aioisolate.Isolator.open_job)]
    assert {aioisolate.Job} <= set(classes_in(returned))


def makers():
    """For each public class, the public functions that return one."""
    found = {}
    functions = [(name, function, None) for name, function in FUNCTIONS.items()]
    for home in CLASSES.values():
        functions += [(name, function, home) for name, function in members(home)]
    for name, function, home in functions:
        for hints in hints_of(function):
            for cls in classes_in(hints.get("return")):
                if cls.__name__ in CLASSES and cls is not home and not name.startswith("_"):
                    found.setdefault(cls, set()).add(name)
    return found


def test_what_is_returned_tells_how_one_gets_it():
    """In its docstring, with an example."""
    made = {
        cls: names
        for cls, names in makers().items()
        if not issubclass(cls, (enum.Enum, Exception))
        and cls.__name__ not in ("Isolator", "Sandbox")
    }
    assert {cls.__name__ for cls in made} >= {"Job", "Results", "Stream", "Statistics", "Executor"}
    for cls, names in made.items():
        doc = inspect.getdoc(cls)
        assert any(name in doc for name in names), f"{cls} does not name one of {names}"
        assert "::\n" in doc, f"{cls} has no example"


@pytest.mark.parametrize("name", ["Job", "Outcome", "Results", "Stream"])
def test_generic_types_take_a_parameter(name):
    generic = getattr(aioisolate, name)
    assert typing.get_origin(generic[int]) is generic
    assert typing.get_args(generic[int]) == (int,)

    def annotated(value):
        return value

    annotated.__annotations__["value"] = f"aioisolate.{name}[int] | None"
    assert typing.get_type_hints(annotated, {"aioisolate": aioisolate})["value"] == (
        generic[int] | None
    )


@pytest.mark.parametrize("name", MODULES)
def test_the_package_is_imported_by_parts(name):
    """The package itself imports next to nothing, whatever it exports."""
    if name != "aioisolate":
        assert load(name)
        return
    source = """
        import json, sys
        before = set(sys.modules)
        import aioisolate
        print(json.dumps(sorted(set(sys.modules) - before)))
    """
    loaded = json.loads(python(source).stdout)
    ours = {each for each in loaded if each.startswith("aioisolate.")}
    assert {each.split(".")[1] for each in ours} == {"_os"}
    assert not {"anyio", "asyncio", "cloudpickle", "concurrent.futures"} & set(loaded)


def test_the_way_of_importing_a_name_is_the_same_for_all():
    assert Path(aioisolate.__file__).parent == PACKAGE
    for name in aioisolate.__all__:
        assert getattr(aioisolate, name) is getattr(aioisolate, name)
        assert vars(aioisolate)[name] is exported()[f"aioisolate.{name}"]


def test_the_manual_names_what_is_there():
    text = (ROOT / "docs" / "usage.md").read_text()
    section = text.partition("\n## Types\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    for column, known in ((0, {*FUNCTIONS, *CLASSES}), (1, CLASSES)):
        named = re.findall(r"`([A-Za-z_.]+)[^`]*`", " ".join(row[column] for row in rows[1:]))
        assert named
        for name in set(named) - {"T", "capture"}:
            first, _, member = name.removeprefix("features.").partition(".")
            if member:
                assert hasattr(CLASSES[first], member) or member == "job", name
            else:
                assert first in known, name
