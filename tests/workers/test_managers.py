"""Processes that gunicorn, uvicorn, Celery and multiprocessing start share the budget of `pysqlx-ctl coordinator`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.servers import Database, free_port

from .loading import get, loading
from .runs import Run, coordinating, run_environment, started, wait_gone
from .sampling import Samples, watching
from .test_standalone import status

BUDGET = 4
WORKERS = 3

# The pool is made at import. Who starts it, and when, is what the cases differ in.
WSGI = """
import contextlib, os, threading
from pysqlx_engine import PySQLXEnginePoolSync

pool = PySQLXEnginePoolSync(uri=os.environ["URI"], min_size=1, max_size=50, conn_timeout=20)
lock = threading.Lock()

def app(environ, start_response):
    if os.environ.get("LAZY"):
        with lock:
            if pool.closed:
                pool.start()
    sql = os.environ["SQL"]
    if os.environ.get("HANGS_ONCE"):
        with contextlib.suppress(FileExistsError), open("hangs", "x"):
            sql = os.environ["HANGS_ONCE"]
    with pool.connection() as conn:
        conn.query_first(sql)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""
# As examples/gunicorn_conf.py.
HOOKS = """
def post_worker_init(worker):
    import wsgi
    wsgi.pool.start()

def worker_exit(server, worker):
    import wsgi
    if not wsgi.pool.closed:
        wsgi.pool.stop()
"""
ASGI = """
import os
from pysqlx_engine import PySQLXEnginePool

pool = PySQLXEnginePool(uri=os.environ["URI"], min_size=1, max_size=50, conn_timeout=20)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        async with pool:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    async with pool.connection() as conn:
        await conn.query_first(os.environ["SQL"])
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""


def gunicorn(port: int, *options: str) -> list[str]:
    arguments = ["--bind", f"127.0.0.1:{port}", "--workers", str(WORKERS), *options, "wsgi:app"]
    return [sys.executable, "-m", "gunicorn", *arguments]


def uvicorn(port: int, *options: str) -> list[str]:
    arguments = ["--port", str(port), "--workers", str(WORKERS), "--no-access-log", *options, "asgi:app"]
    return [sys.executable, "-m", "uvicorn", *arguments]


def until(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never happened"


def members(directory: Path) -> set[int]:
    return {worker["pid"] for worker in status(directory)["workers"]}


def assert_nothing_is_left(directory: Path, database: Database) -> None:
    """No member, and no session: those of killed processes go when the server has noticed."""
    with database.sampler() as sample:
        until(lambda: sample() == 0)
    until(lambda: not members(directory))
    assert [budget for budget in status(directory)["budgets"] if budget["leased"]] == []


MANAGERS: dict[str, tuple[Callable[..., list[str]], tuple[str, ...], int]] = {
    # By name: the command, its options, and the connections to share.
    # A sync worker holds one connection at most: two for three workers have to go round.
    "gunicorn, sync worker": (gunicorn, ("-c", "hooks.py"), 2),
    "gunicorn, gthread worker, preloaded": (gunicorn, ("-c", "hooks.py", "--threads", "4", "--preload"), BUDGET),
    "uvicorn": (uvicorn, (), BUDGET),
}


@pytest.mark.parametrize("manager", MANAGERS)
@pytest.mark.thorough("gunicorn, gthread worker, preloaded")
def test_workers_share_the_budget_also_when_one_is_killed_and_at_a_reload(
    tmp_path: Path, postgresql_db: Database, manager: str
) -> None:
    command, options, budget = MANAGERS[manager]
    with serving(tmp_path, postgresql_db, command, *options, budget=budget) as (run, port, samples):
        with loading(port, threads=12) as load:
            first = load.wait_for_processes(WORKERS)
            samples.wait_for(budget)
            assert (list(load.statuses), load.lost) == ([200], 0)

            killed = min(first)
            os.kill(killed, signal.SIGKILL)
            replaced = load.wait_for_processes(1, other_than=first)

            run.send(signal.SIGHUP)
            load.wait_for_processes(WORKERS, other_than=first | replaced)
            wait_gone(list(first | replaced), timeout=30.0)
            load.wait_for_more(50)
        assert list(load.statuses) == [200]
        # What the killed process had begun, and what a process that ends had accepted and not read yet.
        assert load.lost <= 24, load
    assert samples.most == budget, samples


def test_workers_that_end_after_some_requests_are_replaced_within_the_budget(
    tmp_path: Path, postgresql_db: Database
) -> None:
    # The first request of each worker starts its pool, several threads at once; the end of the process ends it.
    options = ("--workers", "2", "--max-requests", "25", "--max-requests-jitter", "10", "--threads", "3")
    with serving(tmp_path, postgresql_db, gunicorn, *options, LAZY="1") as (_, port, samples):
        with loading(port, threads=8) as load:
            samples.wait_for(BUDGET)
            load.wait_for_processes(4)
        assert list(load.statuses) == [200]
    assert samples.most == BUDGET, samples


def test_a_worker_that_is_ended_for_its_timeout_gives_its_connections_back(
    tmp_path: Path, postgresql_db: Database
) -> None:
    # gunicorn sends ABRT, on which the worker raises SystemExit in the midst of the query.
    options = ("-c", "hooks.py", "--workers", "2", "--timeout", "2")
    hangs = postgresql_db.sleep_sql(60)
    with serving(tmp_path, postgresql_db, gunicorn, *options, budget=2, HANGS_ONCE=hangs) as (run, port, samples):
        with loading(port, threads=6) as load:
            run.line_with("WORKER TIMEOUT")
            load.wait_for_processes(2)  # the other worker, and the one that has come in its place
        # With the hanging request gunicorn does as it can: an error, or a connection that is closed.
        assert (load.statuses.keys() - {200, 500}, load.statuses[500] + load.lost) == (set(), 1)
    assert samples.most == 2, samples


USED_BEFORE_THE_FORK = {
    "by this pool": "pool.start()",
    "by a connection": """
