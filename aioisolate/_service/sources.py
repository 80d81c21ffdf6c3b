"""The sources of a service's children: forks of this process, or a fork server."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Protocol

import anyio
import anyio.lowlevel

from .._async_backend import AsyncBackend
from .._call import fork_safety
from .._call.child import Child
from .._call.deadlines import Deadlines
from .._call.forked import ForkedChild, let_imports_finish
from .._call.plan import Plan
from .._child.layers import ConfinementSpec, Layer
from .._errors import CallableDidNotExecuteError, Reason, may_pass
from .._forkserver import protocol
from .._forkserver.launch import launch_interpreter
from .._forkserver.pool import Pool
from .._forkserver.template import launch_copy
from .._forkserver.worker import Worker
from .._forkserver.worker_call import WorkerCall, drop, encode_call, encode_large_call
from .._os import imports, threads
from .._wire import ancestry, codecs
from .._wire.large_call import TooMuch
from .call_costs import CallCosts, warn_of_generators

__all__ = ["ForkSource", "ServerSource", "Source", "fresh_interpreter", "template"]


_log = logging.getLogger("aioisolate.zygote")


class Source(Protocol):
    """Makes children for calls."""

    @property
    def idle(self) -> int: ...
    @property
    def restarts(self) -> int: ...

    async def start(self) -> None:
        """Prepare the source."""

    def provide_nowait(self, plan: Plan, *, quiet: bool) -> Child | None:
        """Return a child for a call, or None if none is ready."""
        ...

    async def provide(self, plan: Plan, deadlines: Deadlines, *, quiet: bool) -> Child:
        """Return a child for a call. Raises CallableDidNotExecuteError if there can be none."""
        ...

    def hindrance(self) -> str:
        """Return the reason for which a call has no child yet."""
        ...

    def note_imports(self, plan: Plan, report: bytes) -> None:
        """Note the imports that a child needed to load its call, as the child has reported them."""

    def after_call(self) -> None:
        """Do the work that can wait until a call is over."""

    async def aclose(self) -> None:
        """End all processes, when no call runs any more."""

    def kill_now(self) -> None:
        """End all processes at once, blocking."""


class ForkSource:
    """A source of copies of this process, which are forked at each call.

    *preload*: modules that `start` imports; calls wait for that. *environment*: the children's.
    """

    idle = 0
    restarts = 0

    def __init__(
        self,
        backend: AsyncBackend,
        *,
        preload: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._backend = backend._replace(task=None)
        self._preload = preload
        self._environment = environment
        self._ready = anyio.Event() if preload else None

    async def start(self) -> None:
        """Import *preload* in this process. Raises CallableDidNotExecuteError if that fails."""
        for name in self._preload:
            # In this thread, which also forks, as the main thread of a fork server does: some
            # modules can only be imported in a main thread, and only the thread-local variables of
            # the forking thread exist in the child. The loop runs between two imports.
            await anyio.lowlevel.checkpoint()
            _import_here(name)
        if self._ready is not None:
            self._ready.set()
            self._ready = None

    def provide_nowait(self, plan: Plan, *, quiet: bool) -> Child | None:
        """Fork, if *preload* is imported and no other thread runs; otherwise return None."""
        del quiet
        if self._ready is not None or threads.others() or threads.has_helpers():
            return None
        return self._make_child(plan, ())

    async def provide(self, plan: Plan, deadlines: Deadlines, *, quiet: bool) -> Child:
        """Fork, once *preload* is imported and no other thread is importing a module."""
        del quiet
        if self._ready is not None:
            await self._ready.wait()
        others = threads.others()
        if others or threads.has_helpers():
            await let_imports_finish(deadlines)
        return self._make_child(plan, others)

    def _make_child(self, plan: Plan, others: Sequence[str]) -> ForkedChild:
        environment = self._environment
        if environment is None:
            return ForkedChild(plan, self._backend_of_task(), others)
        if plan.confinement is not None:
            plan = plan._replace(
                confinement=_with_environment(plan.confinement, environment, copied=True)
            )
            environment = None  # the confinement sets it
        return ForkedChild(plan, self._backend_of_task(), others, environment)

    def hindrance(self) -> str:
        """Return the reason for which a call has no child yet."""
        return "the event loop was blocked"

    def _backend_of_task(self) -> AsyncBackend:
        backend = self._backend
        if backend.loop is None:
            return backend
        # The child has to forget the task that is running now.
        return backend._replace(task=sys.modules["asyncio"].current_task())

    def note_imports(self, plan: Plan, report: bytes) -> None:
        """Do nothing: a copy has all modules of this process."""

    def after_call(self) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing: without a call there is no child."""

    def kill_now(self) -> None:
        """Do nothing."""


