"""How many connections a pool has, and who waits for them."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import pytest

from pysqlx_engine import PySQLXEnginePool, PySQLXEnginePoolSync
from pysqlx_engine.errors import PoolClosedError, PoolQueueFullError, PoolTimeoutError
from pysqlx_engine.pool.upkeep import KEEP_ALIVE_JITTER
from tests.proxy import FaultProxy
from tests.servers import Database, PostgresServer


async def until(pool: PySQLXEnginePool, **numbers: int) -> None:
    """Wait until `pool.stats()` says these."""
    while any(getattr(pool.stats(), name) != number for name, number in numbers.items()):
        await asyncio.sleep(0.002)


# The spike of HikariCP's "Welcome to the Jungle": pools that open a connection for each waiter end with 45.
async def test_a_spike_of_short_requests_ends_with_two_connections_more(postgres: PostgresServer) -> None:
    with FaultProxy(postgres.port) as proxy:
        uri = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        async with PySQLXEnginePool(uri, min_size=5, max_size=50) as pool:
            proxy.connect_delay = 0.15

            async def request() -> None:
                async with pool.connection():
                    await asyncio.sleep(0.002)

            started = time.monotonic()
            await asyncio.gather(*(request() for _ in range(50)))
            assert time.monotonic() - started < 0.15, "those that came back served everybody, not new ones"
            while pool.stats().opening:
                await asyncio.sleep(0.002)
            assert pool.stats().size <= 7
            # jackc/pgx #1259: connects that nobody waits for any more are kept.
            assert pool.stats().closed == 0


async def test_what_is_unused_for_max_idle_is_closed_down_to_min_size(database: Database) -> None:
    async with PySQLXEnginePool(database.uri, min_size=1, max_size=4, max_idle=0.2, check_interval=0.02) as pool:
        for connection in [await _held(pool) for _ in range(4)]:
            connection.set()
        await until(pool, idle=4)
        await until(pool, size=1, held=1)
        closed = pool.stats().closed
        assert closed == 3
        with database.sampler() as sample:
            assert sample() == 1


async def _held(pool: PySQLXEnginePool) -> asyncio.Event:
    """Somebody holds a connection until the event is set."""
    held, release = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with pool.connection():
            held.set()
            await release.wait()

    release.task = asyncio.create_task(hold())  # type: ignore[attr-defined]
    await held.wait()
    return release


async def test_connections_opened_together_are_not_replaced_together(sqlite_uri: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=20, max_size=20, keep_alive=100) as pool:
        lifetimes = [conn.expires_at - conn.opened_at for conn in pool._runtime.core.idle]
    assert all(100 * (1 - KEEP_ALIVE_JITTER) <= lifetime <= 100 for lifetime in lifetimes)
    assert max(lifetimes) - min(lifetimes) > 100 * KEEP_ALIVE_JITTER / 4


# MagicStack/asyncpg #989, #711, #1268: min_size is not a floor.
async def test_min_size_is_refilled_without_anybody_asking(postgres: PostgresServer, postgresql_db: Database) -> None:
    async with PySQLXEnginePool(postgresql_db.uri, min_size=3, max_size=5, check_interval=0.02) as pool:
        postgres.end_sessions(postgresql_db)
        while pool.stats().opened < 6:
            await asyncio.sleep(0.002)
        await until(pool, idle=3, held=3)


# psycopg_pool's resize(2, 2) leaves 8 users served and shrinks by one connection in max_idle.
async def test_a_smaller_size_is_enforced(database: Database) -> None:
    async with PySQLXEnginePool(database.uri, min_size=1, max_size=8) as pool:
        users = [await _held(pool) for _ in range(8)]
        for user in users[:3]:
            user.set()
        await until(pool, idle=3)
        pool.resize(1, 2)
        await until(pool, idle=0, held=5)  # idle ones at once
        for user in users[3:6]:
            user.set()
        await until(pool, held=2, in_use=2)  # the others when they come back
        late = asyncio.create_task(_held(pool))
        await until(pool, waiting=1)
        assert pool.stats().held == 2
        users[6].set()
        users.append(await late)
        with database.sampler() as sample:
            assert sample() == 2
        assert pool.stats().max_size == 2
        pool.resize(3, 4)
        users += [await _held(pool) for _ in range(2)]
        assert pool.stats().in_use == 4
        for user in users:
            user.set()
        await until(pool, in_use=0)


async def test_a_larger_size_serves_who_waits_at_once(sqlite_uri: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1) as pool:
        first = await _held(pool)
        waiting = asyncio.create_task(_held(pool))
        await until(pool, waiting=1)
        pool.resize(1, 2)
        (await waiting).set()
        first.set()
        await until(pool, in_use=0)


@pytest.mark.parametrize(
    ("sizes", "named"), [((3, 2), "min_size=3"), ((0, 0), "max_size=0"), (("1", 2), "min_size='1'")]
)
async def test_sizes_that_cannot_be_are_refused(sqlite_uri: str, sizes: tuple[int, int], named: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=2) as pool:
        with pytest.raises((ValueError, TypeError), match=named):
            pool.resize(*sizes)
        assert (pool.stats().min_size, pool.stats().max_size) == (1, 2)
    with pytest.raises(PoolClosedError):
        pool.resize(1, 2)


async def test_drain_replaces_every_connection_while_the_pool_serves(database: Database) -> None:
    async with PySQLXEnginePool(database.uri, min_size=4, max_size=4) as pool:
        before = {conn.name for conn in pool._runtime.core.idle}
        ended = asyncio.Event()
        served = 0

        async def use() -> None:
            nonlocal served
            while not ended.is_set():
                async with pool.connection(timeout=10) as conn:
                    assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
                    served += 1

        users = [asyncio.create_task(use()) for _ in range(3)]
        while served < 20:
            await asyncio.sleep(0.002)
        with database.sampler() as sample:
            await pool.drain()
            served_before = served
            while served < served_before + 50:
                await asyncio.sleep(0.002)
                assert sample() <= 4
        ended.set()
        await asyncio.gather(*users)
        await until(pool, idle=4)
        assert not before & {conn.name for conn in pool._runtime.core.idle}
        assert pool.stats().timeouts == 0


def test_drain_of_a_thread_pool(sqlite_uri: str) -> None:
    with PySQLXEnginePoolSync(sqlite_uri, min_size=2, max_size=2) as pool:
        pool.drain()
        assert pool.stats().opened == 4
    with pytest.raises(PoolClosedError):
        pool.drain()


async def test_max_waiting_bounds_the_queue(sqlite_uri: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1, max_waiting=2) as pool:
        first = await _held(pool)
        waiting = [asyncio.create_task(_checked_out(pool)) for _ in range(2)]
        await until(pool, waiting=2)
        with pytest.raises(PoolQueueFullError, match="2 wait"):
            await _checked_out(pool)
        # Arfey/django-async-backend #28: who has given up is not in the queue, and does not count.
        waiting[0].cancel()
        await until(pool, waiting=1)
        waiting.append(asyncio.create_task(_checked_out(pool)))
        await until(pool, waiting=2)
        first.set()
        await asyncio.gather(*waiting[1:])


async def _checked_out(pool: PySQLXEnginePool) -> None:
    async with pool.connection():
        pass


async def test_a_full_queue_that_times_out_is_empty(sqlite_uri: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1, max_waiting=3) as pool:
        first = await _held(pool)
        for _ in range(2):
            results = await asyncio.gather(
                *(pool.connection(timeout=0.02).__aenter__() for _ in range(3)), return_exceptions=True
            )
            assert [type(result) for result in results] == [PoolTimeoutError] * 3
            assert pool.stats().waiting == 0
        first.set()


@pytest.mark.parametrize("timeout", [0, 0.05])
async def test_each_check_out_may_have_its_own_timeout(sqlite_uri: str, timeout: float) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1, conn_timeout=60) as pool:
        first = pool.connection(timeout=timeout)
        await first.__aenter__()  # an idle one is had without waiting
        with pytest.raises(PoolTimeoutError, match=f"within {timeout:.1f} s"):
            await pool.connection(timeout=timeout).__aenter__()
        await first.__aexit__(None, None, None)


@pytest.mark.parametrize("dead", [False, True])
async def test_who_cannot_wait_gets_a_connection_untested(
    postgres: PostgresServer, postgresql_db: Database, dead: bool
) -> None:
    async with PySQLXEnginePool(postgresql_db.uri, min_size=2, max_size=2, check_after=0) as pool:
        if dead:
            postgres.end_sessions(postgresql_db)
            with pytest.raises(PoolTimeoutError):
                await pool.connection(timeout=0).__aenter__()
        else:
            async with pool.connection(timeout=0) as conn:
                assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}


def test_each_check_out_of_a_thread_may_have_its_own_timeout(sqlite_uri: str) -> None:
    with PySQLXEnginePoolSync(sqlite_uri, min_size=1, max_size=1, conn_timeout=60) as pool, pool.connection():
        errors: list[BaseException] = []

        def wait() -> None:
            try:
                pool.connection(timeout=0.05).__enter__()
            except PoolTimeoutError as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(10)
        assert len(errors) == 1


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_a_timeout_that_cannot_be_is_refused(sqlite_uri: str, timeout: object) -> None:
    for pool in (PySQLXEnginePool(sqlite_uri), PySQLXEnginePoolSync(sqlite_uri)):
        with pytest.raises((ValueError, TypeError), match="timeout="):
            pool.connection(timeout=timeout)  # type: ignore[arg-type]


async def test_who_waits_for_the_test_of_an_idle_connection_only_is_not_in_the_queue(sqlite_uri: str) -> None:
    pool = PySQLXEnginePool(sqlite_uri, min_size=5, max_size=5, max_waiting=1, check_after=0)
    async with pool:
        for _ in range(3):
            together = asyncio.Barrier(5)

            async def use(together: asyncio.Barrier = together) -> None:
                async with pool.connection():
                    await together.wait()

            await asyncio.gather(*(use() for _ in range(5)))


def test_threads_that_resize_at_once_end_with_the_size_of_one_of_them(sqlite_uri: str) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with PySQLXEnginePoolSync(sqlite_uri, min_size=0, max_size=8, check_interval=3600) as pool:
            for _ in range(60):
                held = [pool.connection() for _ in range(4)]
                for checkout in held:
                    checkout.__enter__()
                together = threading.Barrier(2)

                def resize(size: int, together: threading.Barrier = together) -> None:
                    together.wait()
                    pool.resize(0, size)

                threads = [threading.Thread(target=resize, args=(size,)) for size in (2, 8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                size = pool._runtime._budget.size  # type: ignore[union-attr]
                assert pool.stats().max_size == size
                for checkout in held:
                    checkout.__exit__(None, None, None)
                while pool.stats().held > size:
                    time.sleep(0.001)
                pool.resize(0, 8)
    finally:
        sys.setswitchinterval(before)
