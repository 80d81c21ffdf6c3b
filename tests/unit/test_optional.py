"""The package without the libraries that it can do without."""

from __future__ import annotations

import json
import sys

import pytest

from tests.helpers import python
from tests.internals import numpy_for

pytestmark = [pytest.mark.quick, pytest.mark.once, pytest.mark.one_loop]

WITHOUT = """
    import json, pydoc, sys

    for name in ("msgspec", "numpy", "starlette", "trio", "uvloop"):
        sys.modules[name] = None  # importing it is a ModuleNotFoundError

    import aioisolate

    def error_of(work):
        try:
            work()
        except Exception as exc:
            return [type(exc).__name__, str(exc), getattr(exc, "name", None)]

    def import_integration():
        import aioisolate.integrations.starlette

    namespace = {}
    exec("from aioisolate import *", namespace)
    print(json.dumps({
        "missing": [name for name in aioisolate.__all__ if not hasattr(aioisolate, name)],
        "not imported": [name for name in aioisolate.__all__ if name not in namespace],
        "help": "shared_array" in pydoc.render_doc(aioisolate),
        "function": pydoc.render_doc(aioisolate.shared_array)[:40],
        "errors": {
            "shared_array": error_of(lambda: aioisolate.shared_array(3)),
            "Snapshot.from_array": error_of(lambda: aioisolate.Snapshot.from_array([1])),
            "Snapshot.as_array": error_of(lambda: aioisolate.Snapshot.zeroed(1).as_array()),
            "aioisolate.integrations.starlette": error_of(import_integration),
        },
    }))
"""


def test_11_20_every_public_name_is_there_without_numpy():
    done = python(WITHOUT)
    assert not done.stderr
    found = json.loads(done.stdout)
    errors = found.pop("errors")
    assert found == {
        "missing": [],
        "not imported": [],
        "help": True,
        "function": "Python Library Documentation: function s",
    }
    for name, (kind, text, package) in errors.items():
        assert kind == "ImportError"
        assert package in {"numpy", "starlette"}
        wanted = '"aioisolate[starlette]"' if package == "starlette" else "numpy"
        assert text == f"{name} needs {package}: pip install {wanted}"


def test_11_20_what_is_broken_is_not_said_to_be_missing(monkeypatch, tmp_path):
    (tmp_path / "numpy.py").write_text("import no_such_part_of_it")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "numpy", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no_such_part_of_it"):
        numpy_for("something")
