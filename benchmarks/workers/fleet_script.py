"""A process with an ordinary pool, told by its leader what to do: `... fleet_script.py URI MIN_SIZE MAX_SIZE LEADER`.

The same script for everybody: `pysqlx-run` runs it in processes that share a budget, python alone in some that do not.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it would be looked at as a package of its own

from workers.fleet import TIMEOUT, Member, join

from pysqlx_engine import PySQLXEnginePool

ONE_ROW = "SELECT 1 AS a"


async def query(pool: PySQLXEnginePool, tasks: int, since: float, until: float) -> int:
    """How many queries end between the two moments, while so many tasks take turns on the pool's connections."""
    done = 0

    async def work() -> None:
        nonlocal done
        while (now := time.monotonic()) < until:
            async with pool.connection() as connection:
                await connection.query_first(ONE_ROW)
            done += now >= since

    await asyncio.gather(*(work() for _ in range(tasks)))
    return done


async def hold(pool: PySQLXEnginePool, connections: int) -> tuple[float, AsyncExitStack]:
    """Ask for all of them at once. Seconds until all are in use, each having answered a query; and what holds them."""
    async with AsyncExitStack() as stack:

        async def take() -> None:
            connection = await stack.enter_async_context(pool.connection())
            await connection.query_first(ONE_ROW)

        started = time.monotonic()
        await asyncio.gather(*(take() for _ in range(connections)))
        return time.monotonic() - started, stack.pop_all()


async def serve(leader: Member, pool: PySQLXEnginePool) -> None:
    held = AsyncExitStack()
    while True:
        match await asyncio.to_thread(leader.hear):
            case {"do": "query", "tasks": tasks, "since": since, "until": until}:
                leader.say(queries=await query(pool, tasks, since, until))
            case {"do": "hold", "connections": connections}:
                seconds, held = await hold(pool, connections)
                leader.say(seconds=seconds)
            case {"do": "release"}:
                await held.aclose()
                leader.say()


async def main() -> None:
    uri, min_size, max_size, path = sys.argv[1:]
    sizes = {"min_size": int(min_size), "max_size": int(max_size)}
    async with PySQLXEnginePool(uri=uri, conn_timeout=TIMEOUT, **sizes) as pool:
        leader = join(path, worker=int(os.environ.get("PYSQLX_WORKER_ID", "0")))
        try:
            await serve(leader, pool)
        except EOFError:
            return


if __name__ == "__main__":
    asyncio.run(main())
