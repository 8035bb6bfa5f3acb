"""The functions that a pool can be given: configure, check, reset."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from pysqlx_engine import PySQLXEngine, PySQLXEnginePool, PySQLXEnginePoolSync, PySQLXEngineSync
from pysqlx_engine.errors import PoolTimeoutError
from pysqlx_engine.pool import hooks
from tests.servers import Database, PostgresServer


async def test_configure_sees_each_new_connection_first_in_the_users_loop(postgresql_db: Database) -> None:
    loops: list[object] = []

    async def configure(conn: PySQLXEngine) -> None:
        loops.append(asyncio.get_running_loop())
        await conn.raw_cmd("SET search_path TO pg_catalog")

    async with PySQLXEnginePool(postgresql_db.uri, min_size=2, max_size=2, configure=configure) as pool:
        async with pool.connection() as conn:
            assert await conn.query_first_as_dict("SHOW search_path") == {"search_path": "pg_catalog"}
    assert loops == [asyncio.get_running_loop()] * 2


def test_hooks_of_a_thread_pool_run_in_threads_and_may_block(postgresql_db: Database) -> None:
    threads: list[threading.Thread] = []

    def configure(conn: PySQLXEngineSync) -> None:
        threads.append(threading.current_thread())
        conn.raw_cmd("SET search_path TO pg_catalog")

    def reset(conn: PySQLXEngineSync) -> None:
        conn.raw_cmd("SET search_path TO pg_catalog")

    with PySQLXEnginePoolSync(postgresql_db.uri, min_size=1, max_size=1, configure=configure, reset=reset) as pool:
        for _ in range(3):
            with pool.connection() as conn:
                assert conn.query_first_as_dict("SHOW search_path") == {"search_path": "pg_catalog"}
                conn.raw_cmd("SET search_path TO public")
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_a_connection_that_cannot_be_configured_is_closed(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async def configure(conn: PySQLXEngine) -> None:
        raise ValueError("no such setting")

    pool = PySQLXEnginePool(database.uri, min_size=1, configure=configure, conn_timeout=0.3)
    with pytest.raises(PoolTimeoutError, match="no such setting"):
        await pool.start()
    with database.sampler() as sample:
        assert sample() == 0


async def test_configure_leaves_no_transaction_open(postgres: PostgresServer, postgresql_db: Database) -> None:
    async def configure(conn: PySQLXEngine) -> None:
        await conn.begin()

    sql = "SELECT state FROM pg_stat_activity WHERE datname = %s"
    async with PySQLXEnginePool(postgresql_db.uri, min_size=1, configure=configure):
        with postgres.admin() as admin:
            assert admin.execute(sql, (postgresql_db.uri.rpartition("/")[2],)).fetchall() == [("idle",)]


async def test_check_takes_the_place_of_the_built_in_test(sqlite_uri: str) -> None:
    checked: list[PySQLXEngine] = []
    broken: set[PySQLXEngine] = set()

    async def check(conn: PySQLXEngine) -> None:
        checked.append(conn)
        if conn in broken:
            raise RuntimeError("not fit")

    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1, check=check, check_after=0) as pool:
        async with pool.connection() as first:
            broken.add(first)
        async with pool.connection() as second:
            pass
        assert second is not first
        assert first in checked
        assert pool.stats().found_dead == 1


async def test_reset_makes_what_came_back_fit_for_the_next(postgresql_db: Database) -> None:
    """Session settings are the user's business, and this is where to undo them."""

    async def reset(conn: PySQLXEngine) -> None:
        await conn.raw_cmd("DISCARD ALL")

    async with PySQLXEnginePool(postgresql_db.uri, min_size=1, max_size=1, reset=reset) as pool:
        async with pool.connection() as conn:
            await conn.raw_cmd("SET search_path TO pg_catalog; CREATE TEMPORARY TABLE mine (a int)")
        async with pool.connection() as conn:
            assert await conn.query_first_as_dict("SHOW search_path") == {"search_path": '"$user", public'}
            assert await conn.query_first_as_dict("SELECT to_regclass('mine')::text AS a") == {"a": None}
        assert pool.stats().opened == 1


@pytest.mark.parametrize("failure", ["raises", "hangs", "dirty"])
async def test_a_reset_that_fails_costs_the_connection_only(
    sqlite_uri: str, failure: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "HOOK_TIMEOUT", 0.05)

    async def reset(conn: PySQLXEngine) -> None:
        if failure == "raises":
            raise ValueError("cannot reset")
        if failure == "hangs":
            await asyncio.Event().wait()
        await conn.begin()

    with caplog.at_level(logging.WARNING, "pysqlx_engine"):
        async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1, reset=reset) as pool:
            for _ in range(3):
                async with pool.connection() as conn:
                    await conn.begin()  # fails when one is open
                    await conn.rollback()
            expected = 1 if failure == "dirty" else 3
            assert pool.stats().opened in {expected, expected + 1}
    assert ("reset failed" in caplog.text) == (failure != "dirty")


@pytest.mark.parametrize("hook", ["configure", "check", "reset", "reconnect_failed"])
def test_a_hook_that_cannot_be_called_is_refused(sqlite_uri: str, hook: str) -> None:
    with pytest.raises(TypeError, match=f"{hook}='x'"):
        PySQLXEnginePool(sqlite_uri, **{hook: "x"})  # type: ignore[arg-type]
