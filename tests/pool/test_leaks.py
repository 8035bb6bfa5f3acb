"""Who holds connections for too long, who waits for himself, and what a pool counts."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading

import pytest

from pysqlx_engine import PySQLXEngine, PySQLXEnginePool, PySQLXEnginePoolSync
from pysqlx_engine.errors import PoolClosedError, PoolQueueFullError, PoolTimeoutError
from pysqlx_engine.pool.runtime import PoolRuntime
from pysqlx_engine.pool.stats import Histogram
from tests.proxy import FaultProxy
from tests.servers import Database, PostgresServer


# mperham/connection_pool #150: a mode that shows who holds the connections.
async def test_a_connection_held_for_too_long_is_reported_once_with_its_stack(
    sqlite_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "pysqlx_engine"):
        async with PySQLXEnginePool(sqlite_uri, min_size=1, leak_threshold=0.05) as pool:
            async with pool.connection():
                while "has been in use for" not in caplog.text:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
            assert caplog.text.count("has been in use for") == 1
            assert "test_a_connection_held_for_too_long_is_reported_once_with_its_stack" in caplog.text
            assert "async with pool.connection():" in caplog.text
            assert "leak_threshold is 0.1 s" in caplog.text
            async with pool.connection():  # and for each check-out anew
                while caplog.text.count("has been in use for") < 2:
                    await asyncio.sleep(0.01)


async def test_who_has_given_it_back_is_not_reported(sqlite_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    async def slow(conn: PySQLXEngine) -> None:
        await asyncio.sleep(0.3)

    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1, leak_threshold=0.1, reset=slow) as pool:
        async with pool.connection():
            pass
        while not pool.stats().idle:
            await asyncio.sleep(0.005)
    assert "has been in use" not in caplog.text


async def test_who_was_refused_was_not_served(sqlite_uri: str) -> None:
    pool = PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1, max_waiting=1)
    async with pool:
        async with pool.connection():
            waiting = asyncio.create_task(pool.connection().__aenter__())
            await asyncio.sleep(0)
            with pytest.raises(PoolQueueFullError):
                await pool.connection().__aenter__()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        stats = pool.stats()
        assert (stats.requests, stats.requests_waited, stats.wait.count) == (2, 1, 2)
    with pytest.raises(PoolClosedError):
        await pool.connection().__aenter__()
    assert pool.stats().requests == 2


def test_a_thread_that_holds_one_for_too_long_is_reported(sqlite_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pysqlx_engine"):
        with PySQLXEnginePoolSync(sqlite_uri, min_size=1, leak_threshold=0.05) as pool, pool.connection():
            reported = threading.Event()
            while "test_a_thread_that_holds_one_for_too_long_is_reported" not in caplog.text:
                reported.wait(0.01)


async def test_an_open_transaction_is_rolled_back_with_a_warning(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "pysqlx_engine"):
        async with PySQLXEnginePool(database.uri, min_size=1, max_size=1, name="orders") as pool:
            async with pool.connection() as conn:
                await conn.begin()
            async with pool.connection() as conn:
                await conn.begin()
                await conn.commit()
            assert pool.stats().rolled_back == 1
            (warning,) = [record.getMessage() for record in caplog.records if "open transaction" in record.getMessage()]
            assert "orders" in warning
            assert "conn-1" in warning
            assert "leak_threshold" in warning


async def test_the_warning_shows_where_the_connection_was_checked_out(
    sqlite_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "pysqlx_engine"):
        async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1, leak_threshold=60) as pool:
            async with pool.connection() as conn:
                await conn.begin()
            async with pool.connection():
                pass
    assert "test_the_warning_shows_where_the_connection_was_checked_out" in caplog.text


# brettwooldridge/HikariCP #442, #808: a nested check-out waits for itself.
async def test_a_task_that_waits_for_itself_is_told_so(sqlite_uri: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=2) as pool:

        async def nest() -> None:
            async with pool.connection():
                await asyncio.sleep(0)
                async with pool.connection(timeout=0.2):
                    pass

        results = await asyncio.gather(nest(), nest(), return_exceptions=True)
        told = [str(result) for result in results if isinstance(result, PoolTimeoutError)]
        assert told
        assert "This looks like a dead-lock: the task holds a connection" in told[0]
        assert "one of the 2 in use" in told[0]


def test_a_thread_that_waits_for_itself_is_told_so(sqlite_uri: str) -> None:
    with PySQLXEnginePoolSync(sqlite_uri, min_size=1, max_size=1) as pool, pool.connection():
        with pytest.raises(PoolTimeoutError, match="This looks like a dead-lock: the thread holds a connection"):
            pool.connection(timeout=0.1).__enter__()


async def test_who_waits_for_somebody_else_is_not_told_so(sqlite_uri: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=2) as pool:
        held, ended = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with pool.connection():
                held.set()
                await ended.wait()

        holder = asyncio.create_task(hold())
        await held.wait()
        async with pool.connection():  # this one waits while holding one, but the other holder will bring his back
            with pytest.raises(PoolTimeoutError) as error:
                await pool.connection(timeout=0.1).__aenter__()
        assert "dead-lock" not in str(error.value)
        ended.set()
        await holder


async def test_who_waits_while_the_pool_grows_is_not_told_so(postgres: PostgresServer) -> None:
    with FaultProxy(postgres.port) as proxy:
        uri = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        async with PySQLXEnginePool(uri, min_size=1, max_size=10) as pool, pool.connection():
            proxy.connect_delay = 0.3
            with pytest.raises(PoolTimeoutError) as error:
                await pool.connection(timeout=0.01).__aenter__()
            assert "dead-lock" not in str(error.value)


async def test_a_pool_collected_while_connections_are_out_warns(
    sqlite_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def start_and_forget() -> PoolRuntime:
        pool = PySQLXEnginePool(sqlite_uri, min_size=1, name="forgotten")
        await pool.start()
        await pool.connection().__aenter__()
        return pool._runtime

    with pytest.warns(ResourceWarning, match="forgotten was collected while 1 of its connections were in use"):
        runtime = await start_and_forget()
    gc.collect()
    while runtime.core.held:
        await asyncio.sleep(0.005)


async def test_a_collected_pool_is_closed_where_warnings_are_errors(sqlite_uri: str) -> None:
    script = """
