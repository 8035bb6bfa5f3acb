"""Two transactions that wait for each other: the server undoes one, and that one is done again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from pysqlx_engine import PySQLXEngine
from pysqlx_engine.errors import ExecuteError, QueryError
from pysqlx_engine.workers import JobQueue
from pysqlx_engine.workers.jobs import dispatcher
from pysqlx_engine.workers.jobs.conflicts import TIMES, repeated
from pysqlx_engine.workers.jobs.limits import Limits
from pysqlx_engine.workers.jobs.store import NewJob
from tests.servers import Database

from .serving import ended, looking, served

WAITS = {
    "postgresql": "SELECT pid FROM pg_locks JOIN pg_database d ON d.datname = current_database() "
    "JOIN pg_stat_activity USING (pid) WHERE NOT granted AND datid = d.oid",
    "mysql": "SELECT id FROM information_schema.processlist WHERE db = database() "
    "AND info LIKE 'INSERT%INTO pysqlx_jobs%' AND time_ms > 300",
}
"""Who waits for a lock in this database, as far as the server says so."""


async def begin_strongly(connection: PySQLXEngine, provider: str) -> None:
    """A transaction that is not the one to be undone."""
    if provider == "postgresql":  # undoes whoever first has waited so long
        await connection.raw_cmd("SET deadlock_timeout = '60s'")
    await connection.raw_cmd("CREATE TABLE ballast (n integer)")
    await connection.begin()
    # MariaDB undoes whoever has written less.
    await connection.execute("INSERT INTO ballast SELECT number FROM pysqlx_job_limits")


@pytest.mark.parametrize("code", ["40001", "40P01", "1213"])
async def test_it_is_begun_a_few_times(code: str) -> None:
    begun = 0

    async def act(fails: int) -> str:
        nonlocal begun
        begun += 1
        if begun <= fails:
            raise QueryError(code, "deadlock")
        return "done"

    assert await repeated(act, TIMES - 1) == "done"
    begun = 0
    with pytest.raises(QueryError):
        await repeated(act, TIMES)
    assert begun == TIMES


async def test_what_has_failed_otherwise_is_not_done_again() -> None:
    begun = 0

    async def act() -> None:
        nonlocal begun
        begun += 1
        raise QueryError("23505", "duplicate key")

    with pytest.raises(QueryError):
        await repeated(act)
    assert begun == 1


async def test_what_a_server_undoes_is_claimed_again(server_db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(dispatcher.logger, "warning", lambda *words: said.append(str(words)))
    locked: asyncio.Queue[None] = asyncio.Queue()
    lock = Limits.lock

    async def tell_and_lock(self: Limits, connection: PySQLXEngine, keys: Iterable[str]) -> None:
        locked.put_nowait(None)
        await lock(self, connection, keys)

    monkeypatch.setattr(Limits, "lock", tell_and_lock)
    queue = JobQueue(server_db.uri)

    @queue.task(limit=1)
    async def limited() -> None: ...

    async with served(queue), looking(server_db) as other:
        await begin_strongly(other, server_db.provider)
        await other.query_as_dict("SELECT number FROM pysqlx_job_limits FOR UPDATE")
        id_ = await limited.enqueue()
        await locked.get()  # by the dispatcher, which has the job's row, and waits for ours
        await other.execute("UPDATE pysqlx_jobs SET priority = 1 WHERE id = :id", {"id": id_})
        await other.commit()
        (row,) = await ended(server_db, id_)
    assert (row["state"], row["attempt"], row["priority"]) == ("completed", 1, 1)
    assert said == []
    assert locked.qsize() >= 2  # a claim that was done again, and the end


@pytest.mark.parametrize("in_transaction", [False, True])
async def test_what_a_server_undoes_is_enqueued_again(server_db: Database, in_transaction: bool) -> None:
    """But in a user's own transaction: all of that is undone, and only its user can do it again."""
    queue = JobQueue(server_db.uri)

    def named(key: str) -> NewJob:
        return NewJob(queue="default", task="note", args="{}", unique_key=key)

    await queue.migrate()
    async with looking(server_db) as ours, looking(server_db) as other, looking(server_db) as observer:
        await begin_strongly(other, server_db.provider)
        ids = await queue.enqueue([named("b")], other)
        if in_transaction:
            await ours.begin()
        enqueuing = asyncio.ensure_future(queue.enqueue([named("a"), named("b")], ours))
        while not await observer.query_as_dict(WAITS[server_db.provider]):
            assert not enqueuing.done()
        ids = await queue.enqueue([named("a")], other) + ids
        await other.commit()
        if in_transaction:
            with pytest.raises((QueryError, ExecuteError)):
                await enqueuing
            await ours.rollback()
        else:
            assert await enqueuing == ids
