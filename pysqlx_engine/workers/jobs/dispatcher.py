"""The dispatcher: writes what attempts came to, claims what the workers have room for, hands it out.

One connection, and one loop over it: whatever came together meanwhile is one transaction. What to claim and who gets it
is decided in `dispatch`. Rows are the only truth: when a transaction's end is not known, the rows are asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ...errors import ExecuteError, PoolError, PySQLXError, QueryError
from ...log_config import part
from ...system import host_identity
from ..rates import LogBound
from . import faults
from .attempts import Report, failed, given_back, size_of, without_texts
from .conflicts import repeated
from .dialects import Dialect, dialect_of
from .dispatch import MANY, NOTHING, Dispatch, Wanted
from .limits import Limits
from .periodic import Schedule, Ticks
from .presence import BEAT, Presence, Register, owners_of
from .schema import VERSION, check_tables, migrate, use_wal, version_of
from .shares import Shares
from .store import CLAIMS, Claim, Claimed, Progress, store_of

if TYPE_CHECKING:
    from ...engine.connection import PySQLXEngine
    from ...pool.aio import PySQLXEnginePool

logger = part("jobs")

POLL = 1.0
"""Seconds between two looks for work that nobody has told of, and for what users have asked."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
"""Seconds before another attempt when the database cannot be used."""
_AFTER_HINT = (0.005, 0.03, 0.2)
"""Seconds after a hint, or the look before, at which to look again: the transaction that enqueues may not have ended
when it says so."""
_BETWEEN_LOOKS = 0.03
"""Seconds between two looks at least, however many hints come."""
_GATHER = 0.01
"""Seconds until the next turn while the workers have enough to do, or many jobs come as fast as they are run: fewer and
larger transactions."""
_BATCH = 2000
"""Rows of one statement."""
_BATCH_BYTES = 1 << 20
"""Bytes of the texts that one statement writes, about: servers refuse statements that are too long."""
_CLAIMED_BYTES = 8 << 20
"""Bytes of arguments that one statement reads, about."""
_REFUSALS = 5
"""Transactions that fail with one report alone before it is written without its texts."""
_REFUSED_FOR = 10.0
"""Seconds until another try with one that was not taken without its texts either."""
_RELEASED = 1000
"""Jobs that become available in one statement."""
_LOCKED = 0.05
"""Seconds until another look for what is due and somebody else has locked."""
_FORGOTTEN = 5000
"""Ended jobs that are deleted in one statement."""
_FORGET_AGAIN = 0.1
"""Seconds until the next statement when there are more."""
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
        keep: float,
        run: str,
        pid: int | None = None,
        hints: str | None = None,
        poll: float = POLL,
    ) -> None:
        """`weights`: the queues to serve. `keep`: seconds after which what has ended is deleted. `run`, `pid` and
        `hints`: see `Presence`."""
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
        self._looked_at = 0.0
        self._looks: list[float] = []
        """Seconds after the next looks at which to look once more."""
        self._maybe = {True: set(weights), False: set(weights)}
        """Queues in which there may be something available: of any task, and of those that use no connection."""
        self._paused: frozenset[str] = frozenset()
        self._progress: dict[int, Progress] = {}
        self._most_written = self._most_claimed = _BATCH
        """Reports and jobs of one turn: fewer after one that has failed, or was large."""
        self._failed_alone = 0
        """Transactions in a row that have failed with one report only."""
        self._without_texts = False
        """The first report is to be written without its texts: with them it costs the connection."""
        self._pause = _FIRST_PAUSE
        self._schedules: dict[str, list[Schedule]] = {}
        """The periodic tasks that each worker has."""
        self._tick_at = 0.0
        """When the next of them is due."""
        self._keep = keep
        self._forget_at = 0.0
        self._presence: Presence | None = None
        self._claims = 0
        self._workers_died = False
        """Whether a worker has died before we were there, so that what it ran has to count as failed."""
        self._doubtful = False
        """Whether the rows may say that something runs for us that we do not know of."""
        self._suspects: set[Claim] = set()
        """What ran at the last beat by the rows, and by what anybody knows does not."""
        self._beat_at = 0.0
        self._adopt_at: float | None = None
        """When what ran for the dispatcher before us, and no worker has told of, is made available again."""
        self._log = LogBound()
        self._drained: asyncio.Future[None] | None = None
        self.appeared = asyncio.Event()
        """It has a connection, and claims."""

    # -- what the workers say -------------------------------------------------------------------------------------

    def join(
        self,
        worker: str,
        slots: int,
        tasks: Mapping[str, bool],
        schedules: Iterable[Schedule] = (),
        running: Collection[Claimed] = (),
    ) -> None:
        self._dispatch.join(worker, slots, tasks, running)
        self._schedules[worker] = list(schedules)
        self._tick_at = 0.0
        self._wake.set()

    def leave(self, worker: str, reason: str, *, well: bool = False) -> None:
        self._dispatch.leave(worker, reason, well=well)
        self._schedules.pop(worker, None)
        self._wake.set()

    def retire(self, worker: str) -> None:
        self._dispatch.retire(worker)
        self._schedules.pop(worker, None)

    def report(self, worker: str, reports: Sequence[Report]) -> None:
        faults.reached("reported")
        self._dispatch.report(worker, reports, time.monotonic())
        for report in reports:
            self._progress.pop(report.attempt.id, None)
        self._hand_out(in_lots=True)
        self._wake.set()

    def set_progress(self, progress: Progress) -> None:
        self._progress[progress.id] = progress
        self._wake.set()

    def hint(self, *, more: bool) -> None:
        """There are new jobs. `more`: or there will be in a moment, or something else, that users have asked."""
        self._expect_work()
        if more:
            again = self._looked_at + _BETWEEN_LOOKS
            # While many come, no look comes soon after another one.
            self._looks = list(_AFTER_HINT if again < time.monotonic() else _AFTER_HINT[1:])
            self._look_at = min(self._look_at, again)
        self._wake.set()

    def adopt_after(self, seconds: float, *, workers_died: bool) -> None:
        """Wait so long for workers that still run what a dispatcher before us has given them. `workers_died`: one
        of them perhaps cannot come any more."""
        self._adopt_at = time.monotonic() + seconds
        self._workers_died = workers_died

    def drain(self) -> asyncio.Future[None]:
        """Claim and hand out nothing any more, and give back what has not begun. Done when all that runs has been
        reported and written."""
        self._drained = asyncio.get_running_loop().create_future()
        self._dispatch.drain()
        self._wake.set()
        return self._drained

    # -- the loop -------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Until it is cancelled, or drained. Raises JobSchemaError where there are no tables, or newer ones, and
        ConnectError or PoolRefusedError where the pool can never have a connection."""
        prepared = False
        while True:
            try:
                async with self._pool.connection(timeout=_WAIT_FOR_A_CONNECTION) as connection:
                    if not prepared:
                        await prepare(connection, dialect_of(connection))
                        prepared = True
                    database = _Database(connection)
                    async with database.isolated():
                        await self._appear(database)
                        await self._serve_by(database)
                        return
            except (PySQLXError, PoolError, OSError) as error:
                if getattr(error, "permanent", False) and not prepared:
                    raise
                line = self._log.line(f"the dispatcher cannot use the database: {error}", time.monotonic())
                if line is not None:
                    logger.warning("Jobs: %s; it goes on trying", line)
                self._doubtful = True
                await asyncio.sleep(self._pause)
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    async def _serve_by(self, database: _Database) -> None:
        while True:
            self._wake.clear()
            now = time.monotonic()
            if now >= self._beat_at or (self._adopt_at is not None and now >= self._adopt_at):
                await self._beat(database)
            turn = await self._turn(database)
            if self._drained is not None and self._dispatch.idle:
                assert self._presence is not None
                await database.register.leave(database.connection, self._presence)
                self._drained.set_result(None)
                return
            if self._dispatch.well_stocked or turn.has_emptied:
                await asyncio.sleep(_GATHER)
            elif not self._dispatch.unwritten and not self._progress:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._until_next())

    def _until_next(self) -> float:
        """Seconds that there is nothing to do, if nobody says otherwise."""
        if self._may_claim(self._dispatch.wanted(time.monotonic())):
            return 0.0
        moments = [self._beat_at, self._look_at]
        if self._drained is None:
            moments.append(self._forget_at)
            if any(self._schedules.values()):
                moments.append(self._tick_at)
        if self._adopt_at is not None:
            moments.append(self._adopt_at)
        return max(0.0, min(moments) - time.monotonic())

    async def _turn(self, database: _Database) -> _Turn:
        """Write, claim and hand out what there is."""
        now = time.monotonic()
        self._dispatch.give_back_old(now)
        self._dispatch.take_up(now)
        turn = await self._next_turn(database, now)
        if turn.looking or turn.hurries:
            self._expect_work()
        if not turn.careful:
            turn.wanted = self._dispatch.wanted(now)
        if turn.has_work or self._may_claim(turn.wanted):
            try:
                await self._transact(database, turn)
            except (QueryError, ExecuteError):
                if not await self._refused(database, turn):
                    raise
            self._pause, self._failed_alone, self._without_texts = _FIRST_PAUSE, 0, False
            self._most_written = min(_BATCH, 2 * self._most_written)
        self._turned(turn, now)
        if turn.claimed:
            faults.reached("claimed")
        self._dispatch.claimed(turn.claimed, time.monotonic(), of_some=turn.wanted.tasks is not None)
        self._hand_out()
        return turn

    async def _refused(self, database: _Database, turn: _Turn) -> bool:
        """The database does not take a statement of this turn: try less. True: it has taken less, just now."""
        if self._may_claim(turn.wanted):
            self._most_claimed = max(1, self._most_claimed // 2)
        self._most_written = max(1, len(turn.reports) // 2)
        self._failed_alone = self._failed_alone + 1 if turn.careful and len(turn.reports) == 1 else 0
        if self._failed_alone < _REFUSALS:
            return False
        try:
            await database.store.now(database.connection)
        except PySQLXError as error:  # a statement that is too long ends the connection, on some servers
            if self._without_texts:
                self._put_aside(error)
            self._without_texts = not self._without_texts
            return False
        turn.reports = [without_texts(turn.reports[0])]
        try:
            await self._transact(database, turn)
        except PySQLXError as error:
            self._put_aside(error)
            self._without_texts = False
            return False
        return True

    def _put_aside(self, error: PySQLXError) -> None:
        """The first report is not taken, not even without its texts."""
        report = self._dispatch.put_aside(time.monotonic() + _REFUSED_FOR)
        self._failed_alone = 0
        logger.warning("Jobs: the database does not take how job %d has ended: %s", report.attempt.id, error)

    async def _transact(self, database: _Database, turn: _Turn) -> None:
        if turn.frees:
            turn.freed, self._dispatch.freed = self._dispatch.freed, {}
        try:
            if turn.freed:
                # Apart from what comes then, which locks limits last: two dispatchers that lock in another order would
                # wait for each other.
                await database.store.transact(database.connection, self._write, database, turn)
            await repeated(self._write_and_claim, database, turn)
        except BaseException:
            self._dispatch.freed = turn.freed | self._dispatch.freed
            raise

    async def _write_and_claim(self, database: _Database, turn: _Turn) -> None:
        try:
            # A claim that a server forgets in a crash is one that was not made.
            async with database.store.transaction(database.connection, durable=turn.has_work):
                if not turn.freed:
                    await self._write(database, turn)
                await self._keep_time(database, turn)
                if self._may_claim(turn.wanted):
                    turn.claimed = await self._claim(database, turn.wanted)
                if turn.looking:
                    turn.due_in = await database.store.due_in(database.connection)
        except BaseException:
            self._expect_work()
            raise

    async def _next_turn(self, database: _Database, now: float) -> _Turn:
        """What the next transaction is for. After one that has failed: some of its reports, and nothing else."""
        if not self._dispatch.unwritten:
            self._most_written = _BATCH
        if self._most_written < _BATCH:
            reports = _some(self._dispatch.unwritten, self._most_written)
            return _Turn([without_texts(reports[0])] if self._without_texts else reports, careful=True)
        turn = _Turn(hearing=now >= self._look_at)
        if turn.hearing:
            await self._hear_users(database)
        turn.reports = _some(self._dispatch.unwritten, _BATCH)
        turn.progress = list(self._progress.values())[:_BATCH]
        # If these are not all, what has freed a limit may not be among them.
        turn.frees = bool(self._dispatch.freed) and len(turn.reports) == len(self._dispatch.unwritten)
        if self._drained is None:
            turn.looking = turn.hearing
            if now >= self._tick_at:
                schedules = {one.task: one for many in self._schedules.values() for one in many}
                turn.schedules = list(schedules.values())
            turn.forgetting = now >= self._forget_at
        return turn

    def _hand_out(self, *, in_lots: bool = False) -> None:
        for worker, jobs in self._dispatch.hand_out(in_lots=in_lots).items():
            self._workers.send(worker, jobs)
            faults.reached("dispatched")

    async def _write(self, database: _Database, turn: _Turn) -> None:
        """What was reported."""
        connection, store, limits = database.connection, database.store, database.limits
        if turn.freed:
            await limits.lock(connection, turn.freed)
        failures = [report.failure for report in turn.reports if report.failure is not None]
        ended = [report.ended for report in turn.reports if report.ended is not None]
        postponed = [report.postponed for report in turn.reports if report.postponed is not None]
        if turn.progress:
            await store.set_progress(connection, turn.progress)
        if failures:
            await store.note(connection, failures)
        if ended:
            await store.end(connection, ended)
        if postponed:
            await store.postpone(connection, postponed)
        if turn.freed and await limits.release(connection, turn.freed):
            self._expect_work()

    async def _keep_time(self, database: _Database, turn: _Turn) -> None:
        """What the time has come for."""
        connection, store = database.connection, database.store
        released = 0
        if turn.looking or turn.hurries:
            turn.released = await store.release(connection, _RELEASED)
            released += turn.released
        if turn.schedules:
            enqueued, turn.next_tick = await database.ticks.enqueue_due(connection, turn.schedules)
            released += enqueued
        if turn.forgetting:
            turn.forgotten = await store.forget(connection, self._keep, _FORGOTTEN)
        if released:
            self._expect_work()

    def _turned(self, turn: _Turn, now: float) -> None:
        """It is in the database now."""
        del self._dispatch.unwritten[: len(turn.reports)]
        if turn.reports:
            self._workers.written(turn.reports)
        for one in turn.progress:
            if self._progress.get(one.id) is one:
                del self._progress[one.id]
        if turn.hearing:
            self._looked_at = now
            again = self._looks.pop(0) if self._looks else self._poll
            # What is due and was not released is locked by somebody else: it takes some time.
            soon = 0.0 if turn.released == _RELEASED else _LOCKED
            self._look_at = now + (again if turn.due_in is None else min(again, max(turn.due_in, soon)))
        self._look_at = min([self._look_at, *(now + wait for wait in turn.waits)])
        if turn.schedules:
            self._tick_at = now + turn.next_tick
        if turn.forgetting:
            self._forget_at = now + (_FORGET_AGAIN if turn.forgotten == _FORGOTTEN else BEAT)

    def _expect_work(self) -> None:
        for queues in self._maybe.values():
            queues.update(self._queues)

    def _may_claim(self, wanted: Wanted) -> bool:
        return bool(wanted.jobs and self._maybe[wanted.tasks is None] - self._paused)

    async def _claim(self, database: _Database, wanted: Wanted) -> list[Claimed]:
        assert self._presence is not None
        most = min(wanted.jobs, self._most_claimed)
        claimed: list[Claimed] = []
        queues = self._maybe[wanted.tasks is None]
        full = queues - self._paused
        queues -= full  # a hint that comes meanwhile is of something new
        while len(claimed) < most and full:
            for queue, share in self._shares.split(most - len(claimed), full).items():
                self._claims += 1
                owner = self._presence.owners[0] + self._claims
                found = await database.store.claim(database.connection, queue, share, owner, wanted.tasks)
                if len(found) < share:
                    full.discard(queue)
                claimed += found
        queues |= full
        large = sum(len(job.args) for job in claimed) > _CLAIMED_BYTES
        self._most_claimed = max(1, most // 2) if large else min(_BATCH, 2 * self._most_claimed)
        # All at once, in one order: two that lock one limit after the other would wait for each other.
        return await database.limits.keep(database.connection, claimed)

    async def _hear_users(self, database: _Database) -> None:
        """What people have said about queues, and about jobs that run here."""
        self._paused = frozenset(await database.store.paused(database.connection))
        self._dispatch.give_back_queues(self._paused)
        unwanted: list[int] = []
        # A worker may still run what a dispatcher before this one has claimed.
        for dispatcher in {owner // CLAIMS for _, owner in self._dispatch.at_workers()}:
            unwanted += await database.store.cancel_asked(database.connection, *owners_of(dispatcher))
        for worker, jobs in self._dispatch.who_has(unwanted).items():
            self._workers.cancel(worker, jobs)

    # -- who else claims ------------------------------------------------------------------------------------------

    async def _appear(self, database: _Database) -> Presence:
        """Have a row of our own, and know what runs for it."""
        if self._presence is None:
            self._presence = await database.register.enter(database.connection, self._run, self._pid, self._hints)
            self._claims = 0
        elif self._doubtful:
            held = self._dispatch.holds()
            running = await database.store.running(database.connection, *self._presence.owners)
            self._dispatch.unwritten += [given_back(job) for job in running if job.claim not in held]
        self._doubtful = False
        self.appeared.set()
        return self._presence

    async def _beat(self, database: _Database) -> None:
        """Show that we are there, and see to the jobs of those who are not any more."""
        assert self._presence is not None
        now = time.monotonic()
        self._beat_at = now + BEAT
        await database.register.beat(database.connection, self._presence)
        everybody = await database.register.all(database.connection)
        if self._presence.id not in {one.id for one in everybody}:
            logger.warning("Jobs: this dispatcher was taken for dead: what it had claimed may run twice")
            self._presence = None
            self._dispatch.drop_hand()
        here = await self._appear(database)
        adopting = self._adopt_at is not None and now >= self._adopt_at
        if adopting:
            self._adopt_at = None
        host = host_identity()
        try:
            for other in everybody:
                if other.id == here.id:
                    continue
                before_us = other.run == self._run
                if adopting if before_us else other.is_lost(host):
                    await self._inherit(database, other, before_us=before_us)
        except BaseException:
            if adopting:
                self._adopt_at = 0.0  # once more, with the next connection
            raise
        await self._find_lost(database, here)
        connection, limits = database.connection, database.limits
        if await database.store.transact(connection, limits.release_forgotten, connection):
            self._look_at = 0.0

    async def _find_lost(self, database: _Database, here: Presence) -> None:
        """What two looks find running for us, and we do not know of, or for nobody who is there."""
        held = self._dispatch.holds()
        ours = await database.store.running(database.connection, *here.owners)
        lost = {job.claim: given_back(job) for job in ours}
        for job in await database.store.orphans(database.connection, _RELEASED):
            lost[job.claim] = failed(job, "dispatcher", "it ran for a dispatcher that nobody knows any more")
        found = lost.keys() - held
        self._dispatch.unwritten += [lost[key] for key in sorted(found & self._suspects)]
        self._suspects = found - self._suspects

    async def _inherit(self, database: _Database, lost: Presence, *, before_us: bool) -> None:
        held = self._dispatch.holds()
        everything = await database.store.running(database.connection, *lost.owners)
        running = [job for job in everything if job.claim not in held]
        if not everything:  # while a worker of ours still has some of it, the row says whose they are
            await database.register.leave(database.connection, lost)
        if not running:
            self._adopt_at = time.monotonic() + BEAT if before_us and everything else self._adopt_at
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


@dataclass
class _Turn:
    """What one transaction is for, and what came of it."""

    reports: list[Report] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    frees: bool = False
    """Whether something with a limit has ended."""
    freed: dict[str, int] = field(default_factory=dict)
    hearing: bool = False
    """Whether it looks for what users have said."""
    looking: bool = False
    """And for work."""
    released: int = 0
    schedules: list[Schedule] = field(default_factory=list)
    """The periodic tasks, where one of them may be due."""
    forgetting: bool = False
    careful: bool = False
    """Something before it has failed: nothing but these reports."""
    wanted: Wanted = NOTHING
    claimed: list[Claimed] = field(default_factory=list)
    due_in: float | None = None
    next_tick: float = 0.0
    forgotten: int = 0

    @property
    def hurries(self) -> bool:
        """Whether the next attempt at one of its jobs may be at once."""
        return any(report.hurry for report in self.reports)

    @property
    def has_work(self) -> bool:
        return bool(self.reports or self.progress or self.frees or self.looking or self.schedules or self.forgetting)

    @property
    def has_emptied(self) -> bool:
        """Whether it was for many jobs, and has left none to be claimed."""
        return len(self.reports) + len(self.claimed) >= MANY and len(self.claimed) < self.wanted.jobs

    @property
    def waits(self) -> Iterator[float]:
        """Seconds until what is postponed by it is due."""
        for report in self.reports:
            if report.postponed is not None and report.postponed.wait is not None:
                yield report.postponed.wait / 1_000_000


class _Database:
    """The dispatcher's connection, and the statements for its kind of database."""

    def __init__(self, connection: PySQLXEngine) -> None:
        dialect = dialect_of(connection)
        self.connection = connection
        self.store = store_of(connection)
        self.register = Register(dialect)
        self.limits = Limits(dialect, self.store)
        self.ticks = Ticks(dialect, self.store)
        self._dialect = dialect

    @asynccontextmanager
    async def isolated(self) -> AsyncIterator[None]:
        """Within this, a statement sees what others have committed before it."""
        if self._dialect.isolation is None:
            yield
            return
        back = await self._isolation_now()
        await self.connection.raw_cmd(self._dialect.isolation)
        try:
            yield
        finally:
            with contextlib.suppress(PySQLXError):
                await self.connection.raw_cmd(back)

    async def _isolation_now(self) -> str:
        if self._dialect.provider != "mysql":
            return "RESET default_transaction_isolation"
        # One server calls it tx_isolation, another one transaction_isolation.
        (row, *_) = await self.connection.query_as_dict("SHOW VARIABLES LIKE 't%_isolation'")
        return f"SET SESSION TRANSACTION ISOLATION LEVEL {str(row['Value']).replace('-', ' ')}"


def _some(reports: list[Report], most: int) -> list[Report]:
    """The first of them, as many as one statement takes."""
    size = 0
    for count, report in enumerate(reports[:most]):
        size += size_of(report)
        if size > _BATCH_BYTES:
            return reports[: max(1, count)]
    return reports[:most]


async def prepare(connection: PySQLXEngine, dialect: Dialect) -> None:
    """See to it that the tables are there: on SQLite they are made, elsewhere that is for whoever may change the
    database's schema. Raises JobSchemaError."""
    if dialect.provider == "sqlite":
        await use_wal(connection)
    if dialect.migrates_by_itself and await version_of(connection) < VERSION:
        await migrate(connection)
    await check_tables(connection)
