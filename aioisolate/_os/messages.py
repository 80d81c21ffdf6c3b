"""Send and receive bytes with descriptors over a Unix socket.

Uses `_socket`: `socket` would import enums and selectors, whose pages a small fork server would
copy for each of its children.
"""

from __future__ import annotations

import _socket
import os
import struct
from collections.abc import Sequence

__all__ = ["FDS_MAX", "receive", "receive_on", "send", "send_on"]

_INT = struct.calcsize("i")
# SCM_MAX_FD: the most descriptors that the kernel passes with one message.
FDS_MAX = 253
_ROOM = _socket.CMSG_SPACE(FDS_MAX * _INT)
_CLOEXEC: int = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)


def receive(sock: _socket.socket, size: int) -> tuple[bytes, list[int], bool]:
    """Receive at most *size* bytes with the descriptors of at most one message.

    Return the bytes, the descriptors, and whether descriptors are missing because of this process's
    limit. No bytes mean that the other side has closed the socket.

    Raises OSError as recvmsg does (BlockingIOError: no message is there).
    """
    data, ancillary, flags, _ = sock.recvmsg(size, _ROOM, _CLOEXEC)
    fds: list[int] = []
    for level, kind, content in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds += struct.unpack(f"{len(content) // _INT}i", content[: len(content) // _INT * _INT])
    if not _CLOEXEC:
        for fd in fds:
            os.set_inheritable(fd, False)
    return data, fds, bool(flags & _socket.MSG_CTRUNC)


def send(sock: _socket.socket, data: bytes, fds: Sequence[int] = ()) -> int:
    """Send bytes with descriptors, which stay open here. Return the number of bytes sent."""
    if not fds:
        return sock.send(data)
    rights = struct.pack(f"{len(fds)}i", *fds)
    return sock.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])


def receive_on(fd: int, size: int) -> tuple[bytes, list[int], bool]:
    """Receive like `receive`, from the stream socket *fd*, which stays open."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
    try:
        return receive(sock, size)
    finally:
        sock.detach()


def send_on(fd: int, data: bytes, fds: Sequence[int]) -> int:
    """Send like `send`, over the stream socket *fd*, which stays open."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
    try:
        return send(sock, data, fds)
    finally:
        sock.detach()
