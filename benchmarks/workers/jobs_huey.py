"""huey on SQLite: its consumer with two processes.

Its documentation names no setting of the consumer for throughput but the number and the kind of workers. The file is in
WAL mode with SQLite's own `synchronous`, the defaults, as it is for us. Results are not stored, as there are none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from huey import SqliteHuey

from .jobs_marks import ran

huey = SqliteHuey(filename=os.environ["JOBS_URI"].removeprefix("sqlite:"), results=False)


@huey.task()
def empty(number: int) -> None:
    ran(number)


def commands() -> list[list[str]]:
    run = [sys.executable, "-m", "huey.bin.huey_consumer", "workers.jobs_huey.huey"]
    return [[*run, "--worker-type", "process", "--workers", "2", "--no-periodic", "--quiet"]]


async def prepare() -> None:
    # Of this process only, which fills the queue: there is no call for many jobs, and each would wait for the disk.
    huey.storage.conn.execute("PRAGMA synchronous = OFF")


class Producer:
    async def many(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            empty(number)

    async def one(self, number: int) -> None:
        empty(number)


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    yield Producer()
    huey.storage.close()
