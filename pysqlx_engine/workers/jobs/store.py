"""Every statement about jobs. What each makes of a job is `life.after`; here it is made of many rows at once.

Rows travel as one parameter, a JSON array, so that a batch of any length is one statement. None of these begins or ends
a transaction: whoever calls decides what belongs together. Those of an attempt change a row only while it runs, at that
attempt and with that owner, whatever was decided about it meanwhile elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

import msgspec

from ...errors import PySQLXError
from .conflicts import repeated
from .dialects import DIALECTS, Dialect, Type, dialect_of
from .life import FINAL, State
from .schema import CLAIMABLE, HAS_A_KEY, VERSION, WAITS_FOR_ITS_TIME, known_version

if TYPE_CHECKING:
    from ...engine.connection import PySQLXEngine
    from ...engine.uri import Provider

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_COLUMNS = (
    "id", "queue", "task", "state", "priority", "attempt", "max_attempts", "args", "unique_key", "created_at", "run_at",
    "claimed_at", "owner", "cancel_asked_at", "limit_key", "limit_max", "held", "progress", "trace_context",
)  # fmt: skip
_ENQUEUED_BYTES = 12 << 20
"""Bytes of the jobs in one statement at most: MariaDB takes 16 MiB of everything."""
CLAIMS = 1 << 32
"""Claims of one dispatcher: an owner is the dispatcher's number, times this, and its claim's."""
_MORE = "CASE WHEN {0}max_attempts <= {0}attempt THEN {0}attempt + 1 ELSE {0}max_attempts END"
"""At least one attempt is left."""
_REVIVED = {
    "state": "'available'", "max_attempts": _MORE.format("e."), "run_at": "{now}", "claimed_at": "NULL",
    "owner": "NULL", "cancel_asked_at": "NULL", "held": "0", "progress": "NULL",
}  # fmt: skip


Claim = tuple[int, int]
"""One claim of one job: the job's id, and the owner. What was claimed may be given back and claimed once more while
something of the first claim is still on its way."""


class NewJob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job to be enqueued. What has its default does not travel: `Store` knows it too."""

    queue: str
    task: str
    args: str
    """A JSON object."""
    priority: int = 0
    """Higher runs first."""
    max_attempts: int = 1
    delay: int = 0
    """Microseconds from now, by the server's clock."""
    at: int | None = None
    """Or when, in microseconds since 1970."""
    unique_key: str | None = None
    """No second one with this key is enqueued before this one has ended."""
    limit_key: str | None = None
    """At most `limit_max` jobs with this key run at a time."""
    limit_max: int | None = None


class Claimed(msgspec.Struct, frozen=True, array_like=True):
    """A job that was claimed."""

    id: int
    queue: str
    task: str
    priority: int
    attempt: int
    max_attempts: int
    args: str
    created_at: int
    run_at: int
    owner: int
    limit_key: str | None = None
    limit_max: int | None = None
    trace_context: str | None = None
    """Of who has enqueued it, as `tracing` writes it."""

    @property
    def claim(self) -> Claim:
        return self.id, self.owner


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """Which attempt at a job something is said of."""

    id: int
    attempt: int
    owner: int

    @property
    def claim(self) -> Claim:
        return self.id, self.owner


class Ended(Attempt, frozen=True, kw_only=True, omit_defaults=True):
    """An attempt after which the job is over."""

    state: State
    result: str | None = None


class Postponed(Attempt, frozen=True, kw_only=True):
    """An attempt after which the job goes on waiting."""

    state: State
    attempt_after: int
    """The attempts that it has had then: one less where this was none."""
    wait: int | None = None
    """Microseconds from now until its time; None: its place is the one it had."""
    held: int = 0
    """1: it waits until fewer with its limit run."""


class Failure(Attempt, frozen=True, kw_only=True):
    """What went wrong in an attempt."""

    worker: str
    error: str
    traceback: str | None = None


class Progress(Attempt, frozen=True, kw_only=True):
    """How far an attempt is, in its handler's words."""

    progress: str


class JobOutcome(msgspec.Struct, frozen=True):
    """How a job stands."""

    state: State
    result: str | None
    error: str | None
    """What went wrong last, if anything did."""

    @property
    def ended(self) -> bool:
        return self.state in FINAL


