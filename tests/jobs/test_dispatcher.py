"""A dispatcher whose worker is in the test's hands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pysqlx_engine import PySQLXEngine, PySQLXEnginePool
from pysqlx_engine.workers.jobs import dispatcher
from pysqlx_engine.workers.jobs.attempts import Report, completed
from pysqlx_engine.workers.jobs.dispatcher import Dispatcher
from pysqlx_engine.workers.jobs.periodic import Schedule
from pysqlx_engine.workers.jobs.presence import Presence, Register
from pysqlx_engine.workers.jobs.schema import migrate
from pysqlx_engine.workers.jobs.store import Claimed, NewJob, store_of
from tests.servers import Database

from .serving import ended, looking

RUN = "one run"


class Hands:
    def __init__(self) -> None:
        self.given: asyncio.Queue[Claimed] = asyncio.Queue()
        self.to_cancel: asyncio.Queue[Claimed] = asyncio.Queue()

    def send(self, worker: str, jobs: list[Claimed]) -> None:
        for job in jobs:
            self.given.put_nowait(job)

    def cancel(self, worker: str, jobs: list[Claimed]) -> None:
        for job in jobs:
            self.to_cancel.put_nowait(job)

    def written(self, reports: Sequence[Report]) -> None: ...


@asynccontextmanager
async def dispatching(database: Database) -> AsyncIterator[tuple[Dispatcher, Hands]]:
    """One that does not serve yet."""
    hands = Hands()
    async with PySQLXEnginePool(database.uri, min_size=0, max_size=3) as pool:
        yield Dispatcher(pool, {"default": 1}, hands, connections=2, keep=3600.0, run=RUN), hands


@asynccontextmanager
async def serving(one: Dispatcher) -> AsyncIterator[None]:
    task = asyncio.create_task(one.serve())
    try:
        yield
        await one.drain()
        await task
    finally:
        task.cancel()


async def enqueue(database: Database, **more: Any) -> int:
    async with looking(database) as connection, store_of(connection).transaction(connection):
        new = NewJob(queue="default", task="note", args="{}", **more)
        (id_,) = await store_of(connection).enqueue(connection, [new])
        return id_


async def claim_for_the_one_before(connection: PySQLXEngine) -> tuple[Presence, Claimed]:
    """What a dispatcher of this run has claimed, and now it is gone."""
    store = store_of(connection)
    async with store.transaction(connection):
        before = await Register(store._dialect).enter(connection, RUN, None, None)
        (job,) = await store.claim(connection, "default", 1, before.owners[0] + 1)
    return before, job


async def test_what_was_claimed_by_the_one_before_is_adopted_though_the_connection_is_lost_meanwhile(
    postgresql_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "_FIRST_PAUSE", 0.01)
    inherit, cut = Dispatcher._inherit, asyncio.Event()

    async def cut_off(self: Dispatcher, database: Any, lost: Presence, *, before_us: bool) -> None:
        if not cut.is_set():
            cut.set()
            (row,) = await database.connection.query_as_dict("SELECT pg_backend_pid() AS pid")
            async with looking(postgresql_db) as other:
                await other.query_as_dict("SELECT pg_terminate_backend(:pid)::text AS done", {"pid": row["pid"]})
        await inherit(self, database, lost, before_us=before_us)

    monkeypatch.setattr(Dispatcher, "_inherit", cut_off)
    async with looking(postgresql_db) as connection:
        await migrate(connection)
        id_ = await enqueue(postgresql_db)
        await claim_for_the_one_before(connection)
    async with dispatching(postgresql_db) as (one, hands):
        one.join("w", 5, {"note": False})
        one.adopt_after(0.0, workers_died=False)
        async with serving(one):
            job = await hands.given.get()
            assert (job.id, job.attempt) == (id_, 1), "it had never begun"
            one.report("w", [completed(job)])
    assert cut.is_set()


async def test_a_cancel_is_heard_for_what_was_begun_under_the_one_before(database: Database) -> None:
    async with looking(database) as connection:
        await migrate(connection)
        await enqueue(database)
        _, job = await claim_for_the_one_before(connection)
        async with dispatching(database) as (one, hands):
            one.join("w", 5, {"note": False}, running=[job])
            async with serving(one):
                async with store_of(connection).transaction(connection):
                    await store_of(connection).cancel(connection, [job.id])
                assert await hands.to_cancel.get() == job
                one.report("w", [completed(job)])


async def test_whoever_enqueues_a_periodic_task_holds_up_no_end_of_a_job_with_a_limit(server_db: Database) -> None:
    """Who waits for a periodic task's row has no limit locked: two in another order would wait for each other."""
    async with looking(server_db) as connection:
        await migrate(connection)
        id_ = await enqueue(server_db, limit_key="limit", limit_max=1)
        async with dispatching(server_db) as (one, hands):
            every_minute = Schedule("note", "* * * * *", "UTC", "default", 0, 1)
            one.join("w", 5, {"note": False}, [every_minute])
            async with serving(one):
                job = await hands.given.get()
                store = store_of(connection)
                async with store.transaction(connection):
                    await connection.execute("UPDATE pysqlx_job_ticks SET tick = tick - 600000000")
                async with store.transaction(connection):
                    await connection.query_as_dict("SELECT name FROM pysqlx_job_ticks FOR UPDATE")
                    one._tick_at = 0.0
                    one.report("w", [completed(job)])
                    await ended(server_db, id_)
                one.report("w", [completed(await hands.given.get())])