from pysqlx_engine import PySQLXEngineSync
with PySQLXEngineSync(os.environ["URI"]): pass
""",
}


@pytest.mark.parametrize("used", USED_BEFORE_THE_FORK)
def test_a_driver_that_was_used_before_the_fork_is_an_error_that_names_the_hook(
    tmp_path: Path, postgresql_db: Database, used: str
) -> None:
    with serving(
        tmp_path, postgresql_db, gunicorn, "--preload", "--workers", "1", at_import=USED_BEFORE_THE_FORK[used], LAZY="1"
    ) as (
        run,
        port,
        _,
    ):
        assert get(port)[0] == 500
        assert "post_fork" in run.line_with("PoolForkedError: ")


MULTIPROCESSING = """
import multiprocessing, os, sys, threading
from pysqlx_engine import PySQLXEnginePoolSync

uri, sql, method = sys.argv[1:4]

def work():
    pool = PySQLXEnginePoolSync(uri=uri, min_size=1, max_size=50)
    with pool:
        def query():
            for _ in range(5):
                with pool.connection() as conn:
                    conn.query_first(sql)
        threads = [threading.Thread(target=query) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print("done", flush=True)

if __name__ == "__main__":
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(process.exitcode for process in processes))
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.thorough("fork")
def test_processes_of_multiprocessing_share_the_budget(tmp_path: Path, postgresql_db: Database, method: str) -> None:
    (tmp_path / "script.py").write_text(MULTIPROCESSING)
    with (
        watching(postgresql_db) as samples,
        coordinating(tmp_path, "--max-size", str(BUDGET)) as (_, address),
    ):
        arguments = ("script.py", postgresql_db.uri, postgresql_db.sleep_sql(0.02), method)
        with started(tmp_path, *arguments, command=[sys.executable], PYSQLX_COORDINATOR=address) as run:
            assert run.wait() == 0
            assert run.rest() == ["done"] * 3
        assert_nothing_is_left(tmp_path, postgresql_db)
    assert samples.most == BUDGET, samples


CELERY = """
import os, pathlib
from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown
from pysqlx_engine import PySQLXEnginePoolSync

here = pathlib.Path(__file__).parent
app = Celery("tasks", broker=os.environ["BROKER"])
app.conf.broker_transport_options = {"global_keyprefix": os.environ["PREFIX"]}
app.conf.task_ignore_result = True
app.conf.worker_prefetch_multiplier = 1
app.conf.worker_proc_alive_timeout = 20
pool = PySQLXEnginePoolSync(uri=os.environ["URI"], min_size=1, max_size=50, conn_timeout=15)

@worker_process_init.connect
def start(**_):
    pool.start()

@worker_process_shutdown.connect
def stop(**_):
    pool.stop()

@app.task
def work():
    with pool.connection() as conn:
        conn.query_first(os.environ["SQL"])
    with (here / "answers").open("a") as answers:
        print(os.getpid(), file=answers)
"""
SEND = """
import sys
from tasks import work
for _ in range(int(sys.argv[1])):
    work.delay()
"""


