"""The job tables: made once, whoever comes first, and never older than the program."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from pysqlx_engine import PySQLXEngine
from pysqlx_engine.errors import JobSchemaError
from pysqlx_engine.workers import JobQueue, ctl, progress
from pysqlx_engine.workers.jobs import schema
from pysqlx_engine.workers.jobs.dialects import dialect_of
from pysqlx_engine.workers.jobs.life import State
from pysqlx_engine.workers.jobs.schema import VERSION, migrate, version_of
from pysqlx_engine.workers.jobs.store import Ended, NewJob, store_of
from pysqlx_engine.workers.testing import drain
from tests.servers import Database


async def test_it_is_safe_to_migrate_twice(database: Database) -> None:
    async with PySQLXEngine(database.uri) as connection:
        assert await version_of(connection) == 0
        assert await migrate(connection) == VERSION
        assert await version_of(connection) == VERSION
        assert await migrate(connection) == 0


async def test_many_may_migrate_at_once(database: Database) -> None:
    async def one() -> int:
        async with PySQLXEngine(database.uri) as connection:
            return await migrate(connection)

    assert sorted(await asyncio.gather(*(one() for _ in range(8)))) == [0] * 7 + [VERSION]


async def test_many_may_migrate_at_once_whatever_isolation_is_usual(postgresql_db: Database) -> None:
    async with PySQLXEngine(postgresql_db.uri) as connection:
        name = postgresql_db.uri.rsplit("/", 1)[1].split("?")[0]
        await connection.raw_cmd(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'repeatable read'")
    await test_many_may_migrate_at_once(postgresql_db)


async def test_a_migration_that_was_cut_off_is_made_again(database: Database) -> None:
    async with PySQLXEngine(database.uri) as connection:
        await migrate(connection)
        await connection.execute("DELETE FROM pysqlx_job_schema")  # the last thing that it does
        assert await migrate(connection) == VERSION


async def of_version_1(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tables as the first version had them, with a job that has not ended and one that has."""
    job = (
        "(id, queue, task, state, priority, attempt, max_attempts, args, created_at, run_at, held{}) "
        "VALUES ({}, 'default', 'note', '{}', 0, 0, 1, '{{}}', 0, 0, 0{})"
    )
    with monkeypatch.context() as old:
        old.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        old.setattr(schema, "VERSION", 1)
        async with PySQLXEngine(database.uri) as connection:
            assert await migrate(connection) == 1
            await connection.execute(f"INSERT INTO pysqlx_jobs {job.format('', 1001, 'available', '')}")
            await connection.execute(
                f"INSERT INTO pysqlx_jobs_ended {job.format(', ended_at', 900, 'completed', ', 0')}"
            )


