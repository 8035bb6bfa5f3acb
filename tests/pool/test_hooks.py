"""The functions that a pool can be given: configure, check, reset."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
import weakref
from collections.abc import Awaitable

import pytest

from pysqlx_engine import PySQLXEngine, PySQLXEnginePool, PySQLXEnginePoolSync, PySQLXEngineSync
from pysqlx_engine.engine.session import LIVENESS_CHECK
from pysqlx_engine.errors import PoolAlreadyStartedError, PoolError, PoolTimeoutError
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


WHO = contextvars.ContextVar("who", default="nobody")


class Noting(logging.Handler):
    """What WHO is where the pools' own thread logs something."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.threadName == "pysqlx-pool":
            self.seen.append(WHO.get())


@pytest.mark.parametrize("threads", [False, True])
async def test_hooks_have_the_context_of_who_started_the_pool_and_the_pool_itself_nobodys(
    sqlite_db: Database, caplog: pytest.LogCaptureFixture, threads: bool
) -> None:
    called: list[str] = []
    noting = Noting()
    logging.getLogger("pysqlx_engine").addHandler(noting)
    caplog.set_level(logging.DEBUG, "pysqlx_engine")

    async def configure(conn: PySQLXEngine) -> None:
        called.append(WHO.get())

    async def use() -> None:
        async with PySQLXEnginePool(sqlite_db.uri, min_size=1, max_size=2, configure=configure) as pool:
            WHO.set("user")
            async with pool.connection(), pool.connection():
                pass

    def use_in_thread() -> None:
        def configure(conn: PySQLXEngineSync) -> None:
            called.append(WHO.get())

        with PySQLXEnginePoolSync(sqlite_db.uri, min_size=1, max_size=2, configure=configure) as pool:
            WHO.set("user")
            with pool.connection(), pool.connection():
                pass

    token = WHO.set("starter")
    try:
        await (asyncio.to_thread(use_in_thread) if threads else use())
    finally:
        WHO.reset(token)
        logging.getLogger("pysqlx_engine").removeHandler(noting)
    assert called == ["starter"] * 2
    assert set(noting.seen) == {"nobody"}


async def test_who_fails_to_start_a_pool_once_more_lends_it_no_context(sqlite_db: Database) -> None:
    called: list[str] = []

    async def configure(conn: PySQLXEngine) -> None:
        called.append(WHO.get())

    async def start_again() -> None:
        WHO.set("somebody")
        with pytest.raises(PoolAlreadyStartedError):
            await pool.start()

    async with PySQLXEnginePool(sqlite_db.uri, min_size=1, max_size=2, configure=configure) as pool:
        await asyncio.create_task(start_again())
        async with pool.connection(), pool.connection():
            pass
    assert called == ["nobody"] * 2


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
        await conn.raw_cmd("RESET ALL; DISCARD TEMP")

    async with PySQLXEnginePool(postgresql_db.uri, min_size=1, max_size=1, reset=reset) as pool:
        async with pool.connection() as conn:
            assert await conn.query_first_as_dict("SHOW search_path") == {"search_path": '"$user", public'}
            await conn.raw_cmd("SET search_path TO pg_catalog; CREATE TEMPORARY TABLE mine (a int)")
        async with pool.connection() as conn:
            assert await conn.query_first_as_dict("SHOW search_path") == {"search_path": '"$user", public'}
            assert await conn.query_first_as_dict("SELECT to_regclass('mine')::text AS a") == {"a": None}
            # What the pool has set itself is not the user's to lose: by it the server sees that a client is gone.
            checked = await conn.query_first_as_dict("SHOW client_connection_check_interval")
            assert checked == {"client_connection_check_interval": LIVENESS_CHECK}
        assert pool.stats().opened == 1


async def test_a_reset_that_takes_the_prepared_statements_away_costs_the_connection_and_no_error(
    postgresql_db: Database,
) -> None:
    async def reset(conn: PySQLXEngine) -> None:
        await conn.raw_cmd("DISCARD ALL")

    async with PySQLXEnginePool(postgresql_db.uri, min_size=1, max_size=1, reset=reset) as pool:
        for _ in range(3):
            async with pool.connection() as conn:
                assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
        assert pool.stats().opened >= 3


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


@pytest.mark.parametrize("hook", ["check", "reset"])
async def test_a_hook_may_close_the_connection_to_have_it_replaced(database: Database, hook: str) -> None:
    async def close(conn: PySQLXEngine) -> None:
        await conn.close()

    sizes = {"min_size": 1, "max_size": 2, "check_after": 0.0}
    async with PySQLXEnginePool(database.uri, **sizes, **{hook: close}) as pool:  # type: ignore[arg-type]
        for _ in range(3):
            async with pool.connection() as conn:
                assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}


