"""The statements that run all the time use their index, however many jobs wait, and however many have ended."""

from __future__ import annotations

from pysqlx_engine import PySQLXEngine
from pysqlx_engine.workers.jobs.dialects import dialect_of
from pysqlx_engine.workers.jobs.life import State
from pysqlx_engine.workers.jobs.schema import migrate
from pysqlx_engine.workers.jobs.store import Ended, NewJob, Store
from tests.servers import Database

JOBS = 5_000


async def plan(connection: PySQLXEngine, statement: str) -> str:
    explain = "EXPLAIN QUERY PLAN" if connection.uri.startswith("sqlite") else "EXPLAIN"
    rows = await connection.query_as_dict(f"{explain} {statement}")
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


PLANS = {
    "SELECT id FROM pysqlx_jobs WHERE state = 'available' AND queue = 'queue 1' "
    "ORDER BY priority DESC, run_at, id LIMIT 50": "pysqlx_jobs_claim",
    "SELECT id FROM pysqlx_jobs WHERE state IN ('scheduled', 'retrying') AND run_at <= 1 "
    "ORDER BY run_at LIMIT 50": "pysqlx_jobs_due",
    "SELECT id FROM pysqlx_jobs WHERE state = 'running' AND owner BETWEEN 1 AND 5": "pysqlx_jobs_owner",
    "SELECT id FROM pysqlx_jobs WHERE unique_key = '1-7'": "pysqlx_jobs_unique",
    "SELECT id FROM pysqlx_jobs_ended WHERE ended_at < 5000 ORDER BY ended_at LIMIT 100": "pysqlx_jobs_ended_at",
}


async def test_each_uses_its_index(database: Database) -> None:
    async with PySQLXEngine(database.uri) as connection:
        await filled(connection)
        for statement, index in PLANS.items():
            found = await plan(connection, statement)
            assert index in found, found
            if "ORDER BY priority" in statement:  # in the index's order: nothing is sorted
                assert "sort" not in found.lower(), found
                assert "temp b-tree" not in found.lower(), found
