"""Two transactions that wait for each other: the server undoes one, and that one is done again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

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
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    "mysql": "SELECT id FROM information_schema.processlist WHERE db = database() "
    "AND id <> connection_id() AND info LIKE '%pysqlx_jobs%' AND time_ms > 300",
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


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the dispatcher warns of."""
    said: list[str] = []
    monkeypatch.setattr(dispatcher.logger, "warning", lambda *words: said.append(str(words)))
    return said


async def test_what_a_server_undoes_is_claimed_again(
    server_db: Database, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
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


@pytest.mark.parametrize("act", ["release", "release_forgotten"])
async def test_what_a_server_undoes_is_released_again(
    sqlite_db: Database, monkeypatch: pytest.MonkeyPatch, said: list[str], act: str
) -> None:
    times = 0
    real = getattr(Limits, act)

    async def first_undone(*args: Any) -> int:
        nonlocal times
        times += 1
        if times == 1:
            raise QueryError("40P01", "deadlock")
        released: int = await real(*args)
        return released

    monkeypatch.setattr(Limits, act, first_undone)
    queue = JobQueue(sqlite_db.uri)

    @queue.task(limit=1)
    async def limited() -> None: ...

    async with served(queue):
        (row,) = await ended(sqlite_db, await limited.enqueue())
    assert row["attempt"] == 1
    assert said == []
    assert times > 1


async def test_what_a_server_undoes_is_cancelled_again(server_db: Database) -> None:
    queue = JobQueue(server_db.uri)
    await queue.migrate()
    ids = await queue.enqueue([NewJob(queue="default", task="note", args="{}") for _ in range(2)])
    async with looking(server_db) as other, looking(server_db) as observer:
        await begin_strongly(other, server_db.provider)
        await other.execute("UPDATE pysqlx_jobs SET priority = 1 WHERE id = :id", {"id": ids[1]})
        cancelling = asyncio.ensure_future(queue.cancel(*ids))
        while not await observer.query_as_dict(WAITS[server_db.provider]):
            assert not cancelling.done()
        await other.execute("UPDATE pysqlx_jobs SET priority = 1 WHERE id = :id", {"id": ids[0]})
        await other.commit()
        assert await cancelling == (2, 0)
    await queue.close()


OF_ITS_USER = {"postgresql": ["BEGIN", "SELECT 1; BEGIN"], "mysql": ["BEGIN", "SET autocommit = 0"]}
"""How a user opens a transaction, so that it is seen and so that it is not."""


@pytest.mark.parametrize("opens", [None, 0, 1])
async def test_what_a_server_undoes_is_enqueued_again(server_db: Database, opens: int | None) -> None:
    """But by a user's own connection: all of his transaction is undone, and only he can do it again."""
    queue = JobQueue(server_db.uri)

    def named(key: str) -> NewJob:
        return NewJob(queue="default", task="note", args="{}", unique_key=key)

    await queue.migrate()
    async with looking(server_db) as ours, looking(server_db) as other, looking(server_db) as observer:
        await begin_strongly(other, server_db.provider)
        ids = await queue.enqueue([named("b")], other)
        if opens is not None:
            await ours.raw_cmd(OF_ITS_USER[server_db.provider][opens])
        enqueuing = asyncio.ensure_future(queue.enqueue([named("a"), named("b")], None if opens is None else ours))
        while not await observer.query_as_dict(WAITS[server_db.provider]):
            assert not enqueuing.done()
        ids = await queue.enqueue([named("a")], other) + ids
        await other.commit()
        if opens is not None:
            with pytest.raises((QueryError, ExecuteError)):
                await enqueuing
            await ours.rollback()
        else:
            assert await enqueuing == ids
    await queue.close()
