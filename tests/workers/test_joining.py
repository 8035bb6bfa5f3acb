"""Processes that nobody supervises join a coordinator when PYSQLX_COORDINATOR names one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pysqlx_engine import PySQLXEnginePool
from pysqlx_engine.errors import PoolRefusedError, PoolTimeoutError, SettingsError
from pysqlx_engine.workers.link import Link
from pysqlx_engine.workers.messages import FromProcess, encode
from tests.servers import Database

from .runs import run_environment, started
from .sampling import watching

COORDINATOR = """
import multiprocessing, sys
from pysqlx_engine.workers.coordinator import CoordinatorConfig, main

main(CoordinatorConfig(directory=sys.argv[1], max_size=int(sys.argv[2]), name="alone"))
"""
USER = """
import sys, threading
from pysqlx_engine import PySQLXEnginePoolSync

uri, sql = sys.argv[1:3]
with PySQLXEnginePoolSync(uri=uri, min_size=1, max_size=50) as pool:
    def work():
        for _ in range(5):
            with pool.connection() as conn:
                conn.query_first(sql)
    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("zmq" in sys.modules, pool.stats().max_size)
"""


@contextmanager
def coordinator(directory: Path, size: int) -> Iterator[str]:
    """A coordinator on its own; gives its address."""
    with subprocess.Popen([sys.executable, "-c", COORDINATOR, str(directory), str(size)]) as process:
        try:
            yield f"ipc://{directory}/coordinator.sock"
        finally:
            process.terminate()
            assert process.wait(10) == 0


def test_processes_of_any_origin_share_the_budget_of_the_coordinator_they_join(
    tmp_path: Path, database: Database
) -> None:
    # The processes may be there before the coordinator: they wait for it.
    environment = run_environment(tmp_path, {"PYSQLX_COORDINATOR": f"ipc://{tmp_path}/coordinator.sock"})
    command = [sys.executable, "-c", USER, database.uri, database.sleep_sql(0.02)]
    users = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    with watching(database) as samples, coordinator(tmp_path, size=4):
        outputs = [user.communicate(timeout=60)[0] for user in users]
    assert [user.returncode for user in users] == [0, 0, 0]
    assert outputs == ["True 4\n"] * 3
    assert samples.most == 4, samples


async def test_a_coordinator_that_cannot_be_reached_is_waited_for_and_then_named(
    sqlite_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = f"ipc://{tmp_path}/nobody.sock"
    monkeypatch.setenv("PYSQLX_COORDINATOR", address)
    pool = PySQLXEnginePool(sqlite_uri, min_size=1, conn_timeout=0.2)
    with pytest.raises(PoolTimeoutError, match=rf"within 0\.2 s \(coordinator not reachable at {address}\)") as caught:
        await pool.start()
    assert caught.value.at_start
    assert pool.closed


async def test_an_address_that_is_none_is_refused_at_once(sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSQLX_COORDINATOR", "/tmp/coordinator.sock")
    with pytest.raises(SettingsError, match=r"^PYSQLX_COORDINATOR=/tmp/coordinator\.sock is not allowed: the address"):
        await PySQLXEnginePool(sqlite_uri, min_size=1).start()


async def test_a_pool_that_cannot_be_told_to_the_coordinator_is_refused_and_the_others_go_on(
    sqlite_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "caf\udce9").mkdir()  # a name that is not UTF-8
    (tmp_path / "link").symlink_to("caf\udce9")
    with coordinator(tmp_path, size=2) as address:
        monkeypatch.setenv("PYSQLX_COORDINATOR", address)
        async with PySQLXEnginePool(sqlite_uri, min_size=1) as pool:
            with pytest.raises(PoolRefusedError, match=r"/caf\\udce9/a\.db' cannot be told to the coordinator"):
                await PySQLXEnginePool(f"sqlite:{tmp_path}/link/a.db", min_size=1).start()
            async with pool.connection(), pool.connection():
                assert pool.stats().in_use == 2


def test_who_is_interrupted_while_he_wakes_the_link_does_not_make_it_deaf(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looked = threading.Event()

    class Watched(Link):
        def outgoing(self) -> list[FromProcess]:
            looked.set()
            return super().outgoing()

    def interrupted() -> int:
        raise KeyboardInterrupt  # as a signal's handler may, wherever something is called

    link = Watched(f"ipc://{tmp_path}/nobody.sock")
    try:
        with monkeypatch.context() as signalled:
            signalled.setattr(threading, "get_ident", interrupted)
            with pytest.raises(KeyboardInterrupt):
                link.flush()
        looked.clear()
        link.flush()
        assert looked.wait(10.0)
    finally:
        link.stop()


HAS_FAILED = r"^the link to the coordinator at ipc://.* has failed: TypeError: 'NoneType'"


async def use(pool: PySQLXEnginePool) -> None:
    async with pool.connection() as conn:
        await conn.query_first("SELECT 1 AS a")


async def test_a_link_that_fails_fails_its_pools_at_once_but_for_the_connections_they_have_and_tries_again(
    sqlite_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with coordinator(tmp_path, size=2) as address:
        monkeypatch.setenv("PYSQLX_COORDINATOR", address)
        pool = PySQLXEnginePool(sqlite_uri, min_size=1)
        empty = PySQLXEnginePool(sqlite_uri, min_size=0)
        await pool.start()
        await empty.start()
    # The link fails when it says hello to the next coordinator.
    monkeypatch.setattr("pysqlx_engine.workers.link.encode", None)
    with coordinator(tmp_path, size=2):
        for _ in range(2):  # when the link fails, and after that
            with pytest.raises(PoolRefusedError, match=HAS_FAILED):
                await use(empty)
        with pytest.raises(PoolRefusedError, match=HAS_FAILED):
            await PySQLXEnginePool(sqlite_uri, min_size=1).start()
        async with pool.connection():
            waiter = asyncio.create_task(use(pool))
            while pool.stats().waiting == 0:
                await asyncio.sleep(0)
        await waiter
        monkeypatch.setattr("pysqlx_engine.workers.link.encode", encode)  # cured
        while True:
            try:
                await use(empty)
                break
            except PoolRefusedError:
                await asyncio.sleep(0.01)
        await pool.stop()
        await empty.stop()


MANY_FILES = """
import os, resource, sys
from pysqlx_engine import PySQLXEnginePoolSync
from pysqlx_engine.errors import PoolRefusedError
from pysqlx_engine.workers import link

