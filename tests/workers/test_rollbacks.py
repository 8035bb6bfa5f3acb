"""A server that rolls back after it has closed the connection still has the session while it does."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from pysqlx_engine import PySQLXEngineSync
from tests.servers import Database

from .runs import started

BUDGET = 4
ROWS = 200_000
"""So many that taking them back takes MariaDB some tenths of a second."""

# Worker 0 uses its share for transactions that take long to be taken back; worker 1 waits for the whole budget. When
# worker 0 is killed, somebody has to be there who can see how its sessions end: worker 1 has one connection by then.
SCRIPT = """
import asyncio, os, pathlib, sys
from pysqlx_engine import PySQLXEnginePool

uri, rows, budget, ends_by = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
share = budget - 1
begun = []

async def insert(pool):
    async with pool.connection() as conn:
        await conn.begin()
        await conn.raw_cmd(f"INSERT INTO t (a) SELECT 'x' FROM seq_1_to_{rows}")
        begun.append(conn)
        if len(begun) == share:
            print("begun", os.getpid(), flush=True)
        while len(begun) < share or not pathlib.Path("end").exists() or ends_by == "kill":
            await asyncio.sleep(0.01)
        await conn.close()

async def hold(pool, everybody):
    async with pool.connection() as conn:
        await everybody.wait()

async def main():
    async with PySQLXEnginePool(uri=uri, min_size=1, max_size=budget) as pool:
        if os.environ["PYSQLX_WORKER_ID"] == "0":
            await asyncio.gather(*(insert(pool) for _ in range(share)))
            await asyncio.Event().wait()
        async with pool.connection():
            while not pathlib.Path("end").exists():
                await asyncio.sleep(0.01)
        everybody = asyncio.Barrier(budget)
        await asyncio.gather(*(hold(pool, everybody) for _ in range(budget)))
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("ends_by", ["kill", "close"])
@pytest.mark.thorough("close")
def test_a_lease_comes_back_when_the_server_has_rolled_back(tmp_path: Path, mysql_db: Database, ends_by: str) -> None:
    with PySQLXEngineSync(mysql_db.uri) as conn:
        conn.raw_cmd("CREATE TABLE t (id int PRIMARY KEY AUTO_INCREMENT, a char(100))")
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = ("-w", "2", "--max-size", str(BUDGET), "--restart", "never", "script.py", mysql_db.uri)
    with (
        mysql_db.sessions() as sessions,
        started(tmp_path, *arguments, str(ROWS), str(BUDGET), ends_by) as run,
    ):
        pid = int(run.line_with("begun").split()[-1])
        if ends_by == "kill":
            os.kill(pid, signal.SIGKILL)
        (tmp_path / "end").touch()
        ended, most = time.monotonic(), sessions()
        while time.monotonic() < ended + 2.0:  # longer than the rollbacks take: nothing else is to be waited for
            most = max(most, sessions(), key=len)
            time.sleep(0.002)
        run.send(signal.SIGTERM)
        run.wait()
    assert len(most) == BUDGET, most
