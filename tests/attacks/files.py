"""Attacks on files."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import tempfile

from .scene import Attack, Scene
from .system import call, libc

__all__ = ["ATTACKS"]

_FAR = 1 << 40
_INODES = 5000
_ATTRIBUTE = "user.attack"


def read(path):
    with open(path) as file:
        return file.read()


def read_attribute(path):
    return os.getxattr(path, _ATTRIBUTE).decode()


def append(path):
    with open(path, "a") as file:
        file.write("more")
    return True


def truncate(path):
    os.truncate(path, 0)
    return True


def truncate_by_opening(path):
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    return True


def make_fifo(path):
    os.mkfifo(path)
    return True


def make_device(path):
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
    return True


def make_directory(path):
    os.mkdir(path)
    return True


def make_unix_socket(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    return True


def link(old, new):
    os.link(old, new)
    return True


def symlink(old, new):
    os.symlink(old, new)
    return True


def rename(old, new):
    os.rename(old, new)
    return True


def remove(path):
    os.remove(path)
    return True


def change_mode(path):
    os.chmod(path, 0o640)
    return True


def change_mode_of_descriptor(fd):
    os.fchmod(fd, 0o640)
    return True


def change_owner(path):
    os.chown(path, -1, os.getgid())
    return True


def change_times(path):
    os.utime(path)
    return True


def change_attribute(path):
    os.setxattr(path, "user.attack", b"1")
    return True


def reopen(fd, path):
    with open(f"/proc/self/fd/{fd}", "w") as file:
        file.write("reopened")
    return True


def read_through_root(path):
    with open("/proc/self/root" + path) as file:
        return file.read()


def read_through_cwd(path):
    return read(os.path.relpath(path))


def read_by_handle(path):
    """Open a file by its handle, which needs no path: neither modes nor a mount hide it."""
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    call("name_to_handle_at", -100, path.encode(), handle, ctypes.addressof(mount), 0)
    where = os.open(os.path.dirname(path), os.O_RDONLY)
    fd = call("open_by_handle_at", where, handle, os.O_RDONLY)
    return os.read(fd, 1000).decode()


def list_directory(path):
    return sorted(os.listdir(path))


def make_many(directory, count):
    for number in range(count):
        os.close(os.open(os.path.join(directory, f"many-{number}"), os.O_CREAT | os.O_WRONLY))
    return count


def make_huge(path):
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"x", _FAR)
    return os.fstat(fd).st_size


def stretch(path):
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, _FAR)
    return os.fstat(fd).st_size


def make_huge_memfd():
    fd = os.memfd_create("attack")
    os.pwrite(fd, b"x", _FAR)
    return os.fstat(fd).st_size


def stretch_memfd():
    fd = os.memfd_create("attack")
    os.ftruncate(fd, _FAR)
    return os.fstat(fd).st_size


def allocate_memfd():
    """Have pages given to a memfd that nothing of ours ever touches."""
    fd = os.memfd_create("attack")
    os.posix_fallocate(fd, 0, 512 << 20)
    return os.fstat(fd).st_blocks * 512


def stretch_what_is_there():
    """Make every regular file that happens to be open as large as can be."""
    sizes = []
    error = None
    for fd in range(3, 256):
        try:
            os.ftruncate(fd, _FAR)
            sizes.append(os.fstat(fd).st_size)
        except OSError as exc:
            error = exc
    if not sizes:
        raise error
    return max(sizes)


def write_shared_memory(name):
    libc.shm_open.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
    fd = libc.shm_open(name.encode(), os.O_CREAT | os.O_RDWR, 0o600)
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return os.write(fd, b"x")


def execute(program):
    pid = os.posix_spawn(program, [program], {})
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 127:
        raise PermissionError(program)
    return code == 0


def execute_memfd():
    """Run a program that lies in no file system."""
    fd = os.memfd_create("attack", 0)
    with open("/bin/true", "rb") as file:
        os.write(fd, file.read())
    pid = os.fork()
    if pid == 0:
        try:
            os.execve(fd, ["true"], {})
        finally:
            os._exit(99)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise PermissionError("memfd")
    return True


def _no_release() -> str:
    return "" if os.path.exists("/usr/lib/os-release") else "there is no such file here"


def _reads(result, scene):
    return result == scene.secret


def _descriptor(scene: Scene) -> int:
    if "fd" not in scene.notes:
        scene.notes["fd"] = scene.own_fd(os.open(scene.path("file"), os.O_RDONLY))
    return scene.notes["fd"]


def _remove_shm(name: str) -> None:
    if os.path.exists("/dev/shm" + name):
        os.remove("/dev/shm" + name)


def _shm(scene: Scene) -> tuple[str]:
    name = "/attack-" + scene.secret
    scene.call_later(_remove_shm, name)
    return (name,)


def _exists(name):
    return lambda result, scene: os.path.lexists(scene.path(name))


def _size(least):
    return lambda result, scene: isinstance(result, int) and result >= least


def _file(name, run, succeeded, **more):
    arrange = lambda scene: (scene.file(),)
    return Attack(name, "files", run, arrange, succeeded, **more)


def _attributed(scene):
    path = scene.file()
    os.setxattr(path, _ATTRIBUTE, scene.secret.encode())
    return (path,)


def _no_attributes():
    with tempfile.NamedTemporaryFile(prefix="attack-") as file:
        try:
            os.setxattr(file.name, _ATTRIBUTE, b"")
        except OSError as exc:
            return f"there are no attributes: {exc.strerror}"
    return ""


def _new(name, run, **more):
    arrange = lambda scene: (scene.path("new"),)
    return Attack(name, "files", run, arrange, _exists("new"), **more)


def _two(name, run):
    arrange = lambda scene: (scene.file(), scene.path("new"))
    return Attack(name, "files", run, arrange, _exists("new"))


_touched = lambda result, scene: scene.touched()
_changed = lambda result, scene: scene.content() != scene.secret
_private = lambda scene: (scene.file("own", 0o600, private=True),)
_is_inside = {"limits": {"file_size": 1 << 20}}
_with_descriptor = {"options": lambda scene: {"pass_fds": [_descriptor(scene)]}}

ATTACKS = [
    Attack(
        "read-shadow", "files", read, lambda scene: ("/etc/shadow",),
        lambda result, scene: isinstance(result, str) and "root:" in result, needs_root=True,
    ),
    Attack("read-0600", "files", read, _private, _reads),
    _file("read-0666", read, _reads),
    Attack(
        "read-attribute", "files", read_attribute, _attributed, _reads, needs=_no_attributes
    ),
    Attack(
        "list", "files", list_directory, lambda scene: (os.path.dirname(scene.file()),),
        lambda result, scene: result == ["file"],
    ),
    _file("read-through-root", read_through_root, _reads),
    _file("read-through-cwd", read_through_cwd, _reads),
    Attack("read-by-handle", "files", read_by_handle, _private, _reads, needs_root=True),
    Attack(
        "list-system-libraries", "files", list_directory, lambda scene: ("/usr/lib",),
        lambda result, scene: bool(result),
    ),
    Attack(
        "read-beside-libraries", "files", read, lambda scene: ("/usr/lib/os-release",),
        lambda result, scene: isinstance(result, str) and "=" in result, needs=_no_release,
    ),
    _file("append", append, _changed),
    _file("truncate", truncate, _changed),
    _file("truncate-by-opening", truncate_by_opening, _changed),
    _new("mkfifo", make_fifo),
    _new("mkdir", make_directory),
    _new("mknod", make_device, needs_root=True),
    _new("bind-unix", make_unix_socket),
    _two("link", link),
    _two("symlink", symlink),
    _two("rename", rename),
    _file("remove", remove, lambda result, scene: not os.path.exists(scene.path("file"))),
    _file("chmod", change_mode, _touched),
    Attack(
        "fchmod", "files", change_mode_of_descriptor,
        lambda scene: (scene.file(), _descriptor(scene))[1:], _touched, **_with_descriptor,
    ),
    _file("chown", change_owner, _touched),
    _file("utime", change_times, _touched),
    _file("setxattr", change_attribute, _touched),
    Attack(
        "reopen-descriptor", "files", reopen,
        lambda scene: (scene.file(), _descriptor(scene))[::-1], _changed, **_with_descriptor,
    ),
    Attack(
        "many-inodes", "files", make_many, lambda scene: (scene.directory, _INODES),
        lambda result, scene: len(os.listdir(scene.directory)) >= _INODES,
    ),
    _new("huge-file", make_huge, **_is_inside),
    _new("ftruncate-file", stretch, **_is_inside),
    Attack("huge-memfd", "files", make_huge_memfd, succeeded=_size(_FAR), **_is_inside),
    Attack("ftruncate-memfd", "files", stretch_memfd, succeeded=_size(_FAR), **_is_inside),
    Attack("fallocate-memfd", "files", allocate_memfd, succeeded=_size(512 << 20), **_is_inside),
    Attack(
        "ftruncate-scratch", "files", stretch_what_is_there, succeeded=_size(_FAR), **_is_inside
    ),
    Attack(
        "posix-shm", "files", write_shared_memory, _shm,
        lambda result, scene: os.path.exists(f"/dev/shm/attack-{scene.secret}"),
    ),
    Attack("execute", "files", execute, lambda scene: ("/bin/true",)),
    Attack("execute-memfd", "files", execute_memfd),
]  # fmt: skip
