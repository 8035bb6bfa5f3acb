"""What each worker of a run under chaos does: many users keep asking through one pool, and write down every query.

    pysqlx-run ... chaos_worker.py URI BUDGET SEED BEGAN

Workers with even numbers have an asyncio pool and tasks, the others a thread pool and threads. Whatever happens is one
line in a file of the process's own, written at once, so that it is there however the process ends:

    begin TOKEN TIME            before the check-out
    end TOKEN TIME              the answer has come and is that query's own
    cancelled TOKEN TIME        this user lost patience with it, as users do
    wrong TOKEN TIME ANSWER     the answer is somebody else's
    fail TOKEN TIME ERROR
    rest TIME                   the file `enough` is there, and every user has stopped
    took TIME                   the file `take-N` is there, and this worker had the whole budget at once
    left TIME                   the pool is closed, the script ends
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pysqlx_engine import PySQLXEnginePool, PySQLXEnginePoolSync

USERS = 8
CONN_TIMEOUT = 30.0
"""Longer than any outage that there is: nobody has to see one."""
CLOSES, CANCELS = 0.25, 0.1
"""How often a user closes the connection, or cancels the query: then another takes the connection's place."""
PHASE = 0.5
"""Seconds for which a worker is busy, or quiet: what it has then is wanted elsewhere."""
LOOK = 0.02
"""Seconds between two looks for orders."""

SQL = {
    "postgresql": "SELECT pg_sleep(:seconds)::text AS a, CAST(:token AS text) AS token",
    "mysql": "SELECT sleep(:seconds) AS a, CAST(:token AS char) AS token",
}

uri, budget, seed, began = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
sql = SQL[uri.partition("://")[0]]
worker, pid = int(os.environ["PYSQLX_WORKER_ID"]), os.getpid()
notes = os.open(f"notes-{worker}-{pid}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
enough, take = Path("enough"), Path(f"take-{worker}")
faulthandler.register(signal.SIGUSR1, Path(f"stacks-{worker}-{pid}").open("w"))  # noqa: SIM115 - as long as we live


def note(*words: object) -> None:
    os.write(notes, (" ".join(map(str, words)) + "\n").encode())


def quiet() -> bool:
    """Whether the worker has nothing to do just now."""
    phase = int((time.monotonic() - began) / PHASE)
    return random.Random(f"{seed} {worker} {phase}").random() < 0.4


def queries(user: int) -> Iterator[tuple[dict[str, Any], float]]:
    """What this user asks, until it is enough, and its mood from 0 to 1. Most queries are short, some are long, and
    some take no time at all."""
    chance = random.Random(f"{seed} {worker} {pid} {user}")
    for number in itertools.count():
        if enough.exists():
            return
        seconds = chance.choice([0.0, chance.uniform(0, 0.02), chance.uniform(0, 0.1), chance.uniform(0, 0.4)])
        yield {"seconds": seconds, "token": f"{worker}-{pid}-{user}-{number}"}, chance.random()


@contextlib.contextmanager
def noted(token: str) -> Iterator[Callable[[Any], None]]:
    """Writes down what becomes of one query."""
    note("begin", token, time.monotonic())

    def answered(row: Any) -> None:
        if row is not None and row["token"] == token:
            note("end", token, time.monotonic())
        else:
            note("wrong", token, time.monotonic(), repr(row))

    try:
        yield answered
    except BaseException as error:
        note("fail", token, time.monotonic(), repr(error))
        if not isinstance(error, Exception):
            raise


async def in_tasks() -> None:
    async def user(number: int) -> None:
        for query, mood in queries(number):
            while quiet() and not enough.exists():
                await asyncio.sleep(LOOK)
            with noted(query["token"]) as answered:
                async with pool.connection() as conn:
                    patience = mood if mood < CANCELS else None
                    try:
                        async with asyncio.timeout(patience):
                            row = await conn.query_first_as_dict(sql, query)
                    except TimeoutError:
                        note("cancelled", query["token"], time.monotonic())
                        continue
                    if mood > 1 - CLOSES:
                        await conn.close()
                answered(row)

    async with PySQLXEnginePool(uri=uri, min_size=1, max_size=budget, conn_timeout=CONN_TIMEOUT) as pool:
        await asyncio.gather(*map(user, range(USERS)))
        note("rest", time.monotonic())
        while not take.exists():
            await asyncio.sleep(LOOK)
        async with contextlib.AsyncExitStack() as held:
            await asyncio.gather(*(held.enter_async_context(pool.connection()) for _ in range(budget)))
            note("took", time.monotonic())
        await asyncio.Event().wait()


def in_threads() -> None:
    def user(number: int) -> None:
        for query, mood in queries(number):
            while quiet() and not enough.exists():
                time.sleep(LOOK)
            with noted(query["token"]) as answered:
                with pool.connection() as conn:
                    row = conn.query_first_as_dict(sql, query)
                    if mood > 1 - CLOSES:
                        conn.close()
                answered(row)

    with PySQLXEnginePoolSync(uri=uri, min_size=1, max_size=budget, conn_timeout=CONN_TIMEOUT) as pool:
        users = [threading.Thread(target=user, args=(number,)) for number in range(USERS)]
        for thread in users:
            thread.start()
        for thread in users:
            thread.join()
        note("rest", time.monotonic())
        while not take.exists():
            time.sleep(LOOK)
        with contextlib.ExitStack() as held:
            for _ in range(budget):
                held.enter_context(pool.connection())
            note("took", time.monotonic())
        threading.Event().wait()


try:
    if worker % 2:
        in_threads()
    else:
        asyncio.run(in_tasks())
except KeyboardInterrupt:  # the drain
    note("left", time.monotonic())
except BaseException as error:
    note("fail", "-", time.monotonic(), repr(error))
    raise
