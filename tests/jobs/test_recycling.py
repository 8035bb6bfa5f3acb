"""A worker that has run its jobs, or uses too much memory, is replaced, and nothing is lost by it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pysqlx_engine.engine.driving import drive
from pysqlx_engine.workers.jobs.store import store_of
from tests.servers import Database
from tests.workers.runs import Run, finished

from .test_runs import SCRIPT, Jobs, running


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


def one_long_job_each(directory: Path, run: Run, jobs: Jobs) -> tuple[list[int], set[str]]:
    """Two jobs that run until there is the file `go`, and the processes of the two workers that run them."""
    first: list[int] = []
    here: set[str] = set()
    while len(here) < 2:  # the second worker may be there a moment later
        first += jobs.add("waits", name="both are here")
        here.add(run.line_with("begun both are here 1").split()[-1])
    (directory / "both are here").touch()
    jobs.ended(*first)
    long = jobs.add("waits", 2, name="go")
    old = {run.line_with("begun go 1").split()[-1] for _ in long}
    assert old == here
    return long, old


def test_the_new_one_runs_jobs_while_the_old_one_finishes_its_own(tmp_path: Path, postgresql_db: Database) -> None:
    with running(tmp_path, postgresql_db, "-w", "2", "--max-jobs", "20") as (run, jobs):
        long, old = one_long_job_each(tmp_path, run, jobs)
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
    arguments = ("-w", "2", "--max-jobs", "10", "--graceful-timeout", "2")
    with running(tmp_path, postgresql_db, *arguments) as (run, jobs):
        long = jobs.add("waits", name="go")
        run.line_with("begun go 1")
        jobs.ended(*jobs.add("sleeps", 60, seconds=0.02))  # so long that both get their part
        for _ in range(2):
            run.line_with("another one takes its place")
        jobs.ended(*jobs.add("sleeps", seconds=2.5))  # in the new one
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


IMPATIENT = [
    sys.executable,
    "-c",
    "from pysqlx_engine.workers import run, supervisor; supervisor._START_WITHIN = 1.0; raise SystemExit(run.main())",
]
"""A `pysqlx-run` that waits no longer for a worker that takes another one's place."""
SLOW_TO_START = SCRIPT.replace(
    "queue.run()",
    """
    from pysqlx_engine.workers.jobs import recycling
    recycling._ASK_AGAIN = 0.5
    while pathlib.Path("wait").exists():
        time.sleep(0.01)
    queue.run()""",
)


@contextmanager
def slow_to_start(directory: Path, database: Database) -> Iterator[tuple[Run, Jobs]]:
    """A run whose next workers wait until the file `wait` is gone."""
    options = ("-w", "2", "--max-jobs", "10")
    with running(directory, database, *options, command=IMPATIENT, text=SLOW_TO_START) as (run, jobs):
        jobs.ended(*jobs.add("note", text="both have begun"))
        (directory / "wait").touch()
        yield run, jobs


def test_a_worker_that_does_not_come_in_time_is_killed_and_the_one_before_it_goes_on(
    tmp_path: Path, postgresql_db: Database
) -> None:
    with slow_to_start(tmp_path, postgresql_db) as (run, jobs):
        jobs.ended(*jobs.add("sleeps", 60, seconds=0.02))
        run.line_with("another one takes its place")
        run.line_with("has not ended in time: killing it")
        run.line_with("the other one was ended by signal 9 (SIGKILL) before it served")
        jobs.ended(*jobs.add("note", 5, text="the ones before"))
        (tmp_path / "wait").unlink()
        run.line_with("another one takes its place")
        jobs.ended(*jobs.add("sleeps", 60, seconds=0.02))
        (row,) = jobs.ended(*jobs.add("sleeps", seconds=1.5))  # nobody counts its time any more
        assert row["attempt"] == 1
        run.send(signal.SIGTERM)
        lines = run.rest()
        assert run.wait() == 0
        assert [line for line in lines if "starting it again" in line] == [], "nobody who served was killed"


def test_a_worker_that_dies_while_another_one_is_to_take_its_place_has_it_taken(
    tmp_path: Path, postgresql_db: Database
) -> None:
    with slow_to_start(tmp_path, postgresql_db) as (run, jobs):
        jobs.add("sleeps", 60, seconds=0.02)
        number = run.line_with("another one takes its place").split()[2]
        old = run.pid_titled(f"pysqlx-run: worker {number}")
        os.kill(old, signal.SIGKILL)
        line = run.line_with("was ended by signal 9")
        assert f"({old})" in line
        assert "starting it again" not in line, "the other one is there"
        time.sleep(1.2)  # the time that it had to take somebody's place
        (tmp_path / "wait").unlink()
        jobs.ended(*jobs.add("sleeps", 60, seconds=0.02))
        run.send(signal.SIGTERM)
        lines = run.rest()
        assert run.wait() == 0
        assert [line for line in lines if f"worker {number}" in line and "killing" in line] == []


def test_no_worker_is_replaced_again_before_the_one_before_it_has_ended(
    tmp_path: Path, postgresql_db: Database
) -> None:
    with running(tmp_path, postgresql_db, "-w", "2", "--max-jobs", "20") as (run, jobs):
        long, old = one_long_job_each(tmp_path, run, jobs)
        jobs.ended(*jobs.add("sleeps", 60, seconds=0.02))
        for _ in old:
            run.line_with("another one takes its place")
        (tmp_path / "at once").touch()
        new: Counter[str] = Counter()
        while max(new.values(), default=0) < 60:  # it has run enough as well
            jobs.ended(*jobs.add("waits", name="at once"))
            while "begun at once 1" not in (line := run.line()):
                assert "takes its place" not in line
            pid = line.split()[-1]
            if pid not in old:
                new[pid] += 1
        (tmp_path / "go").touch()
        assert {(row["state"], row["attempt"]) for row in jobs.ended(*long)} == {("completed", 1)}
        run.send(signal.SIGTERM)
        run.rest()
        assert run.wait() == 0


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
