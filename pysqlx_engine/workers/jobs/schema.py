"""The job tables, and how they become what this version needs.

    pysqlx_jobs          every job that has not ended: small, because whatever ends leaves it
    pysqlx_jobs_ended    those that have: completed, discarded, cancelled; emptied by age
    pysqlx_job_errors    what went wrong in each attempt
    pysqlx_job_dispatchers   who claims jobs, and when each of them was seen last
    pysqlx_job_queues    which queues are paused
    pysqlx_job_limits    rows to lock for limits: always the same few
    pysqlx_job_ticks     when each periodic task was enqueued last
    pysqlx_job_schema    which migrations have been applied

Times are microseconds since 1970, UTC, by the server's clock: the same on every database, and exact.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import JobSchemaError, PySQLXError
from .dialects import Dialect, dialect_of

if TYPE_CHECKING:
    from ...engine.connection import PySQLXEngine

LIMIT_LOCKS = 64
"""Rows of pysqlx_job_limits. Keys that have the same one wait for each other, for no longer than a transaction."""
LOCK_TIMEOUT = 60
"""Seconds that a migration waits for another process's, where the server does not do that by itself, and for whoever
uses the tables."""
_TABLE_LOCK = 0.5
"""Seconds that it waits for a table each time: whoever wants that table next waits behind it. It is less than the
second after which PostgreSQL looks for deadlocks, and then fails the one that looks: that would be a worker."""
_PAUSE = 1.0
"""Seconds in between, for whoever has waited behind it."""
_TABLE_IN_USE = frozenset({"55P03", "1205"})
"""What the servers say after that time."""
_LOCK = 7_099_231_405_177_612
"""The advisory lock of migrations on PostgreSQL: a number that nobody else is likely to use."""


@dataclass(frozen=True)
class Index:
    name: str
    columns: str
    where: str = ""
    """The rows that it is for, where an index can be partial."""
    by: str = "state"
    """The columns of that condition: elsewhere they are its first."""
    unique: bool = False


@dataclass(frozen=True)
class Table:
    name: str
    columns: str
    indexes: tuple[Index, ...] = ()
    hot: bool = False
    """Whether its rows are changed and deleted all the time."""


CLAIMABLE = "state = 'available' AND held = 0"
"""What is `held` may not be claimed: as many jobs with its `limit_key` run as may."""
HAS_A_KEY = "unique_key IS NOT NULL"
WAITS_FOR_ITS_TIME = "state IN ('scheduled', 'retrying')"

_OF_A_JOB = """
    queue {name} NOT NULL,
    task {name} NOT NULL,
    state {name} NOT NULL,
    priority {integer} NOT NULL,
    attempt {integer} NOT NULL,
    max_attempts {integer} NOT NULL,
    args {text} NOT NULL,
    unique_key {name},
    created_at {integer} NOT NULL,
    run_at {integer} NOT NULL,
    claimed_at {integer},
    owner {integer},
    cancel_asked_at {integer},
    limit_key {name},
    limit_max {integer},
    held {integer} NOT NULL,
    progress {text}"""

# As version 1 has them.
TABLES = (
    Table("pysqlx_job_schema", "version {integer} NOT NULL PRIMARY KEY,\n    applied_at {integer} NOT NULL"),
    Table(
        "pysqlx_jobs",
        "id {identity}," + _OF_A_JOB,
        (
            Index("pysqlx_jobs_claim", "queue, priority DESC, run_at, id", CLAIMABLE, "state, held"),
            Index("pysqlx_jobs_due", "run_at", WAITS_FOR_ITS_TIME),
            Index("pysqlx_jobs_owner", "owner", "state = 'running'"),
            Index("pysqlx_jobs_limit", "limit_key, state, held", "limit_key IS NOT NULL", ""),
            Index("pysqlx_jobs_unique", "unique_key", HAS_A_KEY, "", unique=True),
        ),
        hot=True,
    ),
    Table(
        "pysqlx_jobs_ended",
        "id {integer} NOT NULL PRIMARY KEY," + _OF_A_JOB + ",\n    ended_at {integer} NOT NULL,\n    result {text}",
        (Index("pysqlx_jobs_ended_at", "ended_at"),),
    ),
    Table(
        "pysqlx_job_errors",
        "id {identity},\n    job_id {integer} NOT NULL,\n    attempt {integer} NOT NULL,\n    at {integer} NOT NULL,\n"
        "    worker {text} NOT NULL,\n    error {text} NOT NULL,\n    traceback {text}",
        (Index("pysqlx_job_errors_of", "job_id"),),
    ),
    Table(
        "pysqlx_job_dispatchers",
        "id {identity},\n    run {name} NOT NULL,\n    host {text} NOT NULL,\n    pid {integer} NOT NULL,\n"
        "    started {integer} NOT NULL,\n    seen_at {integer} NOT NULL,\n    hints {text}",
    ),
    Table("pysqlx_job_limits", "number {integer} NOT NULL PRIMARY KEY"),
    Table("pysqlx_job_ticks", "name {name} NOT NULL PRIMARY KEY,\n    tick {integer} NOT NULL"),
    Table("pysqlx_job_queues", "name {name} NOT NULL PRIMARY KEY,\n    paused_at {integer}"),
)


def creations(dialect: Dialect, table: Table) -> list[str]:
    """The statements that create `table`, if it is not there."""
    columns = table.columns.format(identity=dialect.identity, **dialect.types)
    if dialect.partial_indexes:
        options = dialect.hot_table if table.hot else ""
        return [f"CREATE TABLE IF NOT EXISTS {table.name} ({columns}) {options}"] + [
            f"CREATE {'UNIQUE ' if index.unique else ''}INDEX IF NOT EXISTS {index.name} "
            f"ON {table.name} ({index.columns})" + (f" WHERE {index.where}" if index.where else "")
            for index in table.indexes
        ]
    # In one statement: MySQL has no CREATE INDEX IF NOT EXISTS, and does not undo half a migration.
    keys = [
        f",\n    {'UNIQUE ' if index.unique else ''}KEY {index.name} "
        f"({f'{index.by}, ' if index.where and index.by else ''}{index.columns})"
        for index in table.indexes
    ]
    return [f"CREATE TABLE IF NOT EXISTS {table.name} ({columns}{''.join(keys)}) {dialect.table_options}"]


async def _first(connection: PySQLXEngine, dialect: Dialect) -> list[str]:
    tables = [statement for table in TABLES for statement in creations(dialect, table)]
    numbers = ", ".join(f"({number})" for number in range(LIMIT_LOCKS))
    insert, otherwise = ("INSERT IGNORE", "") if dialect.provider == "mysql" else ("INSERT", "ON CONFLICT DO NOTHING")
    return [*tables, f"{insert} INTO pysqlx_job_limits (number) VALUES {numbers} {otherwise}"]


async def _second(connection: PySQLXEngine, dialect: Dialect) -> list[str]:
    """The trace context of who has enqueued a job; and which programs a version does not keep out."""
    tables = [
        table
        for table in ("pysqlx_jobs_ended", "pysqlx_jobs")
        if not await _has_column(connection, dialect, table, "trace_context")
    ]
    added = [f"ALTER TABLE {table} ADD COLUMN trace_context {dialect.types['text']}" for table in tables]
    if not await _has_column(connection, dialect, "pysqlx_job_schema", "readable_from"):
        tables = ["pysqlx_job_schema", *tables]
        added.append(f"ALTER TABLE pysqlx_job_schema ADD COLUMN readable_from {dialect.types['integer']}")
    if dialect.provider == "postgresql" and added:
        # All at once, and in the order in which the end of a job takes them: else each has one that the other wants.
        return [f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE", *added]
    return added


async def _has_column(connection: PySQLXEngine, dialect: Dialect, table: str, column: str) -> bool:
    (row,) = await connection.query_as_dict(dialect.column_exists, {"name": table, "column": column})
    return bool(row["n"])


Migration = Callable[["PySQLXEngine", Dialect], Awaitable[list[str]]]

MIGRATIONS: tuple[Migration, ...] = (_first, _second)
"""What makes version 1, 2, ... of the one before. What was released is never changed: a new one is added. It may be
made twice, because on MySQL and MariaDB what was cut off is not undone."""
VERSION = len(MIGRATIONS)
READABLE_FROM = (1, 1)
"""Of each version, the oldest one whose programs can use its tables: one that only adds what may be missing is as old
as the one before."""
OLDEST = 1
"""The oldest version whose tables this program can use."""
_found: dict[str, int] = {}
"""The version that tables had when this process looked, by the URI: its user or a parameter may say in which schema."""


def known_version(connection: PySQLXEngine) -> int:
    """The version for which statements are to be written, as far as `version_of` has seen."""
    return min(_found.get(connection._parsed.masked, VERSION), VERSION)


async def check_tables(connection: PySQLXEngine) -> None:
    """Changes nothing. Raises JobSchemaError where the tables are not there, or are older than this program can use."""
    found = await version_of(connection)
    if found < OLDEST:
        what = "there are no job tables in this database" if found == 0 else f"the job tables have version {found}"
        raise JobSchemaError(f"{what}: run `pysqlx-ctl jobs migrate`, which brings them to version {VERSION}")


async def version_of(connection: PySQLXEngine) -> int:
    """The version that the tables have; 0: there are none. Raises JobSchemaError for one that is newer than this
    program, unless that says that this program can use it."""
    dialect = dialect_of(connection)
    (row,) = await connection.query_as_dict(dialect.table_exists, {"name": "pysqlx_job_schema"})
    if not row["n"]:
        return 0
    (row,) = await connection.query_as_dict("SELECT coalesce(max(version), 0) AS n FROM pysqlx_job_schema")
    found = int(row["n"])
    if found > VERSION and not await _is_for_us(connection, found):
        raise JobSchemaError(
            f"the job tables have version {found}, and this program knows versions up to {VERSION}: upgrade it"
        )
    if found:
        _found[connection._parsed.masked] = found
    return found


async def _is_for_us(connection: PySQLXEngine, newer: int) -> bool:
    question = "SELECT readable_from AS oldest FROM pysqlx_job_schema WHERE version = :newer"
    (row,) = await connection.query_as_dict(question, {"newer": newer})
    return row["oldest"] is not None and int(row["oldest"]) <= VERSION


async def migrate(
    connection: PySQLXEngine,
    report: Callable[[str, int, int], None] = lambda *_: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> int:
    """Bring the tables to this version, and give the number of migrations that it took. Safe to call twice, and from
    many processes at once. Raises JobSchemaError.

    `report` hears what is being done, and how many statements of how many are done. `sleep`: for who has no event loop.
    """
    dialect = dialect_of(connection)
    until = time.monotonic() + LOCK_TIMEOUT
    made = 0
    while True:
        report("waiting for others to migrate", 0, 0)
        await _lock(connection, dialect)
        try:
            for number in range(await version_of(connection) + 1, VERSION + 1):
                await _make(connection, dialect, number, report)
                made += 1
        except BaseException as error:
            with contextlib.suppress(PySQLXError):  # the connection is lost: so is what it held
                await _unlock(connection, dialect, "ROLLBACK")
            if not isinstance(error, PySQLXError) or error.code not in _TABLE_IN_USE:
                raise
            if time.monotonic() > until:
                raise JobSchemaError(
                    f"the job tables were in use for {LOCK_TIMEOUT} s: end the transactions that have been open for "
                    "long, and migrate again"
                ) from error
        else:
            await _unlock(connection, dialect, "COMMIT")
            await version_of(connection)
            return made
        if dialect.provider != "mysql":  # where nothing is undone
            made = 0
        report("waiting for a transaction that uses the job tables", 0, 0)
        await sleep(_PAUSE)


async def _make(
    connection: PySQLXEngine, dialect: Dialect, number: int, report: Callable[[str, int, int], None]
) -> None:
    statements = await MIGRATIONS[number - 1](connection, dialect)
    for done, statement in enumerate(statements):
        report(f"migrating to version {number}", done, len(statements))
        await connection.raw_cmd(statement)
    columns, values = "version, applied_at", f":version, {dialect.now}"
    if number > 1:
        columns, values = f"{columns}, readable_from", f"{values}, {READABLE_FROM[number - 1]}"
    await connection.execute(f"INSERT INTO pysqlx_job_schema ({columns}) VALUES ({values})", {"version": number})


async def _lock(connection: PySQLXEngine, dialect: Dialect) -> None:
    """One process migrates at a time, and does not wait for long for those who use the tables."""
    if dialect.provider == "mysql":  # whose CREATE TABLE commits: the lock is the session's
        question = f"SELECT get_lock(concat('pysqlx_jobs:', database()), {LOCK_TIMEOUT}) AS got"
        (row,) = await connection.query_as_dict(question)
        if row["got"] != 1:
            raise JobSchemaError(f"another process has been migrating the job tables for {LOCK_TIMEOUT} s")
        # In whole seconds. It is no transaction's, so it is set back.
        await connection.raw_cmd("SET @pysqlx_waits = @@lock_wait_timeout, SESSION lock_wait_timeout = 1")
    elif dialect.provider == "sqlite":
        await use_wal(connection)
        await connection.raw_cmd("BEGIN IMMEDIATE")
    else:
        # Whoever had the lock before us has made versions that we have to see.
        await connection.raw_cmd("BEGIN ISOLATION LEVEL READ COMMITTED")
        await connection.query_as_dict(f"SELECT CAST(pg_advisory_xact_lock({_LOCK}) AS text) AS locked")
        await connection.raw_cmd(f"SET LOCAL lock_timeout = {round(_TABLE_LOCK * 1000)}")


async def _unlock(connection: PySQLXEngine, dialect: Dialect, end: str) -> None:
    if dialect.provider == "mysql":
        await connection.raw_cmd("SET SESSION lock_wait_timeout = @pysqlx_waits")
        await connection.query_as_dict("SELECT release_lock(concat('pysqlx_jobs:', database())) AS released")
    else:
        await connection.raw_cmd(end)


async def use_wal(connection: PySQLXEngine) -> None:
    """Switch an SQLite file to WAL mode, which stays: else whoever reads keeps everybody from writing. It is left for
    the next time where somebody uses the file right now."""
    with contextlib.suppress(PySQLXError):
        await connection.query_as_dict("PRAGMA journal_mode = WAL")
