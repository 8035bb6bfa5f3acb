"""Celery on Redis: one `celery worker` with two processes (prefork).

What its guide "Optimizing" says for many short tasks: a large prefetch multiplier ("say 64, or 128"). Messages are
acknowledged before the task runs, which is the default, and there are no results.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from celery import Celery

from .jobs_marks import ran

app = Celery("bench", broker=os.environ["JOBS_URI"])
app.conf.worker_prefetch_multiplier = 128
app.conf.task_ignore_result = True


@app.task
def empty(number: int) -> None:
    ran(number)


def commands() -> list[list[str]]:
    run = [sys.executable, "-m", "celery", "--app", "workers.jobs_celery:app", "worker"]
    return [[*run, "--pool", "prefork", "--concurrency", "2"]]


async def prepare() -> None:
    pass


class Producer:
    async def many(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            empty.delay(number)

    async def one(self, number: int) -> None:
        empty.delay(number)


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    yield Producer()
    app.close()
