"""`pysqlx-ctl coordinator`: a coordinator on its own, which processes of any origin join."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Database, PostgresServer

from .runs import CTL, coordinating, ctl, run_environment, started, wait_gone
from .sampling import watching

# Holds as many connections as it was told, and says so, until its input ends.
HOLDER = """
import contextlib, sys
from pysqlx_engine import PySQLXEnginePoolSync

with contextlib.ExitStack() as stack:
    pool = stack.enter_context(PySQLXEnginePoolSync(uri=sys.argv[1], min_size=0))
    for _ in range(int(sys.argv[2])):
        stack.enter_context(pool.connection())
    print("holds", sys.argv[2], flush=True)
    sys.stdin.readline()
"""


class Holder:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def ask(self) -> None:
        """Tell it to go on: what it does then, it says by `line`."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def wait_until_it_holds(self) -> None:
        assert self.line().startswith("holds")

    def end(self) -> int:
        self._process.communicate("\n", timeout=20)
        return self._process.returncode


@contextmanager
def holder(directory: Path, address: str, database: Database, count: int, script: str = HOLDER) -> Iterator[Holder]:
    """A process that has joined the coordinator at `address` and takes `count` connections."""
    command = [sys.executable, "-c", script, database.uri, str(count)]
    environment = run_environment(directory, {"PYSQLX_COORDINATOR": address})
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Holder(process)
        finally:
            process.kill()


def status(directory: Path, *options: str) -> dict[str, Any]:
    done = ctl(directory, "status", "--json", *options)
    assert (done[0], done[2]) == (0, "")
    found: dict[str, Any] = json.loads(done[1])
    return found


def leases(directory: Path) -> dict[int, int]:
    """How many leases each process has, by its pid."""
    return {worker["pid"]: worker["leases"] for worker in status(directory)["workers"]}


def until(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never happened"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_its_address_answers_and_ends_when_it_is_told(tmp_path: Path, number: signal.Signals) -> None:
    with coordinating(tmp_path) as (run, address):
        assert address == f"ipc://{tmp_path}/pysqlx/default/coordinator.sock"
        assert status(tmp_path) == {
            "run": "default",
            "health": {"ready": True, "workers": None, "up": None, "coordinator": True, "supervisor": True},
            "budgets": [],
            "workers": [],
            "deaths": 0,
        }
        run.send(number)
        assert run.wait() == 0
        assert run.rest() == []
    assert not (tmp_path / "pysqlx" / "default").exists()
    assert ctl(tmp_path, "status")[0] == 1


def test_there_is_one_coordinator_of_a_name(tmp_path: Path) -> None:
    with coordinating(tmp_path, "--name", "shop") as (run, _):
        pid = run.process.pid
        line = f"pysqlx-ctl: a run named shop is active (pid {pid}): choose another --name, or stop that run first\n"
        assert ctl(tmp_path, "coordinator", "--name", "shop") == (3, "", line)
        assert status(tmp_path, "--name", "shop")["run"] == "shop"  # the first one is as it was
        with coordinating(tmp_path, "--name", "mail"):
            assert status(tmp_path, "--name", "mail")["run"] == "mail"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-size", "0"], "--max-size 0 is not allowed: connections, a whole number from 1 to 100000"),
        (["--name", "a/b"], "--name a/b is not allowed: 1 to 64 letters, digits, '.', '_' or '-', no '.' in front"),
        (["--settings", "none.env"], "--settings=none.env: cannot read the settings file: No such file or directory"),
    ],
)
def test_what_is_not_allowed_is_said_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert ctl(tmp_path, "coordinator", *arguments) == (2, "", f"pysqlx-ctl: {message}\n")


@pytest.mark.parametrize(
    ("options", "environment", "size"),
    [
        ([], {}, 10),
        (["--settings", "site.env"], {}, 5),
        (["--settings", "site.env"], {"PYSQLX_MAX_SIZE": "6"}, 6),
        (["--settings", "site.env", "--max-size", "7"], {"PYSQLX_MAX_SIZE": "6"}, 7),
    ],
    ids=["default", "file", "environment", "option"],
)
def test_the_budget_comes_from_option_environment_and_file_in_this_order(
    tmp_path: Path, sqlite_db: Database, options: list[str], environment: dict[str, str], size: int
) -> None:
    (tmp_path / "site.env").write_text("PYSQLX_MAX_SIZE=5\nPYSQLX_NAME=site\n")
    with coordinating(tmp_path, *options, **environment) as (_, address):
        with holder(tmp_path, address, sqlite_db, 1) as process:
            process.wait_until_it_holds()
            found = status(tmp_path)
            assert found["run"] == ("site" if options else "default")
            assert [(budget["size"], budget["leased"]) for budget in found["budgets"]] == [(size, 1)]
            assert process.end() == 0


