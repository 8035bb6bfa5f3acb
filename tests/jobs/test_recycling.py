"""A worker that has run its jobs, or uses too much memory, is replaced, and nothing is lost by it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pysqlx_engine.engine.driving import drive
from pysqlx_engine.workers.jobs.store import store_of
from tests.servers import Database
from tests.workers.runs import finished

from .test_runs import running


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_is_replaced_after_its_jobs(tmp_path: Path, postgresql_db: Database, workers: int) -> None:
    arguments = ("-w", str(workers), "--max-jobs", "40")
    with running(tmp_path, postgresql_db, *arguments) as (run, jobs):
        ids: list[int] = []
        for _ in range(6):
            ids += jobs.add("note", 30 * workers, text="one")
            jobs.ended(*ids)
            if len(ids) == 60 * workers:
                run.line_with("another one takes its place")
        rows = jobs.ended(*ids)
        assert {(row["state"], row["attempt"]) for row in rows} == {("completed", 1)}
        assert jobs.errors() == []
        run.send(signal.SIGTERM)
        run.rest()
        assert run.wait() == 0


def test_the_new_one_runs_jobs_while_the_old_one_finishes_its_own(tmp_path: Path, postgresql_db: Database) -> None:
    with running(tmp_path, postgresql_db, "-w", "2", "--max-jobs", "20") as (run, jobs):
        first: list[int] = []
        here: set[str] = set()
        while len(here) < 2:  # the second worker may be there a moment later
            first += jobs.add("waits", name="both are here")
            here.add(run.line_with("begun both are here 1").split()[-1])
        (tmp_path / "both are here").touch()
        jobs.ended(*first)
        long = jobs.add("waits", 2, name="go")
        old = {run.line_with("begun go 1").split()[-1] for _ in long}
        assert len(old) == 2
        jobs.ended(*jobs.add("sleeps", 60, seconds=0.02))  # so long that both get their part
        for _ in range(2):
            run.line_with("another one takes its place")
        new = jobs.add("waits", name="go now")
        while (pid := run.line_with("begun go now 1").split()[-1]) in old:  # given to an old one, just before
            new += jobs.add("waits", name="go now")
        assert jobs.left()[0]["state"] == "running"
        (tmp_path / "go").touch()
        (tmp_path / "go now").touch()
        rows = jobs.ended(*long, *new)
        assert {(row["state"], row["attempt"]) for row in rows} == {("completed", 1)}
        assert pid not in old
        run.send(signal.SIGTERM)
        run.rest()


def test_a_job_may_take_longer_than_the_graceful_timeout_when_its_worker_is_replaced(
    tmp_path: Path, postgresql_db: Database
) -> None:
    arguments = ("-w", "2", "--max-jobs", "10", "--graceful-timeout", "1")
    with running(tmp_path, postgresql_db, *arguments) as (run, jobs):
        long = jobs.add("waits", name="go")
        run.line_with("begun go 1")
        jobs.ended(*jobs.add("sleeps", 60, seconds=0.02))  # so long that both get their part
        for _ in range(2):
            run.line_with("another one takes its place")
        jobs.ended(*jobs.add("sleeps", seconds=1.5))  # in the new one
        (tmp_path / "go").touch()
        (row,) = jobs.ended(*long)
        assert (row["state"], row["attempt"]) == ("completed", 1)
        run.send(signal.SIGTERM)
        lines = run.rest()
        assert run.wait() == 0
        assert [line for line in lines if "ended by signal" in line or "has not ended in time" in line] == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_of_a_worker_that_is_replaced_can_be_cancelled(
    tmp_path: Path, postgresql_db: Database, workers: int
) -> None:
    with running(tmp_path, postgresql_db, "-w", str(workers), "--max-jobs", "10") as (run, jobs):
        (long,) = jobs.add("waits", name="never")
        run.line_with("begun never 1")
        jobs.ended(*jobs.add("sleeps", 60 if workers == 2 else 15, seconds=0.02))
        for _ in range(workers):
            run.line_with("another one takes its place")
        store = store_of(jobs.connection._engine)
        jobs.connection.begin()
        assert drive(store.cancel(jobs.connection._engine, [long])) == (0, 1)
        jobs.connection.commit()
        (row,) = jobs.ended(long)
        assert row["state"] == "cancelled"
        run.send(signal.SIGTERM)
        run.rest()


def test_a_worker_is_replaced_that_uses_too_much_memory(tmp_path: Path, postgresql_db: Database) -> None:
    with running(tmp_path, postgresql_db, "-w", "2", "--max-memory", "200") as (run, jobs):
        jobs.ended(*jobs.add("grows", mib=300))
        assert "MiB of memory" in run.line_with("another one takes its place")
        run.send(signal.SIGTERM)
        run.rest()


def test_what_is_no_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("")
    for option, value in (("--max-jobs", "0"), ("--max-memory", "much")):
        status, _, errors = finished(tmp_path, option, value, "worker.py")
        assert status == 2
        assert option in errors[0]
