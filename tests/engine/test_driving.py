"""The synchronous face: off the GIL, in any thread, inside event loops, through interrupts, to the process's end."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import uvloop

from pysqlx_engine import PySQLXEngine, PySQLXEngineSync
from pysqlx_engine.engine.driving import DriverCall, drive

from ..servers import Database, PostgresServer

SLEEP = "SELECT pg_sleep(0.3)::text AS a"


def query(uri: str, sql: str) -> object:
    with PySQLXEngineSync(uri) as conn:
        return conn.query_first_as_dict(sql)


def test_threads_wait_side_by_side_and_another_one_keeps_ticking(postgres: PostgresServer) -> None:
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.005):
            ticks.append(time.monotonic())

    ticker = threading.Thread(target=tick)
    ticker.start()
    with ThreadPoolExecutor(8) as threads:
        connections = [PySQLXEngineSync(postgres.uri()) for _ in range(8)]
        list(threads.map(PySQLXEngineSync.connect, connections))
        started = time.monotonic()
        list(threads.map(lambda conn: conn.query(SLEEP), connections))
        took = time.monotonic() - started
    done.set()
    ticker.join()
    gaps = [later - earlier for earlier, later in pairwise(ticks)]
    assert took < 0.3 * 2
    assert max(gaps) < 0.15


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_it_works_inside_a_running_loop_which_runs_on_afterwards(database: Database, run: object) -> None:
    async def main() -> tuple[object, object]:
        loop = asyncio.get_running_loop()
        inside = query(database.uri, "SELECT 1 AS a")
        assert asyncio.get_running_loop() is loop
        async with PySQLXEngine(database.uri) as conn:
            return inside, await conn.query_first_as_dict("SELECT 2 AS a")

    assert run(main()) == ({"a": 1}, {"a": 2})  # type: ignore[operator]
    assert asyncio._get_running_loop() is None


def test_a_driven_coroutine_may_drive_another(sqlite_uri: str) -> None:
    async def outer() -> object:
        return query(sqlite_uri, "SELECT 1 AS a")

    assert drive(outer()) == {"a": 1}


def test_awaiting_anything_but_the_driver_is_an_error_not_a_hang() -> None:
    async def wait_for_a_future() -> None:
        await asyncio.Future(loop=asyncio.new_event_loop())

    with pytest.raises(RuntimeError, match="may await the driver only"):
        drive(wait_for_a_future())


def test_a_driver_that_is_woken_while_it_is_asked_is_asked_again(sqlite_uri: str) -> None:
    """It says so with a bare yield. With many threads that happens once in thousands of calls."""

    async def yields_first() -> object:
        await asyncio.sleep(0)
        return query(sqlite_uri, "SELECT 1 AS a")

    assert drive(yields_first()) == {"a": 1}


async def test_a_cancelled_call_can_be_waited_for_to_its_end(database: Database) -> None:
    async with PySQLXEngine(database.uri) as conn:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await conn.query(database.sleep_sql(0.5))
        assert conn._calls == 1
        await conn._finish_calls()
        assert conn._calls == 0
        assert await conn.query_as_dict("SELECT 1 AS a") == [{"a": 1}]


async def test_a_call_that_was_never_begun_is_not_waited_for(sqlite_uri: str) -> None:
    async with PySQLXEngine(sqlite_uri) as conn:
        await conn.execute("CREATE TABLE t (a int)")
        call = DriverCall(conn._connection().execute(conn._prepare("INSERT INTO t VALUES (1)", None)[0]))
        conn._in_flight.append(call)  # an interrupt came in between
        assert conn._calls == 0
        await conn._finish_calls()
        assert await conn.query("SELECT a FROM t") == []


def test_an_interrupt_ends_the_wait_and_the_call_stays_counted(postgres: PostgresServer) -> None:
    class Alarm(Exception):
        pass

    def interrupt(*_: object) -> None:
        # The handler may look for a loop: it must find none, as before the call.
        assert asyncio._get_running_loop() is None
        raise Alarm

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with PySQLXEngineSync(postgres.uri()) as conn:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            started = time.monotonic()
            with pytest.raises(Alarm):
                conn.query("SELECT pg_sleep(5)::text AS a")
            assert time.monotonic() - started < 2
            assert conn._engine._calls == 1
    finally:
        signal.signal(signal.SIGALRM, before)


class Interrupted(Exception):
    pass


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # interrupted before its first step
@pytest.mark.parametrize("kind", [KeyboardInterrupt, Interrupted])
def test_an_interrupt_at_any_moment_comes_out_as_itself_and_leaves_nothing_behind(
    sqlite_uri: str, kind: type[BaseException]
) -> None:
    armed = False

    def interrupt(*_: object) -> None:
        if armed:
            raise kind

    before = signal.signal(signal.SIGALRM, interrupt)
    interrupts = 0
    try:
        with PySQLXEngineSync(sqlite_uri) as conn:
            ends = time.monotonic() + 2
            while time.monotonic() < ends:
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(3e-5, 3e-4))
                    while time.monotonic() < ends + 10:
                        assert conn.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
                    raise AssertionError("somebody has kept the interrupt")
                except kind:
                    armed = False
                    interrupts += 1
                assert asyncio._get_running_loop() is None
                drive(conn._engine._finish_calls())
                assert conn._engine._calls == 0
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupts > 100


SCRIPTS = {
    "open connections": """
        conn = PySQLXEngineSync(uri)
        conn.connect()
        conn.query("SELECT 1 AS a")
    """,
    "a daemon thread in mid-query": """
        conn = PySQLXEngineSync(uri)
        conn.connect()
        threading.Thread(target=conn.query, args=[sql], daemon=True).start()
        while not conn._engine._calls: time.sleep(0.001)
    """,
    "daemon threads that query without end": """
        def work():
            with PySQLXEngineSync(uri) as conn:
                while True:
                    conn.query("SELECT 1 AS a")
                    busy.set()
        busy = threading.Event()
        for _ in range(4): threading.Thread(target=work, daemon=True).start()
        busy.wait()
    """,
    "a pending task": """
        async def main():
            conn = PySQLXEngine(uri)
            await conn.connect()
            query = asyncio.ensure_future(conn.query(sql))
            while not conn._calls: await asyncio.sleep(0)
            return query
        query = asyncio.new_event_loop().run_until_complete(main())
    """,
    "a cancelled query": """
        async def main():
            conn = PySQLXEngine(uri)
            await conn.connect()
            await asyncio.wait([asyncio.ensure_future(conn.query(sql))], timeout=0.05)
        asyncio.run(main())
    """,
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("status", [0, 3])
def test_a_script_ends_with_its_own_status_whatever_is_in_flight(
    postgres: PostgresServer, name: str, status: int
) -> None:
    body = "\n".join(line[8:] for line in SCRIPTS[name].splitlines())
    script = (
        "import asyncio, sys, threading, time\n"
        "from pysqlx_engine import PySQLXEngine, PySQLXEngineSync\n"
        f"uri, sql = {postgres.uri()!r}, 'SELECT pg_sleep(20)::text AS a'\n{body}\nsys.exit({status})"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 10


def test_a_keyboard_interrupt_ends_a_script_in_mid_query(postgres: PostgresServer) -> None:
    script = (
        "from pysqlx_engine import PySQLXEngineSync\n"
        f"conn = PySQLXEngineSync({postgres.uri()!r})\nconn.connect()\nprint('ready', flush=True)\n"
        "try: conn.query('SELECT pg_sleep(20)::text AS a')\n"
        "except KeyboardInterrupt: print('interrupted', conn._engine._calls)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with postgres.admin() as admin:
            active = (
                "SELECT 1 FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE '%pg_sleep(20)::text AS a'"
            )
            while not admin.execute(active).fetchone():
                pass
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "interrupted 1\n"
    assert process.returncode == 0


def test_an_engine_made_before_a_fork_works_in_the_child(sqlite_uri: str) -> None:
    script = (
        "import os\nfrom pysqlx_engine import PySQLXEngineSync\n"
        f"conn = PySQLXEngineSync({sqlite_uri!r})\n"
        "pid = os.fork()\n"
        "if pid: raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "conn.connect()\nassert conn.query_first_as_dict('SELECT 1 AS a') == {'a': 1}\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=20)
