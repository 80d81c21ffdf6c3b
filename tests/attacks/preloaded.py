"""Attacks by what a module of the fork server has opened when it was imported."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sqlite3
import sys
from collections.abc import Callable
from typing import Any

from .scene import Attack, Scene
from .system import libc

__all__ = ["ATTACKS"]

_WORD = b"attacked"


def _module(source: str) -> Callable[[Scene], list[str]]:
    """Make a module, to be imported by a fork server; *source* mentions paths of the scene's."""

    def preload(scene: Scene) -> list[str]:
        name = f"held_{scene.secret}"
        text = f"import mmap, os, socket, sqlite3\ndirectory = {scene.directory!r}\n"
        if "port" in source:
            text += f"port = {scene.listener().getsockname()[1]}\n"
        scene.file("file", 0o600)
        with open(os.path.join(scene.private, f"{name}.py"), "w") as file:
            file.write(text + source)
        sys.path.append(scene.private)
        scene.call_later(sys.path.remove, scene.private)
        return [name]

    return preload


def _held(scene: Scene) -> tuple[str, ...]:
    return (f"held_{scene.secret}",)


def _of(module: str) -> Any:
    """Find what is to be attacked."""
    return sys.modules[module].held


class _Buffer(ctypes.Structure):
    """The beginning of Py_buffer."""

    _fields_ = (("address", ctypes.c_void_p), ("rest", ctypes.c_byte * 120))


def write_to_log(module: str):
    return os.write(_of(module).fileno(), _WORD)


def write_by_object(module: str):
    log = _of(module)
    log.write(_WORD.decode())
    log.flush()
    return True


def read_file(module: str):
    return os.pread(_of(module).fileno(), 100, 0).decode()


def overwrite_database():
    """Change a database without its library, which would want a lock and a journal."""
    for fd in range(3, 1024):
        try:
            content = os.pread(fd, 1 << 16, 0)
        except OSError:
            continue
        if content.startswith(b"SQLite format 3"):
            return os.pwrite(fd, _WORD, content.index(b"original"))
    raise LookupError("no database is open")


def talk(module: str, secret: str):
    return _of(module).send(secret.encode())


def list_directory(module: str):
    return os.listdir(_of(module))


def write_to_memfd(module: str):
    os.pwrite(_of(module), _WORD, 0)
    return os.pread(_of(module), 8, 0) == _WORD


def write_to_mapping(module: str):
    _of(module)[:8] = _WORD
    return True


def write_to_read_only_mapping(module: str):
    page = _of(module)
    view = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(page), ctypes.byref(view), 0)
    address = view.address
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(len(page)), 3):
        raise OSError(ctypes.get_errno(), "mprotect")
    ctypes.memmove(address, _WORD, 8)
    return True


def _changed(result: Any, scene: Scene) -> bool:
    with contextlib.closing(sqlite3.connect(scene.path("words.db"))) as connection:
        return connection.execute("select word from words").fetchone() == (_WORD.decode(),)


def _wrote(result: Any, scene: Scene) -> bool:
    return _WORD.decode() in scene.content()


_REFUSED = {"expect": "CHILD_SETUP"}
_FILE = 'held = open(directory + "/file", "r+")\n'
_DATABASE = """
held = sqlite3.connect(directory + "/words.db")
held.execute("create table words (word)")
held.execute("insert into words values ('original')")
held.commit()
"""
_MAPPED = """
file = open(directory + "/file", "r+b")
file.truncate(mmap.PAGESIZE)
"""

ATTACKS = [
    Attack(
        "log-file", "preloaded", write_to_log, _held, _wrote, preload=_module(_FILE),
    ),
    Attack(
        "log-object", "preloaded", write_by_object, _held, _wrote, preload=_module(_FILE),
    ),
    Attack(
        "data-file", "preloaded", read_file, _held,
        lambda result, scene: result == scene.secret, expect="value", preload=_module(_FILE),
    ),
    Attack(
        "database", "preloaded", overwrite_database, succeeded=_changed, expect="nothing",
        preload=_module(_DATABASE),
    ),
    Attack(
        "connection", "preloaded", talk, lambda scene: (*_held(scene), scene.secret),
        lambda result, scene: scene.heard(),
        preload=_module('held = socket.create_connection(("127.0.0.1", port))\n'),
    ),
    Attack(
        "directory", "preloaded", list_directory, _held,
        lambda result, scene: bool(result) and "file" in result,
        preload=_module("held = os.open(directory, os.O_RDONLY)\n"),
    ),
    Attack(
        "memfd", "preloaded", write_to_memfd, _held,
        preload=_module('held = os.memfd_create("held")\n'),
    ),
    Attack(
        "shared-mapping", "preloaded", write_to_mapping, _held, _wrote, **_REFUSED,
        preload=_module(_MAPPED + "held = mmap.mmap(file.fileno(), 0)\n"),
    ),
    Attack(
        "read-only-mapping", "preloaded", write_to_read_only_mapping, _held, _wrote, **_REFUSED,
        preload=_module(_MAPPED + "held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"),
    ),
]  # fmt: skip
