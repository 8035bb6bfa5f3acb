"""What is special about connections to a file."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pysqlx_engine import PySQLXEnginePool, PySQLXEnginePoolSync
from pysqlx_engine.engine.files import sqlite_file
from pysqlx_engine.engine.session import ServerSession
from pysqlx_engine.errors import SettingsError
from tests.servers import Database


async def test_a_lease_comes_back_only_when_sqlite_has_closed_its_descriptor(sqlite_db: Database) -> None:
    """SQLite keeps it open for as long as another connection of the process holds a lock on the file."""
    with sqlite_db.sampler() as sample:
        async with PySQLXEnginePool(sqlite_db.uri, min_size=0, max_size=2) as pool, pool.connection() as reader:
            await reader.execute("CREATE TABLE t (a INTEGER)")
            await reader.begin()
            await reader.query("SELECT a FROM t")  # a read lock, until the commit
            async with pool.connection():
                pass
            pool._runtime.set_ceiling(1)  # somebody else waits
            while pool.stats().idle:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            assert (sample(), pool.stats().held, pool.stats().closing) == (2, 2, 1)
            await reader.commit()
            while pool.stats().closing:
                await asyncio.sleep(0.001)
            assert (sample(), pool.stats().held) == (1, 1)


@pytest.mark.parametrize(("setting", "mode"), [(None, "delete"), ("false", "delete"), ("true", "wal")])
async def test_wal_is_had_by_a_setting(
    sqlite_db: Database, monkeypatch: pytest.MonkeyPatch, setting: str | None, mode: str
) -> None:
    if setting is not None:
        monkeypatch.setenv("PYSQLX_SQLITE_WAL", setting)
    with sqlite_db.sampler() as sample:
        async with PySQLXEnginePool(sqlite_db.uri, min_size=3, max_size=3) as pool, pool.connection() as conn:
            assert await conn.query_as_dict("PRAGMA journal_mode") == [{"journal_mode": mode}]
            assert sample() == 3
        assert sample() == 0


async def test_a_file_is_looked_at_where_it_is_now(tmp_path: Path) -> None:
    """A new file often has the number of the one that was deleted before."""
    before = tmp_path / "before"
    before.touch()
    file = sqlite_file(str(before))
    assert file is not None
    now = tmp_path / "now"
    before.rename(now)
    (tmp_path / "link").symlink_to(now)
    assert sqlite_file(str(tmp_path / "link")) is file
    with contextlib.closing(sqlite3.connect(now)) as stays, contextlib.closing(sqlite3.connect(now)) as goes:
        sessions = {connection: ServerSession(None, None, in_process=True, file=file) for connection in (stays, goes)}
        for connection in sessions:
            connection.execute("PRAGMA journal_mode = wal").fetchall()
        stays.execute("SELECT * FROM sqlite_master").fetchall()
        goes.close()
        assert await sessions[goes].closed_by_server(busy=False), (
            "in WAL mode its descriptor stays, and is not waited for"
        )


async def test_connections_that_were_lost_with_their_loop_keep_no_place(sqlite_db: Database) -> None:
    """Nobody closes them, so nobody says that they are closed."""
    pool = PySQLXEnginePool(sqlite_db.uri, min_size=1, max_size=1)
    lost = asyncio.new_event_loop()
    await asyncio.to_thread(lost.run_until_complete, pool.start())
    file = sqlite_file(sqlite_db.uri.removeprefix("sqlite:"))
    assert file is not None
    assert len(file._sessions) == 1
    lost.close()
    del pool
    while file._sessions:
        gc.collect()
        await asyncio.sleep(0.001)


def test_a_wal_setting_that_is_no_switch_is_refused(sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSQLX_SQLITE_WAL", "perhaps")
    with pytest.raises(SettingsError, match="PYSQLX_SQLITE_WAL=perhaps"):
        PySQLXEnginePool(sqlite_uri, min_size=1, max_size=1)


async def test_in_wal_mode_readers_do_not_wait_for_the_writer(
    sqlite_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSQLX_SQLITE_WAL", "true")
    async with PySQLXEnginePool(sqlite_db.uri, min_size=2, max_size=2) as pool:
        async with pool.connection() as writer, pool.connection() as reader:
            await writer.execute("CREATE TABLE t (a INTEGER)")
            await writer.raw_cmd("BEGIN IMMEDIATE")
            await writer.execute("INSERT INTO t VALUES (1)")
            assert await reader.query_as_dict("SELECT a FROM t") == []
            await writer.commit()
            assert await reader.query_as_dict("SELECT a FROM t") == [{"a": 1}]


def test_busy_writers_wait_without_freezing_other_threads(sqlite_db: Database) -> None:
    """SQLite makes a second writer wait in the driver; the interpreter goes on meanwhile."""
    writers, hold = 4, 0.15
    gaps: list[float] = []
    ended = threading.Event()

    def tick() -> None:
        last = time.monotonic()
        while not ended.is_set():
            time.sleep(0.002)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    with PySQLXEnginePoolSync(sqlite_db.uri, min_size=writers, max_size=writers) as pool:
        with pool.connection() as conn:
            conn.execute("CREATE TABLE t (a INTEGER)")

        def write() -> None:
            with pool.connection() as conn:
                conn.raw_cmd("BEGIN IMMEDIATE")
                conn.execute("INSERT INTO t VALUES (1)")
                time.sleep(hold)
                conn.commit()

        ticker = threading.Thread(target=tick)
        ticker.start()
        started = time.monotonic()
        threads = [threading.Thread(target=write) for _ in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.monotonic() - started
        ended.set()
        ticker.join()
        with pool.connection() as conn:
            assert conn.query_as_dict("SELECT count(*) AS n FROM t") == [{"n": writers}]
    assert elapsed >= writers * hold, "one writer at a time"
    assert max(gaps) < hold, "a frozen thread would have stood still for as long as a writer holds the lock"


SLOW_OPEN = """
import asyncio, sys
from pysqlx_engine import PySQLXEngine, PySQLXEnginePool
from pysqlx_engine.pool import upkeep

upkeep.OPEN_TIMEOUT, upkeep.UNCONFIRMED_CLOSE = 0.02, 0.01
uri, busy_with = sys.argv[1:]

async def main():
    async with PySQLXEngine("sqlite::memory:") as other, PySQLXEnginePool(uri, min_size=0, max_size=1) as pool:
        keeps_the_only_thread = asyncio.create_task(other.query(busy_with))
        user = asyncio.create_task(pool.connection(timeout=60).__aenter__())
        while not pool.stats().open_errors:
            await asyncio.sleep(0.001)
        upkeep.OPEN_TIMEOUT = 60
        assert not keeps_the_only_thread.done()
        await keeps_the_only_thread
        print("attempts meanwhile:", pool.stats().open_errors, "and", pool.stats().opening)
        await user

asyncio.run(main())
"""


def test_an_open_that_takes_too_long_is_over_before_the_next(sqlite_db: Database, tmp_path: Path) -> None:
    """The driver goes on with what the pool has given up, and opens the file all the same."""
    done = subprocess.run(
        [sys.executable, "-c", SLOW_OPEN, sqlite_db.uri, sqlite_db.sleep_sql(0.2)],
        env={**os.environ, "TOKIO_WORKER_THREADS": "1"}, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "attempts meanwhile: 1 and 0\n"), done.stderr
