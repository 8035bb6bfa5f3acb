"""What the database does not take, and rows that say what is not so: the queue goes on."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from pysqlx_engine import PySQLXEngine
from pysqlx_engine.errors import PySQLXError, QueryError
from pysqlx_engine.workers import JobQueue
from pysqlx_engine.workers.jobs import dispatcher
from pysqlx_engine.workers.jobs.attempts import without_texts
from pysqlx_engine.workers.jobs.presence import Register
from pysqlx_engine.workers.jobs.schema import migrate
from pysqlx_engine.workers.jobs.store import CLAIMS, Claimed, NewJob, Store, store_of
from tests.servers import Database

from .serving import ended, errors, looking, served

MANY = 20


async def test_a_report_that_is_refused_holds_up_no_other_and_is_written_without_its_result(
    sqlite_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "_FIRST_PAUSE", 0.01)
    queue = JobQueue(sqlite_db.uri)

    @queue.task(store_result=True)
    async def result(text: str) -> str:
        return text

    await queue.migrate()
    async with looking(sqlite_db) as connection:
        await connection.raw_cmd(
            "CREATE TRIGGER refuses BEFORE INSERT ON pysqlx_jobs_ended WHEN NEW.result = '\"poison\"' "
            "BEGIN SELECT RAISE(ABORT, 'this is refused'); END"
        )
    ids = await result.enqueue_many([{"text": "poison" if number == 7 else "good"} for number in range(MANY)])
    async with served(queue):
        rows = await ended(sqlite_db, *ids)
    assert [(row["state"], row["result"]) for row in rows] == [
        ("completed", None if number == 7 else '"good"') for number in range(MANY)
    ]
    assert await errors(sqlite_db, ids[7]) == ["the database has not taken the result, or the error, of this attempt"]
    assert await errors(sqlite_db, ids[8]) == []


async def test_a_database_that_refuses_everything_for_a_while_loses_no_result(
    sqlite_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(dispatcher, "_REFUSED_FOR", 0.1)
    queue = JobQueue(sqlite_db.uri)
    refused_without_texts = asyncio.Event()
    transact = dispatcher.Dispatcher._transact

    async def transact_and_tell(self: dispatcher.Dispatcher, database: Any, turn: Any) -> None:
        try:
            await transact(self, database, turn)
        except PySQLXError:
            if turn.reports and turn.reports == [without_texts(turn.reports[0])]:
                refused_without_texts.set()
            raise

    monkeypatch.setattr(dispatcher.Dispatcher, "_transact", transact_and_tell)

    @queue.task(store_result=True)
    async def result() -> str:
        return "kept"

    await queue.migrate()
    async with looking(sqlite_db) as connection:
        await connection.raw_cmd(
            "CREATE TRIGGER refuses BEFORE INSERT ON pysqlx_jobs_ended BEGIN SELECT RAISE(ABORT, 'not now'); END"
        )
        id_ = await result.enqueue()
        async with served(queue):
            await refused_without_texts.wait()
            await connection.raw_cmd("DROP TRIGGER refuses")
            (row,) = await ended(sqlite_db, id_)
    assert (row["state"], row["result"]) == ("completed", '"kept"')


async def test_what_is_too_much_for_one_statement_is_enqueued_claimed_and_run(database: Database) -> None:
    """MariaDB takes statements of 16 MiB."""
    queue = JobQueue(database.uri, concurrency=200, max_payload=1 << 20)

    @queue.task(store_result=True)
    async def large(text: str) -> str:
        return text

    await queue.migrate()
    ids = await large.enqueue_many([{"text": "x" * 400_000} for _ in range(60)])
    async with looking(database) as connection:  # without a transaction: all or none all the same
        ids += await large.enqueue_many([{"text": "y" * 400_000} for _ in range(12)], conn=connection)
        assert not connection._in_transaction
    assert len(set(ids)) == 72
    async with served(queue):
        rows = await ended(database, *ids)
        assert {(row["state"], len(str(row["result"]))) for row in rows} == {("completed", 400_002)}


async def test_a_task_that_outlives_its_handler_enqueues_by_no_connection_of_somebody_else(database: Database) -> None:
    queue = JobQueue(database.uri)
    handler_is_over = asyncio.Event()
    seen: list[object] = []

    @queue.task(transactional=True)
    async def starts_another(conn: PySQLXEngine) -> None:
        seen.append(asyncio.create_task(outlives()))

    async def outlives() -> int:
        await handler_is_over.wait()
        return await note.enqueue()

    @queue.task
    async def note() -> None: ...

    async with served(queue):
        await ended(database, await starts_another.enqueue())
        handler_is_over.set()
        (task,) = seen
        assert isinstance(task, asyncio.Task)
        await ended(database, await task)


async def test_jobs_of_a_dispatcher_that_nobody_knows_and_claims_that_were_forgotten_run_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "BEAT", 0.1)
    queue = JobQueue(database.uri)
    ran: list[int] = []

    @queue.task(max_attempts=2)
    async def note(number: int) -> None:
        ran.append(number)

    await queue.migrate()
    ids = await note.enqueue_many([{"number": number} for number in range(2)])
    async with looking(database) as connection:
        store = store_of(connection)
        async with store.transaction(connection):
            (first,) = await store.claim(connection, "default", 1, 999_999 * CLAIMS + 1)
    async with served(queue):
        await ended(database, ids[1])
        lost = await note.options(delay=3600).enqueue(number=7)
        async with looking(database) as connection:
            (here,) = await Register(store._dialect).all(connection)
            await connection.execute(
                "UPDATE pysqlx_jobs SET state = 'running', attempt = 1, owner = :owner WHERE id = :id",
                {"owner": here.owners[0] + 5_000_000, "id": lost},
            )
        rows = await ended(database, first.id, lost)
    assert sorted(ran) == [0, 1, 7]
    assert [row["attempt"] for row in rows] == [2, 1]
    assert await errors(database, first.id) == ["it ran for a dispatcher that nobody knows any more"]
    assert await errors(database, lost) == []


async def test_a_dispatcher_that_was_taken_for_dead_begins_anew(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "BEAT", 0.1)
    queue = JobQueue(database.uri)

    @queue.task
    async def note() -> None: ...

    async with served(queue):
        await ended(database, await note.enqueue())
        async with looking(database) as connection:
            register = Register(store_of(connection)._dialect)
            (before,) = await register.all(connection)
            await register.leave(connection, before)
            while not (now := await register.all(connection)):
                await asyncio.sleep(0.01)
        assert now[0].id != before.id
        (row,) = await ended(database, await note.enqueue())
    assert row["attempt"] == 1


async def test_dispatchers_that_lock_many_limits_at_once_do_not_wait_for_each_other(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(dispatcher.logger, "warning", lambda *words: said.append(str(words)))
    chance = random.Random(5)

    def one() -> JobQueue:
        queue = JobQueue(database.uri, concurrency=20, max_size=3)

        @queue.task(limit=2)
        async def limited() -> None:
            await asyncio.sleep(chance.random() / 100)

        return queue

    first, second = one(), one()
    async with served(first), served(second):
        limited = first.tasks["limited"]
        ids = [await limited.options(limit_key=chance.choice("abcdefgh")).enqueue() for _ in range(150)]
        rows = await ended(database, *ids)
    assert {(row["state"], row["attempt"]) for row in rows} == {("completed", 1)}
    assert said == []


async def test_after_a_transaction_that_failed_the_dispatcher_looks_for_work_as_before(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle one has no transaction that would show that all is well again."""
    queue = JobQueue(database.uri)
    failed = asyncio.Event()
    transact = dispatcher.Dispatcher._transact

    async def transact_once(self: dispatcher.Dispatcher, database: Any, turn: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise QueryError("0", "a deadlock, for instance")
        await transact(self, database, turn)

    @queue.task
    async def note() -> None: ...

    async with served(queue):
        await ended(database, await note.enqueue())
        monkeypatch.setattr(dispatcher.Dispatcher, "_transact", transact_once)
        await failed.wait()
        async with looking(database) as connection, store_of(connection).transaction(connection):
            # Without a hint: another host's.
            (id_,) = await store_of(connection).enqueue(connection, [NewJob(queue="default", task="note", args="{}")])
        await ended(database, id_)


async def test_a_hint_that_comes_while_a_claim_is_under_way_is_not_lost(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = JobQueue(database.uri, queues=("default", "other"))
    monkeypatch.setitem(dispatcher.Dispatcher.__init__.__kwdefaults__, "poll", 3600.0)
    claim = Store.claim
    hinted: list[int] = []

    @queue.task
    async def note() -> None: ...

    async def claim_and_enqueue(self: Store, connection: PySQLXEngine, name: str, *more: Any) -> list[Claimed]:
        found = await claim(self, connection, name, *more)
        if found and not hinted and database.provider != "sqlite":
            hinted.append(await note.enqueue())  # it is told while the answer is on its way
            await asyncio.sleep(0.05)
        return found

    async with served(queue):
        await ended(database, await note.enqueue())
        monkeypatch.setattr(Store, "claim", claim_and_enqueue)
        await ended(database, await note.enqueue())
        if database.provider == "sqlite":  # where nobody else writes meanwhile
            hinted.append(await note.enqueue())
        while not hinted:
            await asyncio.sleep(0.01)
        await ended(database, *hinted)


async def test_a_dispatcher_keeps_the_rows_of_those_before_it_fresh(database: Database) -> None:
    """While their jobs run with its workers, another host is not to think that nobody sees to them."""
    async with looking(database) as connection:
        await migrate(connection)
        register = Register(store_of(connection)._dialect)
        before, here, other = [await register.enter(connection, run, None, None) for run in ("one", "one", "other")]
        await connection.execute("UPDATE pysqlx_job_dispatchers SET seen_at = seen_at - 60000000")
        await register.beat(connection, here)
        unseen = {one.id: one.unseen for one in await register.all(connection)}
    assert max(unseen[before.id], unseen[here.id]) < 30_000_000 < unseen[other.id]


async def test_a_report_that_costs_the_connection_even_without_its_result_holds_up_no_other(
    postgresql_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(dispatcher, "_LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(dispatcher, "_REFUSED_FOR", 0.5)
    queue = JobQueue(postgresql_db.uri)

    @queue.task(store_result=True)
    async def result() -> str:
        return "good"

    await queue.migrate()
    ids = await result.enqueue_many([{}] * MANY)
    async with looking(postgresql_db) as connection:
        await connection.raw_cmd(
            "CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF NEW.id = {ids[7]} THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NEW; END $$;"
            "CREATE TRIGGER cuts BEFORE INSERT ON pysqlx_jobs_ended FOR EACH ROW EXECUTE FUNCTION cut()"
        )
        async with served(queue):
            rows = await ended(postgresql_db, *ids[:7], *ids[8:])
            assert {(row["state"], row["result"]) for row in rows} == {("completed", '"good"')}
            await connection.raw_cmd("DROP TRIGGER cuts ON pysqlx_jobs_ended")
            (row,) = await ended(postgresql_db, ids[7])
    assert row["state"] == "completed"