class Store:
    """The statements for one kind of database, and for tables of one version."""

    def __init__(self, dialect: Dialect, version: int = VERSION) -> None:
        self._dialect = dialect
        self._traces = version >= 2
        """Whether a job has a trace context."""
        self._columns = _COLUMNS if self._traces else _COLUMNS[:-1]
        self._mysql = dialect.provider == "mysql"
        # PostgreSQL guesses that rows of JSON are a hundred, and may then read the whole table for them; those of an
        # array it finds by the index.
        self._by_index = ""
        if dialect.provider == "postgresql":
            wanted = dialect.rows(id="integer").replace(" AS r(", " AS wanted(")
            self._by_index = f" AND j.id = ANY (ARRAY(SELECT wanted.id FROM {wanted}))"
        now, lock, ids = dialect.now, dialect.lock, dialect.rows(id="integer")
        self._now = f"SELECT {now} AS now"

        new = dialect.rows(
            queue="name", task="name", args="text", priority="integer", max_attempts="integer", delay="integer",
            at="integer", unique_key="name", limit_key="name", limit_max="integer",
        )  # fmt: skip
        due = "coalesce(r.at, c.now + coalesce(r.delay, 0))"
        self._enqueue = (
            "INSERT INTO pysqlx_jobs "
            "(queue, task, state, priority, attempt, max_attempts, args, unique_key, created_at, run_at, limit_key, "
            f"limit_max, held{', trace_context' if self._traces else ''}) "
            "SELECT r.queue, r.task, "
            f"CASE WHEN {due} > c.now THEN 'scheduled' ELSE 'available' END, coalesce(r.priority, 0), 0, "
            f"coalesce(r.max_attempts, 1), r.args, r.unique_key, c.now, {due}, "
            # The context is not in the rows, each of which would have to be asked for it.
            f"r.limit_key, r.limit_max, 0{', :trace_context' if self._traces else ''} "
            f"FROM {new}, (SELECT {now} AS now) AS c WHERE true "
        )
        self._enqueue_plain = f"{self._enqueue} RETURNING id"
        if dialect.provider == "postgresql":  # one text: to make an object of each row takes longer than the rest
            self._enqueue_plain = (
                f"WITH new AS ({self._enqueue_plain}) SELECT CAST(json_agg(id ORDER BY id) AS text) AS ids FROM new"
            )
        self._enqueue_keyed = (
            f"{self._enqueue} ON CONFLICT (unique_key) WHERE {HAS_A_KEY} DO NOTHING RETURNING id, unique_key"
        )
        self._or_same = "ON DUPLICATE KEY UPDATE id = last_insert_id(pysqlx_jobs.id)"
        self._last_id = (
            "SELECT last_insert_id() AS id, @@auto_increment_increment AS step, @@innodb_autoinc_lock_mode AS mode"
        )
        keys = dialect.rows(unique_key="name")
        self._with_keys = f"SELECT j.id, j.unique_key FROM pysqlx_jobs j JOIN {keys} ON r.unique_key = j.unique_key"

        pick = (
            f"SELECT {{}} FROM pysqlx_jobs WHERE {CLAIMABLE} AND queue = :queue {{}}"
            f"ORDER BY priority DESC, run_at, id LIMIT :most {lock}"
        )
        some = f"AND task IN (SELECT r.task FROM {dialect.rows(task='name')}) "
        of_a_claim = Claimed.__struct_fields__ if self._traces else Claimed.__struct_fields__[:-1]
        claimed = ", ".join(of_a_claim)
        take = f"SET state = 'running', attempt = attempt + 1, owner = :owner, claimed_at = {now}"
        # PostgreSQL finds those of an array by the index, and might read the whole table for those of a query.
        in_one = dialect.provider == "postgresql"
        among = "= ANY (ARRAY({}))" if in_one else "IN ({})"
        picked = among.format("SELECT id FROM picked")
        self._claim, self._claim_some = (
            f"WITH picked AS MATERIALIZED ({pick.format('id', tasks)})"
            + (
                f", taken AS (UPDATE pysqlx_jobs {take} WHERE id {picked} RETURNING *) "
                f"SELECT CAST(json_agg(json_build_array({claimed})) AS text) AS jobs FROM taken"
                if in_one
                else f" UPDATE pysqlx_jobs {take} WHERE id {picked} RETURNING json_array({claimed}) AS job"
            )
            for tasks in ("", some)
        )
        soon = {"attempt": "attempt + 1", "owner": ":owner"}  # it is read before it is taken
        columns = ", ".join(soon.get(name, name) for name in of_a_claim)
        as_json = f"id, JSON_ARRAY({columns}) AS job"
        self._pick, self._pick_some = (pick.format(as_json, tasks) for tasks in ("", some))
        self._take = f"UPDATE {self._one_by_one(ids, 'j.id = r.id')} {take}"

        # An attempt that still runs: whoever else has decided about it meanwhile was first.
        # Only what runs has an owner. To ask for the state too has PostgreSQL look through all that ran of late.
        mine = "j.id = r.id AND j.attempt = r.attempt AND j.owner = r.owner"
        key: dict[str, Type] = {"id": "integer", "attempt": "integer", "owner": "integer"}
        over = dialect.rows(**key, state="name", result="text")
        self._end = self._moves(over, mine, "r.state", "r.result")
        self._cancel = self._moves(ids, "j.id = r.id AND j.state <> 'running'", "'cancelled'", "NULL")
        self._lock_all = None
        if dialect.provider != "sqlite":
            self._lock_all = f"SELECT id FROM pysqlx_jobs WHERE id IN (SELECT r.id FROM {ids}) ORDER BY id FOR UPDATE"
        self._ask_to_cancel = self._changes(ids, "j.id = r.id AND j.state = 'running'", cancel_asked_at=now)
        self._postpone = self._changes(
            dialect.rows(**key, state="name", attempt_after="integer", wait="integer", held="integer"),
            mine,
            state="r.state",
            attempt="r.attempt_after",
            run_at=f"coalesce({now} + r.wait, j.run_at)",
            owner="NULL",
            claimed_at="NULL",
            held="r.held",
        )
        self._progress = self._changes(dialect.rows(**key, progress="text"), mine, progress="r.progress")
        self._hurry = self._changes(
            ids,
            f"j.id = r.id AND j.{WAITS_FOR_ITS_TIME}",
            state="'available'",
            run_at=now,
            max_attempts=_MORE.format("j."),
            cancel_asked_at="NULL",
        )
        self._unhold = self._changes(ids, "j.id = r.id", held="0")
        back = ", ".join(_REVIVED.get(name, f"e.{name}").format(now=now) for name in self._columns)
        self._revive = [
            f"INSERT INTO pysqlx_jobs ({', '.join(self._columns)}) "
            f"SELECT {back} FROM pysqlx_jobs_ended e JOIN {ids} ON r.id = e.id WHERE true "
            + (
                "ON DUPLICATE KEY UPDATE id = pysqlx_jobs.id"
                if self._mysql
                else f"ON CONFLICT (unique_key) WHERE {HAS_A_KEY} DO NOTHING"
            ),
            f"DELETE e FROM pysqlx_jobs_ended e JOIN {ids} ON r.id = e.id JOIN pysqlx_jobs j ON j.id = e.id"
            if self._mysql
            else f"DELETE FROM pysqlx_jobs_ended WHERE id IN (SELECT r.id FROM {ids}) "
            "AND id IN (SELECT id FROM pysqlx_jobs)",
        ]
        failed = dialect.rows(**key, worker="text", error="text", traceback="text")
        self._note = (
            "INSERT INTO pysqlx_job_errors (job_id, attempt, at, worker, error, traceback) "
            f"SELECT r.id, r.attempt, {now}, r.worker, r.error, r.traceback FROM {self._each(failed, mine)}"
        )
        # A query of its own: it is asked once, and PostgreSQL can use the index.
        waits = f"{WAITS_FOR_ITS_TIME} AND run_at <= (SELECT {now}) ORDER BY run_at LIMIT :most"
        # On MySQL and MariaDB in two: an UPDATE there waits for rows beside those that it is about.
        self._due = f"SELECT id FROM pysqlx_jobs WHERE {waits} {lock}"
        self._release = (
            self._changes(ids, "j.id = r.id", state="'available'")
            if self._mysql
            else f"UPDATE pysqlx_jobs SET state = 'available' WHERE id {among.format(self._due)}"
        )
        self._due_in = f"SELECT min(run_at) - {now} AS wait FROM pysqlx_jobs WHERE {WAITS_FOR_ITS_TIME}"
        self._cancel_asked = (
            "SELECT id FROM pysqlx_jobs "
            "WHERE state = 'running' AND owner BETWEEN :first AND :last AND cancel_asked_at IS NOT NULL"
        )
        error = "(SELECT e.error FROM pysqlx_job_errors e WHERE e.job_id = j.id ORDER BY e.id DESC LIMIT 1) AS error"
        self._outcome = (
            f"SELECT j.state, NULL AS result, {error} FROM pysqlx_jobs j WHERE j.id = :id UNION ALL "
            f"SELECT j.state, j.result, {error} FROM pysqlx_jobs_ended j WHERE j.id = :id"
        )
        # MySQL takes a LIMIT in a table expression only.
        old = among.format(
            f"SELECT id FROM (SELECT id FROM pysqlx_jobs_ended WHERE ended_at < (SELECT {now} - :keep) "
            "ORDER BY ended_at LIMIT :most) AS old"
        )
        self._forget_errors = f"DELETE FROM pysqlx_job_errors WHERE job_id {old}"
        self._forget = f"DELETE FROM pysqlx_jobs_ended WHERE id {old}"
        self._running = f"SELECT {claimed} FROM pysqlx_jobs WHERE state = 'running' AND owner BETWEEN :first AND :last"
        self._orphans = (
            f"SELECT {claimed} FROM pysqlx_jobs WHERE state = 'running' AND NOT EXISTS "
            "(SELECT d.id FROM pysqlx_job_dispatchers d "
            f"WHERE owner BETWEEN d.id * {CLAIMS} AND (d.id + 1) * {CLAIMS} - 1) LIMIT :most"
        )

    def _one_by_one(self, rows: str, condition: str) -> str:
        """For all but PostgreSQL: each row's job, found by its id and in no other way. What MySQL and MariaDB look at
        on another way they lock, and two that lock each other's rows are a deadlock; SQLite would look at all that
        runs for each row."""
        if self._mysql:
            return f"{rows} STRAIGHT_JOIN pysqlx_jobs j FORCE INDEX (PRIMARY) ON {condition}"
        return f"{rows} CROSS JOIN pysqlx_jobs j NOT INDEXED ON {condition}"

    def _each(self, rows: str, condition: str) -> str:
        """The rows, each with its job."""
        if self._dialect.provider == "postgresql":
            return f"{rows} JOIN pysqlx_jobs j ON {condition}"
        return self._one_by_one(rows, condition)

    def _changes(self, rows: str, condition: str, **values: str) -> str:
        """An UPDATE of the jobs that belong to a row."""
        prefix = "j." if self._mysql else ""
        changed = ", ".join(f"{prefix}{column} = {value}" for column, value in values.items())
        if self._mysql:
            return f"UPDATE {self._one_by_one(rows, condition)} SET {changed}"
        by_id = "NOT INDEXED" if self._dialect.provider == "sqlite" else ""
        return f"UPDATE pysqlx_jobs AS j {by_id} SET {changed} FROM {rows} WHERE {condition}{self._by_index}"

    def _moves(self, rows: str, condition: str, state: str, result: str) -> list[str]:
        """What moves the jobs that belong to a row to the history."""
        columns = ", ".join(self._columns)
        moved = ", ".join(state if name == "state" else f"j.{name}" for name in self._columns)
        into = f"INSERT INTO pysqlx_jobs_ended ({columns}, ended_at, result)"
        now = self._dialect.now
        if self._dialect.provider == "postgresql":
            gone = (
                f"DELETE FROM pysqlx_jobs AS j USING {rows} WHERE {condition}{self._by_index} "
                f"RETURNING {moved}, {now}, {result}"
            )
            return [f"WITH gone ({columns}, ended_at, result) AS ({gone}) {into} SELECT * FROM gone"]
        ones = self._one_by_one(rows, condition)
        copy = f"{into} SELECT {moved}, {now}, {result} FROM {ones}"
        if self._mysql:
            return [f"{copy} FOR UPDATE", f"DELETE j FROM {ones}"]
        return [copy, f"DELETE FROM pysqlx_jobs WHERE id IN (SELECT j.id FROM {ones})"]

    async def begin(self, connection: PySQLXEngine, *, durable: bool = True) -> None:
        """Begin a transaction that is going to write. Not `durable`: nothing is lost with it if the server crashes."""
        await connection.raw_cmd(self._dialect.begin if durable else self._dialect.begin_lightly)

    async def undo(self, connection: PySQLXEngine) -> None:
        with contextlib.suppress(PySQLXError):  # the connection is lost: so is its transaction
            await connection.rollback()

    @asynccontextmanager
    async def transaction(self, connection: PySQLXEngine, *, durable: bool = True) -> AsyncIterator[None]:
        """See `begin`. Committed at the end, or undone."""
        await self.begin(connection, durable=durable)
        try:
            yield
            await connection.commit()
        except BaseException:
            await self.undo(connection)
            raise

    async def transact(self, connection: PySQLXEngine, act: Callable[[Unpack[Ts]], Awaitable[T]], *args: *Ts) -> T:
        """`act` in a transaction, see `repeated`."""

        async def once() -> T:
            async with self.transaction(connection):
                return await act(*args)

        return await repeated(once)

    # -- a job's life ---------------------------------------------------------------------------------------------

    async def now(self, connection: PySQLXEngine) -> int:
        """Microseconds since 1970, by the server's clock."""
        (row,) = await connection.query_as_dict(self._now)
        return int(row["now"])

    async def enqueue(
        self, connection: PySQLXEngine, jobs: Sequence[NewJob], trace_context: str | None = None
    ) -> list[int]:
        """Give the id of each. One whose key another job has that has not ended is not enqueued: it gets that one's.
        See `enqueues_at_once`. `trace_context`: all of them have it."""
        enqueue = self._enqueue_in_mysql if self._mysql else self._enqueue_part
        ids: list[int] = []
        for part in _parts(jobs):
            ids += await enqueue(connection, part, trace_context)
        return ids

    def enqueues_at_once(self, jobs: Sequence[NewJob]) -> bool:
        """Whether `enqueue` is one statement for these, that does all or nothing, and needs no transaction."""
        if len(jobs) == 1:
            return True
        return not self._mysql and len(_parts(jobs)) == 1 and all(job.unique_key is None for job in jobs)

    async def _enqueue_part(
        self, connection: PySQLXEngine, jobs: Sequence[NewJob], trace_context: str | None
    ) -> list[int]:
        plain = [job for job in jobs if job.unique_key is None]
        ids = iter(await self._enqueue_without_keys(connection, plain, trace_context) if plain else ())
        keyed = [job for job in jobs if job.unique_key is not None]
        by_key = await self._enqueue_with_keys(connection, keyed, trace_context)
        return [next(ids) if job.unique_key is None else by_key[job.unique_key] for job in jobs]

    async def _enqueue_without_keys(
        self, connection: PySQLXEngine, jobs: Sequence[NewJob], trace_context: str | None
    ) -> list[int]:
        rows = await connection.query_as_dict(self._enqueue_plain, self._new(jobs, trace_context))
        if "ids" in rows[0]:
            return msgspec.json.decode(rows[0]["ids"], type=list[int])
        return sorted(row["id"] for row in rows)  # in the order of `jobs`

    async def _enqueue_with_keys(
        self, connection: PySQLXEngine, jobs: Sequence[NewJob], trace_context: str | None
    ) -> dict[str | None, int]:
        found: dict[str | None, int] = {}
        while left := [job for job in jobs if job.unique_key not in found]:  # once more: the other one has ended since
            rows = await connection.query_as_dict(self._enqueue_keyed, self._new(left, trace_context))
            if len(rows) < len(left):
                wanted = _json({"unique_key": job.unique_key} for job in left)
                rows += await connection.query_as_dict(self._with_keys, {"rows": wanted})
            found |= {row["unique_key"]: row["id"] for row in rows}
        return found

    async def _enqueue_in_mysql(
        self, connection: PySQLXEngine, jobs: Sequence[NewJob], trace_context: str | None
    ) -> list[int]:
        """Without RETURNING, which the driver does not read from MariaDB and MySQL does not have. The numbers of one
        statement follow each other, where the server's lock mode is not 2; else, and where one may be there already,
        each is a statement of its own."""
        ids: dict[int, int] = {}
        (last,) = await connection.query_as_dict(self._last_id)
        together = {place: job for place, job in enumerate(jobs) if job.unique_key is None and int(last["mode"]) < 2}
        if together:
            await connection.execute(self._enqueue, self._new(together.values(), trace_context))
            (first,) = await connection.query_as_dict(self._last_id)
            step = int(first["step"])
            ids |= {place: int(first["id"]) + number * step for number, place in enumerate(together)}
        for place, job in enumerate(jobs):
            if place not in together:
                await connection.execute(f"{self._enqueue} {self._or_same}", self._new([job], trace_context))
                (row,) = await connection.query_as_dict(self._last_id)
                ids[place] = int(row["id"])
        return [ids[place] for place in range(len(jobs))]

    def _new(self, jobs: Iterable[NewJob], trace_context: str | None) -> dict[str, str | None]:
        """The parameters of a statement that enqueues."""
        rows: dict[str, str | None] = {"rows": _json(jobs)}
        return rows | {"trace_context": trace_context} if self._traces else rows

    async def claim(
        self, connection: PySQLXEngine, queue: str, most: int, owner: int, tasks: Iterable[str] | None = None
    ) -> list[Claimed]:
        """Take at most so many of what is available, the most urgent first. `tasks`: of these only. On MySQL and
        MariaDB to be called in a transaction."""
        asked: dict[str, object] = {"queue": queue, "most": most, "owner": owner}
        if tasks is not None:
            asked["rows"] = _json({"task": task} for task in tasks)
        if self._dialect.returning:
            rows = await connection.query_as_dict(self._claim if tasks is None else self._claim_some, asked)
        else:
            rows = await connection.query_as_dict(self._pick if tasks is None else self._pick_some, asked)
            if rows:
                taken = {"rows": rows_of("id", (row["id"] for row in rows)), "owner": owner}
                await connection.execute(self._take, taken)
        claimed = _claimed(rows)
        claimed.sort(key=lambda job: (-job.priority, job.run_at, job.id))
        return claimed

    async def end(self, connection: PySQLXEngine, attempts: Sequence[Ended]) -> int:
        """These attempts were the last. Gives how many of them were in time; to be called in a transaction."""
        return await self._move(connection, self._end, _json(attempts))

    async def postpone(self, connection: PySQLXEngine, attempts: Sequence[Postponed]) -> int:
        """After these attempts there will be another one. Gives how many of them were in time."""
        return await connection.execute(self._postpone, {"rows": _json(attempts)})

    async def note(self, connection: PySQLXEngine, failures: Sequence[Failure]) -> int:
        """Remember what went wrong. To be called before the attempts are ended or postponed, in one transaction."""
        return await connection.execute(self._note, {"rows": _json(failures)})

    async def release(self, connection: PySQLXEngine, most: int) -> int:
        """Make available what is due. Gives how many. On MySQL and MariaDB to be called in a transaction."""
        if not self._mysql:
            return await connection.execute(self._release, {"most": most})
        due = await connection.query_as_dict(self._due, {"most": most})
        if not due:
            return 0
        return await connection.execute(self._release, {"rows": rows_of("id", (row["id"] for row in due))})

    async def due_in(self, connection: PySQLXEngine) -> float | None:
        """Seconds until the next job is due; None: no job waits for its time."""
        (row,) = await connection.query_as_dict(self._due_in)
        return None if row["wait"] is None else max(0, int(row["wait"])) / 1_000_000

    async def paused(self, connection: PySQLXEngine) -> list[str]:
        """The queues from which nothing is to be claimed."""
        rows = await connection.query_as_dict("SELECT name FROM pysqlx_job_queues WHERE paused_at IS NOT NULL")
        return [row["name"] for row in rows]

    async def running(self, connection: PySQLXEngine, first: int, last: int) -> list[Claimed]:
        """What runs for the owners from `first` to `last`."""
        rows = await connection.query_as_dict(self._running, {"first": first, "last": last})
        return [Claimed(**row) for row in rows]

    async def orphans(self, connection: PySQLXEngine, most: int) -> list[Claimed]:
        """What runs for owners of whom there is no dispatcher."""
        return [Claimed(**row) for row in await connection.query_as_dict(self._orphans, {"most": most})]

    async def cancel_asked(self, connection: PySQLXEngine, first: int, last: int) -> list[int]:
        """Which jobs that run for these owners somebody wants to be cancelled."""
        rows = await connection.query_as_dict(self._cancel_asked, {"first": first, "last": last})
        return [int(row["id"]) for row in rows]

    async def set_progress(self, connection: PySQLXEngine, progress: Sequence[Progress]) -> int:
        """Write how far these attempts are."""
        return await connection.execute(self._progress, {"rows": _json(progress)})

    async def unhold(self, connection: PySQLXEngine, ids: Sequence[int]) -> int:
        """Let these be claimed, as far as their limits are concerned. Gives how many."""
        return await connection.execute(self._unhold, {"rows": rows_of("id", ids)}) if ids else 0

    async def forget(self, connection: PySQLXEngine, keep: float, most: int) -> int:
        """Delete what has ended more than `keep` seconds ago, at most so many, with its errors. Gives how many. To be
        called in a transaction."""
        asked = {"keep": round(keep * 1_000_000), "most": most}
        await connection.execute(self._forget_errors, asked)
        return await connection.execute(self._forget, asked)

    async def outcome(self, connection: PySQLXEngine, id_: int) -> JobOutcome | None:
        """How a job stands; None: there is none."""
        rows = await connection.query_as_dict(self._outcome, {"id": id_})
        return JobOutcome(State(rows[0]["state"]), rows[0]["result"], rows[0]["error"]) if rows else None

    # -- what users want ------------------------------------------------------------------------------------------

    async def cancel(self, connection: PySQLXEngine, ids: Iterable[int]) -> tuple[int, int]:
        """Cancel what waits, and ask for it where a job runs. Gives how many of each; to be called in a transaction."""
        rows = rows_of("id", sorted(ids))
        if self._lock_all is not None:  # else one that is claimed in between is neither
            await connection.query_as_dict(self._lock_all, {"rows": rows})
        asked = await connection.execute(self._ask_to_cancel, {"rows": rows})
        return await self._move(connection, self._cancel, rows), asked

    async def pause(self, connection: PySQLXEngine, queue: str) -> None:
        """Have nothing claimed from `queue` until `resume`. What runs goes on."""
        await self._set_paused(connection, queue, self._dialect.now)

    async def resume(self, connection: PySQLXEngine, queue: str) -> None:
        await self._set_paused(connection, queue, "NULL")

    async def _set_paused(self, connection: PySQLXEngine, queue: str, at: str) -> None:
        otherwise = "ON DUPLICATE KEY UPDATE" if self._mysql else "ON CONFLICT (name) DO UPDATE SET"
        await connection.execute(
            f"INSERT INTO pysqlx_job_queues (name, paused_at) VALUES (:name, {at}) {otherwise} paused_at = {at}",
            {"name": queue},
        )

    async def revive(self, connection: PySQLXEngine, ids: Iterable[int]) -> int:
        """Make available what waits for its time, or has ended: unless another job has its unique key by now. Gives how
        many; to be called in a transaction."""
        rows = rows_of("id", ids)
        hurried = await connection.execute(self._hurry, {"rows": rows})
        return hurried + await self._move(connection, self._revive, rows)

    async def _move(self, connection: PySQLXEngine, statements: list[str], rows: str) -> int:
        moved = 0
        for statement in statements:
            moved = await connection.execute(statement, {"rows": rows})
        return moved


