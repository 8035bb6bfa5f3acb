"""What the pool counts is what the server counts, whatever happens between them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from pysqlx_engine import PySQLXEnginePool, PySQLXEnginePoolSync
from pysqlx_engine.errors import PoolTimeoutError, PySQLXError
from tests.proxy import FaultProxy
from tests.servers import Database, PostgresServer, postgresql_database

MAX_SIZE = 6


class Comparison:
    """Compares every 2 ms, in a thread of its own, what the pool holds with what the server has."""

    def __init__(self, pool: PySQLXEnginePool | PySQLXEnginePoolSync, database: Database) -> None:
        self._pool, self._database = pool, database
        self.compared = 0
        self.most = 0
        self.wrong: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Comparison:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with self._database.sampler() as sample:
            while not self._ended.wait(0.002):
                before = self._what_is_held()
                count = sample()
                after = self._what_is_held()
                self.most = max(self.most, count)
                if count > MAX_SIZE:
                    self.wrong.append(f"the server has {count}, max_size is {MAX_SIZE}")
                if before == after:  # nothing changed while the server was asked
                    self.compared += 1
                    if count > before[0]:
                        self.wrong.append(f"the server has {count}, the pool counts {before[0]}")

    def _what_is_held(self) -> tuple[int, ...]:
        stats = self._pool.stats()
        return stats.held, stats.opened, stats.closed, stats.open_errors, stats.opening, stats.closing


async def misuse(pool: PySQLXEnginePool, database: Database, chance: random.Random, until: float) -> int:
    """A user of the pool with little luck and less manners, until the moment `until`. Gives what worked."""
    worked = 0
    while time.monotonic() < until:
        with contextlib.suppress(PySQLXError, PoolTimeoutError, TimeoutError, ValueError):
            async with pool.connection(timeout=chance.choice([0.01, 5])) as conn:
                what = chance.random()
                if what < 0.2:
                    async with asyncio.timeout(0.01 * chance.random()):
                        await conn.query(database.sleep_sql(0.05))
                elif what < 0.3:
                    await conn.begin()
                    raise ValueError
                elif what < 0.35:
                    await conn.close()
                else:
                    assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
                    worked += 1
    return worked


async def trouble(pool: PySQLXEnginePool, database: Database, seconds: float, seed: int) -> tuple[Comparison, int]:
    """Many such users at once, and a pool that is drained and resized meanwhile."""
    chance = random.Random(seed)
    until = time.monotonic() + seconds
    with Comparison(pool, database) as comparison:
        users = [asyncio.create_task(misuse(pool, database, random.Random(chance.random()), until)) for _ in range(20)]
        while time.monotonic() < until:
            await asyncio.sleep(seconds / 10)
            pool.resize(1, chance.randint(2, MAX_SIZE))
            await pool.drain()
        pool.resize(1, MAX_SIZE)
        worked = sum(await asyncio.gather(*users))
    return comparison, worked


@pytest.mark.parametrize("seed", range(2))
async def test_the_server_never_has_more_than_the_pool_counts(database: Database, seed: int) -> None:
    async with PySQLXEnginePool(database.uri, min_size=1, max_size=MAX_SIZE, check_after=0.01, max_idle=0.1) as pool:
        comparison, worked = await trouble(pool, database, 2.0, seed)
        assert not comparison.wrong
        assert comparison.compared > 10
        assert worked > 50
        while pool.stats().in_use or pool.stats().closing:
            await asyncio.sleep(0.005)
        assert pool.stats().waiting == 0


@contextmanager
def proxied(server: PostgresServer) -> Iterator[tuple[FaultProxy, Database, str]]:
    with FaultProxy(server.port) as proxy, postgresql_database(server, f"proxied_{proxy.port}") as database:
        yield proxy, database, database.uri.replace(f":{server.port}/", f":{proxy.port}/")


@pytest.mark.parametrize("fault", ["stop", "reset", "slow", "deaf"])
async def test_network_faults_do_not_make_them_differ(postgres: PostgresServer, fault: str) -> None:
    with proxied(postgres) as (proxy, database, uri):
        async with PySQLXEnginePool(uri, min_size=1, max_size=MAX_SIZE, check_after=0.01) as pool:
            until = time.monotonic() + 2.0
            with Comparison(pool, database) as comparison:
                users = [
                    asyncio.create_task(misuse(pool, database, random.Random(number), until)) for number in range(12)
                ]
                while time.monotonic() < until:
                    await asyncio.to_thread(_happen, proxy, fault)
                worked = sum(await asyncio.gather(*users))
                async with pool.connection(timeout=20) as conn:
                    assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
                while pool.stats().closing or pool.stats().in_use:
                    await asyncio.sleep(0.01)
            assert not comparison.wrong
            assert comparison.compared > 10
            assert worked > 0


def _happen(proxy: FaultProxy, fault: str) -> None:
    if fault == "stop":
        proxy.stop()
        time.sleep(0.1)
        proxy.start()
    elif fault == "reset":
        proxy.reset()
    elif fault == "deaf":
        proxy.go_deaf()
        time.sleep(0.1)
        proxy.hear()
    proxy.delay = 0.003 if fault == "slow" else 0.0
    time.sleep(0.2)


async def soak(database: Database, seconds: float) -> None:
    """A pool in trouble for long leaves nothing behind: no connection, thread, task or descriptor."""
    process = psutil.Process()
    async with PySQLXEnginePool(database.uri, min_size=1, max_size=MAX_SIZE) as pool:
        await trouble(pool, database, 0.5, seed=0)  # whatever is made once and kept
    before = (process.num_fds(), process.num_threads(), len(asyncio.all_tasks()))
    async with PySQLXEnginePool(database.uri, min_size=1, max_size=MAX_SIZE, keep_alive=1, max_idle=0.2) as pool:
        comparison, worked = await trouble(pool, database, seconds, seed=1)
        assert not comparison.wrong
        assert worked > 10 * seconds
    with database.sampler() as sample:
        assert sample() == 0
    deadline = time.monotonic() + 15  # the driver's idle threads end by themselves, after 10 s
    while (now := (process.num_fds(), process.num_threads(), len(asyncio.all_tasks()))) > before:
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.05)
    assert now[0] <= before[0], "descriptors"
    assert now[1] <= before[1], "threads"
    assert now[2] <= before[2], "tasks"


async def test_trouble_leaves_nothing_behind(database: Database) -> None:
    await soak(database, 1.0)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_long_trouble_leaves_nothing_behind(database: Database) -> None:
    await soak(database, 120.0)
