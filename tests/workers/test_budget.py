"""Many processes share one budget: the server never sees more connections, and none is left lying about."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest

from pysqlx_engine import PySQLXEngineSync
from tests.servers import Database, PostgresServer

from .runs import started, wait_gone
from .sampling import watching

BUDGET = 8

# The busy workers keep twenty tasks busy until they are told that it is enough, then say how many queries they made
# since they were told to count. With the argument "gated" each begins with one task, and the others wait to be told
# that more is wanted.
BUSY = """
import asyncio, os, pathlib, sys
from pysqlx_engine import PySQLXEnginePool

uri, sql, busy_workers = sys.argv[1:4]
gated = sys.argv[4:] == ["gated"]
worker = os.environ["PYSQLX_WORKER_ID"]

async def main():
    queries = 0
    enough, more, counted = pathlib.Path("enough"), pathlib.Path("more"), pathlib.Path("count")
    async with PySQLXEnginePool(uri=uri, min_size=1, max_size=30) as pool:
        print("started", worker, os.getpid(), flush=True)

        async def work(number):
            nonlocal queries
            while gated and number > 0 and not more.exists():
                await asyncio.sleep(0.01)
            while not enough.exists():
                async with pool.connection() as conn:
                    if not enough.exists():  # those that waited long have nothing to do any more
                        await conn.query_first(sql)
                queries += counted.exists()

        if worker in busy_workers.split(","):
            await asyncio.gather(*(work(number) for number in range(20)))
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
        (tmp_path / "count").touch()  # not before: whoever started first had all to itself
        time.sleep(1.0)  # the load itself: nothing is waited for
        enough(tmp_path)
        queries = [int(run.line_with("queries").split()[-1]) for _ in range(4)]
        assert run.wait() == 0
    assert samples.most == BUDGET, samples
    assert min(queries) > 0
    # Fair: nobody gets much more than the others (descriptors' locks make SQLite's own order uneven).
    if database.provider != "sqlite":
        assert max(queries) <= 2 * min(queries), queries


@pytest.mark.thorough("mysql")
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


def until(condition: Callable[[], bool], timeout: float = 15.0) -> float:
    """Wait for what a server or a run shows. Returns the seconds that it took."""
    started_at = time.monotonic()
    while not condition():
        assert time.monotonic() < started_at + timeout, "it never happened"
    return time.monotonic() - started_at


def test_a_killed_workers_leases_are_in_use_elsewhere_at_once_and_the_worker_comes_back(
    tmp_path: Path, busy: str, postgres: PostgresServer, postgresql_db: Database
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
        # In use, not only open: every worker is in the midst of its queries.
        until(lambda: [worker["in_use"] for worker in status(tmp_path, "killed")["workers"]] == [2] * 4)

        def elsewhere() -> int:
            return sum(count for worker, count in sessions_of_workers(observer, "killed").items() if worker != 3)

        os.kill(pids[3], signal.SIGKILL)
        took = until(lambda: elsewhere() == BUDGET)
        print(f"PostgreSQL: leases in use elsewhere {took * 1000:.0f} ms after the kill")
        assert took < 2.0, "the killed worker's queries would have gone on for seconds"

        assert run.line_with("started").split()[-2] == "3"
        enough(tmp_path)
        assert run.wait() == 0
    assert samples.most == BUDGET, samples


def test_a_killed_workers_leases_on_a_server_that_does_not_notice_wait_until_it_lets_go(
    tmp_path: Path, busy: str, mysql_db: Database
) -> None:
    arguments = ("-w", "2", "--max-size", str(BUDGET), "--restart", "never", "--name", "unnoticed", busy, mysql_db.uri)
    processlist = "SELECT id, host FROM information_schema.processlist WHERE db = :db"
    database = mysql_db.uri.partition("?")[0].rpartition("/")[2]
    with (
        watching(mysql_db) as samples,
        PySQLXEngineSync(mysql_db.uri.replace(database, "mysql")) as observer,
        started(tmp_path, *arguments, mysql_db.sleep_sql(2), "0,1") as run,
    ):

        def sessions() -> dict[int, str]:
            return {row["id"]: row["host"] for row in observer.query_as_dict(processlist, {"db": database})}

        pids = {}
        for _ in range(2):
            _, worker, pid = run.line_with("started").rpartition("] ")[2].split()
            pids[int(worker)] = int(pid)
        samples.wait_for(BUDGET)
        until(lambda: [worker["leases"] for worker in status(tmp_path, "unnoticed")["workers"]] == [4, 4])
        ports = {str(c.laddr.port) for c in psutil.Process(pids[1]).net_connections("tcp4") if c.raddr}
        orphans = {id_ for id_, host in sessions().items() if host.rpartition(":")[2] in ports}
        assert len(orphans) == 4

        os.kill(pids[1], signal.SIGKILL)
        until(lambda: not orphans & sessions().keys())
        took = until(lambda: len(sessions()) == BUDGET)
        print(f"MariaDB: leases in use elsewhere {took * 1000:.0f} ms after the server let go of the last session")
        # A connection of the other worker has to look whether it has rolled back, and all are in the midst of 2 s.
        # After LOOK_PATIENCE, 5 s, it would be nobody's look.
        assert took < 3.5
        enough(tmp_path)
        assert run.wait() == 1, "a worker died, and was not to be started again"
    assert samples.most == BUDGET, samples


@pytest.mark.thorough("sqlite", "mysql")
def test_without_a_coordinator_nobody_sees_an_error_and_growth_resumes_with_the_next_one(
    tmp_path: Path, busy: str, database: Database
) -> None:
    arguments = ("-w", "3", "--max-size", str(BUDGET), "--name", "orphaned", busy, database.uri)
    with (
        watching(database) as samples,
        started(tmp_path, *arguments, database.sleep_sql(0.02), "0,1,2", "gated") as run,
    ):
        for _ in range(3):
            run.line_with("started")
        samples.wait_for(3)
        coordinator = run.pid_titled("pysqlx-run: coordinator")
        os.kill(coordinator, signal.SIGKILL)
        wait_gone([coordinator])
        (tmp_path / "more").touch()  # nobody can grow but with the next coordinator
        samples.wait_for(BUDGET)
        until(lambda: len(status(tmp_path, "orphaned")["workers"]) == 3)
        assert [worker["restarts"] for worker in status(tmp_path, "orphaned")["workers"]] == [0, 0, 0]
        enough(tmp_path)
        output = run.rest()
        assert run.wait() == 0, output
    assert samples.most == BUDGET, samples
    # Besides the numbers of queries: what the supervisor and each worker say about the coordinator.
    said = sorted(line.partition(";")[0] for line in output if "queries" not in line)
    gone = "WARNING pysqlx_engine: Pool: the coordinator is gone"
    assert said == [f"[worker {number}] {gone}" for number in range(3)] + [
        "pysqlx-run: coordinator was ended by signal 9 (SIGKILL)"
    ]
    assert len(output) == len(said) + 3, output
