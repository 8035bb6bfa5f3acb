"""Enqueues batches of jobs as long as fewer than so many wait, until TERM; prints how many it was, with those before.

`python -m workers.jobs_producer SYSTEM MOST`, started by `jobs`. How many wait it sees by the marks.
"""

from __future__ import annotations

import asyncio
import importlib
import signal
import sys

from .jobs import STEADY
from .jobs_marks import count, runs

BATCH = 100
"""Of a program that enqueues what it has come by, not what it has saved up."""


async def produce(system: str, most: int) -> int:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    module = importlib.import_module(f"workers.jobs_{system}")
    enqueued, have_run = STEADY[0], 0
    async with module.producer() as producer:
        while not told.is_set() and enqueued + BATCH <= count():
            if enqueued - have_run >= most:
                have_run = runs()  # not each time: to look at all marks takes as long as a batch
            if enqueued - have_run < most:
                await producer.many(range(enqueued, enqueued + BATCH))
                enqueued += BATCH
            else:
                await asyncio.sleep(0.002)
    return enqueued


if __name__ == "__main__":
    print(asyncio.run(produce(sys.argv[1], int(sys.argv[2]))))
