"""Runs attempts in this process: coroutine functions as tasks of the event loop, plain functions in threads.

An attempt waits for its connection first, if its handler wants one, then runs for as long as its timeout allows, and
comes to a report. Whoever runs this sends the reports to the dispatcher.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic_core import PydanticSerializationError, to_json

from ... import tracing
from ...engine.connection import asynchronous
from ...engine.driving import drive
from ...errors import JobArgumentsError, JobError, PoolClosedError, PoolError, PySQLXError
from ...log_config import part
from ...masking import mask_uris
from ..logs import JobAtWork, at_work
from . import faults
from .attempts import Report, abandoned, completed, failed, given_back, snoozed
from .job import Job
from .life import State
from .pools import QueuePools, lent
from .recycling import Recycling
from .retries import LONGEST, Cancel, Outcome, Retry, Snooze
from .store import Claim, Claimed, Progress, store_of
from .threads import Threads

if TYPE_CHECKING:
    from ...engine.connection import PySQLXEngine
    from .queue import JobQueue
    from .tasks import Task

logger = part("jobs")

LAST_WORDS = 5.0
"""Seconds, when all has ended or was given back, for the database to take what the last jobs came to."""
_CANCELLED = 0.2
"""Seconds for what was cancelled to end."""
_NOT_BEGUN = 1_000_000
"""Microseconds until another try, when the database was not there to begin with, or somebody had it locked."""
_LONGEST_ERROR = 2_000
_LONGEST_TRACEBACK = 20_000
Stop = Literal["cancel", "end", "time"]


class _Running:
    """One attempt."""

    def __init__(self, claimed: Claimed, task: Task[Any, Any], job: Job) -> None:
        self.claimed = claimed
        self.task = task
        self.job = job
        self.stepped = False
        """Whether its task has begun: one that is cancelled before never does."""
        self.begun = False
        """Whether its handler was called."""
        self.stop: Stop | None = None
        """Why it is to stop: somebody cancels the job, the worker ends, or its time is over."""
        self.work: asyncio.Task[None] | None = None
        self.span: tracing.Span | None = None


class Runner:
    def __init__(
        self,
        worker: str,
        queue: JobQueue,
        pools: QueuePools,
        *,
        report: Callable[[Report], None],
        set_progress: Callable[[Progress], None],
    ) -> None:
        """`report` and `set_progress` are called in the event loop, and do not block."""
        self._worker = worker
        self._tasks = queue.tasks
        self._pools = pools
        self._report = report
        self._set_progress = set_progress
        self._max_result = queue.max_payload
        self.recycling = Recycling()
        self._threads = Threads("pysqlx-job")
        self._running: dict[Claim, _Running] = {}
        self._chance = random.Random()
        self._context = contextvars.copy_context()
        self._loop = asyncio.get_running_loop()
        self.idle = asyncio.Event()
        """Nothing runs."""
        self.idle.set()

    @property
    def running(self) -> list[Claimed]:
        return [running.claimed for running in self._running.values()]

    def start(self, jobs: Iterable[Claimed]) -> None:
        """Run these. Each comes to one report."""
        for claimed in jobs:
            task = self._tasks[claimed.task]
            running = _Running(claimed, task, Job(claimed, self._say_progress))
            self._running[claimed.claim] = running
            self.idle.clear()
            # Perhaps it is a handler's end that brings the next job: it is to know nothing of that one.
            running.work = self._loop.create_task(self._run(running), context=self._context.copy())

    def cancel(self, jobs: Iterable[Claimed]) -> None:
        """Somebody does not want these any more."""
        for claimed in jobs:
            running = self._running.get(claimed.claim)
            if running is not None and running.stop is None:
                self._stop(running, "cancel")

    async def drain(self, grace: float, hurry: asyncio.Event) -> None:
        """Wait `grace` seconds, or until `hurry`, for everything to end; then cancel the rest and give it back: it can
        begin anew elsewhere. A plain function that does not end is left to run; the process has to end for it."""
        for running in list(self._running.values()):
            if not running.begun:
                self._stop(running, "end")
        await first_of(self.idle, hurry, timeout=grace)
        for running in list(self._running.values()):
            self._stop(running, "end")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.idle.wait(), _CANCELLED)
        for running in list(self._running.values()):
            self._over(running, given_back(running.claimed))
        self._threads.stop()

    # -- one attempt ----------------------------------------------------------------------------------------------

    async def _run(self, running: _Running) -> None:
        running.stepped = True
        job = running.claimed
        at_work.set(JobAtWork(job.id, job.task, job.attempt))
        try:
            with tracing.attempt(
                job.queue, job.task, job.id, job.attempt, job.max_attempts, job.trace_context
            ) as running.span:
                report = await self._attempt(running)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its attempt's end, and no more
            try:
                report = self._verdict(running, error)
                if report.failure is not None and _outcome(report) is not State.CANCELLED:
                    tracing.failed(running.span, error)
            except Exception as unspeakable:  # noqa: BLE001 - an error that cannot be shown, for instance
                reason = f"{type(error).__name__}, of which nothing can be said: {type(unspeakable).__name__}"
                report = failed(job, self._worker, reason, wait=_NOT_BEGUN)
        self._over(running, report)

    async def _attempt(self, running: _Running) -> Report:
        task, claimed = running.task, running.claimed
        arguments = task.signature.decode(claimed.args)
        if task.signature.job is not None:
            arguments[task.signature.job] = running.job
        run = self._in_task if task.signature.is_async else self._in_thread
        returned = await run(running, arguments)
        return returned if isinstance(returned, Report) else self._done(running, returned)

    async def _in_task(self, running: _Running, arguments: dict[str, Any]) -> object:
        task = running.task
        if not task.signature.uses_connections:
            return await self._call(running, arguments)
        pool = await self._pools.for_tasks()
        if task.signature.pool is not None:
            arguments[task.signature.pool] = pool
        if task.signature.connection is None:
            return await self._call(running, arguments)
        async with pool.connection(timeout=LONGEST) as connection:
            arguments[task.signature.connection] = connection
            if not task.task_options.transactional:
                with lent(connection):
                    return await self._call(running, arguments)
            transaction = _Transaction(connection)
            try:
                await transaction.begin()
                with lent(connection):
                    returned = await self._call(running, arguments)
                report = self._done(running, returned)
            except BaseException:
                await transaction.undo()
                raise
            return await transaction.end(report)

    async def _call(self, running: _Running, arguments: dict[str, Any]) -> object:
        running.begun = True
        faults.reached("started")
        timeout = running.task.task_options.timeout
        if timeout is None:
            return await running.task.function(**arguments)
        try:
            async with asyncio.timeout(timeout) as limit:
                return await running.task.function(**arguments)
        except TimeoutError:
            if limit.expired():
                raise TooLong(timeout) from None
            raise  # the handler's own

    async def _in_thread(self, running: _Running, arguments: dict[str, Any]) -> object:
        begun = asyncio.Event()
        work = self._loop.create_task(self._threads.run(lambda: self._work(running, arguments, begun)))
        began = self._loop.create_task(begun.wait())
        try:
            await asyncio.wait({work, began}, return_when=asyncio.FIRST_COMPLETED)
            done, _ = await asyncio.wait({work}, timeout=running.task.task_options.timeout)
            if not done:
                self._stop(running, "time")
                raise TooLong(running.task.task_options.timeout)
            return await work
        finally:
            began.cancel()
            work.add_done_callback(_forget)

    def _work(self, running: _Running, arguments: dict[str, Any], begun: asyncio.Event) -> object:
        """What the thread does."""
        task = running.task

        def call() -> object:
            if running.stop is not None:
                raise _NotBegun
            running.begun = True
            faults.reached("started")
            self._loop.call_soon_threadsafe(begun.set)
            return task.function(**arguments)

        if not task.signature.uses_connections:
            return call()
        pool = self._pools.for_threads()
        if task.signature.pool is not None:
            arguments[task.signature.pool] = pool
        if task.signature.connection is None:
            return call()
        with pool.connection(timeout=LONGEST) as connection:
            arguments[task.signature.connection] = connection
            if not task.task_options.transactional:
                with lent(connection):
                    return call()
            transaction = _Transaction(asynchronous(connection))
            try:
                drive(transaction.begin())
                with lent(connection):
                    returned = call()
                report = self._done(running, returned)
            except BaseException:
                drive(transaction.undo())
                raise
            return drive(transaction.end(report))

    # -- what it came to ------------------------------------------------------------------------------------------

    def _done(self, running: _Running, returned: object) -> Report:
        """The handler has returned."""
        if isinstance(returned, Outcome):
            raise returned
        result = None
        if running.task.task_options.store_result:
            try:
                result = to_json(returned)
            except PydanticSerializationError as error:
                raise JobError(f"its result cannot be written as JSON: {error}") from None
            if len(result) > self._max_result:
                raise JobError(f"its result is {len(result)} bytes of JSON, and {self._max_result} can be stored")
        return completed(running.claimed, None if result is None else result.decode())

    def _verdict(self, running: _Running, error: BaseException) -> Report:
        """The attempt has ended with `error`."""
        claimed, stop = running.claimed, running.stop
        match error:
            case Cancel():
                return abandoned(claimed, self._worker, _clean(error.reason))
            case Snooze():
                return snoozed(claimed, round(error.seconds * 1_000_000))
            case Retry():
                wait = self._backoff(running) if error.after is None else error.after
                reason = error.reason or "the handler asks for another attempt"
                return failed(claimed, self._worker, _clean(reason), wait=round(wait * 1_000_000))
        if stop == "cancel":
            return abandoned(claimed, self._worker, "cancelled")
        if not running.begun and (stop == "end" or isinstance(error, PoolClosedError)):
            return given_back(claimed)
        if stop == "end" and isinstance(error, asyncio.CancelledError):
            return given_back(claimed)
        text = _masked(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        if not running.begun and isinstance(error, PySQLXError | PoolError):
            # No connection was to be had, or no transaction: the handler was not called.
            return snoozed(claimed, _NOT_BEGUN, self._worker, _clean(f"not begun: {text}"))
        logger.warning("Jobs: %r failed: %s", running.job, text)
        trace = None
        if not isinstance(error, JobArgumentsError | TooLong):
            trace = "".join(traceback.format_exception(_of_the_handler(error)))
            trace = _clean(_masked(trace, _LONGEST_TRACEBACK), _LONGEST_TRACEBACK)
        wait = round(self._backoff(running) * 1_000_000)
        return failed(claimed, self._worker, _clean(text), trace, wait=wait)

    def _backoff(self, running: _Running) -> float:
        return running.task.task_options.backoff.delay(running.claimed.attempt, self._chance)

    def _over(self, running: _Running, report: Report) -> None:
        claim = running.claimed.claim
        if self._running.pop(claim, None) is None:
            return  # it was given back already
        if not self._running:
            self.idle.set()
        self.recycling.job_ended()
        self._report(report)
        tracing.attempt_ended(running.span, _outcome(report))

    def _stop(self, running: _Running, why: Stop) -> None:
        running.stop = running.stop or why
        running.job._cancel_asked = True
        if running.work is not None and running.task.signature.is_async:
            running.work.cancel()
            if not running.stepped:
                self._over(running, self._verdict(running, asyncio.CancelledError()))

    def _say_progress(self, claimed: Claimed, text: str) -> None:
        progress = Progress(id=claimed.id, attempt=claimed.attempt, owner=claimed.owner, progress=_clean(text))
        self._loop.call_soon_threadsafe(self._set_progress, progress)


class TooLong(Exception):
    def __init__(self, timeout: float | None) -> None:
        super().__init__(f"took longer than its timeout of {timeout} s")


class _NotBegun(Exception):
    """The worker ends before the handler was called."""


class _Transaction:
    """A handler's effects and its job's end, together or not at all. Plain functions drive these steps."""

    def __init__(self, connection: PySQLXEngine) -> None:
        self._connection = connection
        self._store = store_of(connection)

    async def begin(self) -> None:
        await self._store.begin(self._connection)

    async def undo(self) -> None:
        await self._store.undo(self._connection)

    async def end(self, report: Report) -> Report:
        """Commit, if the rows still say that this attempt runs."""
        assert report.ended is not None
        try:
            mine = await self._store.end(self._connection, [report.ended]) == 1
        except BaseException:
            await self.undo()
            raise
        if mine:
            await self._connection.commit()
            faults.reached("committed")
        else:
            logger.warning("Jobs: job %d was taken from this worker: nothing of it is committed", report.attempt.id)
            await self.undo()
        tracing.came_to(str(State.COMPLETED) if mine else "taken")
        return Report(attempt=report.attempt)


async def first_of(*events: asyncio.Event, timeout: float | None = None) -> None:
    """Wait for any of them, or for so many seconds."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _outcome(report: Report) -> State | None:
    """What the job is now; None: whoever ran it has written that."""
    after = report.ended or report.postponed
    return after.state if after is not None else None


def _forget(work: asyncio.Task[object]) -> None:
    """Of a function that was not waited for: what it raises at last is of no use any more."""
    if not work.cancelled():
        work.exception()


def _of_the_handler(error: BaseException) -> BaseException:
    """Without the frames of what has called the handler."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in _OUR_FILES:
        trace = trace.tb_next
    return error.with_traceback(trace) if trace is not None else error


_OUR_FILES = frozenset({__file__, Threads.run.__code__.co_filename})


def _masked(text: str, longest: int = _LONGEST_ERROR) -> str:
    """Without passwords, and so much of its end that `longest` can be had of it: a text of any length would hold up the
    other jobs. The line in which it is cut is left out: a password may be there whose URI is no longer one."""
    if len(text) > 4 * longest:
        text = text[-4 * longest :]
        text = text[text.find("\n") + 1 :]
    return mask_uris(text)


def _clean(text: str, longest: int = _LONGEST_ERROR) -> str:
    """A text that every database takes, the end of it where it is too long."""
    text = text.encode(errors="replace").decode().replace("\0", "\\0")
    return text if len(text) <= longest else "..." + text[3 - longest :]
