"""Runs a queue in this process until a signal says that it is enough: with a dispatcher in the same event loop, or, as
one of several workers of a run, with the one that the supervisor starts."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ... import tracing
from ...errors import JobSetupError
from ...log_config import part
from ...pool import registry
from .dialects import dialect_of
from .dispatcher import Dispatcher, prepare
from .hints import Hints, Listener
from .linked import LinkedWorker
from .runner import LAST_WORDS, Runner, first_of
from .served import Retired, ServedQueue, Serving, ask_supervisor

if TYPE_CHECKING:
    from ...pool.aio import PySQLXEnginePool
    from .attempts import Report
    from .pools import QueuePools
    from .queue import JobQueue
    from .store import Claimed, Progress

logger = part("jobs")

GRACE = 30.0
"""Seconds that jobs get to end."""


def grace_of_the_run() -> float:
    """As long as the supervisor waits, less what it takes to cancel and to report."""
    timeout = float(os.environ.get("PYSQLX_GRACEFUL_TIMEOUT") or GRACE)
    return max(0.0, timeout - min(1.0, timeout / 2))


class Told:
    """To stop, and, when told again, not to wait any more. Safe to use from any thread, and before there is a loop."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        """Begin nothing any more."""
        self.end = asyncio.Event()
        """And what runs has the grace time from now on."""
        self.hurry = asyncio.Event()
        """And now no more of it."""
        self.loop: asyncio.AbstractEventLoop | None = None
        """Where somebody listens; None: nobody does yet."""

    def tell(self) -> None:
        self._call(self._tell)

    def drain(self) -> None:
        """Stop, however often it is said."""
        self._call(self._end)

    def retire(self) -> None:
        """Stop, when what runs has ended, however long that takes."""
        self._call(self.stop.set)

    def _tell(self) -> None:
        if self.end.is_set():
            self.hurry.set()
        self._end()

    def _end(self) -> None:
        self.stop.set()
        self.end.set()

    def _call(self, what: Callable[[], object]) -> None:
        if self.loop is None:
            what()
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped
            self.loop.call_soon_threadsafe(what)


@contextlib.contextmanager
def told_by_others(told: Told) -> Iterator[None]:
    """INT, TERM (where nobody else has a handler for it) and the drain of a run tell, too."""
    told.loop = loop = asyncio.get_running_loop()
    handled: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        handled.append(signal.SIGINT)
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            handled.append(signal.SIGTERM)  # a worker of a run has one, which comes here as INT
    # In a run the same end is said twice, by a message and by a signal: it is the supervisor who does not wait.
    for number in handled:
        loop.add_signal_handler(number, told.drain if ask_supervisor else told.tell)
    registry.on_drain.append(told.drain)
    registry.on_retire.append(told.retire)
    try:
        yield
    finally:
        registry.on_drain.remove(told.drain)
        registry.on_retire.remove(told.retire)
        if told.stop.is_set() and not told.end.is_set() and not registry.on_retire:
            for say in ask_supervisor:
                say(Retired())
        for number in handled:
            loop.remove_signal_handler(number)


async def serve(
    queue: JobQueue, pools: QueuePools, hints: Hints, grace: float, told: Told, asked: ServedQueue | None
) -> None:
    """Raises JobSetupError for a budget of less than 2, JobSchemaError where there are no tables, or newer ones."""
    if asked is None:
        await serve_here(queue, pools, hints, grace, told)
        return
    pool = await pools.for_tasks()
    try:
        check_budget(pool.stats().max_size)
        async with pool.connection() as connection:
            await prepare(connection, dialect_of(connection))
        for ask in ask_supervisor:
            ask(asked)
        await LinkedWorker(queue, pools, asked.socket).serve(grace, told)
    finally:
        await pools.stop()


async def serve_here(queue: JobQueue, pools: QueuePools, hints: Hints, grace: float, told: Told) -> None:
    """Raises JobSetupError for a budget of less than 2, and what `Dispatcher.serve` raises."""
    pool = await pools.for_tasks()
    check_budget(pool.stats().max_size)
    here = _Here(queue, pools, pool)
    hints.here = here.listener
    serving = asyncio.get_running_loop().create_task(
        here.dispatcher.serve(), context=tracing.quiet(contextvars.copy_context())
    )
    telling = asyncio.ensure_future(_tell_supervisor(here.dispatcher))
    try:
        waiting = asyncio.ensure_future(told.stop.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not serving.done():
            await here.drain(grace, told, serving)
        if serving.done():
            serving.result()
    finally:
        serving.cancel()
        telling.cancel()
        hints.here = None
        here.runner.recycling.stop()
        here.listener.close()
        await pools.stop()


async def _tell_supervisor(dispatcher: Dispatcher) -> None:
    await dispatcher.appeared.wait()
    for say in ask_supervisor:
        say(Serving())


def check_budget(size: int) -> None:
    if size < 2:
        raise JobSetupError(
            f"a budget of {size} is too small to run jobs: the dispatcher needs a connection, and the handlers need "
            "another one (max_size)"
        )


class _Here:
    """The one worker of its dispatcher."""

    def __init__(self, queue: JobQueue, pools: QueuePools, pool: PySQLXEnginePool) -> None:
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self.listener = Listener(self._hint)
        self.runner = Runner(
            self._name,
            queue,
            pools,
            report=self._report,
            set_progress=self._set_progress,
        )
        self.dispatcher = Dispatcher(
            pool,
            queue.weights,
            self,
            connections=pool.stats().max_size - 1,
            keep=queue.keep,
            run=f"process-{secrets.token_hex(8)}",
            hints=self.listener.name,
        )
        self.dispatcher.join(self._name, queue.concurrency, queue.abilities, queue.schedules.values())

    def send(self, worker: str, jobs: list[Claimed]) -> None:
        self.runner.start(jobs)

    def cancel(self, worker: str, jobs: list[Claimed]) -> None:
        self.runner.cancel(jobs)

    def written(self, reports: Sequence[Report]) -> None:
        """They were handed over, and nobody has kept them."""

    def _hint(self, more: bool) -> None:
        self.dispatcher.hint(more=more)

    def _report(self, report: Report) -> None:
        self.dispatcher.report(self._name, [report])

    def _set_progress(self, progress: Progress) -> None:
        self.dispatcher.set_progress(progress)

    async def drain(self, grace: float, told: Told, serving: asyncio.Future[None]) -> None:
        """`serving`: the dispatcher, which may end by itself, with an error."""
        written = self.dispatcher.drain()
        await first_of(self.runner.idle, told.end)
        await self.runner.drain(grace, told.hurry)
        done, _ = await asyncio.wait({written, serving}, timeout=LAST_WORDS, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            written.cancel()
            logger.warning("Jobs: the database has not taken what the last jobs came to: they will run again")
