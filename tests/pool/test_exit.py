"""A script that never calls stop() ends with its own status and leaves no session behind."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from pysqlx_engine import PySQLXEngineSync
from tests.servers import Database

ASYNCIO = """
import asyncio, sys
from pysqlx_engine import PySQLXEnginePool

pool = PySQLXEnginePool(uri=sys.argv[1], min_size=3, max_size=4)
tasks = []

async def query():
    async with pool.connection() as conn:
        await conn.query(sys.argv[2])

async def main():
    await pool.start()
    if sys.argv[3] == "busy":
        tasks.append(asyncio.create_task(query()))
        while not pool.stats().in_use:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
    print("done")

asyncio.run(main())
"""
# Whoever closes a loop without asyncio.run leaves its tasks as they are.
CLOSED_LOOP = ASYNCIO.replace(
    "asyncio.run(main())",
    """
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
for task in tasks:
    task._log_destroy_pending = False
""",
)
THREADS = """
import sys, threading, time
from pysqlx_engine import PySQLXEnginePoolSync

pool = PySQLXEnginePoolSync(uri=sys.argv[1], min_size=3, max_size=4)
pool.start()

def query():
    with pool.connection() as conn:
        conn.query(sys.argv[2])

if sys.argv[3] == "busy":
    threading.Thread(target=query, daemon=True).start()
    while not pool.stats().in_use:
        time.sleep(0.01)
    time.sleep(0.1)
print("done")
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
@pytest.mark.parametrize("script", [ASYNCIO, CLOSED_LOOP, THREADS], ids=["asyncio", "closed loop", "threads"])
def test_a_script_that_never_stops_its_pool_ends_cleanly(database: Database, script: str, state: str) -> None:
    arguments = [database.uri, database.sleep_sql(1.0), state]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert done.stderr == ""
    with database.sampler() as sample:
        # MariaDB ends a query whose client is gone only when it wants to send the answer.
        deadline = time.monotonic() + (5 if state == "busy" else 0)
        while sample():
            assert time.monotonic() < deadline, "sessions are left"


# The driver's thread has woken whoever waited for the call and is slow to leave Python, as on a machine that has
# something else to do. Had it not been waited for, it would ask a finalising interpreter for the GIL: SIGABRT.
SLOW_TO_LEAVE = """
import asyncio.selector_events, sys, threading, time
from pysqlx_engine.engine import driving
from pysqlx_engine import PySQLXEnginePoolSync

late = []

def slowly():
    late.append(threading.get_ident())
    for _ in range(100):
        time.sleep(0.0005)

class ThreadLoop(driving._ThreadLoop):
    def call_soon_threadsafe(self, *arguments, **named):
        super().call_soon_threadsafe(*arguments, **named)
        slowly()

class EventLoop(asyncio.SelectorEventLoop):
    def _write_to_self(self):
        super()._write_to_self()
        if threading.get_ident() not in {thread.ident for thread in threading.enumerate()}:
            slowly()

driving._ThreadLoop = ThreadLoop
asyncio.new_event_loop = EventLoop
with PySQLXEnginePoolSync(sys.argv[1], min_size=1) as pool:
    with pool.connection() as conn:
        conn.query_first(sys.argv[2])
print(bool(late))
"""


def test_a_thread_of_the_driver_that_is_still_in_python_is_waited_for(database: Database) -> None:
    command = [sys.executable, "-c", SLOW_TO_LEAVE, database.uri, database.sleep_sql(0.02)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


LATE = """
import atexit, sys

@atexit.register
def late():  # handlers run in the opposite order: this one comes after the pool's own
    from pysqlx_engine.errors import PoolError

    for attempt in (pool.stop, pool.start, pool.drain):
        try:
            attempt()
        except PoolError as error:
            print(type(error).__name__)

from pysqlx_engine import PySQLXEnginePoolSync

pool = PySQLXEnginePoolSync(sys.argv[1], min_size=1)
pool.start()
"""


def test_an_exit_handler_that_comes_after_the_pools_own_is_told_so(sqlite_uri: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE, sqlite_uri], capture_output=True, text=True, timeout=20, check=False
    )
    expected = "PoolAlreadyClosedError\nPoolClosedError\nPoolClosedError\n"
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


EARLY = """
import atexit, os, sys
import pysqlx_engine

@atexit.register
def early():  # no pool was there yet, but the package was
    with pool.connection() as conn:
        print(conn.query_first("SELECT 1 AS a").a)

def in_child():
    from pysqlx_engine.errors import PoolError

    try:
        pool.stats()
        pool.start()
    except PoolError as error:
        print(type(error).__name__, flush=True)

os.register_at_fork(after_in_child=in_child)
pool = pysqlx_engine.PySQLXEnginePoolSync(sys.argv[1], min_size=1)
pool.start()
if os.fork() == 0:
    os._exit(0)
os.wait()
"""


def test_what_was_registered_after_the_import_comes_before_us_at_exit_and_after_us_in_a_child(sqlite_uri: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY, sqlite_uri], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout) == (0, "PoolForkedError\n1\n"), done.stderr


HOOKS = """
import os, sys
from pysqlx_engine.system import after_fork_in_child, at_interpreter_exit

def fails():
    raise ValueError("shown")

for register in (after_fork_in_child, at_interpreter_exit):
    for hook in (lambda: print("first", flush=True), fails, lambda: print("last", flush=True)):
        register(hook)
if os.fork() == 0:
    os._exit(0)
os.wait()
"""


def test_a_hook_that_fails_is_shown_and_keeps_no_other_from_its_work() -> None:
    done = subprocess.run([sys.executable, "-c", HOOKS], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["first", "last", "last", "first"])
    assert done.stderr.count("ValueError: shown") == 2


# What works in this process cannot be cut off: it is waited for, or it would come back while the interpreter ends.
LONG_IN_PROCESS = """
import sys, threading, time
from pysqlx_engine import PySQLXEnginePoolSync

pool = PySQLXEnginePoolSync(sys.argv[1], min_size=1)
pool.start()
ended = []

def query():
    with pool.connection() as conn:
        conn.query(sys.argv[2])

threading.Thread(target=query, daemon=True).start()
while not pool.stats().in_use:
    time.sleep(0.01)
time.sleep(0.1)
print("done")
"""


def test_a_long_statement_of_sqlite_is_waited_for_at_exit(sqlite_db: Database) -> None:
    with PySQLXEngineSync(sqlite_db.uri) as conn:
        started = time.monotonic()
        conn.query(sqlite_db.sleep_sql(1.0))
        pace = time.monotonic() - started
    command = [sys.executable, "-c", LONG_IN_PROCESS, sqlite_db.uri, sqlite_db.sleep_sql(5.0 / pace)]  # 5 s of 10
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert time.monotonic() - started > 2.7, "as long as the statement takes"
