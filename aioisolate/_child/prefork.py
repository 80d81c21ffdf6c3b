"""A fork server's child: wait for one call, run it, and end.

The child first runs a rehearsal: an empty call that uses the same code as the real call. The first
write to each page after a fork copies the page; the rehearsal makes these copies in advance.
"""

from __future__ import annotations

import _socket
import errno
import faulthandler
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from .._async_backend import AsyncBackend
from .._os import fds, memfd, messages, signals
from .._os.prctl import set_parent_death_signal
from .._wire import codecs, fd_passing, sources  # noqa: F401 - a confined child can't import it
from .._wire.frames import NONCE_SIZE, Kind, encode, encode_failure
from .._wire.request import HEADER, Request
from .._wire.shared_constants import PID_AT
from . import execution, stdio
from .layers import RlimitSpec
from .spec import ChildSpec

if TYPE_CHECKING:
    from .confine import PreparedLayers

__all__ = ["serve"]

# Most requests are not larger than this; a larger buffer would touch more pages.
_REQUEST_SIZE = 4096
_FD_MAX = 1 << 20
# Imports that take longer, in seconds, are reported, with at most _PACKAGES_MAX packages.
_SLOW = 0.05
_PACKAGES_MAX = 50


def serve(  # noqa: C901 - each function that is called here costs page copies
    spec: ChildSpec,
    sever: Iterable[int],
    loose: Iterable[int],
    ahead: bool,
    prepared: PreparedLayers | None = None,
) -> NoReturn:
    """Wait for one request, run its call, and end the process.

    *sever*: descriptors that objects of the server hold. *loose*: descriptors without an object.
    *ahead*: whether no call waits for this child yet. *prepared*: the resources that the server has
    prepared for the confinement, if any.

    Little is left to do here: the fork server has set signals to their defaults, frozen the garbage
    collector's objects, and set faulthandler to write to the scratch file's descriptor.
    """
    code = 1
    try:
        if spec.note_pid:
            # First: if the parent dies now, the adopting process identifies this child by the pid.
            os.pwrite(spec.scratch, b"%d" % os.getpid(), PID_AT)
        # As in `bootstrap.main`: early, and effective only if the parent is still alive.
        set_parent_death_signal(9)
        if os.getppid() != spec.parent_pid:
            os._exit(1)
        os.setsid()
        signals.reset_child_signal()
        # No object holds these, so none closes the number a second time.
        for fd in loose:
            os.close(fd)
        if spec.module_fds is not None:
            from . import descriptors  # noqa: PLC0415 - the server has imported it

            descriptors.replace_module_files(spec, -1 if prepared is None else prepared.proc)
        null = spec.null
        for fd in sever:
            os.dup2(null, fd, False)
        os.closerange(spec.floor, _FD_MAX)
        if spec.reseed is not None:
            spec.reseed()
        for forget, arguments in spec.forget_loop:
            forget(*arguments)
        spec.rehearsing = False
        engaged: list[str] | None = None
        if prepared is not None:
            engaged = _confine(spec, prepared)
        if ahead:
            _rehearse(spec)
            if spec.confinement is not None:
                from . import rlimits  # noqa: PLC0415 - the rehearsal has imported it

                rlimits.note(spec.statm)
        if engaged is not None:
            body = ",".join(sorted(engaged)).encode()
            os.write(spec.channel, encode(_NO_NONCE, Kind.READY, body))
        channel = _socket.socket(fileno=spec.channel)
        code = _serve_one(spec, channel)
    finally:
        os._exit(code)


def _confine(spec: ChildSpec, prepared: PreparedLayers) -> list[str]:
    from . import confine  # noqa: PLC0415 - the server has imported it

    assert spec.confinement is not None
    try:
        return confine.enter_child(spec, spec.confinement, prepared)
    except BaseException as exc:
        os.write(spec.channel, encode_failure(_NO_NONCE, "confinement", exc))
        raise


def _nothing() -> None: ...


_NO_NONCE = b"\0" * NONCE_SIZE
_REHEARSAL = Request(_NO_NONCE, codecs.dump_plain_call(_nothing, ())[0]).encode()