import gc, sys, time
from pysqlx_engine import PySQLXEnginePoolSync
pool = PySQLXEnginePoolSync(sys.argv[1], min_size=1); pool.start()
runtime = pool._runtime
checkout = pool.connection(); conn = checkout.__enter__()
del checkout, pool; gc.collect()
while runtime.core.held:
    time.sleep(0.005)
print("closed")
"""
    command = [sys.executable, "-W", "error", "-c", script, sqlite_uri]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout == "closed\n", done.stderr


async def test_durations_are_counted(database: Database) -> None:
    async with PySQLXEnginePool(database.uri, min_size=1, max_size=1, check_after=None) as pool:

        async def use() -> None:
            async with pool.connection():
                await asyncio.sleep(0.02)

        await asyncio.gather(*(use() for _ in range(4)))
        stats = pool.stats()
        assert (stats.wait.count, stats.hold.count, stats.open.count, stats.close.count) == (4, 4, 1, 0)
        assert 4 * 0.02 <= stats.hold.sum < 5
        assert stats.wait.buckets[0] == 1, "the first did not wait"
        assert (1 + 2 + 3) * 0.02 <= stats.wait.sum < 10
        assert stats.hold.quantile(0.5) >= 0.02
        assert stats.hold.mean == stats.hold.sum / 4
        assert stats.open.sum > 0
    assert pool.stats().close.count == 1


def test_a_histogram_has_bounds_that_double() -> None:
    histogram = Histogram()
    for microseconds in (0.5, 1, 1.5, 2, 3, 4, 1000, 1e15):
        histogram.observe(microseconds / 1e6)
    durations = histogram.snapshot(zeros=2)
    assert durations.count == 10
    assert durations.buckets[:4] == (3, 2, 2, 1)
    assert durations.buckets[10] == 1
    assert durations.buckets[50] == 1, "half a century"
    assert durations.quantile(0.3) == 1e-6
    assert durations.quantile(0.9) == 1024e-6
    with pytest.raises(ValueError, match="share=2"):
        durations.quantile(2)
    assert Histogram().snapshot().quantile(0.5) == 0
