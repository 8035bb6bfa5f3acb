"""What `pysqlx-ctl status` tells of a run, and what its exit status says."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pysqlx_engine.workers.counting import MOST_DATABASES, Counted
from pysqlx_engine.workers.messages import Totals
from pysqlx_engine.workers.status import PoolLook, RunStatus

from .runs import Run, coordinating, ctl, started

COUNTS = """
import os, sys, threading
from pysqlx_engine import PySQLXEnginePoolSync
with PySQLXEnginePoolSync(uri="sqlite:./x.db", min_size=1, max_size=4) as pool:
    if os.environ["PYSQLX_WORKER_RESTARTS"] == "0":
        for _ in range(5):
            with pool.connection() as conn:
                conn.query_first("SELECT 1 AS a")
    print("up", os.environ["PYSQLX_WORKER_ID"], flush=True)
    threading.Event().wait()
"""
SERVES = """
from pysqlx_engine.workers import JobQueue
queue = JobQueue("sqlite:./x.db")
@queue.task
async def nothing() -> None: ...
queue.run()
"""
HAS_NO_POOL = """
import threading
print("up", flush=True)
threading.Event().wait()
"""


CLOSES_ITS_POOLS = """
import pathlib, threading, time
from pysqlx_engine import PySQLXEnginePoolSync
def uses(pool, times):
    with pool:
        for _ in range(times):
            with pool.connection() as conn:
                conn.query_first("SELECT 1 AS a")
        print("used", times, flush=True)
        while not pathlib.Path(f"close{times}").exists():
            time.sleep(0.01)
