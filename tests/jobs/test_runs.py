"""Jobs in real processes: `python worker.py` and `pysqlx-run`, what they do when told to end, and when killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pysqlx_engine import PySQLXEngineSync
from pysqlx_engine.engine.driving import drive
from pysqlx_engine.workers import JobQueue
from pysqlx_engine.workers.jobs.schema import migrate
from tests.servers import Database
from tests.workers.runs import COMMAND, Run, started

SCRIPT = """
import asyncio, os, pathlib, signal, sys, threading, time
from pysqlx_engine import PySQLXEngine, PySQLXEngineSync
from pysqlx_engine.workers import Backoff, Job, JobQueue

queue = JobQueue(concurrency=5)

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")  # in one piece: there are threads

async def file(name):
    while not pathlib.Path(name).exists():
        await asyncio.sleep(0.01)

@queue.task
async def note(text: str) -> None:
    say("ran", text, os.environ.get("PYSQLX_WORKER_ID"))

@queue.task(max_attempts=3)
async def waits(job: Job, name: str) -> None:
    say("begun", name, job.attempt, os.getpid())
    await file(name)
    say("ended", name, job.attempt)

@queue.task(max_attempts=3)
def waits_in_thread(job: Job, name: str) -> None:
    say("begun", name, job.attempt, os.getpid())
    while not pathlib.Path(name).exists():
        time.sleep(0.01)

@queue.task(max_attempts=2)
def kills_its_worker(job: Job) -> None:
    say("begun", job.attempt, os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)

@queue.task
async def sleeps(seconds: float) -> None:
    await asyncio.sleep(seconds)

@queue.task
async def queries(conn: PySQLXEngine) -> None:
    await conn.query_as_dict("SELECT pg_sleep(0.02)::text AS slept")

hoard = []

@queue.task
async def grows(mib: int) -> None:
    hoard.append(b"x" * (mib << 20))

if __name__ == "__main__":
    queue.run()
    say("returned")
