"""How a child is started: its pipes, a process that imports nothing of ours twice, and nobody who misses its death."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import multiprocess
from multiprocess import resource_tracker
from multiprocess.process import _children as reaped_by_multiprocess

from .control_pair import control_pair
from .deaths import Deaths
from .logs import LogSpec, Source, wrap
from .output import Pump, Wrapper, line_prefix
from .process import CHILD_SIGNALS, kill_group

if TYPE_CHECKING:
    from multiprocess.context import SpawnProcess


@dataclass(frozen=True)
class Launched:
    process: SpawnProcess
    control: socket.socket | None
    ready: Connection | None
    """Our end: of what it hears us by, or of what it says by that it is ready."""


class Launcher:
    """Starts processes whose death `deaths` tells, and whose lines `stdout` and `stderr` copy; without these, children
    print to the terminal themselves."""

    def __init__(self, run: str, logs: LogSpec, deaths: Deaths[int], pumps: tuple[Pump, Pump] | None) -> None:
        self._run = run
        self._logs = logs
        self._deaths = deaths
        self._pumps = pumps
        self._context = multiprocess.get_context("spawn")

    def prepare(self) -> None:
        """To be called before the first start."""
        # Started by somebody who ignores CHLD, so do we, and so would our children: the kernel would then reap whoever
        # ends before we can ask how.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # The tracker unblocks signals when it starts: it must not do so while we start a child with signals blocked.
        resource_tracker.ensure_running()

    def launch(
        self,
        target: Callable[..., None],
        *arguments: object,
        name: str,
        color: int = -1,
        worker: int | None = None,
        says_when_ready: bool = False,
    ) -> Launched:
        """Start `target(*arguments, channel, stdout, stderr)`. Raises OSError, and has left nothing behind then, when
        the system does not let us."""
        control = ready = None
        # The child's ends of its pipes, which we close once it has them; and ours, which stay if it was started.
        with contextlib.ExitStack() as its_ends, contextlib.ExitStack() as our_ends:
            source = Source(self._run, name, worker)
            outputs = self._output_pipes(source, color, its_ends)
            channel: Connection | socket.socket
            if says_when_ready:
                ready, channel = self._context.Pipe(duplex=False)
                our_ends.callback(ready.close)
            else:
                control, channel = control_pair()
                our_ends.callback(control.close)
                control.setblocking(False)  # a send is not to make us wait
            its_ends.callback(channel.close)
            process = self._context.Process(target=target, args=(*arguments, channel, *outputs), name=name)
            with _hidden_main_module(), _blocked(CHILD_SIGNALS):
                process.start()
            source.pid = process.pid
            # With each start it reaps whoever has ended meanwhile, and there is no other way to tell it not to. We
            # reap: a death that was reaped elsewhere cannot be looked at any more, and the pid may be somebody else's.
            reaped_by_multiprocess.discard(process)
            try:
                self._deaths.watch(process.pid, process.pid)
            except OSError:  # nobody would tell us when it ends
                kill_group(process.pid)
                process.join()
                process.close()
                raise
            our_ends.pop_all()
        return Launched(process, control, ready)

    def _output_pipes(
        self, source: Source, color: int, its_ends: contextlib.ExitStack
    ) -> tuple[Connection | None, Connection | None]:
        if self._pumps is None:
            return None, None
        ends = []
        for pump, destination in zip(self._pumps, (1, 2), strict=True):
            reader, writer = self._context.Pipe(duplex=False)
            its_ends.callback(writer.close)
            with reader:
                pump.add(os.dup(reader.fileno()), self._line_dress(source, color, destination))
            ends.append(writer)
        return ends[0], ends[1]

    def _line_dress(self, source: Source, color: int, destination: int) -> bytes | Wrapper:
        """What becomes of a line that a child has printed."""
        if self._logs.format == "text":
            return line_prefix(source.process, color, destination, os.environ)
        stream = "stdout" if destination == 1 else "stderr"
        return lambda line: wrap(line, source, stream, time.time())


@contextlib.contextmanager
def _blocked(signals: frozenset[signal.Signals]) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _hidden_main_module() -> Iterator[None]:
    """Keep a child from importing our `__main__` (the `pysqlx-run` command) before it starts its own work."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
