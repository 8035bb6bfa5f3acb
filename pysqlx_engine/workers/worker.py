"""A worker process: runs the user's script as `python` would, and does what the supervisor says.

The supervisor speaks over a socket, one JSON object per message:

- `{"op": "drain"}`: the pools hand out no more connections. A TERM follows, which ends the script;
- `{"op": "retire"}`: no more jobs; when those that run have ended, the worker says `Retired`;
- `{"op": "stats"}`: answered by `Statistics`;
- `{"op": "dump"}`: the pools and what each thread does go to stderr.

What the worker says is a `Message`.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import faulthandler
import functools
import importlib
import importlib.util
import inspect
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from multiprocessing.connection import Connection
from typing import Literal, NoReturn

import msgspec

from ..errors import (
    ConnectError,
    JobSetupError,
    PoolClosedError,
    PoolRefusedError,
    PoolTimeoutError,
    PySQLXError,
    SettingsError,
)
from ..pool import registry
from ..system import nonblocking_pipe
from .jobs.served import Recycle, Retired, ServedQueue, Serving, ask_supervisor
from .logs import LogSpec, set_up
from .process import CHILD_SIGNALS, become_child
from .status import PoolLook

__all__ = [
    "BOOT_FAILURE",
    "MESSAGE_LIMIT",
    "BootFailure",
    "Message",
    "PoolStarted",
    "Statistics",
    "Target",
    "WorkerSpec",
    "main",
]

BOOT_FAILURE = 3
"""The exit status of a worker, and of a run, for what a restart cannot cure."""

MESSAGE_LIMIT = 1 << 17
"""Bytes of one message between supervisor and worker: what a Unix socket takes in one piece."""

_TEXT_LIMIT = 1000
"""Characters of an error in a message: with its end of line it fits into a pipe in one piece, in any language."""


class BootFailure(msgspec.Struct, tag="boot_failure", frozen=True):
    """The worker ends, and it never had a pool."""

    error: str
    """One line."""
    curable: bool
    """True when only time was too short: the server or the coordinator could not be reached."""


class PoolStarted(msgspec.Struct, tag="pool_started", frozen=True):
    """The worker's first pool has started. Said once."""


class Statistics(msgspec.Struct, tag="statistics", frozen=True):
    """One look at each running pool."""

    pools: list[PoolLook]


Message = BootFailure | PoolStarted | Statistics | ServedQueue | Serving | Recycle | Retired


