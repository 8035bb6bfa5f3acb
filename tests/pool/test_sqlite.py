"""What is special about connections to a file."""

from __future__ import annotations

import asyncio

from pysqlx_engine import PySQLXEnginePool
from tests.servers import Database


async def test_a_lease_comes_back_only_when_sqlite_has_closed_its_descriptor(sqlite_db: Database) -> None:
    """SQLite keeps it open for as long as another connection of the process holds a lock on the file."""
    with sqlite_db.sampler() as sample:
        async with PySQLXEnginePool(sqlite_db.uri, min_size=0, max_size=2) as pool, pool.connection() as reader:
            await reader.execute("CREATE TABLE t (a INTEGER)")
            await reader.begin()
            await reader.query("SELECT a FROM t")  # a read lock, until the commit
            async with pool.connection():
                pass
            pool._runtime.set_ceiling(1)  # somebody else waits
            while pool.stats().idle:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            assert (sample(), pool.stats().held, pool.stats().closing) == (2, 2, 1)
            await reader.commit()
            while pool.stats().closing:
                await asyncio.sleep(0.001)
            assert (sample(), pool.stats().held) == (1, 1)
