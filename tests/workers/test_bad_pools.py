"""What `pysqlx-run` says when a script's pool cannot be: one line, status 3, no password, nothing left running."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers import Database, PostgresServer, free_port

from .runs import finished

SCRIPT = """
import asyncio, os
from pysqlx_engine import PySQLXEnginePool

async def main():
    async with PySQLXEnginePool(uri={uri!r}, min_size=1, max_size={max_size}, conn_timeout={timeout}) as pool:
        async with pool.connection() as conn:
            print(await conn.query_first("SELECT 1 AS a"))
        await asyncio.sleep({stay})

asyncio.run(main())
"""
SECRET = "sesame"


def write(directory: Path, uri: str, max_size: str = "30", stay: float = 0, timeout: float = 30.0) -> str:
    (directory / "worker.py").write_text(SCRIPT.format(uri=uri, max_size=max_size, stay=stay, timeout=timeout))
    return "worker.py"


def only_line(directory: Path, *arguments: str) -> str:
    status, out, err = finished(directory, *arguments)
    assert status == 3, (out, err)
    assert SECRET not in "\n".join(out + err)
    assert len(err) == 1, "\n".join(err)
    return err[0]


@pytest.mark.parametrize("workers", ["1", "3"])
def test_an_unknown_provider(tmp_path: Path, workers: str) -> None:
    line = only_line(tmp_path, "-w", workers, write(tmp_path, f"oracle://scott:{SECRET}@db/shop"))
    assert line.startswith("pysqlx-run: worker.py: ConnectError: unknown database provider")
    assert "oracle://scott:***@db/shop" in line
    assert "postgresql://" in line


@pytest.mark.parametrize("workers", ["1", "3"])
def test_a_server_that_cannot_be_reached(tmp_path: Path, workers: str) -> None:
    port = free_port()
    script = write(tmp_path, f"postgresql://me:{SECRET}@127.0.0.1:{port}/shop", timeout=0.5)
    line = only_line(tmp_path, "-w", workers, script)
    assert line.startswith("pysqlx-run: worker.py: PoolTimeoutError: no connection within 0.5 s")
    assert f"127.0.0.1:{port}" in line


@pytest.mark.parametrize("workers", ["1", "3"])
def test_a_wrong_password(tmp_path: Path, mysql_db: Database, workers: str) -> None:
    uri = mysql_db.uri.replace("root@", f"root:{SECRET}@").replace("root:@", f"root:{SECRET}@")
    line = only_line(tmp_path, "-w", workers, write(tmp_path, uri))
    assert line.startswith("pysqlx-run: worker.py: ConnectError: ")
    assert "Access denied for user" in line


@pytest.mark.parametrize("workers", ["1", "3"])
def test_an_unknown_database(tmp_path: Path, postgres: PostgresServer, workers: str) -> None:
    line = only_line(tmp_path, "-w", workers, write(tmp_path, postgres.uri("nowhere")))
    assert 'database "nowhere" does not exist' in line


def test_two_sizes_for_one_database_without_an_operators_value(tmp_path: Path, postgresql_db: Database) -> None:
    size = "[20, 30][int(os.environ['PYSQLX_WORKER_ID'])]"
    status, out, err = finished(tmp_path, "-w", "2", write(tmp_path, postgresql_db.uri, size, stay=20))
    assert status == 3, (out, err)
    [line] = [line for line in err if "PoolRefusedError" in line]
    assert line.startswith("pysqlx-run: worker.py: PoolRefusedError: pool-1 of worker")
    assert line == err[0]
    # The other one may be told to end while it logs in, which takes a server as long as it takes.
    assert all("draining" in one or "has not let go" in one for one in err[1:])
    for named in ("worker 0", "worker 1", "max_size=20", "max_size=30", "--max-size"):
        assert named in line


@pytest.mark.parametrize("workers", [1, 3])
def test_a_larger_size_under_an_operators_value_is_capped_and_said_once(
    tmp_path: Path, postgresql_db: Database, workers: int
) -> None:
    size = "[20, 30, 30][int(os.environ['PYSQLX_WORKER_ID'])]" if workers > 1 else "30"
    script = write(tmp_path, postgresql_db.uri, size)
    status, out, err = finished(tmp_path, "-w", str(workers), "--max-size", "10", script)
    assert (status, len(out)) == (0, workers), err
    assert all("is capped to 10, the operator's budget for" in line for line in err)
    assert len([line for line in err if "max_size=30" in line]) == 1, err
