"""A fork server's child: wait for one call, carry it out, and end.

It rehearses first: a call that does nothing goes through the same code as the real one will.
After a fork the first touch of each page is a copy; so these are made before anyone waits for it.
"""

from __future__ import annotations

import _socket
import faulthandler
import os
from collections.abc import Sequence
from typing import TextIO

from .._os import fds, messages
from .._wire import codecs
from .._wire.frames import Kind, encode
from .._wire.request import HEADER, Request
from . import worker
from .order import AsyncBackend, Order

__all__ = ["serve"]

_AT_ONCE = 128 * 1024


def serve(order: Order, streams: Sequence[TextIO]) -> int:
    """Wait for one request, do what it says, return the exit code."""
    _rehearse(order, streams)
    channel = _socket.socket(fileno=order.channel)
    try:
        return _serve_one(order, streams, channel)
    finally:
        channel.detach()


def _nothing() -> None: ...


def _rehearse(order: Order, streams: Sequence[TextIO]) -> None:
    here, there = _socket.socketpair()
    nonce, channel = order.nonce, order.channel
    try:
        there.send(Request(nonce, codecs.dump_call(_nothing, ())[0]).encode())
        order.channel = here.fileno()
        _serve_one(order, streams, here)
        os.pwrite(order.scratch, b"\0", worker.MARK_AT)
    finally:
        order.nonce, order.channel = nonce, channel
        here.close()
        there.close()


def _serve_one(order: Order, streams: Sequence[TextIO], channel: _socket.socket) -> int:
    received = _receive(channel)
    if received is None:
        return 0  # nobody will ask any more
    request, descriptors = received
    order.nonce = request.nonce
    order.started_mark = encode(request.nonce, Kind.STARTED)
    order.quiet = request.quiet
    order.streaming = request.streaming
    order.progress = request.progress
    order.backend = AsyncBackend(request.backend, uvloop=request.uvloop)
    try:
        call = _take_over(order, request, descriptors) if descriptors else request.call
        assert isinstance(call, bytes)
        order.fn, order.args = codecs.load_call(call)
    except BaseException as exc:  # noqa: BLE001 - unpickling imports, and so runs, anything
        text = f"request\n{type(exc).__name__}: {exc}"
        os.write(order.channel, encode(order.nonce, Kind.FAILED, text.encode(errors="replace")))
        return 1
    return worker.work(order, streams)


def _receive(channel: _socket.socket) -> tuple[Request, list[int]] | None:
    """Read one request and the descriptors that come with it; None if the parent is gone."""
    data, found = messages.receive(channel, _AT_ONCE)
    while len(data) < HEADER.size or len(data) < HEADER.size + HEADER.unpack_from(data)[0]:
        more, fds_more = messages.receive(channel, _AT_ONCE)
        if not more:
            return None
        data += more
        found += fds_more
    return Request.decode(data[HEADER.size :]), found


def _take_over(order: Order, request: Request, descriptors: list[int]) -> bytes | int:
    """Put the descriptors that came along where they belong; return the call's pickle."""
    call = request.call
    if request.in_file:
        file = descriptors.pop(0)
        size = int(call)
        call = b"".join(iter(lambda: os.read(file, 1 << 20), b""))
        os.close(file)
        if len(call) != size:
            raise EOFError(f"the call has {len(call)} of {size} bytes")
    if request.output:
        for number in (1, 2):
            source = descriptors.pop(0)
            os.dup2(source, number)
            os.close(source)
    own = fds.Descriptors()
    for number in request.numbers:  # ours make way
        if number == order.channel:
            order.channel = fds.lift_above(order.channel, max(request.numbers), own)
        elif number == order.scratch:
            order.scratch = fds.lift_above(order.scratch, max(request.numbers), own)
            faulthandler.enable(order.scratch)
    # Two steps, since one may arrive under the number that another one wants.
    lifted = [fds.lift_above(fd, max(request.numbers), own) for fd in descriptors]
    for fd, number in zip(lifted, request.numbers, strict=True):
        os.dup2(fd, number)
        own.close(fd)
    return call
