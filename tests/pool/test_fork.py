"""A forked child never touches what is its parent's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.servers import Database

# Nothing is tested in the test process itself: it has threads, and a fork would take their locks along.
SCRIPT = """
import asyncio, os, sys, time
from pysqlx_engine import PySQLXEnginePool, PySQLXEnginePoolSync, PySQLXEngineSync
from pysqlx_engine.errors import ConnectError, PoolForkedError

uri, how = sys.argv[1:3]
pool = PySQLXEnginePoolSync(uri, min_size=2, max_size=2)
if how != "unused":
    pool.start()
if how == "left":
    with pool.connection() as conn:
        conn.begin()
        child = os.fork()
        conn.rollback() if child else None
else:
    child = os.fork()
if child == 0:
    if how == "unused":
        pool.start()
        with pool.connection() as conn:
            print("child", conn.query_first_as_dict("SELECT 1 AS a"), flush=True)
        pool.stop()
    elif how == "used":
        for attempt in (pool.connection().__enter__, pool.start):
            try:
                attempt()
            except PoolForkedError as error:
                print("child", "spawn" in str(error), flush=True)
    elif how == "collected":
        del pool
    elif how == "another":
        for attempt in (PySQLXEnginePoolSync(uri).start, PySQLXEngineSync(uri).connect):
            try:
                attempt()
            except (PoolForkedError, ConnectError) as error:
                print("child", type(error).__name__, "spawn" in str(error), flush=True)
    elif how == "asyncio":
        async def use():
            try:
                await PySQLXEnginePool(uri).start()
            except PoolForkedError as error:
                print("child", "spawn" in str(error), flush=True)
        asyncio.run(use())
    sys.exit(0)
_, status = os.waitpid(child, 0)
print("parent", os.waitstatus_to_exitcode(status), flush=True)
if how == "unused":
    pool.start()
for _ in range(4):
    with pool.connection() as one, pool.connection() as two:
        assert one.query_first_as_dict("SELECT 1 AS a") == two.query_first_as_dict("SELECT 1 AS a") == {"a": 1}
pool.stop()
"""

EXPECTED = {
    "unused": ["child {'a': 1}", "parent 0"],
    "used": ["child True", "child True", "parent 0"],
    "collected": ["parent 0"],
    "ended": ["parent 0"],
    "another": ["child PoolForkedError True", "child ConnectError True", "parent 0"],
    "asyncio": ["child True", "parent 0"],
    "left": ["parent 0"],
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("how", EXPECTED)
def test_a_fork_leaves_the_parents_connections_alone(database: Database, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT, database.uri, how],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()) == (0, EXPECTED[how]), done.stderr
    assert done.stderr == ""
