"""pgqueuer: two processes, each with a `PgQueuer` that runs.

What its guide "Performance Tuning" says: a larger batch for short jobs, `pgq autovac` after the installation, one
asyncpg connection for who runs jobs. Its durability is the default, which logs all tables. The event loop is uvloop, as
in its command line, which does not start with the version of typer that is installed with it, and in its own benchmark.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from .jobs_marks import ran

BATCH = 100


async def serve() -> None:
    connection = await asyncpg.connect(os.environ["JOBS_URI"])
    pgq = PgQueuer(AsyncpgDriver(connection))

    @pgq.entrypoint("empty")
    async def empty(job: Job) -> None:
        assert job.payload is not None
        ran(int(job.payload))

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, pgq.shutdown.set)
    await pgq.run(batch_size=BATCH)


def commands() -> list[list[str]]:
    return [[sys.executable, "-m", "workers.jobs_pgqueuer"]] * 2


async def prepare() -> None:
    connection = await asyncpg.connect(os.environ["JOBS_URI"])
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    await queries.optimize_autovacuum()
    await connection.close()


class Producer:
    def __init__(self, queries: Queries) -> None:
        self._queries = queries

    async def many(self, numbers: Sequence[int]) -> None:
        payloads: list[bytes | None] = [b"%d" % number for number in numbers]
        await self._queries.enqueue(["empty"] * len(numbers), payloads, [0] * len(numbers))

    async def one(self, number: int) -> None:
        await self._queries.enqueue("empty", b"%d" % number)


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    connection = await asyncpg.connect(os.environ["JOBS_URI"])
    try:
        yield Producer(Queries(AsyncpgDriver(connection)))
    finally:
        await connection.close()


if __name__ == "__main__":
    uvloop.run(serve())