def _rehearse(spec: ChildSpec) -> None:
    here, there = _socket.socketpair()
    channel = spec.channel
    spec.channel = here.fileno()
    spec.rehearsing = True
    if spec.confinement is not None:
        there.send(_rehearsal_confined(spec.codec))
    elif fd_passing.find is None or not memfd.sealable():
        there.send(_REHEARSAL)
    else:
        _send_snapshot(there)
    _serve_one(spec, here)
    spec.rehearsing = False
    spec.channel = channel
    here.close()
    there.close()


def _rehearsal_confined(codec: str) -> bytes:
    call = codecs.dump_plain_call(_nothing, ())[0]
    return Request(_NO_NONCE, call, codec=codec, rlimits=tuple(RlimitSpec())).encode()


def _send_snapshot(channel: _socket.socket) -> None:
    """Send a rehearsal that contains a snapshot, of a numpy array if numpy is imported."""
    from .._memory.snapshot import Snapshot  # noqa: PLC0415 - already imported where it is used

    numpy = sys.modules.get("numpy")
    try:
        snapshot = Snapshot.zeroed(1) if numpy is None else Snapshot.from_array(numpy.zeros(1))
        call = codecs.dump_plain_call(len, (snapshot,))
        request = Request(_NO_NONCE, call.stream, passed_fds=len(call.passed_fds.fds)).encode()
        messages.send(channel, request, call.passed_fds.fds)
    except OSError:  # no free descriptor, for example
        channel.send(_REHEARSAL)


def _serve_one(spec: ChildSpec, channel: _socket.socket) -> int:
    received = _receive(channel)
    if received is None:
        return 0  # the parent sends no more requests
    request, descriptors = received
    spec.nonce = request.nonce
    spec.started_mark = encode(request.nonce, Kind.STARTED)
    spec.quiet = request.quiet
    spec.streaming = request.streaming
    spec.progress = request.progress
    spec.codec = request.codec
    spec.result_size = request.result_size
    spec.exit_timeout = request.exit_timeout
    spec.rlimits = None
    spec.backend = AsyncBackend(request.backend, uvloop=request.uvloop)
    modules, began = len(sys.modules), time.monotonic()
    try:
        if request.descriptors:
            call, beside, passed_fds = _take_over(spec, request, descriptors)
            spec.fn, spec.args = _load(request, call, beside, passed_fds)
        else:
            assert isinstance(request.call, bytes)
            spec.fn, spec.args = codecs.load_call(request.call)
    except BaseException as exc:  # noqa: BLE001 - unpickling may run any code
        os.write(spec.channel, encode_failure(spec.nonce, "request", exc))
        return 1
    if len(sys.modules) > modules and request.codec == "pickle":
        _report_imports(spec, modules, time.monotonic() - began)
    if request.rlimits is not None:
        try:
            _set_limits(spec, RlimitSpec(*request.rlimits), as_noted=not request.descriptors)
        except OSError as exc:
            os.write(spec.channel, encode_failure(spec.nonce, "limits", exc))
            return 1
    assert spec.streams is not None
    if request.rlimits is not None:
        return execution.work_within(spec, spec.streams[1:])
    return execution.work(spec, spec.streams[1:])


def _report_imports(spec: ChildSpec, modules: int, duration: float) -> None:
    """Report slow imports that loading the call needed: each such call repeats them."""
    cpu_time = time.process_time()  # since the fork; the time before the imports is negligible
    if duration > _SLOW:
        packages: dict[str, str] = {}
        # sys.modules is in order of completed imports, so a module comes after its imports.
        for name in reversed(list(sys.modules)[modules:]):
            top = name.partition(".")[0]
            if top not in packages or len(name) < len(packages[top]):
                packages[top] = name
        new = ",".join(list(packages.values())[:_PACKAGES_MAX])
        body = f"{cpu_time:.6f} {duration:.6f}\n{new}".encode(errors="replace")
        os.write(spec.channel, encode(spec.nonce, Kind.IMPORTED, body))


