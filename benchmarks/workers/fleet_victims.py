"""Makes processes that hold connections and wait to be killed: `... fleet_victims LEADER ENDPOINT URI CONNECTIONS`.

Each is forked, since a hundred that start anew would take minutes. That is allowed before the driver is first used.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack, suppress
from typing import NoReturn

from pysqlx_engine import PySQLXEnginePool

from .fleet import TIMEOUT, join

LONG = "SELECT pg_sleep(600)::text AS a"


async def be_a_victim(path: str, uri: str, connections: int) -> None:
    """The first connection is in the midst of a query, the others are in use and silent."""
    pool = PySQLXEnginePool(uri=uri, min_size=0, max_size=connections, conn_timeout=TIMEOUT)
    async with pool, AsyncExitStack() as stack:
        held = [await stack.enter_async_context(pool.connection()) for _ in range(connections)]
        querying = asyncio.create_task(held[0].query_first(LONG))
        await held[-1].query_first("SELECT 1 AS a")  # sent after it
        leader = await asyncio.to_thread(join, path)
        with suppress(EOFError, TimeoutError):
            await asyncio.to_thread(leader.hear)
        querying.cancel()
        os._exit(1)  # nobody killed us: the leader is gone


def main() -> NoReturn:
    path, endpoint, uri, connections = sys.argv[1:]
    os.environ["PYSQLX_COORDINATOR"] = endpoint
    leader = join(path)
    while True:
        try:
            leader.hear()
        except EOFError:
            sys.exit()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork() == 0:
            asyncio.run(be_a_victim(path, uri, int(connections)))


if __name__ == "__main__":
    main()
