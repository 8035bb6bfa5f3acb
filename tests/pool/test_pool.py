"""What users see of a pool, on real databases."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import threading
import time
from collections.abc import Callable

import pytest

from pysqlx_engine import PySQLXEnginePool, PySQLXEnginePoolSync
from pysqlx_engine.errors import (
    ConnectError,
    PoolAlreadyClosedError,
    PoolAlreadyStartedError,
    PoolClosedError,
    PoolTimeoutError,
    QueryError,
)
from tests.servers import Database, PostgresServer, free_port


def eventually(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Wait until a server shows what it has to show."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never happened"


async def test_a_started_pool_has_min_size_connections_and_a_stopped_one_has_none(database: Database) -> None:
    with database.sampler() as sample:
        async with PySQLXEnginePool(database.uri, min_size=3, max_size=5) as pool:
            assert sample() == 3
            assert (pool.stats().idle, pool.stats().size) == (3, 3)
            async with pool.connection() as conn:
                row = await conn.query_first("SELECT 1 AS a")
                assert row is not None
                assert row.a == 1  # type: ignore[attr-defined]
                assert pool.stats().in_use == 1
        assert sample() == 0


def test_threads_have_the_same_pool(database: Database) -> None:
    with database.sampler() as sample:
        with PySQLXEnginePoolSync(database.uri, min_size=3, max_size=5) as pool:
            assert sample() == 3
            with pool.connection() as conn:
                assert conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
        assert sample() == 0


async def test_the_pool_grows_while_somebody_waits_up_to_max_size(database: Database) -> None:
    most = 4
    async with PySQLXEnginePool(database.uri, min_size=1, max_size=most) as pool:
        all_there = asyncio.Barrier(most)
        with database.sampler() as sample:

            async def use() -> None:
                async with pool.connection() as conn:
                    await conn.query("SELECT 1 AS a")
                    await all_there.wait()
                    assert sample() == most

            await asyncio.gather(*(use() for _ in range(3 * most)))
        assert pool.stats().size == most


async def test_waiters_are_served_in_the_order_in_which_they_came(sqlite_uri: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1) as pool:
        served: list[int] = []

        async def use(number: int) -> None:
            async with pool.connection():
                served.append(number)

        async with pool.connection():
            waiting = [asyncio.create_task(use(number)) for number in range(10)]
            while pool.stats().waiting < len(waiting):
                await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        assert served == list(range(10))


async def test_who_waits_too_long_learns_the_numbers(sqlite_uri: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1, conn_timeout=0.5) as pool, pool.connection():
        with pytest.raises(
            PoolTimeoutError, match=r"no connection within 0\.5 s: budget 1/1 leased \(1 here: 1 in use"
        ):
            async with pool.connection():
                pass
        assert pool.stats().timeouts == 1
        assert pool.stats().waiting == 0


def test_threads_time_out_too(sqlite_uri: str) -> None:
    pool = PySQLXEnginePoolSync(sqlite_uri, min_size=1, max_size=1, conn_timeout=0.5)
    with pool, pool.connection(), pytest.raises(PoolTimeoutError), pool.connection():
        pass


async def test_a_cancelled_waiter_leaves_and_the_next_one_is_served(sqlite_uri: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1) as pool:

        async def use() -> str:
            async with pool.connection():
                return "served"

        async with pool.connection():
            cancelled, served = asyncio.create_task(use()), asyncio.create_task(use())
            while pool.stats().waiting < 2:
                await asyncio.sleep(0)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            assert pool.stats().waiting == 1
        assert await served == "served"


async def test_a_waiter_cancelled_in_the_moment_of_the_hand_over_passes_the_connection_on(sqlite_uri: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1) as pool:

        async def use() -> str:
            async with pool.connection():
                return "served"

        async with pool.connection():
            cancelled, served = asyncio.create_task(use()), asyncio.create_task(use())
            while pool.stats().waiting < 2:
                await asyncio.sleep(0)
        # The connection is handed over, but the task has not run since.
        assert pool.stats().waiting == 1
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await served == "served"


async def test_a_query_cancelled_in_mid_flight_never_reaches_the_next_user(database: Database) -> None:
    with database.sampler() as sample:
        async with PySQLXEnginePool(database.uri, min_size=1, max_size=1) as pool:
            with pytest.raises(TimeoutError):
                async with pool.connection() as conn, asyncio.timeout(0.1):
                    await conn.query(database.sleep_sql(1.0))
            async with pool.connection() as conn:
                assert await conn.query_first_as_dict("SELECT 2 AS a") == {"a": 2}
                assert sample() == 1
        assert sample() == 0


async def test_an_open_transaction_is_rolled_back_at_check_in(database: Database) -> None:
    async with PySQLXEnginePool(database.uri, min_size=1, max_size=1) as pool:
        async with pool.connection() as conn:
            await conn.execute("CREATE TABLE t (a INTEGER)")
        async with pool.connection() as conn:
            await conn.begin()
            await conn.execute("INSERT INTO t VALUES (1)")
        async with pool.connection() as conn:
            assert await conn.query("SELECT a FROM t") == []
            await conn.execute("INSERT INTO t VALUES (2)")
        async with pool.connection() as conn:
            assert await conn.query_as_dict("SELECT a FROM t") == [{"a": 2}]


async def test_what_a_rollback_does_not_undo_closes_the_connection(mysql_db: Database) -> None:
    async with PySQLXEnginePool(mysql_db.uri, min_size=1, max_size=1) as pool:
        async with pool.connection() as conn:
            await conn.execute("CREATE TABLE t (a INTEGER)")
        for statement in ("LOCK TABLES t WRITE", "SET autocommit = 0"):
            async with pool.connection() as conn:
                before = await conn.query_as_dict("SELECT connection_id() AS id")
                await conn.raw_cmd(statement)
                await conn.commit()
            async with pool.connection() as conn:
                assert await conn.query_as_dict("SELECT connection_id() AS id") != before


async def test_an_error_in_a_query_keeps_the_connection(database: Database) -> None:
    async with PySQLXEnginePool(database.uri, min_size=1, max_size=1) as pool:
        with pytest.raises(QueryError):
            async with pool.connection() as conn:
                await conn.query("SELECT nothing FROM nowhere")
        async with pool.connection() as conn:
            assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
        assert pool.stats().opened == 1


async def test_a_connection_older_than_keep_alive_is_replaced(sqlite_uri: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=2, keep_alive=0.1, check_interval=0.02) as pool:
        while pool.stats().closed < 3:
            await asyncio.sleep(0.01)
        while not pool.stats().idle:
            await asyncio.sleep(0.01)
        async with pool.connection() as conn:
            assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}


async def test_a_killed_session_is_replaced(postgres: PostgresServer, postgresql_db: Database) -> None:
    async with PySQLXEnginePool(postgresql_db.uri, min_size=1, max_size=1) as pool:
        with postgres.admin() as admin:
            async with pool.connection() as conn:
                pid = (await conn.query_as_dict("SELECT pg_backend_pid() AS pid"))[0]["pid"]
                admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
                with pytest.raises(QueryError):
                    await conn.query("SELECT 1 AS a")
        async with pool.connection() as conn:
            assert (await conn.query_as_dict("SELECT pg_backend_pid() AS pid"))[0]["pid"] != pid


async def test_a_pool_that_is_not_running_says_so(sqlite_uri: str) -> None:
    pool = PySQLXEnginePool(sqlite_uri, min_size=1)
    with pytest.raises(PoolClosedError, match="not started"):
        async with pool.connection():
            pass
    with pytest.raises(PoolAlreadyClosedError):
        await pool.stop()
    await pool.start()
    with pytest.raises(PoolAlreadyStartedError):
        await pool.start()
    assert not pool.closed
    await pool.stop()
    assert pool.closed
    with pytest.raises(PoolClosedError):
        async with pool.connection():
            pass
    with pytest.raises(PoolAlreadyClosedError):
        await pool.stop()


async def test_stop_fails_waiters_and_leaves_time_to_connections_in_use(sqlite_uri: str) -> None:
    pool = PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1)
    await pool.start()

    async def wait() -> None:
        async with pool.connection():
            pass

    async with pool.connection() as conn:
        waiting = asyncio.create_task(wait())
        while not pool.stats().waiting:
            await asyncio.sleep(0)
        stopping = asyncio.create_task(pool.stop())
        with pytest.raises(PoolClosedError, match="closing"):
            await waiting
        assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
    await stopping
    assert pool.stats().size == 0


async def test_stop_closes_what_is_held_for_too_long(postgresql_db: Database) -> None:
    with postgresql_db.sampler() as sample:
        pool = PySQLXEnginePool(postgresql_db.uri, min_size=1, max_size=1)
        await pool.start()
        async with pool.connection():
            await pool.stop(timeout=0.05)
            assert sample() == 0


async def test_a_wrong_password_is_told_at_once(postgres: PostgresServer) -> None:
    uri = postgres.uri("no_such_database").replace("postgres@", "postgres:sesame@")
    pool = PySQLXEnginePool(uri, min_size=1, conn_timeout=60)
    with pytest.raises(ConnectError, match="no_such_database") as caught:
        await pool.start()
    assert "sesame" not in str(caught.value)
    assert "sesame" not in repr(pool)


async def test_a_server_that_cannot_be_reached_is_named_after_conn_timeout() -> None:
    uri = f"postgresql://postgres:sesame@127.0.0.1:{free_port()}/shop"
    pool = PySQLXEnginePool(uri, min_size=1, conn_timeout=0.3)
    with pytest.raises(PoolTimeoutError, match=r"within 0\.3 s.*last error") as caught:
        await pool.start()
    assert caught.value.at_start
    assert "sesame" not in str(caught.value)


async def test_waiters_keep_their_places_while_the_server_is_down() -> None:
    with PostgresServer() as server:
        async with PySQLXEnginePool(server.uri(), min_size=1, max_size=2, check_interval=0.05) as pool:
            server.stop()

            async def use() -> dict[str, object] | None:
                async with pool.connection() as conn:
                    return await conn.query_first_as_dict("SELECT 1 AS a")

            waiting = [asyncio.create_task(use()) for _ in range(5)]
            while pool.stats().open_errors == 0:
                await asyncio.sleep(0.005)
            await asyncio.to_thread(server.start)
            assert await asyncio.gather(*waiting) == [{"a": 1}] * 5


def test_queries_of_threads_run_side_by_side_and_leave_other_threads_alone(postgresql_uri: str) -> None:
    with PySQLXEnginePoolSync(postgresql_uri, min_size=8, max_size=8) as pool:
        ticks: list[float] = []
        stop = threading.Event()

        def tick() -> None:
            while not stop.is_set():
                ticks.append(time.monotonic())
                time.sleep(0.005)

        def sleep() -> None:
            with pool.connection() as conn:
                conn.query("SELECT pg_sleep(0.5)::text AS a")

        sleepers = [threading.Thread(target=sleep) for _ in range(8)]
        ticker = threading.Thread(target=tick)
        ticker.start()
        started = time.monotonic()
        for sleeper in sleepers:
            sleeper.start()
        for sleeper in sleepers:
            sleeper.join()
        took = time.monotonic() - started
        stop.set()
        ticker.join()
    print(f"8 threads x pg_sleep(0.5): {took:.3f} s, {len(ticks)} ticks")
    assert took < 2.0, "one after the other it is 4 s"
    pauses = [after - before for before, after in itertools.pairwise(ticks)]
    assert max(pauses) < 0.4, "a query held the interpreter lock"


async def test_a_collected_pool_gives_everything_back(postgresql_db: Database) -> None:
    with postgresql_db.sampler() as sample:
        pool: PySQLXEnginePool | None = PySQLXEnginePool(postgresql_db.uri, min_size=2)
        assert pool is not None
        await pool.start()
        assert sample() == 2
        pool = None
        gc.collect()
        eventually(lambda: sample() == 0)


def test_a_pool_whose_event_loop_has_ended_gives_everything_back(postgresql_db: Database) -> None:
    with postgresql_db.sampler() as sample:
        pool = PySQLXEnginePool(postgresql_db.uri, min_size=2, check_interval=0.05)
        asyncio.run(pool.start())
        eventually(lambda: sample() == 0)
        assert pool.closed


async def test_idle_connections_can_be_taken_back_while_the_loop_is_blocked(postgresql_db: Database) -> None:
    """What a recall by a coordinator does, in the thread in which it comes."""
    with postgresql_db.sampler() as sample:
        async with PySQLXEnginePool(postgresql_db.uri, min_size=3, max_size=3) as pool:
            recall = threading.Thread(target=pool._runtime.set_ceiling, args=(1,))
            recall.start()
            eventually(lambda: sample() == 1)  # this loop does not run meanwhile
            recall.join()


async def test_the_server_shows_which_pool_a_session_belongs_to(postgres: PostgresServer) -> None:
    async with PySQLXEnginePool(postgres.uri(), min_size=1, name="orders"):
        with postgres.admin() as admin:
            labels = admin.execute("SELECT application_name FROM pg_stat_activity").fetchall()
    assert ("pysqlx orders",) in labels


def test_the_server_looks_whether_a_client_still_lives(postgresql_uri: str) -> None:
    with PySQLXEnginePoolSync(postgresql_uri, min_size=1) as pool, pool.connection() as conn:
        shown = conn.query_first_as_dict("SHOW client_connection_check_interval")
    assert shown == {"client_connection_check_interval": "20ms"}


BAD_PARAMETERS = [
    ({"min_size": -1}, "min_size=-1"),
    ({"min_size": 11}, "min_size=11 is above max_size=10"),
    ({"max_size": 0, "min_size": 0}, "max_size=0"),
    ({"min_size": "5"}, "min_size='5'"),
    ({"min_size": True}, "min_size=True"),
    ({"conn_timeout": -1}, "conn_timeout=-1"),
    ({"conn_timeout": float("nan")}, "conn_timeout=nan"),
    ({"keep_alive": 0}, "keep_alive=0"),
    ({"check_interval": "1"}, "check_interval='1'"),
    ({"monitor_batch_size": 0}, "monitor_batch_size=0"),
    ({"name": 3}, "name=3"),
    ({"name": "caf\udce9"}, "name='caf.*printable"),
    ({"max_idle": 0}, "max_idle=0"),
    ({"max_idle": None}, "max_idle=None"),
    ({"check_after": -0.1}, "check_after=-0.1"),
    ({"check_after": float("inf")}, "check_after=inf"),
    ({"max_waiting": -1}, "max_waiting=-1"),
    ({"max_waiting": 1.0}, "max_waiting=1.0"),
    ({"fail_fast": 1}, "fail_fast=1: True or False"),
    ({"leak_threshold": 0}, "leak_threshold=0"),
    ({"reconnect_timeout": -1}, "reconnect_timeout=-1"),
    ({"min_size": None, "max_size": "5"}, "max_size='5'"),
    ({"conn_timeout": 10**400}, "conn_timeout=1000"),
]


@pytest.mark.parametrize(("parameters", "named"), BAD_PARAMETERS)
def test_a_bad_parameter_is_refused_by_its_name(parameters: dict[str, object], named: str) -> None:
    for pool in (PySQLXEnginePool, PySQLXEnginePoolSync):
        with pytest.raises((ValueError, TypeError), match=named):
            pool(uri="sqlite:./never.db", **{"min_size": 1, "max_size": 10, **parameters})  # type: ignore[arg-type]


def test_an_unknown_provider_is_refused_at_once() -> None:
    with pytest.raises(ConnectError, match="oracle"):
        PySQLXEnginePool("oracle://scott:tiger@localhost/x", min_size=1)


async def test_the_log_tells_the_life_of_a_connection(sqlite_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "pysqlx_engine"):
        async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1) as pool, pool.connection():
            pass
    said = [(record.levelname, record.message.partition(" <")[0]) for record in caplog.records]
    assert ("DEBUG", "Pool: New connection created:") in said
    assert ("DEBUG", "Pool: Connection returned to pool:") in said
    assert ("INFO", "Removed:") in said
    assert said[0] == ("INFO", "Pool: Starting the connection pool.")
    assert said[-1] == ("INFO", "Pool: All workers stopped and connections closed.")


async def test_a_pool_whose_check_outs_never_wait_can_be_started(database: Database) -> None:
    async with PySQLXEnginePool(database.uri, min_size=1, max_size=1, conn_timeout=0) as pool:
        async with pool.connection() as conn:
            assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
            with pytest.raises(PoolTimeoutError):
                await pool.connection().__aenter__()
