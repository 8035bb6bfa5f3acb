"""A pool for asyncio belongs to the event loop that it was started in."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pysqlx_engine import PySQLXEnginePool
from pysqlx_engine.errors import PoolLoopError
from tests.servers import Database


async def use(pool: PySQLXEnginePool) -> object:
    async with pool.connection() as conn:
        return await conn.query_first_as_dict("SELECT 1 AS a")


async def test_a_pool_used_in_another_loop_says_so(sqlite_uri: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1) as pool:
        errors: list[BaseException] = []

        def other() -> None:
            try:
                asyncio.run(use(pool))
            except PoolLoopError as error:
                errors.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert "started in another event loop, which still runs" in str(errors[0])
        assert await use(pool) == {"a": 1}
        assert pool.stats().in_use == 0


def test_a_pool_whose_loop_is_closed_says_so_and_can_be_started_again(database: Database) -> None:
    pool = PySQLXEnginePool(database.uri, min_size=2, max_size=2)

    async def start_and_use() -> object:
        await pool.start()
        return await use(pool)

    assert asyncio.run(start_and_use()) == {"a": 1}
    with pytest.raises(PoolLoopError, match=r"is closed, and with it the pool: start\(\) it again"):
        asyncio.run(use(pool))
    assert asyncio.run(start_and_use()) == {"a": 1}
    with database.sampler() as sample:
        assert sample() <= 2

    async def stop() -> None:
        await pool.stop()

    asyncio.run(stop())
    with database.sampler() as sample:
        assert sample() == 0


@pytest.mark.thorough("sqlite")
def test_a_query_left_behind_in_a_closed_loop_is_waited_for_and_no_lease_is_lost(database: Database) -> None:
    pool = PySQLXEnginePool(database.uri, min_size=1, max_size=1)
    sent = asyncio.Event()

    async def leave_behind() -> None:
        async with pool.connection() as conn:
            query = conn.query(database.sleep_sql(0.5))
            asyncio.get_running_loop().call_soon(sent.set)
            await query

    loop = asyncio.new_event_loop()
    loop.run_until_complete(pool.start())
    task = loop.create_task(leave_behind())
    loop.run_until_complete(sent.wait())
    loop.close()

    async def start_again() -> None:
        async with pool:
            assert await use(pool) == {"a": 1}
        assert pool.stats().held == 0

    asyncio.run(start_again())
    assert not task.done()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # it will never be
