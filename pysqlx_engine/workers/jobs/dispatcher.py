"""The dispatcher: writes what attempts came to, claims what the workers have room for, hands it out.

One connection, and one loop over it: whatever came together meanwhile is one transaction. What to claim and who gets it
is decided in `dispatch`. Rows are the only truth: when a transaction's end is not known, the rows are asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from ...errors import JobSchemaError, PoolError, PySQLXError
from ..membership import host_identity
from ..rates import LogBound
from .attempts import Report, failed, given_back
from .dialects import Dialect, dialect_of
from .dispatch import Dispatch, Wanted
from .presence import BEAT, Presence, Register
from .schema import VERSION, migrate, version_of
from .shares import Shares
from .store import Claimed, Progress, Store

if TYPE_CHECKING:
    from ...engine import PySQLXEngine
    from ...pool import PySQLXEnginePool

logger = logging.getLogger("pysqlx_engine")

POLL = 1.0
"""Seconds between two looks for work that nobody has told of, and for what users have asked."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
"""Seconds before another attempt when the database cannot be used."""
_AFTER_HINT = (0.005, 0.03, 0.2)
"""Seconds after a hint, or the look before, at which to look again: the transaction that enqueues may not have ended
when it says so."""
_BATCH = 2000
"""Rows of one statement."""
_RELEASED = 1000
"""Jobs that become available in one statement."""
_WAIT_FOR_A_CONNECTION = 30.0


class Workers(Protocol):
    """Who runs the jobs. Neither of these blocks, or raises."""

    def send(self, worker: str, jobs: list[Claimed]) -> None:
        """Have a worker run these."""

    def cancel(self, worker: str, jobs: list[Claimed]) -> None:
        """Have it stop these."""

    def written(self, reports: Sequence[Report]) -> None:
        """These are in the database: nobody need keep them any more."""


