"""A queue that is served within a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pysqlx_engine import PySQLXEngine, PySQLXEnginePool
from pysqlx_engine.workers import JobQueue
from tests.servers import Database


@asynccontextmanager
async def looking(database: Database) -> AsyncIterator[PySQLXEngine]:
    """A connection of a pool: on SQLite other pools know then that its descriptor is no leftover of theirs."""
    async with PySQLXEnginePool(database.uri, min_size=0, max_size=1) as pool, pool.connection() as connection:
        yield connection


@asynccontextmanager
async def served(queue: JobQueue, grace: float = 10.0) -> AsyncIterator[None]:
    """`queue` is served meanwhile, and has come to its end afterwards."""
    await queue.migrate()
    serving = asyncio.create_task(queue.serve(grace))
    try:
        yield
        queue.stop()
        await serving
    finally:
        serving.cancel()


async def ended(database: Database, *ids: int) -> list[dict[str, object]]:
    """The rows of these jobs, as soon as all have ended."""
    async with looking(database) as connection:
        while True:
            names = ", ".join(map(str, ids))
            rows = await connection.query_as_dict(f"SELECT * FROM pysqlx_jobs_ended WHERE id IN ({names}) ORDER BY id")
            if len(rows) == len(set(ids)):
                return rows
            await asyncio.sleep(0.01)


async def errors(database: Database, id_: int) -> list[str]:
    async with looking(database) as connection:
        rows = await connection.query_as_dict(
            "SELECT error FROM pysqlx_job_errors WHERE job_id = :id ORDER BY id", {"id": id_}
        )
    return [str(row["error"]) for row in rows]


async def waiting(database: Database) -> list[dict[str, object]]:
    """What has not ended."""
    async with looking(database) as connection:
        return await connection.query_as_dict("SELECT * FROM pysqlx_jobs ORDER BY id")
