"""What users do to a pool that they should not, and what must not come of it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import logging
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pysqlx_engine import PySQLXEnginePool, PySQLXEnginePoolSync
from pysqlx_engine.errors import ConnectError, PoolAlreadyStartedError, PoolClosedError, PoolTimeoutError
from pysqlx_engine.pool import monitor
from pysqlx_engine.pool.background import background
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


async def test_a_connection_that_its_user_closed_cannot_be_opened_behind_the_pools_back(database: Database) -> None:
    """Its session would not be counted."""
    async with PySQLXEnginePool(database.uri, min_size=1, max_size=1) as pool:
        async with pool.connection() as conn:
            await conn.close()
            with pytest.raises(ConnectError, match="give it back, and the pool replaces it"):
                await conn.connect()
        async with pool.connection() as conn:
            assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}


async def test_a_connection_held_by_hand_is_nobody_elses(sqlite_uri: str) -> None:
    """Its check-out is gone, and the next one may be at the same place in memory."""
    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1) as pool:
        held = await pool.connection().__aenter__()
        for _ in range(20):
            with pytest.raises(PoolTimeoutError):
                async with pool.connection(timeout=0.001):
                    pass
        assert pool.stats().in_use == 1
        assert await held.query_first_as_dict("SELECT 1 AS a") == {"a": 1}


async def test_a_start_in_the_midst_of_a_stop_disturbs_neither(database: Database) -> None:
    pool = PySQLXEnginePool(database.uri, min_size=1)
    await pool.start()
    for _ in range(5):
        stop = asyncio.create_task(pool.stop(timeout=0))
        while True:
            try:
                await pool.start()
                break
            except PoolAlreadyStartedError:
                await asyncio.sleep(0)
        await asyncio.wait_for(stop, 5)
        async with pool.connection() as conn:
            assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
        assert pool._runtime._monitor is not None
    await pool.stop()


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


async def test_a_start_that_is_cancelled_when_it_has_succeeded_leaves_no_pool_open(sqlite_db: Database) -> None:
    pool = PySQLXEnginePool(sqlite_db.uri, min_size=2)
    begun = threading.Event()
    pool._runtime.upkeep.label = lambda _: begun.set()  # type: ignore[method-assign]

    async def use() -> None:
        async with pool:
            raise AssertionError("it was cancelled before")

    user = asyncio.create_task(use())
    while not begun.is_set():
        await asyncio.sleep(0)
    while pool._runtime._monitor is None:  # this loop does not learn that the start has ended
        time.sleep(0.001)
    user.cancel()
    with pytest.raises(asyncio.CancelledError):
        await user
    while pool.stats().held:
        await asyncio.sleep(0.005)
    assert pool.closed
    async with pool:
        assert pool.stats().idle == 2


async def test_a_pool_can_be_started_right_after_a_start_that_was_cancelled(database: Database) -> None:
    pool = PySQLXEnginePool(database.uri, min_size=3)
    for delay in (0, 0.002, 0.005, 0.01):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await pool.start()
            await pool.stop()
        async with pool:
            pass


def test_a_stop_of_a_thread_pool_that_is_interrupted_is_still_a_stop(sqlite_uri: str) -> None:
    """And the end of the with block waits for it."""

    class Alarm(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Alarm

    ended = threading.Event()

    def hold() -> None:
        with pool.connection() as conn:
            held.set()
            while conn.connected:
                time.sleep(0.005)
        ended.set()

    before = signal.signal(signal.SIGALRM, interrupt)
    held = threading.Event()
    try:
        with PySQLXEnginePoolSync(sqlite_uri, min_size=1) as pool:
            threading.Thread(target=hold).start()
            assert held.wait(5)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Alarm):
                pool.stop(timeout=0.3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ended.wait(5), "nobody cut it off"
    assert pool.stats().state == "closed"
    assert pool.stats().held == 0


@pytest.mark.parametrize("timeout", ["5", -1, float("nan")])
async def test_a_stop_that_cannot_be_leaves_the_pool_open(sqlite_uri: str, timeout: Any) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1) as pool:
        with pytest.raises((ValueError, TypeError), match="timeout="):
            await pool.stop(timeout)
        assert not pool.closed


def test_a_generator_that_is_closed_has_given_its_connection_back(sqlite_uri: str) -> None:
    with PySQLXEnginePoolSync(sqlite_uri, min_size=1, max_size=1) as pool:

        def rows() -> Iterator[int]:
            with pool.connection():
                yield 1

        for _ in range(50):
            reader = rows()
            next(reader)
            reader.close()
            assert pool.stats().in_use == 0


def test_what_the_monitor_has_taken_back_is_not_taken_from_the_next_user(sqlite_uri: str) -> None:
    """A check-in of the collector's is put off while somebody has the lock. It may come when the next one has it."""
    with PySQLXEnginePoolSync(sqlite_uri, min_size=1, max_size=1, check_interval=3600) as pool:
        runtime = pool._runtime

        def rows() -> Iterator[int]:
            with pool.connection():
                yield 1

        reader = rows()
        next(reader)
        time.sleep(monitor.LOST_AFTER)
        go_on = threading.Event()
        background().call_soon(go_on.wait)  # what is put off has to wait for this
        with runtime._lock:
            reader.close()
        with runtime._lock:
            (lost,) = runtime.core.in_use
        assert sys.getrefcount(lost.face) <= 3, "the monitor would find that nobody has it"
        runtime.reclaim(lost.checkout)
        with pool.connection():
            done = threading.Event()
            go_on.set()
            background().call_soon(done.set)
            assert done.wait(5)
            assert pool.stats().in_use == 1


async def test_a_check_out_whose_log_line_fails_gives_its_connection_back(
    sqlite_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        if "retrieved" in record.msg:
            raise OSError("disk full")
        return True

    with caplog.at_level(logging.DEBUG, "pysqlx_engine"):
        logger = logging.getLogger("pysqlx_engine")
        async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1, check_interval=3600) as pool:
            logger.addFilter(refuse)
            try:
                with pytest.raises(OSError, match="disk full"):
                    async with pool.connection():
                        pass
            finally:
                logger.removeFilter(refuse)
            assert pool.stats().in_use == 0


def test_a_stop_that_was_given_up_goes_on_when_its_loop_has_ended(sqlite_uri: str) -> None:
    pool = PySQLXEnginePool(sqlite_uri, min_size=1, check_interval=3600)

    async def give_up() -> None:
        await pool.start()
        await pool.connection().__aenter__()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.stop(timeout=0.3), 0.05)

    asyncio.run(give_up())
    assert pool.stats().state == "stopping"
    deadline = time.monotonic() + 5
    while pool.stats().held:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("misuse", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_pool_is_neither_copied_nor_sent_to_another_process(sqlite_uri: str, misuse: Callable[[Any], object]) -> None:
    pool = PySQLXEnginePoolSync(sqlite_uri, name="shop")
    with pytest.raises(TypeError, match="the pool shop cannot be copied or sent to another process"):
        misuse(pool)