async def test_jobs_of_an_older_version_are_kept_and_run(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    await of_version_1(database, monkeypatch)

    async def one() -> int:
        async with PySQLXEngine(database.uri) as connection:
            return await migrate(connection)

    assert sorted(await asyncio.gather(*(one() for _ in range(8)))) == [0] * 7 + [VERSION - 1]
    async with PySQLXEngine(database.uri) as connection:
        (row,) = await connection.query_as_dict("SELECT id, trace_context FROM pysqlx_jobs_ended")
        assert row == {"id": 900, "trace_context": None}
    queue = JobQueue(database.uri)

    @queue.task
    async def note() -> None: ...

    assert await drain(queue) == {"completed": 1}


async def test_a_program_works_with_older_tables_and_goes_on_when_they_are_migrated(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await of_version_1(database, monkeypatch)
    queue = JobQueue(database.uri)

    @queue.task
    async def note() -> None: ...

    @queue.task(transactional=True)
    async def writes(conn: PySQLXEngine) -> None: ...

    async with PySQLXEngine(database.uri) as connection:
        await note.enqueue()
        store = store_of(connection)
        async with store.transaction(connection):
            assert await store.revive(connection, [900]) == 1
        assert len(await note.enqueue_many([{}, {}])) == 2
        await writes.enqueue()
        if database.provider != "sqlite":
            assert await version_of(connection) == 1
        assert await drain(queue) == {"completed": 6}
        await migrate(connection)
        assert await version_of(connection) == VERSION
        id_ = await note.enqueue()
        async with store.transaction(connection):  # of who has not looked since
            assert [job.id for job in await store.claim(connection, "default", 9, 1)] == [id_]
    await queue.close()


async def test_who_has_never_looked_may_retry_and_cancel_in_older_tables(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await of_version_1(database, monkeypatch)
    monkeypatch.setattr(schema, "_found", {})
    for act in (lambda queue: queue.retry(900), lambda queue: queue.cancel(900)):
        queue = JobQueue(database.uri)
        assert await act(queue) in (1, (1, 0))
        await queue.close()


async def test_each_schema_of_a_database_has_its_version(
    postgresql_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with PySQLXEngine(postgresql_db.uri) as connection:
        await connection.raw_cmd("CREATE SCHEMA newer")
    newer = replace(postgresql_db, uri=f"{postgresql_db.uri}{'&' if '?' in postgresql_db.uri else '?'}schema=newer")
    await of_version_1(postgresql_db, monkeypatch)
    async with PySQLXEngine(newer.uri) as connection:
        await migrate(connection)
    queues = [JobQueue(one.uri) for one in (postgresql_db, newer, postgresql_db)]
    for queue in queues:
        await queue.enqueue([NewJob(queue="default", task="note", args="{}")])
        await queue.close()


async def test_tables_of_a_newer_version_are_used_when_that_allows_it(database: Database) -> None:
    async with PySQLXEngine(database.uri) as connection:
        await migrate(connection)
        await connection.execute(
            "INSERT INTO pysqlx_job_schema (version, applied_at, readable_from) "
            f"VALUES ({VERSION + 1}, 0, {VERSION - 1}), ({VERSION + 2}, 0, {VERSION})"
        )
        assert await version_of(connection) == VERSION + 2
        assert await migrate(connection) == 0
    queue = JobQueue(database.uri)

    @queue.task
    async def note() -> None: ...

    await note.enqueue()
    assert await drain(queue) == {"completed": 1}
    await queue.close()


async def test_a_migration_waits_for_an_open_transaction_and_holds_nobody_up(
    server_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await of_version_1(server_db, monkeypatch)
    monkeypatch.setattr(schema, "_PAUSE", 0.05)
    waits = asyncio.Event()

    def note(what: str, *_: int) -> None:
        if what.startswith("waiting for a transaction"):
            waits.set()

    async def migrates() -> int:
        async with PySQLXEngine(server_db.uri) as connection:
            made = await migrate(connection, note)
            if server_db.provider == "mysql":
                (row,) = await connection.query_as_dict("SELECT @@lock_wait_timeout = @@global.lock_wait_timeout AS n")
                assert row["n"]
            return made

    async with PySQLXEngine(server_db.uri) as holder, PySQLXEngine(server_db.uri) as other:
        await holder.raw_cmd("BEGIN")
        await holder.execute("UPDATE pysqlx_jobs SET priority = 1")
        migration = asyncio.create_task(migrates())
        await waits.wait()
        assert await other.execute("DELETE FROM pysqlx_jobs WHERE id = 7") == 0
        assert not migration.done()
        await holder.commit()
    assert await migration == VERSION - 1


async def test_a_migration_for_which_nobody_makes_way_says_so(
    server_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await of_version_1(server_db, monkeypatch)
    monkeypatch.setattr(schema, "LOCK_TIMEOUT", 0)
    async with PySQLXEngine(server_db.uri) as holder, PySQLXEngine(server_db.uri) as connection:
        await holder.raw_cmd("BEGIN")
        await holder.execute("UPDATE pysqlx_jobs SET priority = 1")
        with pytest.raises(JobSchemaError, match="in use for 0 s: end the transactions"):
            await migrate(connection)
        await holder.rollback()
        assert await migrate(connection) == VERSION - 1  # nothing is locked


async def test_the_command_waits_for_an_open_transaction_too(
    server_db: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await of_version_1(server_db, monkeypatch)
    monkeypatch.setattr(schema, "_PAUSE", 0.05)
    waits = threading.Event()

    @contextmanager
    def reporting(command: str, *, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
        yield lambda what, done, of: waits.set() if what.startswith("waiting for a transaction") else None

    monkeypatch.setattr(progress, "reporting", reporting)
    async with PySQLXEngine(server_db.uri) as holder:
        await holder.raw_cmd("BEGIN")
        await holder.execute("UPDATE pysqlx_jobs SET priority = 1")
        command = asyncio.create_task(asyncio.to_thread(ctl.main, ["jobs", "migrate", "--uri", server_db.uri]))
        await asyncio.to_thread(waits.wait, 30)
        assert not command.done()
        await holder.commit()
    assert await command == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"the job tables have version {VERSION} now: they had version {VERSION - 1}\n", "")


def test_a_worker_that_ends_a_job_meanwhile_is_not_failed(
    postgresql_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By PostgreSQL, because of a deadlock: the end of a job takes both tables, in an order that depends on whether it
    was prepared long ago."""
    prepared, end = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    async def make_tables() -> None:
        async with PySQLXEngine(postgresql_db.uri) as connection:
            await migrate(connection)
            for table in ("pysqlx_jobs", "pysqlx_jobs_ended"):
                await connection.raw_cmd(f"ALTER TABLE {table} DROP COLUMN trace_context")
            await connection.raw_cmd("ALTER TABLE pysqlx_job_schema DROP COLUMN readable_from")
            await connection.raw_cmd("DELETE FROM pysqlx_job_schema WHERE version > 1")

    async def ends_jobs() -> None:
        async with PySQLXEngine(postgresql_db.uri) as connection:
            store = store_of(connection)
            # As of a worker of the older version.
            monkeypatch.setattr(store, "_end", [_without_context(statement) for statement in store._end])
            ended = [Ended(id=9, attempt=1, owner=1, state=State.COMPLETED)]
            for _ in range(8):  # PostgreSQL keeps a plan after some
                await store.end(connection, ended)
            prepared.set()
            await asyncio.to_thread(end.wait)
            await store.end(connection, ended)

    def worker() -> None:
        try:
            asyncio.run(ends_jobs())
        except BaseException as error:
            failures.append(error)
            prepared.set()

    def end_a_job_in_the_middle(what: str, done: int, of: int) -> None:
        if what == "migrating to version 2" and done == of - 1:
            end.set()
            with postgresql_db.sessions() as sessions:
                while not any(row["wait_event_type"] == "Lock" for row in sessions()):
                    assert not failures

    async def migrates() -> None:
        async with PySQLXEngine(postgresql_db.uri) as connection:
            await migrate(connection, end_a_job_in_the_middle)

    asyncio.run(make_tables())
    thread = threading.Thread(target=worker)
    thread.start()
    prepared.wait()
    asyncio.run(migrates())
    thread.join()
    assert not failures


def _without_context(statement: str) -> str:
    return statement.replace(", j.trace_context", "").replace(", trace_context", "")


async def test_tables_of_a_newer_version_are_not_touched(database: Database) -> None:
    async with PySQLXEngine(database.uri) as connection:
        await migrate(connection)
        await connection.execute(f"INSERT INTO pysqlx_job_schema (version, applied_at) VALUES ({VERSION + 1}, 0)")
        with pytest.raises(JobSchemaError, match=f"version {VERSION + 1}.* up to {VERSION}: upgrade"):
            await migrate(connection)
        with pytest.raises(JobSchemaError):
            await version_of(connection)
        # And nothing is locked.
        async with PySQLXEngine(database.uri) as other:
            await other.execute("DELETE FROM pysqlx_job_schema")


def test_a_database_that_the_queue_does_not_know_is_refused() -> None:
    connection = PySQLXEngine("sqlserver://localhost:1433;database=master;user=SA;password=secret")
    with pytest.raises(JobSchemaError, match="not on sqlserver"):
        dialect_of(connection)