@functools.cache
def _store(provider: Provider, version: int) -> Store:
    return Store(DIALECTS[provider], version)


def store_of(connection: PySQLXEngine) -> Store:
    """The statements for the kind of database that `connection` is to, and its tables, once somebody has looked at
    them. Raises JobSchemaError for an unknown kind."""
    return _store(dialect_of(connection).provider, known_version(connection))


def _parts(jobs: Sequence[NewJob]) -> list[Sequence[NewJob]]:
    """As many as a server takes in one statement."""
    if len(jobs) < 2 or len(msgspec.json.encode(jobs)) <= _ENQUEUED_BYTES:
        return [jobs]
    half = len(jobs) // 2
    return [*_parts(jobs[:half]), *_parts(jobs[half:])]


def _json(rows: Iterable[object]) -> str:
    return msgspec.json.encode(list(rows)).decode()


_CLAIMED = msgspec.json.Decoder(Claimed)
_ALL_CLAIMED = msgspec.json.Decoder(list[Claimed])


def _claimed(rows: list[dict[str, Any]]) -> list[Claimed]:
    """Jobs that come as JSON, each in a row or all in one: to make Python objects of their columns takes the driver
    more than half as long as all the rest of a claim."""
    if rows and "jobs" in rows[0]:
        return _ALL_CLAIMED.decode(rows[0]["jobs"]) if rows[0]["jobs"] is not None else []
    return [_CLAIMED.decode(row["job"]) for row in rows]


def rows_of(column: str, values: Iterable[int] | Iterable[str]) -> str:
    """The parameter `rows` for a `Dialect.rows` of this one column."""
    return _json({column: value} for value in values)
