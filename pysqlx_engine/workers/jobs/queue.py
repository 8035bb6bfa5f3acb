"""`JobQueue`: what a program declares its tasks with, enqueues by, and runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar, overload

from ... import tracing
from ...engine.connection import PySQLXEngine, PySQLXEngineSync, asynchronous
from ...engine.driving import drive
from ...errors import JobError, JobFailedError, JobSchemaError, QueryError, RawCmdError
from .conflicts import repeated
from .dialects import dialect_of
from .dispatcher import prepare
from .hints import Hints
from .life import State
from .periodic import Schedule, check
from .pools import QueuePools, lent_here
from .retries import LONGEST, Backoff
from .schema import migrate
from .served import served_queue
from .serving import Told, grace_of_the_run, serve, told_by_others
from .store import NewJob, Store, store_of
from .tasks import LONGEST_TASK_NAME, Task, TaskOptions, check_name

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

MAX_PAYLOAD = 256 * 1024
KEEP = 7 * 86400.0
_NOT_MIGRATED = ("no such table", "has no column named")
"""How SQLite says that the job tables are not there, or are those of an older version."""
_FIRST_LOOK, _LONGEST_LOOK = 0.01, 0.5
"""Seconds between two looks for a result."""


class JobQueue:
    """Tasks, and the database in which their jobs are.

    Args:
        uri: the database, as for a pool. Left out: the setting PYSQLX_URI.
        queues: the queues that `run` serves, by name, or with a weight for each: of two that are both full, one with
            weight 3 gets three times as many jobs run as one with weight 1.
        concurrency: jobs that a worker process runs at a time, 1 to 10000.
        max_size: most connections, as for a pool; at least 2 to run jobs. Left out: PYSQLX_MAX_SIZE, else 10.
        max_payload: bytes of JSON that a job's arguments, or a stored result, may have.
        keep: seconds after which jobs that have ended are deleted, with their results and errors.

    Raises ValueError or TypeError for a value outside its range, ConnectError for a URI that no driver takes.
    """

    def __init__(
        self,
        uri: str | None = None,
        *,
        queues: Iterable[str] | Mapping[str, int] = ("default",),
        concurrency: int = 10,
        max_size: int | None = None,
        max_payload: int = MAX_PAYLOAD,
        keep: float = KEEP,
    ) -> None:
        weights = dict(queues) if isinstance(queues, Mapping) else dict.fromkeys(queues, 1)
        if not weights:
            raise ValueError("queues must name one at least")
        for name, weight in weights.items():
            check_name("queue", name)
            if not isinstance(weight, int) or not 1 <= weight <= 1000:
                raise ValueError(f"the weight of queue {name} must be a whole number from 1 to 1000, not {weight!r}")
        if not isinstance(concurrency, int) or not 1 <= concurrency <= 10_000:
            raise ValueError(f"concurrency must be a whole number from 1 to 10000, not {concurrency!r}")
        if not 0 <= keep <= LONGEST:
            raise ValueError(f"keep must be from 0 seconds to 10 years, not {keep!r}")
        self.weights = weights
        self.concurrency = concurrency
        self.max_payload = max_payload
        self.keep = keep
        self.tasks: dict[str, Task[Any, Any]] = {}
        self.schedules: dict[str, Schedule] = {}
        self._pools = QueuePools(uri=uri, min_size=0, max_size=max_size, name="jobs")
        self._uri, self._max_size = uri, max_size
        self._hints = Hints()
        self._prepared: set[str] = set()
        """The URIs of the connections by which the tables were seen."""
        self._told: Told | None = None

    # -- tasks ----------------------------------------------------------------------------------------------------

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        queue: str | None = None,
        max_attempts: int = 20,
        timeout: float | None = None,
        priority: int = 0,
        backoff: Backoff | None = None,
        transactional: bool = False,
        store_result: bool = False,
        limit: int | None = None,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...
    def task(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        queue: str | None = None,
        max_attempts: int = 20,
        timeout: float | None = None,
        priority: int = 0,
        backoff: Backoff | None = None,
        transactional: bool = False,
        store_result: bool = False,
        limit: int | None = None,
    ) -> Any:
        """Make a function a task.

        What the function's parameters are annotated with decides what it gets: `PySQLXEngine` (a plain function:
        `PySQLXEngineSync`) a connection for as long as it runs, `PySQLXEnginePool` (`PySQLXEnginePoolSync`) the pool,
        `Job` the job; all others are the job's arguments, validated by their annotations.

        Args:
            name: what its jobs are known by; left out: the function's name. A second task of one name is refused.
            queue: where its jobs are enqueued; left out: the first of the queues that are served.
            max_attempts: 1 to 1000.
            timeout: seconds for one attempt, without its wait for a connection; None: as long as it likes.
            priority: higher runs first.
            backoff: how long a failed job waits.
            transactional: commit what the handler does by its connection together with the job's end, or neither.
            store_result: keep what it returns for `result`.
            limit: how many of its jobs run at a time, over all hosts, 1 to 100000; of all, or of those with the same
                `limit_key`, which `options` gives.

        Raises TypeError for a function that cannot be a handler, ValueError for an option outside its range.
        """
        backoff = Backoff() if backoff is None else backoff
        queue = next(iter(self.weights)) if queue is None else queue
        settings = TaskOptions(queue, max_attempts, timeout, priority, backoff, transactional, store_result, limit)

        def declare(function: Callable[P, R]) -> Task[P, R]:
            known = getattr(function, "__name__", None) if name is None else name
            if known is None:
                raise TypeError(f"{function!r} has no name: give it one by name=")
            check_name("name", known, LONGEST_TASK_NAME)
            if known in self.tasks:
                raise ValueError(f"there is a task {known!r} already: give one of them another name by name=")
            task = Task(self, known, function, settings)
            self.tasks[known] = task
            return task

        return declare if function is None else declare(function)

    @property
    def abilities(self) -> dict[str, bool]:
        """The tasks by name, and whether their handlers use connections."""
        return {name: task.signature.uses_connections for name, task in self.tasks.items()}

    def periodic(
        self, cron: str, *, zone: str = "UTC", queue: str | None = None, max_attempts: int = 1, **options: Any
    ) -> Callable[[Callable[P, R]], Task[P, R]]:
        """Make a function a task that is enqueued by the clock, once for each of its times, over all hosts. One that is
        still there when the next time comes is not enqueued a second time; of times that passed while nobody was there
        the last one is made up for.

        Args:
            cron: five fields, as in a crontab: minute, hour, day of month, month, day of week.
            zone: the time zone of `cron`.
            max_attempts: 1, as its next time comes anyway.

        All others are those of `task`. Raises ValueError and TypeError as that does, for a line or a zone that nobody
        understands, and for a function that takes arguments.
        """
        check(cron, zone)

        def declare(function: Callable[P, R]) -> Task[P, R]:
            task: Task[P, R] = self.task(queue=queue, max_attempts=max_attempts, **options)(function)
            if not task.signature.fits_nothing:
                del self.tasks[task.name]
                raise TypeError(f"{task.name} takes arguments, and the clock has none to give")
            self.schedules[task.name] = Schedule(
                task.name, cron, zone, task.task_options.queue, task.task_options.priority, max_attempts
            )
            return task

        return declare

    # -- enqueue, and look ----------------------------------------------------------------------------------------

    async def enqueue(self, jobs: Sequence[NewJob], conn: PySQLXEngine | None = None) -> list[int]:
        """What `Task.enqueue` does, for jobs that are ready."""
        if conn is None:
            inherited = lent_here()
            if isinstance(inherited, PySQLXEngineSync):
                raise JobError("a plain function enqueues by enqueue_sync()")
            conn = inherited
        if conn is not None:
            return await self._enqueue_by(conn, jobs, self._insert)
        async with self.connection() as connection:
            return await self._enqueue_by(connection, jobs, self._insert_repeatedly)

    def enqueue_sync(self, jobs: Sequence[NewJob], conn: PySQLXEngineSync | None = None) -> list[int]:
        """`enqueue`, for threads."""
        if conn is None:
            inherited = lent_here()
            if isinstance(inherited, PySQLXEngine):
                raise JobError("a coroutine enqueues by `await` and enqueue()")
            conn = inherited
        if conn is not None:
            return drive(self._enqueue_by(asynchronous(conn), jobs, self._insert))
        with self._pools.for_threads().connection() as connection:
            return drive(self._enqueue_by(asynchronous(connection), jobs, self._insert_repeatedly))

    async def _enqueue_by(
        self,
        connection: PySQLXEngine,
        jobs: Sequence[NewJob],
        insert: Callable[[PySQLXEngine, Sequence[NewJob], str | None], Awaitable[list[int]]],
    ) -> list[int]:
        """In whatever transaction its user has begun, else all or none."""
        if not jobs:
            return []
        with tracing.enqueuing(jobs[0].queue, jobs[0].task, len(jobs)) as sending:
            ids = await insert(connection, jobs, sending.context)
            await self._hints.tell(connection, enqueued=True)
            sending.sent(ids)
        return ids

    async def _insert_repeatedly(
        self, connection: PySQLXEngine, jobs: Sequence[NewJob], trace_context: str | None
    ) -> list[int]:
        """By a connection of our own: with a user's, what he has done before may be undone as well."""
        return await repeated(self._insert, connection, jobs, trace_context)

    async def _insert(self, connection: PySQLXEngine, jobs: Sequence[NewJob], trace_context: str | None) -> list[int]:
        dialect, store = dialect_of(connection), store_of(connection)
        begins = not store.enqueues_at_once(jobs) and not connection._dirty
        if begins or not dialect.migrates_by_itself:
            store = await self._store(connection)
        if begins:
            async with store.transaction(connection):
                return await self._insert(connection, jobs, trace_context)
        try:
            ids = await store.enqueue(connection, jobs, trace_context)
        except QueryError as error:
            # Not asked before: on SQLite a transaction that has read something may be refused to write after it.
            if not dialect.migrates_by_itself or not any(sign in error.message for sign in _NOT_MIGRATED):
                raise
            await _make_tables(connection)
            ids = await store.enqueue(connection, jobs, trace_context)
        self._prepared.add(connection._parsed.masked)
        return ids

    async def _store(self, connection: PySQLXEngine) -> Store:
        """The statements for the tables that there are. Raises JobSchemaError."""
        uri = connection._parsed.masked
        if uri not in self._prepared:
            await prepare(connection, dialect_of(connection))
            self._prepared.add(uri)
        return store_of(connection)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[PySQLXEngine]:
        """A connection of the queue's pool in this event loop."""
        async with (await self._pools.for_tasks()).connection() as connection:
            yield connection

    async def migrate(self) -> int:
        """Bring the job tables to this version, and give the number of migrations that it took. Raises
        JobSchemaError."""
        async with self.connection() as connection:
            return await migrate(connection)

    async def result(self, job_id: int, timeout: float | None = None) -> Any:
        """What the handler of a job has returned, where its task has `store_result`; None where it has not.

        Waits until the job has ended. Raises JobFailedError when it was discarded or cancelled, JobError when there is
        no such job, TimeoutError after `timeout` seconds.
        """
        pause = _FIRST_LOOK
        async with asyncio.timeout(timeout):
            while True:
                async with self.connection() as connection:
                    found = await store_of(connection).outcome(connection, job_id)
                if found is None:
                    raise JobError(f"there is no job {job_id}")
                if found.state is State.COMPLETED:
                    return None if found.result is None else json.loads(found.result)
                if found.ended:
                    raise JobFailedError(f"job {job_id} was {found.state}: {found.error or 'no reason was given'}")
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_LOOK)

    async def cancel(self, *ids: int) -> tuple[int, int]:
        """Cancel jobs that wait, and ask those that run to stop. Gives how many of each; those that have ended, or are
        unknown, are neither."""
        return await self._change(Store.cancel, ids)

    async def retry(self, *ids: int) -> int:
        """Have jobs run now that wait for their time or have ended, however that was; one more attempt is allowed where
        none was left. Gives how many."""
        return await self._change(Store.revive, ids)

    async def pause(self, queue: str = "default") -> None:
        """Begin nothing of a queue, on any host, until `resume`. What runs goes on."""
        await self._change(Store.pause, queue)

    async def resume(self, queue: str = "default") -> None:
        """See `pause`."""
        await self._change(Store.resume, queue)

    async def _change(self, act: Callable[[Store, PySQLXEngine, T], Awaitable[R]], what: T) -> R:
        """In a transaction that dispatchers are told of."""
        async with self.connection() as connection:
            store = await self._store(connection)
            changed = await store.transact(connection, act, store, connection, what)
            await self._hints.tell(connection)
            return changed

    async def close(self) -> None:
        """Close the pools that this queue has opened in the running event loop, and for threads."""
        await self._pools.stop()

    # -- run ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run jobs until TERM or INT, then let those that run come to their end. Returns then.

        Raises JobSetupError for a budget of less than 2, JobSchemaError for a database without the tables, and what the
        start of a pool raises.
        """
        asyncio.run(self.serve())

    def serve(self, grace: float | None = None) -> Coroutine[Any, Any, None]:
        """`run`, in an event loop of one's own: `await queue.serve()`. `grace`: seconds that jobs get to end; left out:
        what a run's --graceful-timeout leaves, else 30."""
        if self._told is not None and self._told.loop is not None:
            raise JobError("this queue is being served already")
        self._told = told = Told()  # here, and not in the task that is made of it: `stop` may come before that begins
        return self._serve(grace_of_the_run() if grace is None else grace, told)

    async def _serve(self, grace: float, told: Told) -> None:
        with told_by_others(told):
            asked = served_queue(self._uri, self._max_size, self.weights, self.keep)
            try:
                await serve(self, self._pools, self._hints, grace, told, asked)
            finally:
                self._told = None

    def stop(self) -> None:
        """Have `serve` or `run` come to their end, as TERM does. Called again: do not wait for what still runs. May be
        called from any thread; does nothing when nothing is served."""
        if self._told is not None:
            self._told.tell()


async def _make_tables(connection: PySQLXEngine) -> None:
    try:
        await migrate(connection)
    except RawCmdError as error:
        raise JobSchemaError(
            "the job tables are not there yet, or of an older version, and they cannot be made within a transaction: "
            f"call migrate() of the queue before ({error.message})"
        ) from None
