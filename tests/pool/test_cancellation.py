"""Cancelled waits, cancelled queries, and every await of the pool with every outcome."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pysqlx_engine import PySQLXEngine, PySQLXEnginePool, PySQLXEnginePoolSync
from pysqlx_engine.engine.session import ServerSession
from pysqlx_engine.errors import PoolTimeoutError, RawCmdError
from pysqlx_engine.pool import hooks, upkeep
from pysqlx_engine.pool.core import ConnInfo
from tests.proxy import FaultProxy
from tests.servers import Database, PostgresServer, open_descriptors, sqlite_database

LONG = 30.0
"""Seconds of a query that nobody means to wait for."""


def identity_sql(database: Database) -> str:
    return "SELECT pg_backend_pid() AS a" if database.provider == "postgresql" else "SELECT connection_id() AS a"


async def test_a_cancelled_query_is_stopped_on_the_server_and_its_connection_used_again(server_db: Database) -> None:
    async with PySQLXEnginePool(server_db.uri, min_size=2, max_size=2) as pool:
        async with pool.connection() as conn:
            identity = await conn.query_first_as_dict(identity_sql(server_db))
            await conn.begin()
            await conn.raw_cmd("CREATE TABLE halfway (a int)")
            await conn.execute("INSERT INTO halfway VALUES (1)")
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await conn.query(server_db.sleep_sql(LONG))
        assert time.monotonic() - started < 1.0, "control comes back at once"
        while pool.stats().idle < 2:
            assert pool.stats().held == 2, "it stays charged meanwhile"
            await asyncio.sleep(0.002)
        stats = pool.stats()
        assert (stats.opened, stats.closed) == (2, 0)
        async with pool.connection() as one, pool.connection() as two:
            identities = [await conn.query_first_as_dict(identity_sql(server_db)) for conn in (one, two)]
            assert identity in identities
            rows = [await conn.query_as_dict(_OPEN_TRANSACTION[server_db.provider]) for conn in (one, two)]
            assert rows == [[], []]


_OPEN_TRANSACTION = {
    "postgresql": "SELECT 1 AS a WHERE to_regclass('halfway') IS NOT NULL",
    "mysql": "SELECT a FROM halfway WHERE @@in_transaction = 1",
}


async def test_many_cancelled_queries_end_with_the_same_connections(server_db: Database) -> None:
    """A late "stop" must not hit the query of the next user."""
    async with PySQLXEnginePool(server_db.uri, min_size=4, max_size=4) as pool:
        # MariaDB can be told by another connection only, so that one has to be there.
        cancelled_at_a_time = asyncio.Semaphore(3)

        async def use(turn: int) -> None:
            if turn % 2:
                async with cancelled_at_a_time:
                    async with pool.connection() as conn:
                        task = asyncio.create_task(conn.query(server_db.sleep_sql(LONG)))
                        await asyncio.sleep(0.001 * (turn % 7))
                        task.cancel()
                        with pytest.raises(asyncio.CancelledError):
                            await task
                    while conn._in_flight and conn.connected:
                        await asyncio.sleep(0.001)
            else:
                async with pool.connection() as conn:
                    for _ in range(3):
                        assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}

        with server_db.sampler() as sample:
            users = asyncio.gather(*(use(turn) for turn in range(60)))
            while not users.done():
                assert sample() <= 4
                await asyncio.sleep(0.002)
            await users


async def test_a_stop_that_is_on_its_way_when_the_query_ends_hits_nobody(
    mysql_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, arrived = threading.Event(), threading.Event()
    raw_cmd = PySQLXEngine.raw_cmd

    async def slow_network(engine: PySQLXEngine, sql: str) -> None:
        async def arrive() -> None:
            sent.set()
            await asyncio.sleep(0.3)
            async with PySQLXEngine(mysql_db.uri) as messenger:
                await raw_cmd(messenger, sql)
            arrived.set()

        await (asyncio.shield(asyncio.ensure_future(arrive())) if sql.startswith("KILL") else raw_cmd(engine, sql))

    monkeypatch.setattr(PySQLXEngine, "raw_cmd", slow_network)
    async with PySQLXEnginePool(mysql_db.uri, min_size=2, max_size=2) as pool:
        with pytest.raises(TimeoutError):
            async with pool.connection() as conn, asyncio.timeout(0.02):
                await conn.query(mysql_db.sleep_sql(0.15))

        async def use() -> object:
            async with pool.connection() as conn:
                return await conn.query_first_as_dict(mysql_db.sleep_sql(0.5))  # 1 when it is interrupted

        await asyncio.to_thread(sent.wait)
        assert await asyncio.gather(use(), use()) == [{"a": 0}] * 2
        assert arrived.is_set()


# psycopg/psycopg #1208, #509, #1123; MagicStack/asyncpg #467: a cancellation leaks the connection.
async def test_cancellation_always_propagates_and_leaks_nothing(database: Database) -> None:
    async with PySQLXEnginePool(database.uri, min_size=2, max_size=2) as pool:
        for delay in [0, 0.001, 0.002, 0.005] * 4:

            async def use() -> None:
                async with pool.connection() as conn:
                    await conn.begin()
                    await conn.query(database.sleep_sql(0.02))

            tasks = [asyncio.create_task(use()) for _ in range(5)]
            await asyncio.sleep(delay)
            cancelled = [task.cancel() for task in tasks]  # False: it had ended before
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(result, asyncio.CancelledError) for result in results] == cancelled, results
        while pool.stats().idle < 2:
            await asyncio.sleep(0.002)
        assert (pool.stats().held, pool.stats().waiting) == (2, 0)


# psycopg/psycopg #1401: getconn absorbs the cancellation, wait_for has no effect.
async def test_wait_for_ends_a_wait_in_the_moment_of_the_hand_over(sqlite_uri: str) -> None:
    async with PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1) as pool:
        for _ in range(50):
            first = pool.connection()
            await first.__aenter__()
            second = asyncio.create_task(pool.connection().__aenter__())
            await asyncio.sleep(0)
            await first.__aexit__(None, None, None)  # handed over to the second, which has not run yet
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            assert pool.stats().idle == 1


def test_an_interrupted_thread_has_control_at_once_and_the_query_is_stopped(server_db: Database) -> None:
    with PySQLXEnginePoolSync(server_db.uri, min_size=2, max_size=2) as pool:
        started = time.monotonic()
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            with pool.connection() as conn:
                conn.query(server_db.sleep_sql(LONG))
        assert time.monotonic() - started < 2.0
        waited = threading.Event()
        while pool.stats().idle < 2:
            waited.wait(0.002)
        assert pool.stats().opened == 2


async def test_the_only_connection_there_is_is_closed_when_its_query_is_cancelled(postgresql_db: Database) -> None:
    """Nobody else can tell the server; it notices that its client is gone."""
    async with PySQLXEnginePool(postgresql_db.uri, min_size=1, max_size=1) as pool:
        with pytest.raises(TimeoutError):
            async with pool.connection() as conn, asyncio.timeout(0.05):
                await conn.query(postgresql_db.sleep_sql(LONG))
        async with pool.connection(timeout=5) as conn:
            assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
        assert pool.stats().closed == 1


async def test_a_server_behind_a_proxy_is_not_told_to_stop_what_may_be_somebody_elses(
    postgres: PostgresServer, postgresql_db: Database
) -> None:
    with FaultProxy(postgres.port) as proxy:
        uri = postgresql_db.uri.replace(f":{postgres.port}/", f":{proxy.port}/")
        async with PySQLXEnginePool(uri, min_size=2, max_size=2) as pool:
            with pytest.raises(TimeoutError):
                async with pool.connection() as conn, asyncio.timeout(0.05):
                    await conn.query(postgresql_db.sleep_sql(LONG))
            while pool.stats().idle < 2:
                await asyncio.sleep(0.002)
            assert pool.stats().closed == 1


# -- every await, with every outcome ----------------------------------------------------------------------------------

OUTCOMES = ("ok", "error", "slow", "never")
GATES = ("open", "check", "rollback", "reset", "close")


class GateError(Exception):
    """What a gate raises."""


class Gate:
    """One await of the pool. The first to come through meets the outcome, everybody else passes."""

    def __init__(self, outcome: str) -> None:
        self.outcome = outcome
        self.reached = False
        self.waiting = False
        self.open = False

    async def through(self, step: Callable[[], Awaitable[Any]]) -> Any:
        if self.reached or self.outcome == "ok":
            return await step()
        self.reached = True
        if self.outcome == "error":
            raise GateError
        self.waiting = True
        try:
            while not self.open:
                await asyncio.sleep(0.001)
        finally:
            self.waiting = False
        return await step()


def _install(gates: dict[str, Gate], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put the gates before the real steps; gives the pool's hooks that belong to them."""
    open_session, rollback, closed_by_server = (
        upkeep.open_session,
        upkeep.Upkeep._roll_back,
        ServerSession.closed_by_server,
    )

    async def gated_open(*arguments: Any) -> ServerSession:
        session: ServerSession = await gates["open"].through(lambda: open_session(*arguments))
        return session

    async def gated_rollback(itself: upkeep.Upkeep, conn: ConnInfo) -> None:
        try:
            await gates["rollback"].through(lambda: rollback(itself, conn))
        except GateError:
            raise RawCmdError("0", "gate") from None

    async def gated_close(session: ServerSession, *, busy: bool) -> bool:
        try:
            return bool(await gates["close"].through(lambda: closed_by_server(session, busy=busy)))
        except GateError:
            return await closed_by_server(session, busy=busy)  # it never raises

    async def nothing() -> None: ...

    async def check(conn: PySQLXEngine) -> None:
        await gates["check"].through(nothing)

    async def reset(conn: PySQLXEngine) -> None:
        await gates["reset"].through(nothing)

    monkeypatch.setattr(upkeep, "open_session", gated_open)
    monkeypatch.setattr(upkeep.Upkeep, "_roll_back", gated_rollback)
    monkeypatch.setattr(ServerSession, "closed_by_server", gated_close)
    for module, name in ((upkeep, "OPEN_TIMEOUT"), (upkeep, "CLEAN_TIMEOUT"), (hooks, "HOOK_TIMEOUT")):
        monkeypatch.setattr(module, name, 0.03)
    monkeypatch.setattr(upkeep, "UNCONFIRMED_CLOSE", 0.01)
    return {"check": check, "reset": reset}


