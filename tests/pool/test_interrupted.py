"""Signals whose handlers raise, or stop the pool, in the midst of the pool's own code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.servers import Database

INTERRUPTED = """
import random, signal, sys, time
from pysqlx_engine import PySQLXEnginePoolSync

class Interrupt(BaseException): ...

def interrupt(*_):
    raise Interrupt

uri, query = sys.argv[1], sys.argv[2] == "query"
signal.signal(signal.SIGALRM, interrupt)
with PySQLXEnginePoolSync(uri, min_size=2, max_size=5, check_interval=0.2) as pool:
    interrupts, until = 0, time.monotonic() + 3
    while time.monotonic() < until:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0002, 0.002))
            while True:
                with pool.connection() as conn:
                    if query:
                        conn.query_first_as_dict("SELECT 1 AS a")
        except Interrupt:
            interrupts += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    del conn
    deadline = time.monotonic() + 10
    while pool.stats().in_use and time.monotonic() < deadline:
        time.sleep(0.01)
    stats = pool.stats()
    print(interrupts > 100, stats.in_use, stats.held == stats.size)
"""


@pytest.mark.parametrize("what", ["nothing", "query"])
@pytest.mark.thorough("sqlite", "mysql")
def test_a_check_out_that_is_interrupted_anywhere_comes_back(database: Database, what: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, database.uri, what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "True 0 True\n"), done.stderr


STOPPED = """
import signal, sys
from pysqlx_engine import PySQLXEnginePoolSync

def term(*_):
    pool.stats()
    pool.stop(timeout=0)
    sys.exit(7)

signal.signal(signal.SIGALRM, term)
pool = PySQLXEnginePoolSync(sys.argv[1], min_size=1, max_size=2)
pool.start()
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
while True:
    with pool.connection():
        pass
"""


@pytest.mark.parametrize("turn", range(6))
def test_a_signals_handler_may_stop_the_pool_that_it_interrupts(sqlite_db: Database, turn: int) -> None:
    command = [sys.executable, "-c", STOPPED, sqlite_db.uri, str(0.05 + turn * 0.0017)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (7, "")
    with sqlite_db.sampler() as sample:
        assert sample() == 0