pool = PySQLXEnginePoolSync(uri="sqlite:./x.db", max_size=4)
uses(pool, 5)
uses(pool, 2)
uses(PySQLXEnginePoolSync(uri="sqlite:./x.db", max_size=4), 1)
"""


@contextmanager
def running(directory: Path, script: str, workers: int = 2) -> Iterator[Run]:
    (directory / "script.py").write_text(script)
    with started(directory, "-w", str(workers), "script.py") as run:
        yield run
        run.send(signal.SIGTERM)
        run.rest()


def asked(directory: Path) -> RunStatus:
    """The status, which has to be as its types say."""
    code, out, error = ctl(directory, "status", "--json")
    status = msgspec.json.decode(out, type=RunStatus)
    assert (code, error) == (0, "") if status.health.ready else (1, error)
    return status


@pytest.mark.parametrize("workers", [1, 2])
def test_it_counts_what_pools_have_done(tmp_path: Path, workers: int) -> None:
    with running(tmp_path, COUNTS, workers) as run:
        for _ in range(workers):
            run.line_with("up")
        status = asked(tmp_path)
        [budget] = status.budgets
        assert (budget.size, budget.idle, budget.in_use, budget.waiting) == (4, workers, 0, 0)
        totals = budget.totals
        assert (totals.requests, totals.wait.count, totals.hold.count) == (5 * workers,) * 3
        assert (totals.opened, totals.open.count, totals.timeouts) == (workers, workers, 0)
        assert 0 < totals.hold.sum < 60
        assert [(one.worker, one.state, len(one.pools)) for one in status.workers] == [
            (number, "up", 1) for number in range(workers)
        ]
        assert status.health == msgspec.structs.replace(
            status.health, ready=True, workers=workers, up=workers, coordinator=True
        )


def killed(run: Run, directory: Path) -> tuple[RunStatus, RunStatus]:
    """The status before a worker is killed, and when another one is in its place."""
    before = asked(directory)
    pid = before.workers[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    run.line_with("up 0")
    return before, asked(directory)


def test_what_a_killed_worker_had_counted_is_kept(tmp_path: Path) -> None:
    with running(tmp_path, COUNTS) as run:
        for _ in range(2):
            run.line_with("up")
        before, after = killed(run, tmp_path)
        assert (before.budgets[0].totals.requests, after.budgets[0].totals.requests) == (10, 10)
        assert (before.deaths, after.deaths) == (0, 1)
        assert (after.budgets[0].totals.opened, after.workers[0].restarts) == (3, 1)


def test_without_a_coordinator_it_is_kept_as_well(tmp_path: Path) -> None:
    with running(tmp_path, COUNTS, workers=1) as run:
        run.line_with("up")
        before, after = killed(run, tmp_path)
        assert (before.budgets[0].totals.requests, after.budgets[0].totals.requests) == (5, 5)
        assert (after.budgets[0].totals.opened, after.workers[0].restarts) == (2, 1)


def test_without_a_coordinator_what_a_closed_pool_had_counted_is_kept(tmp_path: Path) -> None:
    with running(tmp_path, CLOSES_ITS_POOLS, workers=1) as run:
        for used, counted in ((5, 5), (2, 7), (1, 8)):
            run.line_with(f"used {used}")
            assert asked(tmp_path).budgets[0].totals.requests == counted
            (tmp_path / f"close{used}").touch()


def test_a_worker_that_does_not_answer_has_counted_what_it_told_last() -> None:
    counted = Counted()
    counted.told(10, [pool(1, "a", requests=3), pool(2, "b", requests=4)])
    counted.told(11, [pool(1, "a", requests=5)])
    assert (counted.totals("a").requests, counted.totals("b").requests) == (8, 4)
    counted.told(11, [pool(1, "a", requests=6), pool(2, "a", requests=1)])
    counted.ended(10)
    counted.told(10, [pool(1, "a", requests=1)])  # another process that has its pid
    assert (counted.totals("a").requests, counted.totals("b").requests) == (11, 4)


def test_of_many_databases_that_nobody_uses_the_oldest_is_forgotten() -> None:
    counted = Counted()
    for number in range(MOST_DATABASES + 1):
        counted.told(10, [pool(number, str(number), requests=1)])
    counted.told(10, [pool(MOST_DATABASES + 1, "0", requests=1)])
    counted.told(10, [pool(MOST_DATABASES + 2, "new", requests=1)])
    counted.told(10, [])
    assert [counted.totals(database).requests for database in ("0", "1", "2", "new")] == [2, 0, 0, 1]


def pool(number: int, database: str, requests: int) -> PoolLook:
    totals = Totals(number, requests=requests)
    return PoolLook(
        name="p", database=database, leases=0, in_use=0, idle=0, waiting=0, max_size=4, totals=totals
    )  # fmt: skip


def test_while_a_worker_is_missing_it_ends_with_1_and_shows_why(tmp_path: Path) -> None:
    with running(tmp_path, "import sys\nsys.exit(1)\n") as run:
        lines = iter(lambda: run.line_with("starting it again in"), "")
        assert next(line for line in lines if "in 1." in line or "in 0.9" in line or "in 0.8" in line)
        status = asked(tmp_path)
        assert not status.health.ready
        assert "restarting" in {worker.state for worker in status.workers}


def test_workers_without_a_pool_are_there_too(tmp_path: Path) -> None:
    with running(tmp_path, HAS_NO_POOL) as run:
        for _ in range(2):
            run.line_with("up")
        status = asked(tmp_path)
        pids = {worker.pid for worker in status.workers}
        assert len(pids) == 2
        assert pids < set(run.pids())
        assert status.budgets == []


def test_whoever_else_the_supervisor_has_started_has_a_name(tmp_path: Path) -> None:
    with running(tmp_path, SERVES) as run:
        names: set[str | None] = set()
        while names != {"worker 0", "worker 1", "dispatcher"}:
            assert run.process.poll() is None
            _, out, _ = ctl(tmp_path, "status", "--json")  # nothing as long as it starts
            names = {worker.name for worker in msgspec.json.decode(out, type=RunStatus).workers} if out else set()


def test_a_coordinator_alone_knows_of_no_workers(tmp_path: Path) -> None:
    with coordinating(tmp_path):
        status = asked(tmp_path)
        assert status.health == msgspec.structs.replace(status.health, ready=True, workers=None, up=None)
        assert status.workers == []


def test_a_supervisor_that_does_not_answer_is_said_to_be_missing(tmp_path: Path) -> None:
    with coordinating(tmp_path):
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(tmp_path / "pysqlx" / "default" / "supervisor.sock"))
        code, out, error = ctl(tmp_path, "status", "--json")
        status = msgspec.json.decode(out, type=RunStatus)
        assert (status.health.ready, status.health.supervisor, status.health.coordinator) == (False, False, True)
        assert (code, error) == (1, "pysqlx-ctl: the run default is not ready: the supervisor does not answer\n")


def test_its_schema_can_be_had_without_a_run(tmp_path: Path) -> None:
    code, out, _ = ctl(tmp_path, "status", "--schema")
    described: dict[str, Any] = json.loads(out)
    assert code == 0
    assert described["$defs"]["BudgetStatus"]["properties"]["leased"]["minimum"] == 0
    assert set(described["$defs"]["RunStatus"]["required"]) == {"run", "health", "budgets", "workers"}
