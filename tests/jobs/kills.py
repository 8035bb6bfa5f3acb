"""Runs transactional jobs while their processes are killed, and counts what became of them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pysqlx_engine import PySQLXEngineSync
from pysqlx_engine.engine.driving import drive
from pysqlx_engine.errors import PySQLXError
from pysqlx_engine.workers.jobs.dialects import dialect_of
from pysqlx_engine.workers.jobs.schema import migrate
from pysqlx_engine.workers.jobs.store import NewJob, Store
from tests.servers import Database
from tests.workers.runs import Run, started

SCRIPT = """
import asyncio, os, random
from pysqlx_engine import PySQLXEngine, PySQLXEngineSync
from pysqlx_engine.workers import Backoff, Job, JobQueue

queue = JobQueue(concurrency=8)
soon = Backoff(first=0.05, most=1)
pause = float(os.environ["PAUSE"])

async def post(conn, job, n):
    await conn.execute("INSERT INTO attempts (n, attempt) VALUES (:n, :attempt)", {"n": n, "attempt": job.attempt})
    await asyncio.sleep(pause)
    await conn.execute("INSERT INTO effects (n) VALUES (:n)", {"n": n})

@queue.task(transactional=True, backoff=soon)
async def in_task(conn: PySQLXEngine, job: Job, n: int) -> None:
    await post(conn, job, n)

@queue.task(transactional=True, backoff=soon)
def in_thread(conn: PySQLXEngineSync, job: Job, n: int) -> None:
    conn.execute("INSERT INTO attempts (n, attempt) VALUES (:n, :attempt)", {"n": n, "attempt": job.attempt})
    conn.execute("INSERT INTO effects (n) VALUES (:n)", {"n": n})

if __name__ == "__main__":
    queue.run()