@dataclass(frozen=True, slots=True)
class Target:
    """What a worker runs: a script's path, a `module` (as `python -m` does), or `module:callable`."""

    kind: Literal["script", "module", "callable"]
    name: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker process has to know before it runs its script."""

    number: int
    supervisor: int
    target: Target
    environment: dict[str, str]
    uvloop: bool
    open_files: int
    """The limit that the script runs under: the supervisor may have needed a higher one."""
    logs: LogSpec


def main(spec: WorkerSpec, control: socket.socket, stdout: Connection | None, stderr: Connection | None) -> NoReturn:
    """The whole life of a worker process."""
    become_child(f"pysqlx-run: worker {spec.number}", spec.supervisor, stdout, stderr)
    set_up(spec.logs, f"worker {spec.number}", spec.number)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # by now it may be lower than what we were started with
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(spec.open_files, hard), hard))
    os.environ.update(spec.environment, PYSQLX_WORKER_PID=str(os.getpid()))
    worker = _Worker(control)
    worker.obey()
    status: object = 0
    try:
        with worker.interruptible():
            if spec.uvloop:
                _use_uvloop()
            _run(spec.target)
    except SystemExit as error:
        status = error.code
        if worker.draining:
            status = 0
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the script's end
        status = worker.end_of_script(error, spec.target)
    sys.exit(status)  # type: ignore[arg-type]  # a string, too, means what it means to python


class _Worker:
    """Takes the supervisor's orders and the TERM signal, and knows whether the worker is draining."""

    def __init__(self, control: socket.socket) -> None:
        self.draining = False
        self._control = control
        self._wake, self._waker = nonblocking_pipe()
        self._interruptible = False
        self._interrupted = False
        self._had_a_pool = False

    def obey(self) -> None:
        """Take orders from now on."""
        registry.on_first_start.append(self._pool_started)
        ask_supervisor.append(self._say)
        threading.Thread(target=self._listen, name="pysqlx-worker-control", daemon=True).start()
        # Started in the background of a shell, we inherit an ignored INT; asyncio.run handles INT, and so a drain, only
        # when it finds Python's own handler.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # throws a terminal's INT from our start away
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, self._terminate)
        logging.getLogger("asyncio").addFilter(self._is_of_the_script)
        _Fork(self._terminate).watch()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Where a TERM raises KeyboardInterrupt. Behind it only threads are left, which end when their pools refuse."""
        self._interruptible = True
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, CHILD_SIGNALS)
            yield
        finally:
            self._interruptible = False

    def end_of_script(self, error: BaseException, target: Target) -> int:
        """The exit status of a script that `error` ended, after saying so."""
        causes = list(_leaves(error))
        if self.draining and all(isinstance(cause, _ENDS_OF_A_DRAIN) for cause in causes):
            # A TERM between `main()` and `asyncio.run` is nothing that the script's author could do anything about.
            warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)
            return 0
        if self._cannot_boot(causes):
            curable = any(isinstance(cause, PoolTimeoutError) for cause in causes)
            self._say(BootFailure(_shortened(f"{target.name}: {_one_line(causes[0])}"), curable))
            return BOOT_FAILURE
        sys.excepthook(type(error), _without_our_frames(error), error.__traceback__)
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1

    def _cannot_boot(self, causes: list[BaseException]) -> bool:
        return all(isinstance(cause, JobSetupError) for cause in causes) or (
            not self._had_a_pool and all(_is_boot_failure(cause) for cause in causes)
        )

    def _is_of_the_script(self, record: logging.LogRecord) -> bool:
        """False for what asyncio logs because a TERM came in the midst of its own work on a loop or a task."""
        if not self._interrupted:
            return True
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return record.getMessage() != "deallocating an open event loop"  # uvloop's, of one that it was making
        return not self._cannot_boot(list(_leaves(error)))

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._wake:
                    os.read(self._wake, 1024)
                    self._drain()
                    continue
                message = self._control.recv(MESSAGE_LIMIT)
                if not message:
                    return  # the supervisor is gone, and so are we in a moment
                operation = json.loads(message)["op"]
                if operation == "drain":
                    self._drain()
                elif operation == "retire":
                    if not registry.retire():
                        self._say(Retired())
                elif operation == "dump":
                    _dump()
                elif operation == "stats":
                    self._say(Statistics([PoolLook.at(runtime) for runtime in list(registry.running)]))

    def _pool_started(self) -> None:
        self._had_a_pool = True
        self._say(PoolStarted())

    def _terminate(self, number: int, frame: types.FrameType | None) -> None:
        """TERM: end the script as INT would, once.

        More of them follow when somebody else than the supervisor sends it too, as systemd does to the whole control
        group. A second INT would cut short what the script does at its end, for which it has the graceful timeout.

        The pools are drained by the other thread: this handler may have interrupted the very code that holds a
        pool's lock.
        """
        self.draining = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b"\0")
        if not self._interruptible or self._interrupted:
            return
        self._interrupted = True
        if callable(signal.getsignal(signal.SIGINT)):
            # Not a call of that handler: asyncio's `add_signal_handler` listens to the signal itself.
            signal.raise_signal(signal.SIGINT)
        else:
            raise KeyboardInterrupt

    def _drain(self) -> None:
        self.draining = True
        registry.drain()

    def _say(self, message: Message) -> None:
        with contextlib.suppress(OSError):
            self._control.send(msgspec.json.encode(message))


class _Fork(threading.local):
    """Lets TERM end a process that the script forks, as it would without us.

    Python forgets the signals that reach a child before it has set itself up. TERM is therefore held back until the
    child has no handler of ours: a script that ends a child right after its start would wait for it for ever.
    """

    def __init__(self, handler: Callable[[int, types.FrameType | None], None]) -> None:
        self._handler = handler
        self._mask: set[int | signal.Signals] = set()

    def watch(self) -> None:
        os.register_at_fork(before=self._hold, after_in_parent=self._release, after_in_child=self._begin_child)

    def _hold(self) -> None:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def _release(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _begin_child(self) -> None:
        if signal.getsignal(signal.SIGTERM) == self._handler:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._release()


def _dump() -> None:
    # Not by sys.stderr: the script may have replaced it, and may hold its lock.
    with contextlib.suppress(OSError):
        for runtime in list(registry.running):
            os.write(2, f"pool {runtime.config.name}: {runtime.describe()}\n".encode(errors="replace"))
        faulthandler.dump_traceback(file=2, all_threads=True)


_ENDS_OF_A_DRAIN = (KeyboardInterrupt, SystemExit, asyncio.CancelledError, PoolClosedError)


def _is_boot_failure(error: BaseException) -> bool:
    """Whether a worker that never had a pool cannot boot because of `error`."""
    if isinstance(error, ConnectError):
        return error.permanent
    if isinstance(error, PoolTimeoutError):
        return error.at_start
    return isinstance(error, SyntaxError | ImportError | PoolRefusedError | SettingsError | JobSetupError)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    elif isinstance(error.__context__, KeyboardInterrupt | RuntimeError) and _is_of_asyncio(error):
        yield from _leaves(error.__context__)  # it could not go on after an interrupt in the midst of its own work
    else:
        yield error


def _is_of_asyncio(error: BaseException) -> bool:
    """Whether asyncio itself raised it, and no coroutine or callback that it ran."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in ("asyncio", "uvloop")


