"""dramatiq on Redis: `dramatiq --processes 2`, with 8 threads each, which is the default.

Its documentation names no other setting for throughput; messages are prefetched, two for each thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from .jobs_marks import ran

broker = RedisBroker(url=os.environ["JOBS_URI"])
dramatiq.set_broker(broker)


@dramatiq.actor
def empty(number: int) -> None:
    ran(number)


def commands() -> list[list[str]]:
    return [[sys.executable, "-m", "dramatiq", "workers.jobs_dramatiq", "--processes", "2"]]


async def prepare() -> None:
    pass


class Producer:
    async def many(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            empty.send(number)

    async def one(self, number: int) -> None:
        empty.send(number)


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    yield Producer()
    broker.close()
