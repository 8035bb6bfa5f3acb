"""Our job queue, on PostgreSQL and on SQLite: what `pysqlx-run` runs, and who enqueues.

Concurrency 200 a worker, 400 in all: as many jobs are with the workers while the dispatcher writes and claims, and so
as many are in one transaction.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from pysqlx_engine import PySQLXEngine
from pysqlx_engine.workers import JobQueue

from .jobs_marks import ran

CONCURRENCY = int(os.environ.get("JOBS_CONCURRENCY", "200"))
BUDGET = 10
"""Connections of all processes of a run."""

queue = JobQueue(os.environ["JOBS_URI"], concurrency=CONCURRENCY, max_size=BUDGET)


@queue.task
async def empty(number: int) -> None:
    ran(number)


@queue.task
async def query(number: int, connection: PySQLXEngine) -> None:
    ran(number)
    await connection.query_as_dict("SELECT CAST(pg_sleep(0.01) AS text) AS slept")


def commands(workers: int = 2) -> list[list[str]]:
    run = str(Path(sys.executable).with_name("pysqlx-run"))
    options = ["-w", str(workers), "--max-size", str(BUDGET), "--name", f"bench-{os.getpid()}", "--no-prefix"]
    # Plain asyncio, though pysqlx-run takes uvloop by itself where that is installed.
    return [[run, *options, "--loop", "asyncio", "workers.jobs_ours:serve"]]


def serve() -> None:
    queue.run()


async def prepare() -> None:
    await queue.migrate()
    await queue.close()


class Producer:
    async def many(self, numbers: Sequence[int]) -> None:
        await empty.enqueue_many([{"number": number} for number in numbers])

    async def one(self, number: int) -> None:
        await empty.enqueue(number=number)


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    try:
        yield Producer()
    finally:
        await queue.close()


async def queries(numbers: Sequence[int]) -> None:
    """Enqueue jobs that query."""
    await query.enqueue_many([{"number": number} for number in numbers])
    await queue.close()