def _one_line(error: BaseException) -> str:
    """What happened and where in the user's code, in one line."""
    text = " ".join((error.message if isinstance(error, PySQLXError) else str(error)).split())
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {text}"  # names file and line itself
    place = ""
    trace = error.__traceback__
    while isinstance(error, ImportError) and trace is not None:
        code = trace.tb_frame.f_code
        if trace.tb_frame.f_globals is not globals() and not code.co_filename.startswith("<frozen"):
            place = f" ({code.co_filename}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {text}{place}"


def _shortened(text: str) -> str:
    """A text that any encoder takes, cut where it would be too long."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 3] + "..."


def _without_our_frames(error: BaseException) -> BaseException:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    return error.with_traceback(trace)


def _use_uvloop() -> None:
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


_bootstrap_main = sys.modules["__main__"]  # its code is still running: it must outlive its place in sys.modules


def _run(target: Target) -> None:
    if target.kind == "script":
        _run_script(target)
    elif target.kind == "module":
        _run_module(target)
    else:
        _run_callable(target)


def _run_script(target: Target) -> None:
    path = os.path.abspath(target.name)
    with open(path, "rb") as stream:
        source = stream.read()
    module = _new_main([target.name, *target.arguments], os.path.dirname(os.path.realpath(path)))
    module.__file__ = path
    module.__loader__ = SourceFileLoader("__main__", path)
    module.__dict__["__cached__"] = None
    exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)


def _run_module(target: Target) -> None:
    # `python -m` lets argv[0] be "-m" while it looks for the module.
    module = _new_main(["-m", *target.arguments], os.getcwd())
    spec = _find(target.name)
    if spec.submodule_search_locations is not None:
        spec = _find(f"{target.name}.__main__")
    code = getattr(spec.loader, "get_code", lambda name: None)(spec.name)
    if code is None:
        raise ImportError(f"module {spec.name} has no Python code to run")
    sys.argv[0] = spec.origin or spec.name
    module.__file__ = spec.origin
    module.__spec__ = spec
    module.__loader__ = spec.loader
    module.__package__ = spec.parent
    module.__dict__["__cached__"] = spec.cached
    exec(code, module.__dict__)


def _find(name: str) -> ModuleSpec:
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return spec


def _run_callable(target: Target) -> None:
    _new_main([target.name, *target.arguments], os.getcwd())
    module, _, attribute = target.name.partition(":")
    try:
        function = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except AttributeError as error:
        if error.name not in attribute.split("."):
            raise
        raise ImportError(f"module {module!r} has no {attribute!r}") from None
    if not callable(function):
        raise ImportError(f"{target.name} is no callable")
    result = function()
    if inspect.iscoroutine(result):
        asyncio.run(result)


def _new_main(argv: list[str], path: str) -> types.ModuleType:
    """A `__main__` that stays: pickle, atexit handlers and threads look for the script's names there to the end."""
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.argv = argv
    if not sys.flags.safe_path:
        sys.path[0] = path
    return module
