"""What each worker of `make demo` runs: its part of the requests, 50 at a time, each on a connection of the pool.

The pool is given neither a URI nor a size: it takes them from what `pysqlx-run` was told. A worker prints a line of
JSON when it starts and one for each request; `demo.py` reads them.
"""

import asyncio
import json
import os
import random
import sys
import time

from pysqlx_engine import PySQLXEnginePool

AT_A_TIME = 50
WORKER = int(os.environ["PYSQLX_WORKER_ID"])
WORKERS = int(os.environ["PYSQLX_WORKER_COUNT"])


async def request(pool: PySQLXEnginePool, places: asyncio.Semaphore) -> None:
    async with places:
        try:
            async with pool.connection() as conn:
                began = time.monotonic()
                await conn.query_first("SELECT 1 AS a")
                work = random.uniform(0.1, 0.5)
                await asyncio.sleep(work)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted and shown
            say(error=f"{type(error).__name__}: {error}")
        else:
            say(began=began, ended=time.monotonic(), work=work)


def say(**facts: object) -> None:
    # One write a line: print makes two when Python is unbuffered, and the workers share the pipe.
    sys.stdout.write(json.dumps({"worker": WORKER, **facts}) + "\n")


async def main(requests: int) -> None:
    say(pid=os.getpid())
    places = asyncio.Semaphore(AT_A_TIME)
    async with PySQLXEnginePool() as pool:
        await asyncio.gather(*(request(pool, places) for _ in range(WORKER, requests, WORKERS)))


asyncio.run(main(int(sys.argv[1])))