@pytest.fixture
def broker() -> Iterator[dict[str, str]]:
    """The Redis server in PYSQLX_TEST_REDIS_URI, and a prefix of its own for what is put there; both as environment
    variables. Without a server the test is skipped (not in CI)."""
    uri = os.environ.get("PYSQLX_TEST_REDIS_URI", "redis://127.0.0.1:6379/0")
    prefix = f"pysqlx-test-{os.getpid()}-"
    with redis.Redis.from_url(uri) as client:
        try:
            client.ping()
        except redis.ConnectionError as error:
            reason = f"no Redis server, set PYSQLX_TEST_REDIS_URI: {error}"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        yield {"BROKER": uri, "PREFIX": prefix}
        for key in client.scan_iter(f"{prefix}*"):
            client.delete(key)


def test_processes_of_celery_share_the_budget_also_when_one_is_killed(
    tmp_path: Path, postgresql_db: Database, broker: dict[str, str]
) -> None:
    (tmp_path / "tasks.py").write_text(CELERY)
    (tmp_path / "send.py").write_text(SEND)
    answers = tmp_path / "answers"
    answers.touch()
    budget = 2  # a process has one connection at most
    environment = {"URI": postgresql_db.uri, "SQL": postgresql_db.sleep_sql(0.02), **broker}

    def answered() -> list[int]:
        return [int(line) for line in answers.read_text().splitlines()]

    def send(count: int) -> None:
        command = [sys.executable, "send.py", str(count)]
        subprocess.run(command, cwd=tmp_path, env=run_environment(tmp_path, environment), check=True)

    options = ("--concurrency", str(WORKERS), "--without-gossip", "--without-mingle", "--without-heartbeat")
    command = [sys.executable, "-W", "ignore", "-m", "celery", "--app", "tasks", "worker", *options]
    with (
        watching(postgresql_db) as samples,
        coordinating(tmp_path, "--max-size", str(budget)) as (_, address),
        started(tmp_path, command=command, PYSQLX_COORDINATOR=address, **environment) as run,
    ):
        send(40)
        until(lambda: len(set(answered())) == WORKERS and len(answered()) == 40)
        samples.wait_for(budget)
        first = set(answered())
        os.kill(min(first), signal.SIGKILL)
        until(lambda: len(members(tmp_path) - first) == 1)
        send(20)
        until(lambda: len(answered()) == 60)
        run.send(signal.SIGTERM)
        assert run.wait() == 0
        # No task and no hook has failed. That it lost a process, Celery may say: it learns of answers later than we do.
        assert not [line for line in run.rest() if "raised unexpected" in line or "Signal handler" in line]
        assert_nothing_is_left(tmp_path, postgresql_db)
    assert samples.most == budget, samples


@contextmanager
def serving(
    directory: Path,
    database: Database,
    command: Callable[..., list[str]],
    *options: str,
    budget: int = BUDGET,
    at_import: str = "",
    **environment: str,
) -> Iterator[tuple[Run, int, Samples]]:
    """A manager whose processes share `budget` connections: the run, its port, and what the server sees. At the end
    TERM ends it, and nothing may be left."""
    for name, text in (("wsgi.py", WSGI + at_import), ("hooks.py", HOOKS), ("asgi.py", ASGI)):
        (directory / name).write_text(text)
    port = free_port()
    environment = {"URI": database.uri, "SQL": database.sleep_sql(0.02), **environment}
    with (
        watching(database) as samples,
        coordinating(directory, "--max-size", str(budget)) as (_, address),
        started(directory, command=command(port, *options), PYSQLX_COORDINATOR=address, **environment) as run,
    ):
        until(lambda: listens(port))
        yield run, port, samples
        run.send(signal.SIGTERM)
        assert run.wait() == 0, run.rest()
        assert_nothing_is_left(directory, database)


def listens(port: int) -> bool:
    """Whether somebody listens there: from then on requests wait until a worker takes them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port for row in rows)
