"""What users of a pool see of servers that restart, vanish, refuse, and of sessions that die: as little as possible."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from pysqlx_engine import PySQLXEngine, PySQLXEnginePool, PySQLXEnginePoolSync
from pysqlx_engine.errors import ConnectError, PoolTimeoutError, PySQLXError, QueryError
from pysqlx_engine.pool import upkeep
from tests.proxy import FaultProxy
from tests.servers import Database, PostgresServer, free_port


async def use(pool: PySQLXEnginePool, sql: str = "SELECT 1 AS a") -> object:
    async with pool.connection() as conn:
        row = await conn.query_first_as_dict(sql)
        assert row is not None
        return row["a"]


@asynccontextmanager
async def idle_pool(uri: str, size: int, **parameters: object) -> AsyncIterator[PySQLXEnginePool]:
    """A pool with `size` connections, all idle, that tests each before it is handed out."""
    settings = {"check_after": 0.0, "min_size": size, "max_size": size, "check_interval": 3600.0} | parameters
    async with PySQLXEnginePool(uri, **settings) as pool:  # type: ignore[arg-type]
        yield pool


@contextmanager
def proxied(server: PostgresServer) -> Iterator[tuple[FaultProxy, str]]:
    with FaultProxy(server.port) as proxy:
        yield proxy, f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"


# psycopg/psycopg #701: connections that are stale after a restart of the server are handed out.
async def test_nobody_sees_a_restart_of_the_server() -> None:
    with PostgresServer() as server:
        async with idle_pool(server.uri(), 4) as pool:
            server.restart("immediate")
            assert await asyncio.gather(*(use(pool) for _ in range(20))) == [1] * 20
            stats = pool.stats()
            assert stats.found_dead == 4
            assert stats.timeouts == 0


def test_no_thread_sees_a_restart_of_the_server() -> None:
    with PostgresServer() as server:
        sizes = {"min_size": 4, "max_size": 4}
        with PySQLXEnginePoolSync(server.uri(), check_after=0.0, check_interval=3600.0, **sizes) as pool:  # type: ignore[arg-type]
            server.restart("immediate")
            answers: list[object] = []

            def work() -> None:
                with pool.connection() as conn:
                    answers.append(conn.query_first_as_dict("SELECT 1 AS a"))

            threads = [threading.Thread(target=work) for _ in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert answers == [{"a": 1}] * 12


async def test_nobody_sees_that_idle_sessions_were_killed(postgres: PostgresServer, postgresql_db: Database) -> None:
    async with idle_pool(postgresql_db.uri, 3) as pool:
        postgres.end_sessions(postgresql_db)
        assert await asyncio.gather(*(use(pool) for _ in range(9))) == [1] * 9


async def test_nobody_sees_that_idle_sessions_of_mariadb_were_killed(mysql_db: Database) -> None:
    async with idle_pool(mysql_db.uri, 3) as pool:
        ids = [conn.session.server_id for conn in pool._runtime.core.idle]
        async with PySQLXEngine(mysql_db.uri) as admin:
            for server_id in ids:
                await admin.raw_cmd(f"KILL {server_id}")
        assert await asyncio.gather(*(use(pool) for _ in range(9))) == [1] * 9


async def test_a_connection_that_was_just_used_is_not_tested(postgresql_db: Database) -> None:
    async with PySQLXEnginePool(postgresql_db.uri, min_size=1, max_size=1, check_after=3600.0) as pool:
        for _ in range(3):
            await use(pool)
        assert pool.stats().requests_waited == 0


async def test_after_one_dead_connection_in_use_the_idle_ones_are_tested(
    postgres: PostgresServer, postgresql_db: Database
) -> None:
    """Inside the untested window a death surfaces, and it does once."""
    async with idle_pool(postgresql_db.uri, 4, check_after=3600.0) as pool:
        postgres.end_sessions(postgresql_db)
        with pytest.raises(QueryError):
            await use(pool)
        while pool.stats().idle < 4:  # min_size is restored without anybody asking
            await asyncio.sleep(0.005)
        assert await asyncio.gather(*(use(pool) for _ in range(8))) == [1] * 8
        assert pool.stats().found_dead == 3


async def test_the_monitor_replaces_dead_connections_before_anybody_comes(
    postgres: PostgresServer, postgresql_db: Database
) -> None:
    async with idle_pool(postgresql_db.uri, 3, check_interval=0.05) as pool:
        postgres.end_sessions(postgresql_db)
        while pool.stats().opened < 6 or pool.stats().idle < 3:
            await asyncio.sleep(0.005)
        assert pool.stats().requests == 0


async def test_a_network_that_went_deaf_is_noticed_and_the_wait_goes_on(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "TEST_TIMEOUT", 0.1)
    with proxied(postgres) as (proxy, uri):
        async with idle_pool(uri, 2, max_size=4, min_size=2) as pool:
            proxy.go_deaf()
            user = asyncio.create_task(use(pool))
            while not pool.stats().found_dead:
                await asyncio.sleep(0.005)
            assert not user.done()
            proxy.hear()
            assert await user == 1


# brettwooldridge/HikariCP #1148, #1256, #1474: the pool goes to zero, or does not recover, when the database is lost.
@pytest.mark.parametrize("fault", ["stop", "reset"])
async def test_the_pool_is_back_at_min_size_when_the_network_is(postgres: PostgresServer, fault: str) -> None:
    with proxied(postgres) as (proxy, uri):
        async with idle_pool(uri, 3) as pool:
            proxy.stop() if fault == "stop" else proxy.reset()
            user = asyncio.create_task(use(pool))
            if fault == "stop":
                while not pool.stats().open_errors:
                    await asyncio.sleep(0.005)
                proxy.start()
            assert await user == 1
            while pool.stats().idle < 3:
                await asyncio.sleep(0.005)
            assert pool.stats().opened == 6


async def test_a_server_that_is_down_is_not_stormed(postgres: PostgresServer) -> None:
    with proxied(postgres) as (proxy, uri):
        async with idle_pool(uri, 0, max_size=10) as pool:
            await use(pool)
            proxy.stop()
            started = time.monotonic()
            waiting = [asyncio.create_task(use(pool)) for _ in range(50)]
            while pool.stats().open_errors < 5:
                await asyncio.sleep(0.005)
            elapsed = time.monotonic() - started
            # Two are tried at first, then one at a time after 50, 100 and 200 ms, each with a jitter of 20 %.
            assert elapsed > 0.8 * (0.05 + 0.1 + 0.2)
            assert pool.stats().waiting == 50, "they keep their places"
            proxy.start()
            assert await asyncio.gather(*waiting) == [1] * 50


# pgbouncer #585: what clients get while the server is down should be a choice.
async def test_fail_fast_does_not_wait_for_a_server_that_is_down(postgres: PostgresServer) -> None:
    with proxied(postgres) as (proxy, uri):
        async with idle_pool(uri, 1, max_size=2, fail_fast=True) as pool:
            proxy.stop()
            with pytest.raises(ConnectError):  # the first learns it from the test and from the attempt to connect
                await use(pool)
            started = time.monotonic()
            with pytest.raises(ConnectError):
                await use(pool)
            assert time.monotonic() - started < pool._runtime.config.conn_timeout / 10
            proxy.start()
            while not pool.stats().idle:
                await asyncio.sleep(0.005)
            assert await use(pool) == 1


async def test_fail_fast_does_not_wait_for_a_server_that_accepts_and_says_nothing(postgres: PostgresServer) -> None:
    with proxied(postgres) as (proxy, uri):
        async with idle_pool(f"{uri}?connect_timeout=1", 1, max_size=2, fail_fast=True) as pool:
            proxy.go_deaf()
            proxy.reset()
            with pytest.raises(ConnectError):  # the driver gives up after its connect_timeout
                await use(pool)
            assert pool.stats().closing == 1, "the server may be at work on that login"
            started = time.monotonic()
            one_that_finds_out, *others = await asyncio.gather(*(use(pool) for _ in range(9)), return_exceptions=True)
            assert isinstance(one_that_finds_out, ConnectError)
            assert {type(error) for error in others} == {ConnectError}
            assert time.monotonic() - started < pool._runtime.config.conn_timeout / 10
            proxy.hear()
            proxy.reset()
            while not pool.stats().idle:
                await asyncio.sleep(0.005)
            assert await use(pool) == 1


async def test_reconnect_failed_is_called_once_for_each_outage(postgres: PostgresServer) -> None:
    told: list[tuple[object, object]] = []

    async def reconnect_failed(pool: PySQLXEnginePool) -> None:
        told.append((pool, asyncio.get_running_loop()))

    with proxied(postgres) as (proxy, uri):
        async with idle_pool(uri, 1, reconnect_timeout=0.2, reconnect_failed=reconnect_failed) as pool:
            for outage in (1, 2):
                proxy.stop()
                user = asyncio.create_task(use(pool))
                while len(told) < outage:
                    await asyncio.sleep(0.005)
                errors = pool.stats().open_errors
                while pool.stats().open_errors == errors:
                    await asyncio.sleep(0.005)
                assert told == [(pool, asyncio.get_running_loop())] * outage
                proxy.start()
                assert await user == 1


def test_reconnect_failed_of_a_thread_pool_is_called_too(postgres: PostgresServer) -> None:
    told = threading.Event()
    with proxied(postgres) as (proxy, uri):
        sizes = {"min_size": 1, "max_size": 1}
        settings = {"check_after": 0.0, "reconnect_timeout": 0.1, "reconnect_failed": lambda pool: told.set()} | sizes
        with PySQLXEnginePoolSync(uri, **settings) as pool:  # type: ignore[arg-type]
            proxy.stop()
            with pytest.raises(PoolTimeoutError, match="last error: ConnectError"):
                pool.connection(timeout=3).__enter__()
            assert told.is_set()


# brettwooldridge/HikariCP #744: adapt the pool when the server says that it has too many connections.
async def test_too_many_connections_make_the_pool_go_on_with_what_it_has(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pysqlx_engine.pool.outage.LIMIT_PAUSE", (0.3, 0.3))
    with PostgresServer(max_connections="8", superuser_reserved_connections="0") as server:
        others = [PySQLXEngine(server.uri()) for _ in range(4)]
        for other in others:
            await other.connect()
        with caplog.at_level(logging.WARNING, "pysqlx_engine"):
            async with idle_pool(server.uri(), 1, max_size=20, min_size=1) as pool:
                assert "max_size is 20, but the server takes at most 8 connections" in caplog.text
                users = [asyncio.create_task(use(pool, "SELECT 1 AS a, pg_sleep(0.02)::text")) for _ in range(100)]
                assert await asyncio.gather(*users) == [1] * 100
                assert caplog.text.count("the server takes no more connections") == 1
                stats = pool.stats()
                assert stats.size <= 4
                assert stats.held == stats.size, "the leases went back"
                for other in others:
                    await other.close()
                users = [asyncio.create_task(use(pool, "SELECT 1 AS a, pg_sleep(0.05)::text")) for _ in range(200)]
                while pool.stats().size <= 4:  # and it grows again when there is room
                    await asyncio.sleep(0.01)
                assert await asyncio.gather(*users) == [1] * 200


async def test_too_many_connections_of_mariadb_are_understood(mysql_db: Database) -> None:
    user, password = "pysqlx_limited", "secret"
    async with PySQLXEngine(mysql_db.uri) as admin:
        await admin.raw_cmd(f"CREATE OR REPLACE USER {user} IDENTIFIED BY '{password}' WITH MAX_USER_CONNECTIONS 2")
        await admin.raw_cmd(f"GRANT ALL ON *.* TO {user}")
        try:
            uri = mysql_db.uri.replace("root@", f"{user}:{password}@")
            async with idle_pool(uri, 1, max_size=5, min_size=1) as pool:
                answers = await asyncio.gather(*(use(pool, "SELECT 1 AS a, sleep(0.02) AS b") for _ in range(20)))
                assert answers == [1] * 20
                assert pool.stats().size == 2
        finally:
            await admin.raw_cmd(f"DROP USER {user}")


async def test_the_uri_may_be_a_function_that_is_asked_before_each_connect(postgres: PostgresServer) -> None:
    """Passwords that change: each connection is opened with the one of its time."""
    with postgres.admin() as admin:
        admin.execute("CREATE ROLE rotating LOGIN")
    names = ["postgres"]
    asked: list[object] = []

    async def uri() -> str:
        asked.append(asyncio.get_running_loop())
        return f"postgresql://{names[-1]}@127.0.0.1:{postgres.port}/postgres"

    async with PySQLXEnginePool(uri, min_size=1, max_size=2) as pool:
        assert await use(pool, "SELECT current_user::text AS a") == "postgres"
        names.append("rotating")
        await pool.drain()
        assert await use(pool, "SELECT current_user::text AS a") == "rotating"
        assert set(asked) == {asyncio.get_running_loop()}
        assert "***" not in repr(pool)
    with postgres.admin() as admin:
        admin.execute("DROP ROLE rotating")


def test_the_uri_function_of_a_thread_pool_is_a_plain_one(sqlite_uri: str) -> None:
    with PySQLXEnginePoolSync(lambda: sqlite_uri, min_size=1) as pool, pool.connection() as conn:
        assert conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}


async def test_a_uri_function_that_names_another_database_is_refused(sqlite_uri: str) -> None:
    uris = [sqlite_uri, sqlite_uri, sqlite_uri.replace("test.db", "other.db")]

    async def uri() -> str:
        return uris.pop(0) if len(uris) > 1 else uris[0]

    async with PySQLXEnginePool(uri, min_size=1, max_size=2) as pool, pool.connection():
        with pytest.raises(PoolTimeoutError, match="a pool has one database"):
            await pool.connection(timeout=0.3).__aenter__()


async def test_a_uri_function_that_fails_is_named_at_start() -> None:
    async def uri() -> str:
        raise OSError("the vault is sealed")

    pool = PySQLXEnginePool(uri, conn_timeout=0.2)
    with pytest.raises(OSError, match="the vault is sealed"):
        await pool.start()
    assert pool.closed


async def test_a_deaf_server_does_not_keep_anybody_from_another_one(postgresql_uri: str) -> None:
    port = free_port()
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", port):
        deaf = PySQLXEnginePool(f"mysql://root@127.0.0.1:{port}/test", min_size=1, conn_timeout=60)
        starting = asyncio.create_task(deaf.start())
        while not deaf.stats().opening:
            await asyncio.sleep(0.005)
        async with PySQLXEnginePool(postgresql_uri, min_size=1, conn_timeout=20) as pool:
            assert await use(pool) == 1
            assert not starting.done()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting


async def test_failures_that_nobody_suffered_are_no_outage(postgres: PostgresServer) -> None:
    told: list[object] = []
    with proxied(postgres) as (proxy, uri):
        async with idle_pool(
            uri, 1, max_size=2, min_size=1, reconnect_timeout=0.3, reconnect_failed=told.append
        ) as pool:
            for _ in range(2):
                async with pool.connection():
                    proxy.stop_listening()
                    with pytest.raises(PoolTimeoutError):
                        await pool.connection(timeout=0.1).__aenter__()
                    proxy.start()
                ended = time.monotonic() + 0.4
                while time.monotonic() < ended:
                    assert await use(pool) == 1
            assert pool.stats().open_errors >= 2
            assert not told


async def test_a_slow_network_only_takes_longer(postgres: PostgresServer) -> None:
    with proxied(postgres) as (proxy, uri):
        proxy.delay = 0.01
        async with idle_pool(uri, 2) as pool:
            assert await asyncio.gather(*(use(pool) for _ in range(6))) == [1] * 6
            assert pool.stats().found_dead == 0


async def test_a_server_that_accepts_and_says_nothing_blocks_nobody_for_longer_than_conn_timeout() -> None:
    port = free_port()
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    async with server:
        pool = PySQLXEnginePool(f"postgresql://postgres@127.0.0.1:{port}/postgres", conn_timeout=0.3)
        with pytest.raises((PoolTimeoutError, PySQLXError)):
            await pool.start()
