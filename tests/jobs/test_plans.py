"""The statements that run all the time use their index, however many jobs wait, and however many have ended."""

from __future__ import annotations

from pysqlx_engine import PySQLXEngine
from pysqlx_engine.workers.jobs.dialects import dialect_of
from pysqlx_engine.workers.jobs.life import State
from pysqlx_engine.workers.jobs.limits import Limits
from pysqlx_engine.workers.jobs.schema import migrate
from pysqlx_engine.workers.jobs.store import Ended, NewJob, Store
from tests.servers import Database

JOBS = 5_000


async def plan(connection: PySQLXEngine, statement: str, parameters: dict[str, object]) -> str:
    explain = "EXPLAIN QUERY PLAN" if connection.uri.startswith("sqlite") else "EXPLAIN"
    rows = await connection.query_as_dict(f"{explain} {statement}", parameters)
    return "\n".join(str(row) for row in rows)


async def filled(connection: PySQLXEngine) -> Store:
    """Many of every kind."""
    await migrate(connection)
    store = Store(dialect_of(connection))
    for number in range(4):
        jobs = [
            NewJob(queue=f"queue {number % 2}", task="t", args="{}", priority=one % 5, delay=number // 2 * 10**10,
                   unique_key=f"{number}-{one}")
            for one in range(JOBS // 4)
        ]  # fmt: skip
        await store.enqueue(connection, jobs)
    await connection.begin()
    await store.claim(connection, "queue 0", 100, owner=1)
    await connection.commit()
    for owner in range(2, 5):
        await connection.begin()
        jobs = await store.claim(connection, "queue 0", 300, owner)
        done = [Ended(id=job.id, attempt=1, owner=owner, state=State.COMPLETED) for job in jobs]
        await store.end(connection, done)
        await connection.execute(f"UPDATE pysqlx_jobs_ended SET ended_at = id * 1000 WHERE owner = {owner}")
        await connection.commit()
    if connection.uri.startswith("mysql"):
        await connection.raw_cmd("ANALYZE TABLE pysqlx_jobs_ended")
    await connection.raw_cmd("ANALYZE TABLE pysqlx_jobs" if connection.uri.startswith("mysql") else "ANALYZE")
    return store


KEY = {"rows": '[{"id": 7, "attempt": 1, "owner": 1, "state": "available", "attempt_after": 0, "held": 0}]'}


async def test_each_statement_that_runs_all_the_time_uses_its_index(database: Database) -> None:
    async with PySQLXEngine(database.uri) as connection:
        store = await filled(connection)
        limits = Limits(dialect_of(connection), store)
        primary = {"postgresql": "pysqlx_jobs_", "sqlite": "INTEGER PRIMARY KEY", "mysql": "PRIMARY"}
        claim = store._claim if dialect_of(connection).returning else store._pick
        plans: list[tuple[str, dict[str, object], str]] = [
            (claim, {"queue": "queue 1", "most": 50, "owner": 9}, "pysqlx_jobs_claim"),
            (store._due, {"most": 50}, "pysqlx_jobs_due"),
            (store._running, {"first": 1, "last": 5}, "pysqlx_jobs_owner"),
            (store._orphans, {"most": 5}, "pysqlx_jobs_owner"),
            (store._cancel_asked, {"first": 1, "last": 5}, "pysqlx_jobs_owner"),
            (store._forget, {"keep": 10**15, "most": 100}, "pysqlx_jobs_ended_at"),
            (store._postpone, KEY, primary[database.provider]),
            (limits._first, {"name": "k", "running": 2, "most": 5}, "pysqlx_jobs_limit"),
            (limits._running, {"rows": '[{"name": "k"}]'}, "pysqlx_jobs_limit"),
        ]
        if database.provider != "postgresql":  # which rightly reads a table of this size whole
            plans.append((store._with_keys, {"rows": '[{"unique_key": "1-7"}]'}, "pysqlx_jobs_unique"))
        plans += [(statement, KEY, primary[database.provider]) for statement in store._end]
        for statement, parameters, index in plans:
            found = await plan(connection, statement, parameters)
            assert index in found, f"{statement}\n{found}"
            assert "Seq Scan on pysqlx_jobs" not in found, found
            if statement is claim:  # in the index's order: nothing is sorted
                assert "sort" not in found.lower(), found
                assert "temp b-tree" not in found.lower(), found
