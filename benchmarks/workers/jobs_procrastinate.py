"""procrastinate: two processes of `procrastinate worker`.

Its documentation names no setting for throughput but `--concurrency`, the jobs that a worker runs at a time; with 30 it
is faster here than with 1, 10 or 100. Everything else is the default: jobs that have ended are kept, and its pool has
up to 4 connections a process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from procrastinate import App, PsycopgConnector

from .jobs_marks import ran

CONCURRENCY = int(os.environ.get("JOBS_CONCURRENCY", "30"))

app = App(connector=PsycopgConnector(conninfo=os.environ["JOBS_URI"]))


@app.task
async def empty(number: int) -> None:
    ran(number)


def commands() -> list[list[str]]:
    procrastinate = [sys.executable, "-m", "procrastinate", "--app", "workers.jobs_procrastinate.app"]
    run = [*procrastinate, "--log-level", "warning", "worker"]  # by default it tells of every job
    return [[*run, "--concurrency", str(CONCURRENCY)]] * 2


async def prepare() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


class Producer:
    async def many(self, numbers: Sequence[int]) -> None:
        await empty.batch_defer_async(*({"number": number} for number in numbers))

    async def one(self, number: int) -> None:
        await empty.defer_async(number=number)


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    async with app.open_async():
        yield Producer()