async def test_a_connection_that_configure_closed_is_named(sqlite_uri: str) -> None:
    async def close(conn: PySQLXEngine) -> None:
        await conn.close()

    pool = PySQLXEnginePool(sqlite_uri, min_size=1, configure=close, conn_timeout=0.2)
    with pytest.raises(PoolTimeoutError, match=r"configure left .*conn-\d+.* unusable"):
        await pool.start()


async def coroutine_function(conn: object = None) -> None: ...


@pytest.mark.parametrize("hook", ["uri", "configure", "check", "reset", "reconnect_failed"])
def test_a_coroutine_function_for_a_thread_pool_is_refused(sqlite_uri: str, hook: str) -> None:
    with pytest.raises(TypeError, match=f"{hook}=.*needs a plain function"):
        PySQLXEnginePoolSync(**({"uri": sqlite_uri} | {hook: coroutine_function}))  # type: ignore[arg-type]


def test_an_awaitable_from_a_plain_function_of_a_thread_pool_is_an_error(sqlite_uri: str) -> None:
    def plain(conn: object) -> object:
        return coroutine_function(conn)

    pool = PySQLXEnginePoolSync(sqlite_uri, min_size=1, configure=plain, conn_timeout=0.2)
    with pytest.raises(PoolTimeoutError, match="gave an awaitable"):
        pool.start()


async def test_a_uri_may_be_an_awaitable_from_a_plain_function(sqlite_uri: str) -> None:
    async def fetch() -> str:
        return sqlite_uri

    def uri() -> Awaitable[str]:
        return fetch()

    async with PySQLXEnginePool(uri, min_size=1) as pool, pool.connection() as conn:
        assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}


def test_a_pool_whose_hook_is_a_method_of_its_owner_is_collected(sqlite_uri: str) -> None:
    class Repository:
        def __init__(self) -> None:
            self.pool = PySQLXEnginePoolSync(sqlite_uri, min_size=1, reset=self.clean)
            self.pool.start()

        def clean(self, conn: PySQLXEngineSync) -> None: ...

    repository = Repository()
    runtime, alive = repository.pool._runtime, weakref.ref(repository)
    del repository
    gc.collect()
    assert alive() is None
    ended = threading.Event()
    while runtime.core.held:
        ended.wait(0.005)


@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
@pytest.mark.parametrize("hook", ["configure", "check", "reset"])
def test_a_hook_that_exits_costs_the_connection_only(sqlite_uri: str, hook: str, ending: type[BaseException]) -> None:
    calls = []

    def end(conn: PySQLXEngineSync) -> None:
        calls.append(conn)
        if len(calls) == 2:
            raise ending

    sizes = {"min_size": 1, "max_size": 2, "check_after": 0.0}
    with PySQLXEnginePoolSync(sqlite_uri, **sizes, **{hook: end}) as pool:  # type: ignore[arg-type]
        for _ in range(4):
            with pool.connection(timeout=5) as one, pool.connection(timeout=5) as two:
                assert one is not two
        assert len(calls) >= 2
    assert pool.stats().held == 0


@pytest.mark.parametrize("hook", ["configure", "check", "reset"])
def test_a_loop_that_ends_while_a_hook_runs_costs_no_lease(sqlite_uri: str, hook: str) -> None:
    running = threading.Event()

    async def hang(conn: PySQLXEngine) -> None:
        if len(pool_uses) > 0:
            running.set()
            await asyncio.sleep(60)

    pool_uses: list[int] = []
    sizes = {"min_size": 1, "max_size": 2, "check_after": 0.0}
    pool = PySQLXEnginePool(sqlite_uri, **sizes, **{hook: hang})  # type: ignore[arg-type]

    async def use() -> None:
        async with pool.connection(), pool.connection():
            pass

    async def end_while_a_hook_runs() -> None:
        await pool.start()
        pool_uses.append(1)
        task = asyncio.create_task(use())
        await asyncio.to_thread(running.wait, 10)
        del task

    asyncio.run(end_while_a_hook_runs())
    pool_uses.clear()

    async def again() -> None:
        await pool.start()
        await use()
        await pool.stop()

    asyncio.run(again())
    assert pool.stats().held == 0


async def test_an_error_that_cannot_be_copied_is_told_all_the_same(sqlite_uri: str) -> None:
    class Mine(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} {two}")

    fails = False

    async def configure(conn: PySQLXEngine) -> None:
        if fails:
            raise Mine(1, 2)

    async with PySQLXEnginePool(sqlite_uri, min_size=0, max_size=1, configure=configure, fail_fast=True) as pool:
        fails = True
        with pytest.raises(PoolError, match="1 2"):
            await pool.connection().__aenter__()


@pytest.mark.parametrize("hook", ["configure", "check", "reset", "reconnect_failed"])
def test_a_hook_that_cannot_be_called_is_refused(sqlite_uri: str, hook: str) -> None:
    with pytest.raises(TypeError, match=f"{hook}='x'"):
        PySQLXEnginePool(sqlite_uri, **{hook: "x"})  # type: ignore[arg-type]