resource.setrlimit(resource.RLIMIT_NOFILE, (2048, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
encode, link.encode = link.encode, None
try:
    PySQLXEnginePoolSync(uri=sys.argv[1], min_size=1).start()
except PoolRefusedError as error:
    print(error)
link.encode = encode
while True:
    try:
        with PySQLXEnginePoolSync(uri=sys.argv[1], min_size=1) as pool, pool.connection() as conn:
            print(conn.query_first("SELECT 1 AS a").a)
        break
    except PoolRefusedError:
        pass
"""


def test_a_link_tries_again_in_a_process_that_has_many_files_open(sqlite_uri: str, tmp_path: Path) -> None:
    with coordinator(tmp_path, size=2) as address:
        environment = run_environment(tmp_path, {"PYSQLX_COORDINATOR": address})
        command = [sys.executable, "-c", MANY_FILES, sqlite_uri]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    failed, result = done.stdout.splitlines()
    assert "has failed: TypeError: 'NoneType'" in failed
    assert result == "1"


def test_a_pool_of_one_process_loads_neither_zeromq_nor_multiprocess(sqlite_uri: str, tmp_path: Path) -> None:
    script = USER.replace('"zmq" in sys.modules', '{"zmq", "multiprocess"} & sys.modules.keys()')
    command = [sys.executable, "-c", script, sqlite_uri, "SELECT 1 AS a"]
    done = subprocess.run(command, env=run_environment(tmp_path, {}), capture_output=True, text=True, check=True)
    assert done.stdout == "set() 50\n"


def test_a_memory_database_needs_no_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = [sys.executable, "-c", USER, "sqlite::memory:", "SELECT 1 AS a"]
    environment = run_environment(tmp_path, {"PYSQLX_COORDINATOR": f"ipc://{tmp_path}/nobody.sock"})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False 50\n"


REPLACES_ITSELF = """
import os, sys
from pysqlx_engine import PySQLXEnginePoolSync

pool = PySQLXEnginePoolSync(uri=sys.argv[1], min_size=2, max_size=2, conn_timeout=15)
pool.start()
with pool.connection(), pool.connection():  # each under a lease
    print("image", sys.argv[2], os.getpid(), flush=True)
    if sys.argv[2] == "1":
        sys.stdin.readline()
        os.execv(sys.executable, [sys.executable, sys.argv[0], sys.argv[1], "2"])
pool.stop()
"""


@pytest.mark.parametrize("coordinators", [1, 2], ids=["the same coordinator", "another coordinator"])
@pytest.mark.thorough("mysql")
def test_a_process_that_replaces_itself_gets_its_leases_again(
    tmp_path: Path, database: Database, coordinators: int
) -> None:
    script = tmp_path / "replaces_itself.py"
    script.write_text(REPLACES_ITSELF)
    environment = run_environment(tmp_path, {"PYSQLX_COORDINATOR": f"ipc://{tmp_path}/coordinator.sock"})
    command = [sys.executable, str(script), database.uri, "1"]
    with (
        watching(database) as samples,
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        assert process.stdin is not None
        with coordinator(tmp_path, size=2):
            assert process.stdout.readline() == f"image 1 {process.pid}\n"
            samples.wait_for(2)
            if coordinators == 1:
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == f"image 2 {process.pid}\n"
                assert process.wait(20) == 0
        if coordinators == 2:
            process.stdin.write("\n")
            process.stdin.flush()
            with coordinator(tmp_path, size=2):
                assert process.stdout.readline() == f"image 2 {process.pid}\n"
                assert process.wait(20) == 0
    assert samples.most == 2, samples


HOLDER = """
import asyncio, sys
from pysqlx_engine import PySQLXEnginePool

async def main():
    async with PySQLXEnginePool(uri=sys.argv[1], min_size=1, max_size=2):
        print("started", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.thorough("sqlite", "mysql")
def test_a_second_coordinator_for_a_database_warns(tmp_path: Path, database: Database) -> None:
    (tmp_path / "holder.py").write_text(HOLDER)
    options = ("-w", "2", "--name")
    with started(tmp_path, *options, "first", "holder.py", database.uri) as first:
        first.line_with("started")
        with started(tmp_path, *options, "second", "holder.py", database.uri) as second:
            assert "the run first has a budget for" in second.line_with("the two add up")
            second.line_with("started")
            second.process.terminate()
            assert second.wait() == 0
        first.process.terminate()
        assert first.wait() == 0
