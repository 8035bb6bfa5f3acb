"""Many processes share one budget: the server never sees more connections, and none is left lying about."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from tests.servers import Database, PostgresServer

from .runs import started
from .sampling import watching

BUDGET = 8

# Every worker keeps `tasks` tasks busy until it is told that it is enough, then says how many queries it made.
BUSY = """
import asyncio, os, pathlib, sys
from pysqlx_engine import PySQLXEnginePool

uri, sql, busy_workers = sys.argv[1:4]
worker = os.environ["PYSQLX_WORKER_ID"]

async def main():
    queries = 0
    enough = pathlib.Path("enough")
    async with PySQLXEnginePool(uri=uri, min_size=1, max_size=30) as pool:
        print("started", worker, os.getpid(), flush=True)

        async def work():
            nonlocal queries
            while not enough.exists():
                async with pool.connection() as conn:
                    if not enough.exists():  # those that waited long have nothing to do any more
                        await conn.query_first(sql)
                queries += 1

        if worker in busy_workers.split(","):
            await asyncio.gather(*(work() for _ in range(20)))
        while not enough.exists():
            await asyncio.sleep(0.01)
        print("queries", worker, queries, flush=True)

asyncio.run(main())
"""


@pytest.fixture
def busy(tmp_path: Path) -> str:
    (tmp_path / "busy.py").write_text(BUSY)
    return "busy.py"


def enough(directory: Path) -> None:
    (directory / "enough").touch()


def status(directory: Path, name: str) -> dict[str, list[dict[str, int]]]:
    command = [sys.executable, "-m", "pysqlx_engine.workers.ctl", "status", "--json", "--name", name]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(directory)}
    answer = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=20)
    found: dict[str, list[dict[str, int]]] = json.loads(answer.stdout)
    return found


def test_four_processes_of_twenty_tasks_get_the_whole_budget_and_never_more(
    tmp_path: Path, busy: str, database: Database
) -> None:
    arguments = ("-w", "4", "--max-size", str(BUDGET), busy, database.uri, database.sleep_sql(0.02), "0,1,2,3")
    with watching(database) as samples, started(tmp_path, *arguments) as run:
        for _ in range(4):
            run.line_with("started")
        samples.wait_for(BUDGET)
        time.sleep(1.0)  # the load itself: nothing is waited for
        enough(tmp_path)
        queries = [int(run.line_with("queries").split()[-1]) for _ in range(4)]
        assert run.wait() == 0
    assert samples.most == BUDGET, samples
    assert min(queries) > 0
    # Fair: nobody gets much more than the others (descriptors' locks make SQLite's own order uneven).
    if database.provider != "sqlite":
        assert max(queries) <= 2 * min(queries), queries


def test_one_busy_process_gets_what_three_idle_ones_do_not_need(tmp_path: Path, busy: str, database: Database) -> None:
    if database.provider == "sqlite":
        pytest.skip("SQLite shows no owners of its connections")
    arguments = ("-w", "4", "--max-size", str(BUDGET), "--name", "idle", busy, database.uri)
    with watching(database) as samples, started(tmp_path, *arguments, database.sleep_sql(0.05), "2") as run:
        for _ in range(4):
            run.line_with("started")
        samples.wait_for(BUDGET)
        deadline = time.monotonic() + 10
        while True:
            workers = status(tmp_path, "idle")["workers"]
            busy_one = next(worker for worker in workers if worker["worker"] == 2)
            if busy_one["in_use"] >= BUDGET - 1:
                break
            assert time.monotonic() < deadline, workers
        enough(tmp_path)
        assert run.wait() == 0
    assert samples.most == BUDGET, samples


def sessions_of_workers(observer: psycopg.Connection[tuple[object, ...]], name: str) -> dict[int, int]:
    """How many sessions each worker has, by the labels of the sessions."""
    rows = observer.execute(
        "SELECT split_part(application_name, ' ', 4)::int, count(*)::int FROM pg_stat_activity"
        " WHERE application_name LIKE %s GROUP BY 1",
        (f"pysqlx {name} worker %",),
    ).fetchall()
    return {int(str(worker)): int(str(count)) for worker, count in rows}


def test_a_killed_workers_leases_are_in_use_elsewhere_at_once_and_the_worker_comes_back(
    tmp_path: Path, busy: str, postgres: PostgresServer, postgresql_db: Database, record_property: pytest.RecordProperty
) -> None:
    arguments = ("-w", "4", "--max-size", str(BUDGET), "--name", "killed", busy, postgresql_db.uri)
    with (
        watching(postgresql_db) as samples,
        postgres.admin() as observer,
        started(tmp_path, *arguments, postgresql_db.sleep_sql(4), "0,1,2,3") as run,
    ):
        pids = {}
        for _ in range(4):
            _, worker, pid = run.line_with("started").rpartition("] ")[2].split()
            pids[int(worker)] = int(pid)
        samples.wait_for(BUDGET)
        deadline = time.monotonic() + 10
        while sorted(sessions_of_workers(observer, "killed").items()) != [(worker, 2) for worker in range(4)]:
            assert time.monotonic() < deadline, sessions_of_workers(observer, "killed")

        killed = time.monotonic()
        os.kill(pids[3], signal.SIGKILL)
        while True:
            sessions = sessions_of_workers(observer, "killed")
            elsewhere = sum(count for worker, count in sessions.items() if worker != 3)
            if elsewhere == BUDGET:
                break
            assert time.monotonic() < killed + 2, sessions
        took = time.monotonic() - killed
        record_property("leases in use elsewhere after", f"{took * 1000:.0f} ms")
        print(f"leases in use elsewhere after {took * 1000:.0f} ms")
        # The queries of the killed worker would have gone on for seconds.
        assert took < 1.0

        assert run.line_with("started").split()[-2] == "3"
        enough(tmp_path)
        assert run.wait() == 0
    assert samples.most == BUDGET, samples


def test_without_a_coordinator_nobody_sees_an_error_and_growth_resumes_with_the_next_one(
    tmp_path: Path, busy: str, postgres: PostgresServer, postgresql_db: Database
) -> None:
    arguments = ("-w", "3", "--max-size", str(BUDGET), "--name", "orphaned", busy, postgresql_db.uri)
    with (
        watching(postgresql_db) as samples,
        postgres.admin() as observer,
        started(tmp_path, *arguments, postgresql_db.sleep_sql(0.02), "0,1,2") as run,
    ):
        for _ in range(3):
            run.line_with("started")
        samples.wait_for(BUDGET)
        os.kill(run.pid_titled("pysqlx-run: coordinator"), signal.SIGKILL)
        # Somebody ends sessions: they have to be opened anew, and for that a coordinator is needed.
        observer.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'pysqlx orphaned worker 0%'"
        )
        deadline = time.monotonic() + 10
        samples.seen.clear()
        samples.wait_for(BUDGET)
        while len(status(tmp_path, "orphaned")["workers"]) != 3:
            assert time.monotonic() < deadline
        enough(tmp_path)
        output = "\n".join(run.rest())
        assert run.wait() == 0, output
    assert samples.most == BUDGET, samples
    assert output.count("queries") == 3