async def pass_through(database: Database, outcomes: dict[str, str], cancel: bool, monkeypatch: Any) -> None:
    """Users come one after the other, through every gate. Afterwards the pool is as good as new."""
    gates = {name: Gate(outcomes.get(name, "ok")) for name in GATES}
    gate_hooks = _install(gates, monkeypatch)
    path = database.uri.removeprefix("sqlite:")
    from pathlib import Path

    pool = PySQLXEnginePool(database.uri, min_size=0, max_size=1, check_after=0, conn_timeout=30, **gate_hooks)
    await pool.start()

    async def use() -> None:
        async with pool.connection() as conn:
            await conn.begin()

    async def step() -> bool:
        """Look at everything, let go on what goes on, and tell whether somebody waited."""
        assert open_descriptors(Path(path)) <= 1
        assert pool.stats().held <= 1
        waiting = [gate for gate in gates.values() if gate.waiting]
        for gate in waiting:
            gate.open = gate.outcome == "slow" or gate is gates["close"]  # a close ends when the server says so
        await asyncio.sleep(0.001)
        return bool(waiting)

    users = 0
    while users < 3 or not all(gate.reached or gate.outcome == "ok" for gate in gates.values()):
        users += 1
        assert users < 20, [name for name, gate in gates.items() if not gate.reached]
        user = asyncio.create_task(use())
        while not user.done():
            if await step() and cancel:
                user.cancel()
        if not user.cancelled():
            await user
        else:
            assert cancel, "nobody cancelled it"
        while pool._runtime.core.held and not pool._runtime.core.idle:  # so that the next one meets an idle one
            await step()
        for conn in list(pool._runtime.core.idle):  # so that the gate of closing is reached as well
            conn.retire = True
    for gate in gates.values():
        gate.open = True
    async with pool.connection(timeout=10) as conn:
        assert await conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
    await pool.stop()
    assert pool.stats().held == 0
    assert open_descriptors(Path(path)) == 0


