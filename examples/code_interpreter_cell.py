"""What runs in the child of `code_interpreter.py`: a cell of source text, as a notebook runs one.

It is a module of its own so that the fork server imports it and nothing of the web server. There is
no defence in here: the sandbox around it is one.
"""

from __future__ import annotations

import ast
import io
import linecache
import sys
import traceback
import types
from typing import Literal, TypedDict

CELL = "<cell>"
VALUE_MAX = 20_000
TRACEBACK_MAX = 20_000
# What a cell is run by: the first frames of its tracebacks.
OURS = {__file__, ast.__file__}


class Answer(TypedDict):
    """What comes back; it proves nothing, since the code in the child may forge one."""

    status: Literal["ok", "error", "memory"]
    value: str | None
    traceback: str | None


def evaluate(source: str) -> Answer:
    """Run a cell's statements; return the repr of the expression at its end, if there is one."""
    # Tracebacks show the lines of the cell, as if it were a file.
    lines = io.StringIO(source, newline=None).readlines()
    linecache.cache[CELL] = len(source), None, lines, CELL
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        value = run(source, module.__dict__)
        text = None if value is None else shorten(repr(value), VALUE_MAX)
    except SystemExit:
        raise  # an end like others, and the library's to tell
    except MemoryError as error:
        # What the cell had is let go, so that there is room to tell.
        module.__dict__.clear()
        traceback.clear_frames(error.__traceback__)
        return {"status": "memory", "value": None, "traceback": explain(error)}
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer
        return {"status": "error", "value": None, "traceback": explain(error)}
    return {"status": "ok", "value": text, "traceback": None}


def run(source: str, namespace: dict[str, object]) -> object:
    """Run statements, and return the value of an expression at their end."""
    tree = ast.parse(source, CELL)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, CELL, "exec", dont_inherit=True), namespace)  # noqa: S102 - its purpose
    if last is None:
        return None
    expression = ast.Expression(last.value)
    return eval(compile(expression, CELL, "eval", dont_inherit=True), namespace)  # noqa: S307


def explain(error: BaseException) -> str:
    """Format an exception as Python does, with all that led to it, but without frames of ours."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        trace = link.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename in OURS:
            trace = trace.tb_next
        link.__traceback__ = trace
        seen.add(id(link))
        link = link.__context__
    return shorten("".join(traceback.format_exception(error)), TRACEBACK_MAX)


def shorten(text: str, size: int) -> str:
    """Leave out the middle of a long text, and what can't be encoded."""
    if len(text) > size:
        cut = len(text) - size
        text = f"{text[: size // 2]}\n[... {cut} characters left out ...]\n{text[-size // 2 :]}"
    return text.encode(errors="backslashreplace").decode()