class Dispatcher:
    def __init__(
        self,
        pool: PySQLXEnginePool,
        weights: Mapping[str, int],
        workers: Workers,
        *,
        connections: int,
        run: str,
        pid: int | None = None,
        hints: str | None = None,
        poll: float = POLL,
    ) -> None:
        """`weights`: the queues to serve. `run`, `pid` and `hints`: see `Presence`."""
        self._pool = pool
        self._dispatch = Dispatch(connections)
        self._shares = Shares(weights)
        self._queues = list(weights)
        self._run, self._pid, self._hints = run, pid, hints
        self._workers = workers
        self._poll = poll
        self._wake = asyncio.Event()
        self._look_at = 0.0
        """When to look for work again."""
        self._looks: list[float] = []
        """Seconds after the next looks at which to look once more."""
        self._maybe = {True: set(weights), False: set(weights)}
        """Queues in which there may be something available: of any task, and of those that use no connection."""
        self._paused: frozenset[str] = frozenset()
        self._progress: dict[int, Progress] = {}
        self._presence: Presence | None = None
        self._claims = 0
        self._workers_died = False
        """Whether a worker has died before we were there, so that what it ran has to count as failed."""
        self._doubtful = False
        """Whether the rows may say that something runs for us that we do not know of."""
        self._beat_at = 0.0
        self._adopt_at: float | None = None
        """When what ran for the dispatcher before us, and no worker has told of, is made available again."""
        self._log = LogBound()
        self._drained: asyncio.Future[None] | None = None

    # -- what the workers say -------------------------------------------------------------------------------------

    def join(self, worker: str, slots: int, tasks: Mapping[str, bool], running: Iterable[Claimed] = ()) -> None:
        self._dispatch.join(worker, slots, tasks, running)
        self._wake.set()

    def leave(self, worker: str, reason: str) -> None:
        self._dispatch.leave(worker, reason)
        self._wake.set()

    def retire(self, worker: str) -> None:
        self._dispatch.retire(worker)

    def report(self, worker: str, reports: Sequence[Report]) -> None:
        self._dispatch.report(worker, reports, time.monotonic())
        for report in reports:
            self._progress.pop(report.attempt.id, None)
        self._wake.set()

    def set_progress(self, progress: Progress) -> None:
        self._progress[progress.id] = progress
        self._wake.set()

    def hint(self) -> None:
        """There may be work, or something that users have asked."""
        self._look_at = 0.0
        self._looks = list(_AFTER_HINT)
        self._wake.set()

    def adopt_after(self, seconds: float, *, workers_died: bool) -> None:
        """Wait so long for workers that still run what a dispatcher before us has given them. `workers_died`: one
        of them perhaps cannot come any more."""
        self._adopt_at = time.monotonic() + seconds
        self._workers_died = workers_died

    async def drain(self) -> None:
        """Claim nothing any more, give back what has not begun, and return when all that runs has been reported and
        written."""
        self._drained = asyncio.get_running_loop().create_future()
        self._dispatch.drain()
        self._wake.set()
        await self._drained

    # -- the loop -------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Until it is cancelled, or drained. Raises JobSchemaError where there are no tables, or newer ones, and
        ConnectError or PoolRefusedError where the pool can never have a connection."""
        pause = _FIRST_PAUSE
        prepared = False
        while True:
            try:
                async with self._pool.connection(timeout=_WAIT_FOR_A_CONNECTION) as connection:
                    dialect = dialect_of(connection)
                    if not prepared:
                        await prepare(connection, dialect)
                        prepared = True
                    async with _read_committed(connection, dialect):
                        store, register = Store(dialect), Register(dialect)
                        await self._appear(connection, store, register)
                        pause = _FIRST_PAUSE
                        await self._serve_by(connection, store, register)
                        return
            except (PySQLXError, PoolError, OSError) as error:
                if getattr(error, "permanent", False) and not prepared:
                    raise
                line = self._log.line(f"the dispatcher cannot use the database: {error}", time.monotonic())
                if line is not None:
                    logger.warning("Jobs: %s; it goes on trying", line)
                self._doubtful = True
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _serve_by(self, connection: PySQLXEngine, store: Store, register: Register) -> None:
        while True:
            self._wake.clear()
            now = time.monotonic()
            if now >= self._beat_at or (self._adopt_at is not None and now >= self._adopt_at):
                await self._beat(connection, store, register)
            await self._turn(connection, store)
            if self._drained is not None and self._dispatch.idle:
                assert self._presence is not None
                await register.leave(connection, self._presence)
                self._drained.set_result(None)
                return
            if not self._dispatch.unwritten and not self._progress:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._until_next())

    def _until_next(self) -> float:
        """Seconds that there is nothing to do, if nobody says otherwise."""
        if self._may_claim(self._dispatch.wanted(time.monotonic())):
            return 0.0
        moments = [self._look_at, self._beat_at]
        if self._adopt_at is not None:
            moments.append(self._adopt_at)
        return max(0.0, min(moments) - time.monotonic())

    async def _turn(self, connection: PySQLXEngine, store: Store) -> None:
        """Write, claim and hand out what there is."""
        now = time.monotonic()
        self._dispatch.give_back_old(now)
        reports = self._dispatch.unwritten[:_BATCH]
        progress = list(self._progress.values())[:_BATCH]
        looking = now >= self._look_at and self._drained is None
        if looking:
            await self._hear_users(connection, store)
        if looking or any(report.hurry for report in reports):
            self._expect_work()
        wanted = self._dispatch.wanted(now)
        claimed: list[Claimed] = []
        due_in: float | None = None
        if reports or progress or looking or self._may_claim(wanted):
            async with store.transaction(connection):
                await _write(connection, store, reports, progress)
                released = 0
                if looking or any(report.hurry for report in reports):
                    released = await store.release(connection, _RELEASED)
                if self._may_claim(wanted):
                    claimed = await self._claim(connection, store, wanted)
                if looking:
                    due_in = 0.0 if released == _RELEASED else await store.due_in(connection)
        del self._dispatch.unwritten[: len(reports)]
        if reports:
            self._workers.written(reports)
        for one in progress:
            if self._progress.get(one.id) is one:
                del self._progress[one.id]
        if looking:
            again = self._looks.pop(0) if self._looks else self._poll
            self._look_at = now + (again if due_in is None else min(again, due_in))
        self._look_at = min([self._look_at, *(now + wait for wait in _waits(reports))])
        self._dispatch.claimed(claimed, time.monotonic())
        for worker, jobs in self._dispatch.hand_out().items():
            self._workers.send(worker, jobs)

    def _expect_work(self) -> None:
        for queues in self._maybe.values():
            queues.update(self._queues)

    def _may_claim(self, wanted: Wanted) -> bool:
        return bool(wanted.jobs and self._maybe[wanted.tasks is None] - self._paused)

    async def _claim(self, connection: PySQLXEngine, store: Store, wanted: Wanted) -> list[Claimed]:
        assert self._presence is not None
        queues = self._maybe[wanted.tasks is None]
        claimed: list[Claimed] = []
        while len(claimed) < wanted.jobs and queues - self._paused:
            for queue, part in self._shares.split(wanted.jobs - len(claimed), queues - self._paused).items():
                self._claims += 1
                owner = self._presence.owners[0] + self._claims
                found = await store.claim(connection, queue, part, owner, wanted.tasks)
                claimed += found
                if len(found) < part:
                    queues.discard(queue)
        return claimed

    async def _hear_users(self, connection: PySQLXEngine, store: Store) -> None:
        """What people have said about queues, and about jobs that run here."""
        assert self._presence is not None
        self._paused = frozenset(await store.paused(connection))
        unwanted = await store.cancel_asked(connection, *self._presence.owners)
        for worker, jobs in self._dispatch.who_has(unwanted).items():
            self._workers.cancel(worker, jobs)

    # -- who else claims ------------------------------------------------------------------------------------------

    async def _appear(self, connection: PySQLXEngine, store: Store, register: Register) -> Presence:
        """Have a row of our own, and know what runs for it."""
        if self._presence is None:
            self._presence = await register.enter(connection, self._run, self._pid, self._hints)
            self._claims = 0
        elif self._doubtful:
            held = self._dispatch.holds()
            running = await store.running(connection, *self._presence.owners)
            self._dispatch.unwritten += [given_back(job) for job in running if (job.id, job.owner) not in held]
        self._doubtful = False
        return self._presence

    async def _beat(self, connection: PySQLXEngine, store: Store, register: Register) -> None:
        """Show that we are there, and see to the jobs of those who are not any more."""
        assert self._presence is not None
        now = time.monotonic()
        self._beat_at = now + BEAT
        if not await register.beat(connection, self._presence):
            logger.warning("Jobs: this dispatcher was taken for dead: what it had claimed may run twice")
            self._presence = None
        here = await self._appear(connection, store, register)
        adopting = self._adopt_at is not None and now >= self._adopt_at
        if adopting:
            self._adopt_at = None
        host = host_identity()
        for other in await register.all(connection):
            if other.id == here.id:
                continue
            before_us = other.run == self._run
            if adopting if before_us else other.is_lost(host):
                await self._inherit(connection, store, register, other, before_us=before_us)

    async def _inherit(
        self, connection: PySQLXEngine, store: Store, register: Register, lost: Presence, *, before_us: bool
    ) -> None:
        held = self._dispatch.holds()
        running = [job for job in await store.running(connection, *lost.owners) if (job.id, job.owner) not in held]
        if not running:
            await register.leave(connection, lost)
            return
        if before_us and not self._workers_died:
            # Its workers are with us now, and none of them has these: they were never begun.
            self._dispatch.unwritten += [given_back(job) for job in running]
        else:
            reason = f"the run {lost.run} of process {lost.pid} is gone"
            self._dispatch.unwritten += [failed(job, f"dispatcher {lost.id}", reason) for job in running]
        self._beat_at = 0.0  # and its row goes when these are written
        if before_us:
            self._adopt_at = 0.0


async def prepare(connection: PySQLXEngine, dialect: Dialect) -> None:
    """See to it that the tables are there: on SQLite they are made, elsewhere that is for whoever may change the
    database's schema. Raises JobSchemaError."""
    found = await version_of(connection)
    if found < VERSION and dialect.migrates_by_itself:
        await migrate(connection)
    elif found < VERSION:
        what = "there are no job tables in this database" if found == 0 else f"the job tables have version {found}"
        raise JobSchemaError(f"{what}: run `pysqlx-ctl jobs migrate`, which brings them to version {VERSION}")


