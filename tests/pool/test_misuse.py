"""What users do to a pool that they should not, and what must not come of it."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from pysqlx_engine import PySQLXEnginePool, PySQLXEnginePoolSync
from pysqlx_engine.errors import PoolAlreadyStartedError, PoolClosedError
from tests.servers import Database


async def test_a_connection_that_its_user_closed_is_replaced(database: Database) -> None:
    async with PySQLXEnginePool(database.uri, min_size=1, max_size=1) as pool:
        async with pool.connection() as conn:
            await conn.close()
        async with pool.connection() as conn:
            assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}


async def test_a_closed_idle_connection_does_not_end_the_monitor(sqlite_uri: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1, check_interval=0.02) as pool:
        async with pool.connection() as conn:
            pass
        await conn.close()  # it is somebody else's by now
        while not pool.stats().closed:
            await asyncio.sleep(0.01)
        async with pool.connection() as conn:
            assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}


async def test_one_check_out_is_not_used_by_two(sqlite_uri: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=2, max_size=2) as pool:
        checkout = pool.connection()
        async with checkout:
            with pytest.raises(RuntimeError, match=r"call connection\(\) for each"):
                await checkout.__aenter__()
        async with pool.connection() as mine:
            await checkout.__aexit__(None, None, None)  # a second time: nothing is taken from anybody
            async with pool.connection() as other:
                assert mine is not other


def test_threads_cannot_share_a_check_out_either(sqlite_uri: str) -> None:
    with PySQLXEnginePoolSync(sqlite_uri, min_size=1, max_size=2) as pool:
        checkout = pool.connection()
        with checkout, pytest.raises(RuntimeError):
            checkout.__enter__()


async def test_two_starts_at_once_are_one_start(sqlite_uri: str) -> None:
    pool = PySQLXEnginePool(sqlite_uri, min_size=1)
    outcomes = await asyncio.gather(pool.start(), pool.start(), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [PoolAlreadyStartedError]
    await pool.stop()


async def test_a_pool_can_be_started_again_and_counts_afresh(database: Database) -> None:
    pool = PySQLXEnginePool(database.uri, min_size=2, max_size=2)
    with database.sampler() as sample:
        for _ in range(3):
            async with pool:
                async with pool.connection():
                    pass
                assert (sample(), pool.stats().requests, pool.stats().opened) == (2, 1, 2)
        assert sample() == 0


async def test_a_restart_waits_for_the_sessions_of_the_time_before(mysql_db: Database) -> None:
    """MariaDB ends a query whose client is gone only when it has the answer."""
    pool = PySQLXEnginePool(mysql_db.uri, min_size=1, max_size=1)
    await pool.start()
    with mysql_db.sampler() as sample:
        with pytest.raises(TimeoutError):
            async with pool.connection() as conn, asyncio.timeout(0.1):
                await conn.query(mysql_db.sleep_sql(1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await pool.stop(timeout=0)
        most = 0
        starting = asyncio.create_task(pool.start())
        while not starting.done():
            most = max(most, sample())
            await asyncio.sleep(0)
        await starting
        assert most == 1
    await pool.stop()


async def test_a_stop_that_nobody_waits_for_any_more_is_still_a_stop(postgresql_db: Database) -> None:
    pool = PySQLXEnginePool(postgresql_db.uri, min_size=1, max_size=1)
    await pool.start()
    with postgresql_db.sampler() as sample:
        async with pool.connection():
            stopping = asyncio.create_task(pool.stop())
            while not pool.closed:
                await asyncio.sleep(0)
            stopping.cancel()
        while sample():
            await asyncio.sleep(0.01)


def test_a_pool_lives_while_one_of_its_connections_is_in_use(sqlite_uri: str) -> None:
    def checkout_of_a_pool_that_nobody_keeps() -> object:
        pool = PySQLXEnginePoolSync(sqlite_uri, min_size=1)
        pool.start()
        return pool.connection()

    with checkout_of_a_pool_that_nobody_keeps() as conn:  # type: ignore[attr-defined]
        gc.collect()
        assert conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}


def test_tasks_that_the_collector_ends_leave_no_lock_behind(sqlite_uri: str) -> None:
    """A loop that ends in the midst of things leaves waiters and users to the garbage collector, which may come by
    anywhere, also inside the pool's own lock."""
    with PySQLXEnginePoolSync(sqlite_uri, min_size=0, max_size=4) as other:
        for _ in range(30):
            pool = PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1)

            async def wait(pool: PySQLXEnginePool = pool) -> None:
                async with pool.connection():
                    await asyncio.Event().wait()

            loop = asyncio.new_event_loop()
            loop.set_exception_handler(lambda *_: None)
            loop.run_until_complete(pool.start())
            tasks = [loop.create_task(wait()) for _ in range(3)]
            while pool.stats().waiting < 2:
                loop.run_until_complete(asyncio.sleep(0))
            for task in tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            del pool, wait, tasks, task
            loop.close()
            del loop
            for _ in range(50):
                with other.connection():
                    pass
        gc.collect()


def test_a_pool_is_not_stopped_from_its_own_thread(sqlite_uri: str) -> None:
    pool = PySQLXEnginePoolSync(sqlite_uri, min_size=1)
    pool.start()
    outcome: list[BaseException] = []
    done = threading.Event()

    def in_the_pools_thread() -> None:
        try:
            pool.stop()
        except RuntimeError as error:
            outcome.append(error)
        done.set()

    from pysqlx_engine.pool.background import background

    background().call_soon(in_the_pools_thread)
    assert done.wait(10)
    assert "its own thread" in str(outcome[0])
    pool.stop()


async def test_a_pool_that_is_closing_refuses_and_a_drained_process_starts_none(sqlite_uri: str) -> None:
    pool = PySQLXEnginePool(sqlite_uri, min_size=1)
    await pool.start()
    pool._runtime.refuse_check_outs()
    with pytest.raises(PoolClosedError, match="closing"):
        async with pool.connection():
            pass
    await pool.stop()
