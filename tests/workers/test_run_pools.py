"""`pysqlx-run` with scripts that have pools: the coordinator's process, status, drain, refusals."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pysqlx_engine.workers.control import ask

from ..servers import PostgresServer
from .runs import finished, started, wait_gone

HOLDS = """
import asyncio, os
from pysqlx_engine import PySQLXEnginePool
async def main():
    async with PySQLXEnginePool(uri="sqlite:./dev.db", min_size=1, max_size=4) as pool:
        async with pool.connection() as conn:
            await conn.query_first("SELECT 1 AS a")
            print("up", os.getpid(), flush=True)
            await asyncio.sleep(60)
asyncio.run(main())
"""
DRAINS = """
import asyncio, signal
from pysqlx_engine import PySQLXEnginePool
from pysqlx_engine.errors import PoolClosedError
async def main():
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    pool = PySQLXEnginePool(uri="sqlite:./dev.db", min_size=1, max_size=1)
    await pool.start()
    async def wait_for_one():
        async with pool.connection():
            print("got one")
    async with pool.connection() as conn:
        waiter = asyncio.create_task(wait_for_one())
        await asyncio.sleep(0)
        print("up", flush=True)
        try:
            await waiter
        except PoolClosedError:
            print("waiter refused")
        await told.wait()
        print((await conn.query_first("SELECT 7 AS a")).a)
    await pool.stop()
asyncio.run(main())
"""
WORKS_IN_THREADS = """
import itertools, threading
from pysqlx_engine import PySQLXEnginePoolSync
from pysqlx_engine.errors import PoolClosedError
pool = PySQLXEnginePoolSync(uri="sqlite:./dev.db", min_size=1, max_size=2)
pool.start()
def work():
    try:
        for number in itertools.count():
            with pool.connection() as conn:
                conn.query_first("SELECT 1 AS a")
            if number == 10:
                print("up", flush=True)
    except PoolClosedError:
        print("thread refused", flush=True)
threading.Thread(target=work).start()
"""
STARTS_WHEN_TOLD = """
import os, pathlib, sys, time
from pysqlx_engine import PySQLXEnginePoolSync
def wait_for(name):
    while not pathlib.Path(name).exists():
        time.sleep(0.01)
is_late, is_first_life = os.environ["PYSQLX_WORKER_ID"] == "1", os.environ["PYSQLX_WORKER_RESTARTS"] == "0"
if is_late:
    wait_for("away")
with PySQLXEnginePoolSync(uri=sys.argv[1], min_size=1, max_size=4, conn_timeout=1.5):
    print("up", flush=True)
    if is_first_life and not is_late:
        wait_for("away")
        sys.exit(1)
"""
FAILS_ONCE_WITH_A_POOL = """
import os
from pysqlx_engine import PySQLXEnginePoolSync
from pysqlx_engine.errors import PoolRefusedError
with PySQLXEnginePoolSync(uri="sqlite:./dev.db", min_size=1):
    if os.environ["PYSQLX_WORKER_RESTARTS"] == "0":
        {failure}
    print("up again")
"""

HAS_A_CHILD = """
import subprocess, sys
from pysqlx_engine import PySQLXEnginePoolSync
from pysqlx_engine.errors import PoolRefusedError
me = sys.argv[1]
try:
    with PySQLXEnginePoolSync(uri="sqlite:./dev.db", max_size=2) as pool, pool.connection():
        print(me, "has a connection", flush=True)
        if me == "worker":
            subprocess.run([sys.executable, "script.py", "child"], check=True)
except PoolRefusedError as error:
    print(me, "was refused:", error)
