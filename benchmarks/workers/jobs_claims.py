"""Jobs per second that are claimed, and moved to the history, by the statements of a dispatcher alone, one transaction
after the other: beside many jobs that wait, many that have ended, and few. To enqueue as many again is not counted."""

from __future__ import annotations

import asyncio
import time

from pysqlx_engine import PySQLXEngine
from pysqlx_engine.workers.jobs.dialects import dialect_of
from pysqlx_engine.workers.jobs.life import State
from pysqlx_engine.workers.jobs.schema import migrate
from pysqlx_engine.workers.jobs.store import Claimed, Ended, NewJob, Store

from .leading import main

BATCH = 100
"""Jobs of a transaction."""
FEW, MANY = 1_000, 1_000_000
JOBS = [NewJob(queue="default", task="empty", args='{"number":1}')]


async def multiply(connection: PySQLXEngine, table: str, times: int) -> None:
    """As if every row had been enqueued so many times, and statistics had been made by now."""
    asked = "SELECT column_name AS name FROM information_schema.columns WHERE table_name = :table"
    rows = await connection.query_as_dict(asked, {"table": table})
    columns = [row["name"] for row in rows if row["name"] != "id"]
    names = ", ".join(columns)
    new, old = f"{table} ({names})", f"{names} FROM {table}"
    if table == "pysqlx_jobs_ended":  # which has the ids of its jobs
        new, old = f"{table} (id, {names})", f"id - n * {MANY}, {names} FROM {table}"
    await connection.execute(f"INSERT INTO {new} SELECT {old}, generate_series(2, {times}) AS n")
    await connection.raw_cmd("VACUUM ANALYZE")


class Claims:
    def __init__(self, connection: PySQLXEngine) -> None:
        self._connection = connection
        self._store = Store(dialect_of(connection))
        self._owner = 0
        self._claimed: list[Claimed] = []

    async def fill(self, count: int) -> None:
        await self._store.enqueue(self._connection, JOBS * count)

    async def turn(self) -> float:
        """Seconds of what a dispatcher does over and over: write what has ended, claim as much."""
        started = time.perf_counter()
        ended = [Ended(id=job.id, attempt=job.attempt, owner=job.owner, state=State.COMPLETED) for job in self._claimed]
        self._owner += 1
        async with self._store.transaction(self._connection):
            if ended:
                await self._store.end(self._connection, ended)
            self._claimed = await self._store.claim(self._connection, "default", BATCH, self._owner, None)
        seconds = time.perf_counter() - started
        assert len(self._claimed) == BATCH
        await self.fill(BATCH)
        return seconds

    async def rate(self, seconds: float) -> float:
        until, turns = time.monotonic() + 1.0 + 2.0 * seconds, []
        while time.monotonic() < until:
            turns.append(await self.turn())
        return BATCH * len(turns) / sum(turns)


async def measure(peer: str, case: str, uri: str, seconds: float) -> float:
    async with PySQLXEngine(uri) as connection:
        await migrate(connection)
        claims = Claims(connection)
        await claims.fill(FEW)
        for _ in range(20):
            await claims.turn()
        if peer == "ours":
            table, there = ("pysqlx_jobs", FEW) if case == "jobs-waiting" else ("pysqlx_jobs_ended", 19 * BATCH)
            await multiply(connection, table, MANY // there)
        return await claims.rate(seconds)


if __name__ == "__main__":
    main(lambda peer, case, uri, seconds: {"figure": asyncio.run(measure(peer, case, uri, seconds))})