def _some() -> list[dict[str, str]]:
    """Each outcome at each gate, and each pair of them."""
    bad = [(gate, outcome) for gate in GATES for outcome in OUTCOMES[1:]]
    pairs = [pair for pair in itertools.combinations(bad, 2) if pair[0][0] != pair[1][0]]
    return [{}, *(dict([one]) for one in bad), *(dict(pair) for pair in pairs)]


def _name(outcomes: dict[str, str]) -> str:
    return " ".join(f"{gate}-{outcome}" for gate, outcome in outcomes.items()) or "all-ok"


# As deadpool does it: every outcome at every gate, and then the size.
@pytest.mark.parametrize("cancel", [False, True], ids=["", "cancelled"])
@pytest.mark.parametrize("outcomes", _some(), ids=_name)
async def test_whatever_an_await_does_nothing_is_lost(
    tmp_path: Any, outcomes: dict[str, str], cancel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pass_through(sqlite_database(tmp_path / "test.db"), outcomes, cancel, monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("cancel", [False, True], ids=["", "cancelled"])
async def test_whatever_all_awaits_do_nothing_is_lost(tmp_path: Any, cancel: bool) -> None:
    """All 4^5 combinations."""
    for number, outcomes in enumerate(itertools.product(OUTCOMES, repeat=len(GATES))):
        with pytest.MonkeyPatch.context() as patch:
            database = sqlite_database(tmp_path / f"test{number}.db")
            await pass_through(database, dict(zip(GATES, outcomes, strict=True)), cancel, patch)


async def test_a_pool_whose_server_never_confirms_a_close_stays_charged(
    sqlite_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = {name: Gate("never" if name == "close" else "ok") for name in GATES}
    _install(gates, monkeypatch)
    async with PySQLXEnginePool(sqlite_db.uri, min_size=1, max_size=1) as pool:
        async with pool.connection():
            for conn in pool._runtime.core.in_use:
                conn.retire = True
        with pytest.raises(PoolTimeoutError, match="1 closing"):
            await pool.connection(timeout=0.1).__aenter__()
        assert pool.stats().held == 1
        gates["close"].open = True
        async with pool.connection(timeout=5):
            pass