def _set_limits(spec: ChildSpec, limits: RlimitSpec, *, as_noted: bool) -> None:
    """Set the resource limits, after all set-up that is not part of fn."""
    from . import rlimits  # noqa: PLC0415 - only for calls with limits

    spec.rlimits = limits
    execution.prepare_memory_error(spec)
    if spec.rehearsing:
        rlimits.rehearse(spec.statm, spec.scratch)
        return
    statm = spec.statm if spec.confinement is not None else rlimits.open_statm()
    rlimits.apply(limits, statm, spec.scratch, as_noted=as_noted)


def _receive(channel: _socket.socket) -> tuple[Request, list[int]] | None:
    """Read one request and the descriptors sent with it; return None if the parent has ended."""
    data, found, _ = messages.receive(channel, _REQUEST_SIZE)
    while len(data) < HEADER.size or len(data) < HEADER.size + HEADER.unpack_from(data)[0]:
        if not data:
            return None
        more, more_found, _ = messages.receive(channel, 16 * _REQUEST_SIZE)
        data = data + more if more else b""
        found += more_found
    return Request.decode(data[HEADER.size :]), found


def _load(
    request: Request, call: bytes | memoryview, beside: memoryview, passed_fds: list[int]
) -> tuple[Callable[..., Any], Sequence[Any]]:
    """Load a call with descriptors; *beside*: the content of the call's second file."""
    buffers = []
    for which, offset, length, shared in request.buffer_refs:
        if which < 0:
            buffers.append(beside[offset : offset + length])
            continue
        from .._memory import snapshot  # noqa: PLC0415 - only for calls with such memory

        buffers.append(snapshot.borrow(passed_fds[which], offset, length, shared=shared))
    texts = [beside[offset : offset + length] for offset, length in request.texts]
    with fd_passing.FdUnbundling(passed_fds):
        loaded = codecs.load_call(call, buffers, texts)
    for fd in passed_fds:  # an object that keeps one has duplicated it
        os.close(fd)
    return loaded


def _map(file: int) -> memoryview:
    """Map a file of the call and close it, so that its content is not copied."""
    from .._os import mappings  # noqa: PLC0415 - only for large calls

    size = os.fstat(file).st_size
    view = mappings.map_private(file, 0, size)
    os.close(file)
    return view


def _take_over(  # noqa: C901 - one loop for each kind
    spec: ChildSpec, request: Request, descriptors: list[int]
) -> tuple[bytes | memoryview, memoryview, list[int]]:
    """Move the received descriptors to their numbers.

    Return the call's pickle, the content of its second file, and the descriptors of the pickle.
    """
    call: bytes | memoryview | int = request.call
    beside = memoryview(b"")
    if len(descriptors) < request.descriptors:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    entrances = [descriptors.pop(0) for _ in range(request.entrances)]
    for entrance in entrances:
        os.write(entrance, b"0")
        os.close(entrance)
    if request.in_file:
        file = descriptors.pop(0)
        size = int(call)
        call = _map(file)
        if len(call) != size:
            raise EOFError(f"the call is incomplete: {len(call)} of {size} bytes")
    if request.beside:
        beside = _map(descriptors.pop(0))
    for number in (0,) * request.stdin + (1, 2) * request.output:
        source = descriptors.pop(0)
        os.dup2(source, number)
        os.close(source)
    if request.stdin:
        sys.stdin = sys.__stdin__ = stdio.build_stdin()  # type: ignore[misc]  # declared Final
    own = fds.Descriptors()
    for number in request.numbers:  # move the library's own descriptors away
        if number == spec.channel:
            spec.channel = fds.lift_above(spec.channel, max(request.numbers), own)
        elif number == spec.scratch:
            spec.scratch = fds.lift_above(spec.scratch, max(request.numbers), own)
            faulthandler.enable(spec.scratch)
        elif number == spec.statm:
            spec.statm = fds.lift_above(spec.statm, max(request.numbers), own)
    # Two steps, since a received descriptor may have the target number of another one.
    highest = max(request.numbers, default=2)
    lifted = [fds.lift_above(fd, highest, own) for fd in descriptors]
    for fd, number in zip(lifted, request.numbers, strict=False):
        os.dup2(fd, number)
        own.close(fd)
    assert not isinstance(call, int)
    return call, beside, [own.release(fd) for fd in lifted[len(request.numbers) :]]