def test_it_prints_to_nobody_without_harm(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with started(tmp_path, "coordinator", command=CTL, stdout=writer, stderr=subprocess.PIPE) as run:
        os.close(writer)
        until(lambda: ctl(tmp_path, "status")[0] == 0)
        run.send(signal.SIGTERM)
        assert run.wait() == 0
        assert run.process.stderr is not None
        assert run.process.stderr.read() == b""


def test_the_next_one_of_its_name_knows_who_holds_what(tmp_path: Path, postgresql_db: Database) -> None:
    options = ("--max-size", "4")
    with watching(postgresql_db) as samples:
        with coordinating(tmp_path, *options) as (run, address):
            run.send(signal.SIGSTOP)  # the process waits for it
            with (
                holder(tmp_path, address, postgresql_db, 2) as lives,
                holder(tmp_path, address, postgresql_db, 1) as dies,
            ):
                run.send(signal.SIGCONT)
                lives.wait_until_it_holds()
                dies.wait_until_it_holds()
                assert leases(tmp_path) == {lives.pid: 2, dies.pid: 1}
                run.send(signal.SIGKILL)
                run.wait()
                os.kill(dies.pid, signal.SIGKILL)  # while nobody looks
                wait_gone([dies.pid])
                with (
                    coordinating(tmp_path, *options),
                    holder(tmp_path, address, postgresql_db, 2) as comes,
                ):
                    comes.wait_until_it_holds()  # what the dead one had is free again
                    until(lambda: leases(tmp_path) == {lives.pid: 2, comes.pid: 2})
                    assert [process.end() for process in (lives, comes)] == [0, 0]
    assert samples.most <= 4, samples


def test_one_that_was_ended_is_followed_by_one_that_knows_who_holds_what(
    tmp_path: Path, postgresql_db: Database
) -> None:
    with watching(postgresql_db) as samples, coordinating(tmp_path, "--max-size", "2") as (first, address):
        with holder(tmp_path, address, postgresql_db, 2) as process:
            process.wait_until_it_holds()
            first.send(signal.SIGTERM)
            assert first.wait() == 0
            assert first.rest() == []
            with (
                coordinating(tmp_path, "--max-size", "2"),
                holder(tmp_path, address, postgresql_db, 2) as waits,
            ):
                until(lambda: leases(tmp_path) == {process.pid: 2, waits.pid: 0})
                assert process.end() == 0
                waits.wait_until_it_holds()
                assert waits.end() == 0
    assert samples.most == 2, samples


ANOTHER_USER = """
import os, sys
from pysqlx_engine import PySQLXEnginePoolSync

PySQLXEnginePoolSync(sys.argv[1], min_size=0).start()  # loads what the other user may not be able to read
os.environ["PYSQLX_COORDINATOR"] = sys.argv[2]
try:
    import pysqlx_engine.workers.link
    os.setuid(65534)
    PySQLXEnginePoolSync(sys.argv[1], conn_timeout=0.2).start()
except Exception as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_of_another_user_is_told_why_it_cannot_join(tmp_path: Path, sqlite_uri: str) -> None:
    with coordinating(tmp_path) as (_, address):
        command = [sys.executable, "-c", ANOTHER_USER, sqlite_uri, address]
        done = subprocess.run(command, env=run_environment(tmp_path, {}), capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"no answer from the coordinator within 0.2 s (coordinator not reachable at {address}, which user 65534 may "
        "not enter: run the coordinator and its processes as one user)\n"
    )


# Uses its pool whenever it is told to, and says whether it got a connection, or waits for one without having any.
USER = """
import sys, threading
from pysqlx_engine import PySQLXEnginePoolSync

def use(done):
    with pool.connection() as conn:
        conn.query_first("SELECT 1 AS a")
    done.set()

def outcome():
    done = threading.Event()
    threading.Thread(target=use, args=(done,), daemon=True).start()
    while not done.wait(0.01):
        stats = pool.stats()
        if stats.waiting and not stats.held:
            return "waits"
    return "used"

with PySQLXEnginePoolSync(uri=sys.argv[1], min_size=0, check_after=0) as pool:
    print("started", flush=True)
    while sys.stdin.readline():
        print(outcome(), flush=True)
"""


def test_a_lease_is_for_one_connection_also_while_the_coordinator_is_stopped(
    tmp_path: Path, postgres: PostgresServer, postgresql_db: Database
) -> None:
    """A second connection under the same lease would be one that nobody knows of when its process is killed: the
    session that the coordinator knows is gone, and it would grant the lease to the next one."""
    with ExitStack() as stack:
        samples = stack.enter_context(watching(postgresql_db))
        sample = stack.enter_context(postgresql_db.sampler())
        run, address = stack.enter_context(coordinating(tmp_path, "--max-size", "1"))
        dies, comes = (stack.enter_context(holder(tmp_path, address, postgresql_db, 1, USER)) for _ in range(2))
        assert [dies.line(), comes.line()] == ["started", "started"]
        dies.ask()
        assert dies.line() == "used"
        run.send(signal.SIGSTOP)
        postgres.end_sessions(postgresql_db)
        assert sample() == 0
        dies.ask()
        assert dies.line() == "waits"
        comes.ask()
        assert comes.line() == "waits"
        os.kill(dies.pid, signal.SIGKILL)
        wait_gone([dies.pid])
        run.send(signal.SIGCONT)
        until(lambda: sample() == 1)
        until(lambda: leases(tmp_path) == {comes.pid: 1})
    assert samples.most == 1, samples