"""


def script(directory: Path, text: str) -> str:
    (directory / "script.py").write_text(text)
    return "script.py"


def status(directory: Path) -> dict[str, Any]:
    return ask(directory / "pysqlx" / "shop" / "control.sock", {"op": "status"})


def test_a_single_worker_run_answers_status_without_a_coordinator(tmp_path: Path):
    with started(tmp_path, "--name", "shop", script(tmp_path, HOLDS)) as run:
        pid = int(run.line_with("up").split()[-1])
        answer = status(tmp_path)
        assert answer["run"] == "shop"
        [budget] = answer["budgets"]
        [worker] = answer["workers"]
        assert (budget["size"], budget["leased"], budget["in_use"], budget["waiting"]) == (4, 1, 1, 0)
        assert (worker["worker"], worker["pid"], worker["restarts"], worker["in_use"]) == (0, pid, 0, 1)
        assert "error" in ask(tmp_path / "pysqlx" / "shop" / "control.sock", {"op": "nonsense"})
        assert not any("coordinator" in title(pid) for pid in run.pids())
        run.send(signal.SIGTERM)
        assert run.wait() == 0


def test_a_worker_that_does_not_answer_holds_up_neither_status_nor_signals(tmp_path: Path):
    with started(tmp_path, "--name", "shop", "--graceful-timeout", "0.1", script(tmp_path, HOLDS)) as run:
        pid = int(run.line_with("up").split()[-1])
        os.kill(pid, signal.SIGSTOP)
        wait_stopped(pid)
        answer = status(tmp_path)
        assert answer["workers"][0]["pools"] == []
        asking = threading.Thread(target=ask_until_the_end, args=(tmp_path,))
        asking.start()
        run.send(signal.SIGTERM)
        assert run.wait() == 1
        asking.join()


def wait_stopped(pid: int) -> None:
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] != b"T":
        assert time.monotonic() < deadline, "it runs on"


def ask_until_the_end(directory: Path) -> None:
    with contextlib.suppress(OSError):
        status(directory)


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except FileNotFoundError:
        return ""


def test_the_coordinator_comes_before_the_workers_and_ends_after_them(tmp_path: Path):
    with started(tmp_path, "-w", "2", "--name", "shop", script(tmp_path, HOLDS)) as run:
        workers = [int(run.line_with("up").split()[-1]) for _ in range(2)]
        coordinator = run.pid_titled("pysqlx-run: coordinator")
        os.kill(workers[0], signal.SIGSTOP)  # this one ends when it goes on
        run.send(signal.SIGTERM)
        wait_gone(workers[1:])
        os.kill(coordinator, 0)
        os.kill(workers[0], signal.SIGCONT)
        assert run.wait() == 0
        wait_gone([coordinator])
    assert not (tmp_path / "pysqlx" / "shop").exists()


def test_a_coordinator_that_is_killed_comes_back_and_no_worker_notices(tmp_path: Path):
    with started(tmp_path, "-w", "2", "--name", "shop", script(tmp_path, HOLDS)) as run:
        workers = [int(run.line_with("up").split()[-1]) for _ in range(2)]
        os.kill(run.pid_titled("pysqlx-run: coordinator"), signal.SIGKILL)
        line = run.line_with("was ended")
        assert line == "pysqlx-run: coordinator was ended by signal 9 (SIGKILL); starting it again in 0.1 s"
        for pid in workers:
            os.kill(pid, 0)
        run.send(signal.SIGTERM)
        assert run.wait() == 0


def test_one_worker_may_have_a_coordinator_too(tmp_path: Path):
    with started(tmp_path, "--coordinator", script(tmp_path, HOLDS)) as run:
        run.line_with("up")
        assert run.pid_titled("pysqlx-run: coordinator")
        run.send(signal.SIGTERM)
        assert run.wait() == 0


def test_nothing_is_left_of_coordinator_and_workers_when_the_supervisor_is_killed(tmp_path: Path):
    with started(tmp_path, "-w", "2", script(tmp_path, HOLDS)) as run:
        run.line_with("up")
        run.line_with("up")
        pids = run.pids()
        run.send(signal.SIGKILL)
        wait_gone(pids)


@pytest.mark.parametrize("arguments", [[], ["--coordinator"]], ids=["in process", "coordinator"])
def test_a_drain_refuses_waiters_and_leaves_held_connections_in_use(tmp_path: Path, arguments: list[str]):
    with started(tmp_path, *arguments, "--no-prefix", script(tmp_path, DRAINS)) as run:
        run.line_with("up")
        run.send(signal.SIGTERM)
        assert run.rest() == ["waiter refused", "7"]
        assert run.wait() == 0


def test_threads_that_outlive_the_main_thread_end_when_their_pool_is_drained(tmp_path: Path):
    with started(tmp_path, "--no-prefix", script(tmp_path, WORKS_IN_THREADS)) as run:
        run.line_with("up")
        run.send(signal.SIGTERM)
        assert run.rest() == ["thread refused"]
        assert run.wait() == 0


def test_a_database_that_is_refused_is_one_line_without_the_password(tmp_path: Path):
    text = HOLDS.replace("sqlite:./dev.db", "oracle://app:hunter2@db/app")
    result, out, err = finished(tmp_path, script(tmp_path, text))
    assert (result, out, len(err)) == (3, [], 1)
    assert err[0].startswith("pysqlx-run: script.py: ConnectError: unknown database provider")
    assert "hunter2" not in err[0]


def test_an_outage_of_the_server_after_a_worker_had_a_pool_ends_no_run(tmp_path: Path):
    """Neither a worker that comes back nor one that comes late finds the server: both are started again."""
    arguments = ("-w", "2", script(tmp_path, STARTS_WHEN_TOLD))
    with PostgresServer() as server, started(tmp_path, *arguments, server.uri()) as run:
        run.line_with("[worker 0] up")
        server.stop()
        (tmp_path / "away").touch()
        failed: set[str] = set()
        while len(failed) < 2:
            failed.add(run.line_with("PoolTimeoutError").split(": ")[1])
        assert failed == {"worker 0", "worker 1"}
        server.start()
        assert {"[worker 0] up", "[worker 1] up"} <= set(run.rest())
        assert run.wait() == 0


@pytest.mark.parametrize("failure", ["import no_such_module", "raise PoolRefusedError('30 here, 20 there')"])
def test_what_fails_after_the_worker_had_a_pool_is_no_boot_failure(tmp_path: Path, failure: str):
    name = script(tmp_path, FAILS_ONCE_WITH_A_POOL.format(failure=failure))
    result, out, err = finished(tmp_path, name)
    assert (result, out) == (0, ["[worker 0] up again"])
    assert err[0] == "[worker 0] Traceback (most recent call last):"
    assert err[-1].startswith("pysqlx-run: worker 0 ended with status 1; starting it again in ")


def test_a_process_that_the_only_worker_starts_gets_no_budget_of_its_own(tmp_path: Path):
    result, out, _ = finished(tmp_path, "--no-prefix", script(tmp_path, HAS_A_CHILD), "worker")
    assert result == 0
    assert out[0] == "worker has a connection"
    assert out[1].startswith("child was refused: process ")
    assert "start the run with --coordinator" in out[1]


def test_a_process_that_a_worker_starts_joins_the_workers_coordinator(tmp_path: Path):
    arguments = ("--coordinator", "--no-prefix", script(tmp_path, HAS_A_CHILD), "worker")
    result, out, _ = finished(tmp_path, *arguments)
    assert (result, out) == (0, ["worker has a connection", "child has a connection"])