class ServerSource:
    """A source of children of a fork server."""

    def __init__(
        self,
        backend: AsyncBackend,
        pool: Pool,
        functions: ancestry.Functions | None = None,
        *,
        confinement: ConfinementSpec | None = None,
        suspicion: str = "",
    ) -> None:
        """Prepare the source; *functions*: those of a server that is a copy of this process.

        *confinement*: the confinement of the children. *suspicion*: as in `Child`.
        """
        self._suspicion = suspicion
        self._layers = None if confinement is None else confinement.child_layers
        self._backend = backend
        self._pool = pool
        self._functions = functions
        # The modules for which a log message was written.
        self._logged: set[str] = set()
        self._codecs = {"pickle"}
        # The plan whose pickling `provide_nowait` has given up, and whether it needs cloudpickle.
        self._large: tuple[Plan | None, bool] = (None, False)
        self._call_costs = CallCosts()

    @property
    def idle(self) -> int:
        """The number of workers that wait for a call."""
        return self._pool.idle

    @property
    def restarts(self) -> int:
        """The number of restarts of the fork server."""
        return self._pool.restarts

    async def start(self) -> None:
        """Start the fork server."""
        await self._pool.start()
        warn_of_generators(self._pool.repeating)

    def provide_nowait(self, plan: Plan, *, quiet: bool) -> Child | None:
        """Take an idle worker."""
        if not self._pool.idle:
            return None
        try:
            call = self._encode(plan)
        except TooMuch as exc:
            self._large = plan, exc.by_value
            return None
        worker = self._pool.acquire_nowait()
        if worker is None:
            return None
        if self._layers is not None and not self._is_proved(worker, self._layers):
            self._pool.give_back(worker)
            return None
        return self._make_call(worker, plan, call, quiet)

    async def provide(self, plan: Plan, deadlines: Deadlines, *, quiet: bool) -> Child:
        """Wait for a worker."""
        call = await self._encode_any(plan, deadlines)
        try:
            worker = await self._pool.acquire()
            if self._layers is not None:
                await self._prove(worker, self._layers)
            return self._make_call(worker, plan, call, quiet)
        except BaseException:
            if call.large_call is not None:
                drop(call.large_call)
            raise

    async def _encode_any(self, plan: Plan, deadlines: Deadlines) -> codecs.Call:
        (large, by_value), self._large = self._large, (None, False)
        if large is not plan:  # otherwise `provide_nowait` has tried this
            try:
                return self._encode(plan)
            except TooMuch as exc:
                by_value = exc.by_value
        deadlines.held_up = "its arguments were still being pickled"
        call = await encode_large_call(plan, self._functions, by_value=by_value)
        deadlines.held_up = ""
        if call.large_call is not None:
            self._pool.learn("aioisolate._os.mappings")
        return self._note(plan, call)

    def _make_call(self, worker: Worker, plan: Plan, call: codecs.Call, quiet: bool) -> WorkerCall:
        child = WorkerCall(worker, plan, call, self._backend, quiet=quiet)
        child.suspicion = self._suspicion
        return child

    def hindrance(self) -> str:
        """Return the reason for which a call has no child yet."""
        return self._pool.hindrance()

    def _is_proved(self, worker: Worker, layers: Sequence[str]) -> bool:
        """Return whether a worker has proved its layers. Raises if they differ from the plan."""
        try:
            return worker.prove(layers)
        except BaseException:
            self._pool.let_go(worker)
            raise

    async def _prove(self, worker: Worker, layers: Sequence[str]) -> None:
        """Wait until a worker has proved its layers."""
        while not self._is_proved(worker, layers):
            try:
                await anyio.wait_readable(worker.channel)
            except BaseException:
                self._pool.give_back(worker)
                raise

    def _encode(self, plan: Plan) -> codecs.Call:
        return self._note(plan, encode_call(plan, self._functions))

    def _note(self, plan: Plan, call: codecs.Call) -> codecs.Call:
        """Make the fork server import the modules that such calls need, and return *call*."""
        self._call_costs.note_size(plan, call)
        # Once for each codec: searching for a library that is not installed takes long.
        if plan.options.codec not in self._codecs:
            self._codecs.add(plan.options.codec)
            from .._wire import plain_data  # noqa: PLC0415 - only with a data-only codec

            self._pool.learn("aioisolate._wire.plain_data")
            self._pool.learn(plain_data.module_name(plan.options.codec))
        if plan.enforcement.rlimits is not None:
            self._pool.learn("aioisolate._child.rlimits")
        if self._functions is not None:
            return call
        if call.by_cloudpickle:
            self._pool.learn("cloudpickle")
        if call.passed_fds.fds:
            self._pool.learn("aioisolate._memory.snapshot")
        module = getattr(plan.fn, "__module__", None) or "builtins"
        if module not in self._logged and module != "__main__":
            self._logged.add(module)
            if not self._pool.has_imported(module):
                _log.debug("each child imports %s for itself: name it in preload", module)
        return call

    def note_imports(self, plan: Plan, report: bytes) -> None:
        """Warn of imports that each call waits for."""
        self._call_costs.note_imports(plan, report)

    def after_call(self) -> None:
        """Request another worker in place of the used one."""
        self._pool.after_call()

    async def aclose(self) -> None:
        """End the fork server and its children."""
        await self._pool.aclose()

    def kill_now(self) -> None:
        """End the fork server and its children at once, blocking."""
        self._pool.kill_now()