"""
MAX_SIZE = 6
MOST_ATTEMPTS = 1000


@dataclass
class Account:
    """What became of the jobs."""

    jobs: int
    lost: int
    """Without an effect, or not completed."""
    doubled: int
    """With an effect that was committed twice, or whose attempt and effect did not commit together."""
    attempts: int
    kills: int
    most_connections: int | None
    """At any moment; None for SQLite, whose descriptors outlive their connections within a process."""
    seconds: float
    restarts: int = 0
    """Of the server."""

    def __str__(self) -> str:
        return json.dumps(self.__dict__)


class Fleet:
    """A run that is started again whenever its supervisor is killed."""

    def __init__(self, directory: Path, database: Database, **environment: str) -> None:
        self._directory = directory
        self._environment = {"PYSQLX_URI": database.uri, **environment}
        (directory / "worker.py").write_text(SCRIPT)
        self._stack = contextlib.ExitStack()
        self.run: Run = self._start()

    def _start(self) -> Run:
        arguments = ("--name", "kills", "-w", "3", "--max-size", str(MAX_SIZE), "worker.py")
        log = (self._directory / "log").open("ab")
        with log:
            return self._stack.enter_context(
                started(self._directory, *arguments, stdout=log.fileno(), stderr=log.fileno(), **self._environment)
            )

    def kill_one(self, chance: random.Random) -> str | None:
        """Kill a worker, the dispatcher, the coordinator, or the supervisor."""
        titles = ["worker 0", "worker 1", "worker 2", "dispatcher", "coordinator", "supervisor"]
        title = chance.choices(titles, [4, 4, 4, 4, 2, 2])[0]
        try:
            pid = self.run.pid_titled(f"pysqlx-run: {title}")
            os.kill(pid, signal.SIGKILL)
        except (AssertionError, ProcessLookupError, FileNotFoundError):
            return None  # it is dead, and not there again yet
        if title == "supervisor":
            self.run.process.wait(20)
            self.run = self._start()
        return title

    def ensure(self) -> None:
        """A run that has given up (a worker may have died ten times within a minute) is started anew."""
        if self.run.process.poll() is not None:
            self.run = self._start()

    def stop(self) -> None:
        if self.run.process.poll() is None:
            self.run.send(signal.SIGTERM)
        self._stack.close()


def prepared(database: Database, jobs: int) -> PySQLXEngineSync:
    connection = PySQLXEngineSync(database.uri)
    connection.connect()
    drive(migrate(connection._engine))
    connection.raw_cmd("CREATE TABLE attempts (n integer, attempt integer)")
    connection.raw_cmd("CREATE TABLE effects (n integer)")
    store = Store(dialect_of(connection._engine))
    new = [
        NewJob(
            queue="default",
            task="in_thread" if n % 4 == 0 else "in_task",
            args=f'{{"n":{n}}}',
            max_attempts=MOST_ATTEMPTS,
        )
        for n in range(jobs)
    ]
    connection.begin()
    drive(store.enqueue(connection._engine, new))
    connection.commit()
    return connection


def run(
    directory: Path,
    database: Database,
    jobs: int,
    *,
    every: float | None,
    pause: float,
    chance: random.Random,
    restart: Callable[[], None] | None = None,
    timeout: float = 300,
    **environment: str,
) -> Account:
    """Have `jobs` done, while a process is killed about `every` so many seconds, and the server restarted by `restart`
    about every 10 s."""
    connection = prepared(database, jobs)
    begun = time.monotonic()
    fleet = Fleet(directory, database, PAUSE=str(pause), **environment)
    kills = restarts = most = 0
    kill_at = begun + 3
    restart_at = begun + 8
    done = threading.Event()
    sampled = database.provider != "sqlite"

    def sample() -> None:
        nonlocal most
        ours = database.provider == "mysql"  # where nothing says whose they are: one is this test's own
        while not done.is_set():
            with contextlib.suppress(Exception), database.sessions() as look:  # the server may be away
                while not done.wait(0.01):
                    most = max(most, sum("pysqlx" in row.get("application_name", "pysqlx") for row in look()) - ours)

    sampler = threading.Thread(target=sample)
    if sampled:
        sampler.start()
    try:
        while _left(connection) and time.monotonic() < begun + timeout:
            time.sleep(0.05)
            fleet.ensure()
            if every is not None and time.monotonic() >= kill_at:
                kills += fleet.kill_one(chance) is not None
                kill_at = time.monotonic() + every * chance.uniform(0.5, 1.5)
            if restart is not None and time.monotonic() >= restart_at:
                restart()
                restarts += 1
                restart_at = time.monotonic() + 10
    finally:
        done.set()
        fleet.stop()
        if sampled:
            sampler.join()
    seconds = time.monotonic() - begun
    account = _account(connection, jobs)
    connection.close()
    return Account(jobs, *account, kills, most if sampled else None, round(seconds, 1), restarts)


def _left(connection: PySQLXEngineSync) -> int:
    try:
        (row,) = connection.query_as_dict("SELECT count(*) AS n FROM (SELECT id FROM pysqlx_jobs LIMIT 1) AS one")
    except PySQLXError:
        with contextlib.suppress(PySQLXError):
            connection.close()
            connection.connect()
        return 1
    return int(row["n"])


def _account(connection: PySQLXEngineSync, jobs: int) -> tuple[int, int, int]:
    effects = [int(row["n"]) for row in connection.query_as_dict("SELECT n FROM effects")]
    attempts = [int(row["n"]) for row in connection.query_as_dict("SELECT n FROM attempts")]
    (completed,) = connection.query_as_dict("SELECT count(*) AS n FROM pysqlx_jobs_ended WHERE state = 'completed'")
    (counted,) = connection.query_as_dict("SELECT sum(attempt) AS n FROM pysqlx_jobs_ended")
    lost = jobs - len(set(effects)) + jobs - int(completed["n"])
    doubled = len(effects) - len(set(effects)) + len(set(attempts) ^ set(effects)) + len(attempts) - len(set(attempts))
    return lost, doubled, int(counted["n"] or 0)