"""


class Jobs:
    """The jobs of a test, enqueued and looked at from outside of its run."""

    def __init__(self, database: Database) -> None:
        self.connection = PySQLXEngineSync(database.uri)
        self.connection.connect()
        drive(migrate(self.connection._engine))
        self.queue = JobQueue(database.uri)

        @self.queue.task
        def note(text: str) -> None: ...
        @self.queue.task(max_attempts=3)
        def waits(name: str) -> None: ...
        @self.queue.task(max_attempts=3)
        def waits_in_thread(name: str) -> None: ...
        @self.queue.task(max_attempts=2)
        def kills_its_worker() -> None: ...
        @self.queue.task
        def sleeps(seconds: float) -> None: ...
        @self.queue.task
        def queries() -> None: ...
        @self.queue.task
        def grows(mib: int) -> None: ...

    def add(self, task: str, times: int = 1, queue: str = "default", **arguments: object) -> list[int]:
        to_queue = self.queue.tasks[task].options(queue=queue)
        return to_queue.enqueue_many_sync([arguments] * times, conn=self.connection)

    def ended(self, *ids: int) -> list[dict[str, object]]:
        """Their rows, as soon as all have ended."""
        names = ", ".join(map(str, ids))
        while True:
            rows = self.connection.query_as_dict(f"SELECT * FROM pysqlx_jobs_ended WHERE id IN ({names}) ORDER BY id")
            if len(rows) == len(ids):
                return rows
            time.sleep(0.01)

    def left(self) -> list[dict[str, object]]:
        return self.connection.query_as_dict("SELECT * FROM pysqlx_jobs ORDER BY id")

    def errors(self) -> list[str]:
        rows = self.connection.query_as_dict("SELECT error FROM pysqlx_job_errors ORDER BY id")
        return [str(row["error"]) for row in rows]


@contextmanager
def running(
    directory: Path,
    database: Database,
    *arguments: str,
    script: bool = False,
    command: Sequence[str] = COMMAND,
    text: str = SCRIPT,
    **environment: str,
) -> Iterator[tuple[Run, Jobs]]:
    (directory / "worker.py").write_text(text)
    command = [sys.executable] if script else command
    jobs = Jobs(database)
    with started(directory, *arguments, "worker.py", command=command, PYSQLX_URI=database.uri, **environment) as run:
        yield run, jobs
    jobs.connection.close()


@pytest.mark.parametrize("arguments", [None, ["-w", "1"], ["-w", "2"]])
def test_jobs_run_until_a_term_and_the_process_ends_with_0(
    tmp_path: Path, database: Database, arguments: list[str] | None
) -> None:
    with running(tmp_path, database, *(arguments or []), script=arguments is None) as (run, jobs):
        ids = jobs.add("note", 20, text="a job")
        assert {row["state"] for row in jobs.ended(*ids)} == {"completed"}
        run.send(signal.SIGTERM)
        lines = run.rest()
        assert run.wait() == 0
    assert sum("ran a job" in line for line in lines) == 20
    assert sum("returned" in line for line in lines) == (2 if arguments == ["-w", "2"] else 1)
    assert not [line for line in lines if "ran" not in line and "returned" not in line]
    assert jobs.queue.tasks["note"].name == "note"


def test_the_job_of_a_killed_worker_is_run_again_by_another_with_the_reason(tmp_path: Path, database: Database) -> None:
    with running(tmp_path, database, "-w", "2", "--restart", "never") as (run, jobs):
        (id_,) = jobs.add("waits", name="go")
        pid = int(run.line_with("begun go 1").split()[-1])
        os.kill(pid, signal.SIGKILL)
        second = int(run.line_with("begun go 2").split()[-1])
        (tmp_path / "go").touch()
        (row,) = jobs.ended(id_)
        assert second != pid
        assert (row["state"], row["attempt"]) == ("completed", 2)
        assert jobs.errors() == ["its worker was ended by signal 9 (SIGKILL), perhaps out of memory"]
        run.send(signal.SIGTERM)
        run.rest()


def test_a_job_that_kills_its_workers_is_discarded_after_its_attempts(tmp_path: Path, postgresql_db: Database) -> None:
    with running(tmp_path, postgresql_db, "-w", "2") as (run, jobs):
        (id_,) = jobs.add("kills_its_worker")
        (row,) = jobs.ended(id_)
        assert (row["state"], row["attempt"]) == ("discarded", 2)
        assert jobs.errors() == ["its worker was ended by signal 9 (SIGKILL), perhaps out of memory"] * 2
        run.send(signal.SIGTERM)
        run.rest()


@pytest.mark.thorough("sqlite", "mysql")
def test_what_runs_goes_on_when_the_dispatcher_dies_and_costs_no_attempt(tmp_path: Path, database: Database) -> None:
    with running(tmp_path, database, "-w", "2") as (run, jobs):
        runs = jobs.add("waits", name="go") + jobs.add("waits_in_thread", name="go")
        run.line_with("begun go 1")
        run.line_with("begun go 1")
        for number in range(3):
            os.kill(run.pid_titled("pysqlx-run: dispatcher"), signal.SIGKILL)
            run.line_with("dispatcher was ended by signal 9")
            (later,) = jobs.add("note", text=f"after {number}")
            jobs.ended(later)
        (tmp_path / "go").touch()
        rows = jobs.ended(*runs)
        assert [(row["state"], row["attempt"]) for row in rows] == [("completed", 1)] * 2
        assert jobs.errors() == []
        run.send(signal.SIGTERM)
        run.rest()
        assert jobs.left() == []
        assert jobs.connection.query_as_dict("SELECT * FROM pysqlx_job_dispatchers") == []


def test_a_report_that_the_dispatcher_took_to_its_grave_is_made_again(tmp_path: Path, postgresql_db: Database) -> None:
    with running(tmp_path, postgresql_db, "-w", "2") as (run, jobs):
        (id_,) = jobs.add("waits", name="go")
        run.line_with("begun go 1")
        os.kill(run.pid_titled("pysqlx-run: dispatcher"), signal.SIGSTOP)  # it hears, and writes nothing
        (tmp_path / "go").touch()
        run.line_with("ended go 1")
        os.kill(run.pid_titled("pysqlx-run: dispatcher"), signal.SIGKILL)
        (row,) = jobs.ended(id_)
        assert (row["state"], row["attempt"]) == ("completed", 1)
        run.send(signal.SIGTERM)
        run.rest()


@pytest.mark.parametrize("killed_first", [False, True])
def test_a_dispatcher_that_dies_while_the_workers_end_is_there_again_for_their_reports(
    tmp_path: Path, postgresql_db: Database, killed_first: bool
) -> None:
    with running(tmp_path, postgresql_db, "-w", "2") as (run, jobs):
        (id_,) = jobs.add("waits", name="go")
        run.line_with("begun go 1")
        if not killed_first:
            run.send(signal.SIGTERM)
            run.line_with("returned")  # the other worker, which has nothing to end
        os.kill(run.pid_titled("pysqlx-run: dispatcher"), signal.SIGKILL)
        run.line_with("dispatcher was ended by signal 9")
        if killed_first:
            run.send(signal.SIGTERM)  # before it is started again
            run.line_with("returned")
        (tmp_path / "go").touch()
        (row,) = jobs.ended(id_)
        assert (row["state"], row["attempt"]) == ("completed", 1)
        run.rest()
        assert run.wait() == 0
        assert jobs.connection.query_as_dict("SELECT * FROM pysqlx_job_dispatchers") == []


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.thorough("sqlite", "mysql")
def test_a_term_returns_what_does_not_end_in_time_and_what_has_not_begun(
    tmp_path: Path, database: Database, workers: int
) -> None:
    with running(tmp_path, database, "-w", str(workers), "--graceful-timeout", "2") as (run, jobs):
        jobs.add("waits", 4 * workers, name="never")
        jobs.add("waits_in_thread", workers, name="never")
        jobs.add("note", 50, text="waits behind")
        for _ in range(5 * workers):
            run.line_with("begun never")
        begun = time.monotonic()
        run.send(signal.SIGTERM)
        lines = run.rest()
        assert time.monotonic() - begun < 3
        assert run.wait() == 0, lines
    jobs = Jobs(database)
    left = jobs.left()
    assert {(row["state"], row["attempt"], row["owner"]) for row in left} == {("available", 0, None)}
    assert len(left) == 5 * workers + 50
    assert jobs.errors() == []


def test_the_jobs_of_a_run_that_was_killed_are_done_by_the_next_one(tmp_path: Path, database: Database) -> None:
    with running(tmp_path, database, "-w", "2") as (run, jobs):
        (id_,) = jobs.add("waits", name="go")
        run.line_with("begun go 1")
        run.send(signal.SIGKILL)
    with running(tmp_path, database, "-w", "2") as (run, jobs):
        run.line_with("begun go 2")
        (tmp_path / "go").touch()
        (row,) = jobs.ended(id_)
        assert (row["state"], row["attempt"]) == ("completed", 2)
        assert "is gone" in jobs.errors()[0]
        run.send(signal.SIGTERM)
        run.rest()


def test_the_dispatcher_and_every_job_stay_within_the_budget(tmp_path: Path, postgresql_db: Database) -> None:
    with running(tmp_path, postgresql_db, "-w", "3", "--max-size", "4") as (run, jobs):
        ids = jobs.add("queries", 300)
        most = 0
        with postgresql_db.sampler("pysqlx") as sample:
            while jobs.left():
                most = max(most, sample())
        assert {row["state"] for row in jobs.ended(*ids)} == {"completed"}
        assert most == 4
        run.send(signal.SIGTERM)
        run.rest()


TWO_QUEUES = SCRIPT.replace(
    "    queue.run()",
    """
    other = JobQueue(queues=("other",), concurrency=5)
    for task in (note, waits):
        other.task(queue="other", max_attempts=3)(task.function)

    async def both():
        await asyncio.gather(queue.serve(), other.serve())

    asyncio.run(both())""",
)


def test_two_queues_of_a_run_have_a_dispatcher_each_and_neither_takes_the_others_place(
    tmp_path: Path, postgresql_db: Database
) -> None:
    with running(tmp_path, postgresql_db, "-w", "2", text=TWO_QUEUES) as (run, jobs):
        long = jobs.add("waits", name="go") + jobs.add("waits", queue="other", name="go")
        for _ in long:
            run.line_with("begun go 1")
        for title in ("pysqlx-run: dispatcher 2", "pysqlx-run: dispatcher"):
            os.kill(run.pid_titled(title), signal.SIGKILL)
            run.line_with("dispatcher")
            for queue in ("default", "other"):
                jobs.ended(*jobs.add("note", 20, queue=queue, text="goes on"))
        (tmp_path / "go").touch()
        rows = jobs.ended(*long)
        assert [(row["state"], row["attempt"]) for row in rows] == [("completed", 1)] * 2
        assert jobs.errors() == []
        run.send(signal.SIGTERM)
        run.rest()
        assert run.wait() == 0


def test_without_tables_a_run_says_what_to_do(tmp_path: Path, postgresql_db: Database) -> None:
    (tmp_path / "worker.py").write_text(SCRIPT)
    with started(tmp_path, "-w", "2", "worker.py", PYSQLX_URI=postgresql_db.uri) as run:
        lines = run.rest()
        assert run.wait() == 3
    assert any("run `pysqlx-ctl jobs migrate`" in line for line in lines)