def fresh_interpreter(
    backend: AsyncBackend,
    *,
    preload: Sequence[str],
    environment: Mapping[str, str] | None,
    python: str,
    warm: int,
    confinement: ConfinementSpec | None,
    patience: float | None,
) -> ServerSource:
    """Return a source of children of a fresh interpreter.

    *patience*: how many seconds a call may wait for its child. *python*: the path of the
    interpreter; "": `sys.executable`.
    """
    if confinement is not None:
        if environment is not None:  # but not the sandbox's environment
            confinement = _with_environment(confinement, environment)
        own = os.environ if confinement.env is None else confinement.env
        # Each further arena of malloc takes 64 MiB of the address space, which limits count.
        environment = {"MALLOC_ARENA_MAX": "2", **own}
    fields = None if confinement is None else tuple(confinement)
    layers = None if confinement is None else confinement.server_layers

    def setup() -> protocol.Setup:
        try:
            directory = os.getcwd()
        except OSError:
            directory = ""  # deleted or inaccessible; the server needs no directory
        # Python skips entries that are not strings, but fails at one that can't be a path.
        entries = [entry for entry in map(_as_text, sys.path) if entry is not None]
        path = [entry or directory for entry in entries]
        early = "LD_BIND_NOW" not in (os.environ if environment is None else environment)
        return protocol.Setup(os.getpid(), path, tuple(preload), early, fields)

    backend = backend._replace(task=None)
    launch = launch_interpreter(environment, python)
    pool = Pool(backend, launch, setup, warm=warm, layers=layers, patience=patience)
    return ServerSource(backend, pool, confinement=confinement)


def _as_text(entry: object) -> str | None:
    return str(entry) if isinstance(entry, str) and "\0" not in entry else None


def template(
    backend: AsyncBackend,
    *,
    preload: Sequence[str],
    environment: Mapping[str, str] | None,
    warm: int,
    confinement: ConfinementSpec | None,
    patience: float | None,
) -> ServerSource:
    """Return a source of children of a copy of this process as it is now."""
    if confinement is not None:
        if environment is not None:
            confinement = _with_environment(confinement, environment)
        environment = confinement.env  # for *preload*, too
    functions = ancestry.functions_of_now()
    others = fork_safety.other_threads(threads.others())
    launch = launch_copy(
        backend, functions, others, confinement, preload=preload, environment=environment
    )
    layers = None if confinement is None else confinement.server_layers
    backend = backend._replace(task=None)  # only the copy itself has to forget the task
    pool = Pool(backend, launch, None, warm=warm, layers=layers, patience=patience)
    return ServerSource(
        backend,
        pool,
        functions,
        confinement=confinement,
        suspicion=others.suspicion(),
    )


def _with_environment(
    confinement: ConfinementSpec, environment: Mapping[str, str], *, copied: bool = False
) -> ConfinementSpec:
    """Return a confinement with another environment; *copied*: each child sets the environment."""
    confinement = confinement._replace(env=dict(environment))
    if copied:
        layers = tuple(sorted({*confinement.child_layers, Layer.ENVIRONMENT}))
        return confinement._replace(child_layers=layers)
    layers = tuple(sorted({*confinement.server_layers, Layer.ENVIRONMENT}))
    return confinement._replace(server_layers=layers)


def _import_here(name: str) -> None:
    try:
        imports.import_whole(name)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as exc:  # importing runs any code
        text = "".join(traceback.format_exception(exc)).rstrip()
        # The first line must be a complete summary: logs may show no more.
        summary = f"{type(exc).__name__}: {exc}".partition("\n")[0]
        number = exc.errno if isinstance(exc, OSError) else None
        raise CallableDidNotExecuteError(
            f"{name!r} of preload can't be imported: {summary}\n{text}",
            reason=Reason.CHILD_SETUP,
            crash_traceback=text,
            transient=may_pass(number),
        ) from exc