@asynccontextmanager
async def _read_committed(connection: PySQLXEngine, dialect: Dialect) -> AsyncIterator[None]:
    """On MySQL and MariaDB: claim without locks on the gaps between rows, in which others want to enqueue."""
    if dialect.isolation is None:
        yield
        return
    # One server calls it tx_isolation, another one transaction_isolation.
    (row, *_) = await connection.query_as_dict("SHOW VARIABLES LIKE 't%_isolation'")
    await connection.raw_cmd(dialect.isolation)
    try:
        yield
    finally:
        with contextlib.suppress(PySQLXError):
            level = str(row["Value"]).replace("-", " ")
            await connection.raw_cmd(f"SET SESSION TRANSACTION ISOLATION LEVEL {level}")


async def _write(
    connection: PySQLXEngine, store: Store, reports: Sequence[Report], progress: Sequence[Progress]
) -> None:
    failures = [report.failure for report in reports if report.failure is not None]
    ended = [report.ended for report in reports if report.ended is not None]
    postponed = [report.postponed for report in reports if report.postponed is not None]
    if progress:
        await store.set_progress(connection, progress)
    if failures:
        await store.note(connection, failures)
    if ended:
        await store.end(connection, ended)
    if postponed:
        await store.postpone(connection, postponed)


def _waits(reports: Iterable[Report]) -> Iterator[float]:
    """Seconds until what was postponed is due."""
    for report in reports:
        if report.postponed is not None and report.postponed.wait is not None:
            yield report.postponed.wait / 1_000_000
